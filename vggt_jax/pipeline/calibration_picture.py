"""What `calibrate` measured, as a picture."""

import os
from typing import Any

import numpy as np

from vggt_jax.files import replacing
from vggt_jax.pipeline.calibrate import CalibrationReport


def write_calibration_picture(path: str | os.PathLike, report: CalibrationReport) -> None:
    """Writes a PNG: drift and keys of each layer, and the drift of the whole, both ways.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {
        name: label
        for name, label in (("camera", "cameras (degrees)"), ("depth", "depth (share)"))
        if not np.isnan(getattr(report.layers, name)).any()
    }
    num_rows = len(shown) + 1
    figure = Figure(figsize=(10, 2.4 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(num_rows, 2, squeeze=False, width_ratios=(4, 1))
    layers = np.arange(len(report.keys))
    for (of_layers, of_whole), (name, label) in zip(panels, shown.items(), strict=False):
        of_layers.bar(layers, getattr(report.layers, name), color="tab:blue")
        of_layers.set(title=f"drift of {label}, one layer sampled to {report.num_keys} keys")
        whole = [getattr(drift, name) for drift in (report.alike, report.by_layer)]
        of_whole.bar(["all alike", "by layer"], whole, color=["tab:gray", "tab:green"])
        of_whole.set(title="all layers sampled")
    of_keys, unused = panels[-1]
    unused.set_axis_off()
    of_keys.bar(layers, report.keys, color="tab:green")
    of_keys.axhline(report.num_keys, color="tab:gray")
    of_keys.axhline(min(report.num_patches), color="black", linestyle="dotted")
    of_keys.set(title="keys by layer (grey: all alike; dotted: all patches)", yscale="log")
    for panel in panels[:, 0]:
        panel.set_xticks(layers)
        panel.set_xlabel("layer")
    for panel in panels.flat:
        panel.grid(axis="y", alpha=0.3)
        panel.set_axisbelow(True)
    chosen = "keys by layer" if report.is_better_by_layer else "all layers alike"
    sizes: list[Any] = [
        f"{frames} frames of {width}x{height}"
        for frames, (height, width) in zip(report.num_frames, report.size, strict=True)
    ]
    counted = ", ".join(f"{sizes.count(x)} x {x}" for x in dict.fromkeys(sizes))
    figure.suptitle(f"against dense attention; scenes: {counted}; chosen: {chosen}", fontsize=10)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
