"""The pictures of `vggt-jax analyze`: each function takes numbers and returns a figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from vggt_jax.analysis.attention import Matches
from vggt_jax.analysis.dropping import ORDERS, Dropped
from vggt_jax.analysis.observed import PATCH, SPECIAL, Observation
from vggt_jax.analysis.runtime import PARTS, Runtime
from vggt_jax.layers.scene_attention import AttentionStats
from vggt_jax.trunk.token_layout import TokenLayout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# (query, key) and what the pictures call the pair.
DIRECTIONS = (
    (SPECIAL, SPECIAL, "special reads special"),
    (SPECIAL, PATCH, "special reads patches"),
    (PATCH, SPECIAL, "patches read special"),
    (PATCH, PATCH, "patches read patches"),
)
# As many tokens beside the special ones as the insets show on either side.
_INSET_MARGIN = 32


def draw_map(
    pair_map: Float[np.ndarray, "t t"], layout: TokenLayout, names: Sequence[str], layer: int
) -> "Figure":
    """The attention map of two frames, and what surrounds the special tokens of the second."""
    figure = _figure((11.5, 5.6))
    whole, *insets = figure.subplot_mosaic([["map", "map", "a"], ["map", "map", "b"]]).values()
    p, special = layout.tokens_per_frame, layout.num_special
    shown = whole.imshow(pair_map, cmap="viridis", interpolation="nearest")
    figure.colorbar(shown, ax=whole, shrink=0.8)
    whole.set(
        title=f"layer {layer}, mean of the heads",
        xlabel=f"keys: {names[0]}, then {names[1]}",
        ylabel="queries",
    )
    low, high = max(0, p - _INSET_MARGIN), min(2 * p, p + special + _INSET_MARGIN)
    corners = (((low, high), (low, high)), ((low, high), (0, min(2 * p, high - low))))
    for inset, ((top, bottom), (left, right)) in zip(insets, corners, strict=True):
        extent = (left - 0.5, right - 0.5, bottom - 0.5, top - 0.5)
        inset.imshow(
            pair_map[top:bottom, left:right],
            cmap="viridis",
            interpolation="nearest",
            extent=extent,
            vmin=0,
            vmax=pair_map.max(),
        )
        inset.set_title(f"special tokens: {p} to {p + special - 1}", fontsize=9)
        whole.add_patch(_rectangle((left - 0.5, top - 0.5), right - left, bottom - top, "tab:red"))
    return figure


def draw_matches(
    matches: Matches, images: np.ndarray, names: Sequence[str], layer: int
) -> "Figure":
    """The strongest matches between two photographs [2 height width 3], as arrows from key to
    query."""
    height, width = images.shape[1:3]
    figure = _figure((9, 9 * height / (2 * width) + 0.8))
    panel = figure.subplots()
    gap = max(2, width // 40)
    sheet = np.full((height, 2 * width + gap, 3), 255, np.uint8)
    as_bytes = images if images.dtype == np.uint8 else np.round(images * 255).astype(np.uint8)
    sheet[:, :width], sheet[:, width + gap :] = as_bytes
    panel.imshow(sheet, extent=(0, sheet.shape[1], height, 0), interpolation="nearest")
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = Normalize(matches.value.min(initial=1), matches.value.max(initial=0))
    place = lambda frame, pixel: (pixel[0] + frame * (width + gap), pixel[1])
    for i, value in enumerate(matches.value):
        panel.annotate(
            "",
            xy=place(matches.query_frame[i], matches.query_pixel[i]),
            xytext=place(matches.key_frame[i], matches.key_pixel[i]),
            arrowprops={"arrowstyle": "->", "color": colormaps["plasma"](scale(value)), "lw": 1.8},
        )
    figure.colorbar(ScalarMappable(scale, "plasma"), ax=panel, shrink=0.8)
    panel.set_title(
        f"layer {layer}: the {len(matches.value)} largest entries, from key to query; "
        f"{names[0]} and {names[1]}",
        fontsize=9,
    )
    panel.set_axis_off()
    return figure


def draw_between_frames(between: Float[np.ndarray, "s s"], layer: int) -> "Figure":
    """What share of its attention a frame gives to each other."""
    figure = _figure((5.6, 4.8))
    panel = figure.subplots()
    shown = panel.imshow(between, cmap="viridis", interpolation="nearest", vmin=0)
    figure.colorbar(shown, ax=panel)
    panel.locator_params(integer=True)
    panel.set(title=f"layer {layer}: attention between frames", xlabel="read", ylabel="reading")
    return figure


def draw_layers(observation: Observation) -> "Figure":
    """Maximum and mean of the entries by layer, for each direction; bands are the heads."""
    figure = _figure((11, 4.2))
    maxima, means = figure.subplots(1, 2)
    layers = np.arange(len(observation.mean))
    for panel, values in ((maxima, observation.maximum), (means, observation.mean)):
        for query, key, name in DIRECTIONS:
            of_heads = values[..., query, key]
            panel.plot(layers, of_heads.mean(axis=1), marker="o", markersize=3, label=name)
            panel.fill_between(layers, of_heads.min(axis=1), of_heads.max(axis=1), alpha=0.15)
        panel.set_xlabel("layer, from 0")
        panel.locator_params(axis="x", integer=True)
        panel.grid(alpha=0.3)
    maxima.set_title("largest entry, mean and range of the heads")
    means.set_title("mean entry")
    means.set_yscale("log")
    maxima.legend(fontsize=8)
    return figure


def draw_sparsity(stats: AttentionStats, what: str) -> "Figure":
    """What was left out in each layer and head, and what it held."""
    figure = _figure((10, 3.8))
    left_out, heads = figure.subplots(1, 2)
    layers = np.arange(len(stats.density))
    left_out.bar(layers, 1 - stats.density.mean(axis=1), color="tab:blue", label="left out")
    if not np.isnan(stats.covered).all():
        left_out.plot(layers, stats.covered.mean(axis=1), "o-", color="tab:orange",
                      label="pooled probability kept")  # fmt: skip
    left_out.set(ylim=(0, 1), xlabel="layer, from 0", title=f"mean of the heads, {what}")
    left_out.title.set_fontsize(9)
    left_out.legend(fontsize=8)
    left_out.grid(axis="y", alpha=0.3)
    shown = heads.imshow(
        1 - stats.density.T, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest"
    )
    heads.set(xlabel="layer, from 0", ylabel="head", title="share left out")
    heads.locator_params(integer=True)
    left_out.locator_params(axis="x", integer=True)
    figure.colorbar(shown, ax=heads)
    return figure


def draw_drop(results: Sequence[Dropped], against: str) -> "Figure":
    """AUC@30 and the drift of cameras by the number of layers that were dropped."""
    figure = _figure((10, 4))
    accuracy, drift = figure.subplots(1, 2)
    for order in ORDERS:
        of_order = [x for x in results if x.order == order]
        if not of_order:
            continue
        numbers = [len(x.layers) for x in of_order]
        accuracy.plot(numbers, [x.auc for x in of_order], "o-", label=order)
        drift.plot(numbers, [x.drift.camera for x in of_order], "o-", label=order)
    accuracy.set(ylim=(0, 1.02), ylabel="AUC@30", title=f"cameras against {against}")
    drift.set(ylabel="degrees", title="drift of cameras from the whole model")
    for panel in (accuracy, drift):
        panel.set_xlabel("layers dropped")
        panel.grid(alpha=0.3)
    accuracy.legend(fontsize=8)
    return figure


def draw_runtime(results: Sequence[Runtime], what: str) -> "Figure":
    """Seconds by part and number of frames, as stacked bars."""
    figure = _figure((7.5, 4.2))
    panel = figure.subplots()
    places, below = np.arange(len(results)), np.zeros(len(results))
    for name in PARTS:
        seconds = np.array([x.parts()[name] for x in results])
        panel.bar(places, seconds, bottom=below, label=name)
        below += seconds
    panel.set_xticks(places, [str(x.num_frames) for x in results])
    panel.set(xlabel="frames", ylabel="seconds")
    panel.set_title(what, fontsize=9)
    panel.legend(fontsize=8)
    panel.grid(axis="y", alpha=0.3)
    return figure


def _figure(size: tuple[float, float]) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _rectangle(corner, width, height, color):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=0.8)
