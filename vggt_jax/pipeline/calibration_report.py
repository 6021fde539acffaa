"""What `calibrate` measured: as values, a table, and a picture."""

import dataclasses
import os
from typing import Any

import numpy as np

from vggt_jax.evaluation.drift import Drift
from vggt_jax.files import replacing

PICTURE_MARK = b"vggt-jax calibrate"
"""What the picture's metadata hold, by which a later run knows it for its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """What `calibrate` measured.

    Attributes:
        num_keys: the mean over layers.
        num_frames, num_patches: of each scene.
        size: (height, width) of the frames of each scene.
        layers: the drift with one layer alone sampled to `num_keys`, by layer.
        keys: what the budgets give to each layer; as many as there are patches is dense.
        by_layer: the drift with all layers sampled to `keys`.
        alike: the drift with all layers sampled to `num_keys`.
        checksum: of the model's parameters as they are stored; None if unknown.
    """

    num_keys: int
    num_frames: tuple[int, ...]
    num_patches: tuple[int, ...]
    size: tuple[tuple[int, int], ...]
    layers: Drift
    keys: tuple[int, ...]
    by_layer: Drift
    alike: Drift
    checksum: str | None = None

    @property
    def is_better_by_layer(self) -> bool:
        """Whether the plan has `keys`; otherwise all its layers are alike."""
        return self.by_layer.relative_to(self.alike) < 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        fields = {x.name: getattr(self, x.name) for x in dataclasses.fields(self)}
        as_json = {x: y.to_dict() if isinstance(y, Drift) else y for x, y in fields.items()}
        return as_json | {"chosen": "by_layer" if self.is_better_by_layer else "alike"}

    def __str__(self) -> str:
        chosen = "by layer" if self.is_better_by_layer else "all alike"
        rows: list[tuple[Any, ...]] = [("layer", "keys", "camera, deg", "depth")]
        shown = lambda x, digits: "-" if np.isnan(x) else f"{x:.{digits}f}"
        of_layers = zip(self.keys, self.layers.camera, self.layers.depth, strict=True)
        for layer, (keys, camera, depth) in enumerate(of_layers):
            rows.append((layer, keys, shown(camera, 3), shown(depth, 5)))
        for name, drift in (("by layer", self.by_layer), ("all alike", self.alike)):
            rows.append((name, self.num_keys, shown(drift.camera, 3), shown(drift.depth, 5)))
        table = "\n".join("".join(f"{cell!s:>12}" for cell in row) for row in rows)
        return f"drift against dense attention, each layer sampled alone\n{table}\nchosen: {chosen}"

    def write_picture(self, path: str | os.PathLike) -> None:
        """Writes a PNG: drift and keys of each layer, and the drift of the whole, both ways.

        Raises:
            InputError: the file cannot be written.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        shown = {
            name: label
            for name, label in (("camera", "cameras (degrees)"), ("depth", "depth (relative)"))
            if not np.isnan(getattr(self.layers, name)).any()
        }
        num_rows = len(shown) + 1
        figure = Figure(figsize=(10, 2.4 * num_rows), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(num_rows, 2, squeeze=False, width_ratios=(4, 1))
        layers = np.arange(len(self.keys))
        for (of_layers, of_whole), (name, label) in zip(panels, shown.items(), strict=False):
            of_layers.bar(layers, getattr(self.layers, name), color="tab:blue")
            of_layers.set(title=f"drift of {label}, one layer sampled to {self.num_keys} keys")
            whole = [getattr(drift, name) for drift in (self.alike, self.by_layer)]
            of_whole.bar(["all alike", "by layer"], whole, color=["tab:gray", "tab:green"])
            of_whole.set(title="all layers sampled")
        of_keys, unused = panels[-1]
        unused.set_axis_off()
        of_keys.bar(layers, self.keys, color="tab:green")
        of_keys.axhline(self.num_keys, color="tab:gray")
        patches = f"{min(self.num_patches):,}"
        of_keys.set(title=f"keys by layer, of {patches} patches; grey: all alike")
        for panel in panels[:, 0]:
            panel.set_xticks(layers)
            panel.set_xlabel("layer")
        for panel in panels.flat:
            panel.grid(axis="y", alpha=0.3)
            panel.set_axisbelow(True)
        chosen = "keys by layer" if self.is_better_by_layer else "all layers alike"
        sizes: list[Any] = [
            f"{frames} frames of {width}x{height}"
            for frames, (height, width) in zip(self.num_frames, self.size, strict=True)
        ]
        counted = ", ".join(f"{sizes.count(x)} x {x}" for x in dict.fromkeys(sizes))
        figure.suptitle(
            f"against dense attention; scenes: {counted}; chosen: {chosen}", fontsize=10
        )
        with replacing(path) as file:
            software = {"Software": PICTURE_MARK.decode()}
            figure.savefig(file, format="png", dpi=110, metadata=software)
