"""Draws the pictures of docs/kernels.md: `python scripts/draw_kernels.py`.

`tiling.png` and `hopper.png` are schemes. `selection.png` shows a run: random tokens of places that
are seen several times, selected on whatever device there is; the script fails if its own trace of
the search ends with other blocks than `select_blocks` keeps.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image

from pallas_kernels import select_blocks
from pallas_kernels.blocks import tokens_per_block
from pallas_kernels.selection.pooling import pool

KEPT, PARTIAL, OTHER, LINE, PALE = "#4c78a8", "#f0a04b", "#ececec", "#333333", "#dce6f1"
IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"


def main():
    plt.rcParams.update(
        {
            "font.size": 9,
            "figure.facecolor": "white",
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
        }
    )
    IMAGES.mkdir(exist_ok=True)
    pictures = {"tiling": draw_tiling, "hopper": draw_hopper, "selection": draw_selection}
    for name, draw in pictures.items():
        figure = draw()
        figure.set_dpi(200)
        figure.canvas.draw()
        picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        # A palette makes the file a third as large.
        picture.quantize(224).save(IMAGES / f"{name}.png", optimize=True)
        plt.close(figure)


def box(axes, x, y, width, height, fill, text="", **options):
    """A rectangle from its lower left corner, with text in its middle."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor="white", lw=1))
    options = {"ha": "center", "va": "center", "color": LINE} | options
    axes.text(x + width / 2, y + height / 2, text, **options)


def outline(axes, x, y, width, height, **options):
    options = {"edgecolor": LINE, "lw": 1.6} | options
    axes.add_patch(Rectangle((x, y), width, height, facecolor="none", **options))


def arrow(axes, start, end, **options):
    options = {"arrowstyle": "-|>", "mutation_scale": 10, "color": LINE, "lw": 1} | options
    axes.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **options))


def draw_tiling():
    figure = plt.figure(figsize=(9, 8.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 90), ylim=(0, 86))
    axes.axis("off")

    draw_block_map(axes)
    draw_list(axes)
    draw_step(axes)
    return figure


# The example of tiling.png: key blocks of the drawn row, and which of all blocks are partial.
NUM_KEY_BLOCKS = 15
ROW = (0, 2, 3, 5, 6, 9, 11, 12, 14)
PARTIAL_BLOCKS = (2, 14)
DRAWN_ROW = 3


def draw_block_map(axes):
    axes.text(2, 83.5, "1  Block map of one head", fontsize=10, weight="bold")
    num_rows, left, top, size = 8, 12, 78, 2.9
    rng = np.random.default_rng(3)
    for i in range(num_rows):
        kept = set(ROW) if i == DRAWN_ROW else {0, 2} | set(rng.choice(NUM_KEY_BLOCKS, 6))
        # The last tile of queries is shorter, like partial blocks of keys are narrower.
        height = size if i < num_rows - 1 else 0.6 * size
        for j in range(NUM_KEY_BLOCKS):
            partial = j in PARTIAL_BLOCKS
            color = (PARTIAL if partial else KEPT) if j in kept else OTHER
            width = 0.55 * size if partial else size
            y = top - i * size - height
            box(axes, left + j * size, y, width, height, color)
    y = top - (DRAWN_ROW + 1) * size
    outline(axes, left - 0.15, y, NUM_KEY_BLOCKS * size + 0.1, size)
    for j in range(NUM_KEY_BLOCKS):
        axes.text(left + (j + 0.5) * size, top + 0.6, str(j), ha="center", fontsize=8)
    axes.text(left + NUM_KEY_BLOCKS * size / 2, top + 2.7, "key blocks of 64", ha="center")
    y = top - num_rows * size / 2
    axes.text(left - 1.5, y, "tiles of 128 queries", rotation=90, ha="right", va="center")
    right = left + NUM_KEY_BLOCKS * size
    axes.text(
        right + 2, y + size / 2, "one program: this tile, this head", va="center", weight="bold"
    )
    legend = (
        (KEPT, "kept"),
        (PARTIAL, "kept, only some tokens count\n(end of a part, end of the keys)"),
        (OTHER, "not kept: never read"),
    )
    for (color, text), height in zip(legend, (75.6, 71.6, 61.4), strict=True):
        box(axes, right + 2, height, 2, 2, color)
        axes.text(right + 5, height + 1, text, va="center")
    axes.text(
        right + 2,
        55.8,
        "short last tile: what lies beyond\nthe last query is not stored",
        va="center",
    )


def draw_list(axes):
    axes.text(2, 50, "2  Its list", fontsize=10, weight="bold")
    size, left = 4, 22
    whole = [block for block in ROW if block not in PARTIAL_BLOCKS]
    for y, blocks, text in (
        (45.5, ROW, "as selected"),
        (37.5, (*whole, *PARTIAL_BLOCKS), "whole blocks first"),
    ):
        axes.text(left - 1, y + 1.7, text, ha="right", va="center")
        for i, block in enumerate(blocks):
            color = PARTIAL if block in PARTIAL_BLOCKS else KEPT
            box(
                axes, left + i * size, y, size, 3.4, color, str(block), color="white", weight="bold"
            )
    order = [(*whole, *PARTIAL_BLOCKS).index(block) for block in ROW]
    for i, j in enumerate(order):
        start, end = (left + (i + 0.5) * size, 45.3), (left + (j + 0.5) * size, 41.1)
        color = PARTIAL if ROW[i] in PARTIAL_BLOCKS else "#888888"
        arrow(axes, start, end, mutation_scale=7, lw=0.8, color=color)
    steps = [(0, 2, "step 0"), (2, 4, "step 1"), (4, 6, "step 2")]
    steps += [(6, 7, "odd"), (7, 8, "partial"), (8, 9, "partial")]
    for start, end, text in steps:
        a, b = left + start * size + 0.25, left + end * size - 0.25
        axes.plot([a, a, b, b], [37, 36.3, 36.3, 37], color=LINE, lw=1)
        axes.text((a + b) / 2, 35.6, text, ha="center", va="top", fontsize=8)
    axes.text(
        left + 9 * size + 2,
        39.2,
        "steps: two blocks, no masks;\nthen one block at a time, with masks",
        va="center",
    )


def draw_step(axes):
    axes.text(2, 30.5, "3  One step of the hot loop", fontsize=10, weight="bold")
    for x, width, title in (
        (2, 14, "global memory, L2"),
        (19, 27, "shared memory"),
        (49, 39, "registers of 4 warps"),
    ):
        axes.add_patch(
            Rectangle((x, 1.5), width, 25, facecolor="#fafafa", edgecolor="#999999", lw=1)
        )
        axes.text(x + width / 2, 27.3, title, ha="center", color="#555555")

    for y, text in ((20.2, "list"), (13.5, "K"), (6.8, "V")):
        box(axes, 4, y, 10, 4, OTHER, text)
    box(axes, 21, 20.2, 10, 4.6, PALE, "Q\n128 x 64")
    # A ring of stages: the step in use, and those on their way.
    for stage, (x, text) in enumerate(((20.5, "step 1"), (28.9, "step 2"), (37.3, "step 3"))):
        color = KEPT if stage == 0 else PALE
        ink = "white" if stage == 0 else LINE
        for y, name in ((13.6, "K"), (6.9, "V")):
            for half in range(2):
                box(axes, x + 3.7 * half, y, 3.7, 4, color, name, color=ink)
        axes.text(x + 3.7, 18.2, text, ha="center", fontsize=8)
        caption = "in use" if stage == 0 else "on its way"
        axes.text(x + 3.7, 5.8, caption, ha="center", va="top", fontsize=8)
    axes.text(32.5, 2.2, "each half: one kept block, 64 x 64", ha="center", fontsize=8)
    for y in (15.5, 8.8):
        arrow(axes, (14.2, y), (20.2, y))

    for half in range(2):
        box(
            axes, 51 + 8.4 * half, 19.2, 8, 5.6, KEPT, "scores\n128 x 64", color="white", fontsize=8
        )
    axes.text(68.6, 22, "S = Q Kᵀ, float32, two products", va="center", fontsize=8)
    box(axes, 51, 12.4, 4.6, 4, PALE, "m")
    box(axes, 56.6, 12.4, 4.6, 4, PALE, "z")
    axes.text(68.6, 14.4, "m' = max(m, c rowmax S)\nP = 2^(c S - m')\nz' = z 2^(m - m') + rowsum P",
              va="center", fontsize=8)  # fmt: skip
    box(axes, 51, 4.2, 16.4, 5.6, PALE, "O  128 x 64, float32")
    axes.text(68.6, 7, "O' = O 2^(m - m') + P V", va="center", fontsize=8)
    axes.text(51, 2.3, "m, z: one number for each query", va="center", fontsize=8)
    arrow(axes, (59.2, 19), (59.2, 16.6))
    arrow(axes, (59.2, 12.2), (59.2, 10))
    arrow(axes, (46.2, 22), (50.6, 22))
    arrow(axes, (46.2, 7), (50.6, 7))


def draw_hopper():
    """A stretch of time on one multiprocessor: two streams, half a step apart."""
    figure = plt.figure(figsize=(9, 5.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100), ylim=(0, 62))
    axes.axis("off")
    left, step, steps = 17, 20, 4
    rows = {
        "producer A": 52,
        "consumers A": 44,
        "tensor cores": 30,
        "consumers B": 16,
        "producer B": 8,
    }
    for name, y in rows.items():
        axes.text(left - 1.5, y + 2.5, name, ha="right", va="center")
    for stream, offset, fill in (("A", 0, KEPT), ("B", step / 2, PARTIAL)):
        for i in range(steps):
            x = left + offset + i * step
            shown = lambda x, width: min(width, left + steps * step - x)
            for j, what in enumerate(("K", "V")):
                place = x + j * step / 2
                if (width := shown(place, step / 2)) > 0:
                    box(axes, place, rows[f"producer {stream}"], width, 5, OTHER, f"{what}{i + 2}")
            box(axes, x, rows["tensor cores"], step / 4, 5, fill, f"S{i + 1}", color="white")
            if (width := shown(x + step / 4, step / 4)) > 0:
                text = f"P{i}V{i}"
                box(
                    axes,
                    x + step / 4,
                    rows["tensor cores"],
                    width,
                    5,
                    fill,
                    text,
                    color="white",
                    fontsize=8,
                )
            if (width := shown(x + step / 4, 3 * step / 4)) > 0:
                box(
                    axes,
                    x + step / 4,
                    rows[f"consumers {stream}"],
                    width,
                    5,
                    PALE,
                    f"weights P{i + 1}" if width > step / 2 else f"P{i + 1}",
                )
            # Scores are waited for; the weights are ready for the next product with values.
            upper = stream == "A"
            y = rows[f"consumers {stream}"] + (0 if upper else 5)
            edge = rows["tensor cores"] + (5 if upper else 0)
            arrow(axes, (x + step / 4, edge), (x + step / 4 + 0.6, y), mutation_scale=8)
            if x + step + step / 4 <= left + steps * step:
                arrow(
                    axes,
                    (x + step - 0.3, y),
                    (x + step + step / 4 + 0.6, edge),
                    mutation_scale=8,
                    lw=0.7,
                )
    texts = (
        (
            59,
            "copied by TMA ahead of time; waits until both consumers are done with a place",
        ),
        (39.6, "S = Q K is waited for, P V goes on meanwhile"),
        (3.5, "stream B knows nothing of stream A: the one fills the gaps of the other"),
    )
    for y, text in texts:
        axes.text(
            left, y, text, va="center", color="#666666", fontsize=8.5, backgroundcolor="white"
        )
    arrow(axes, (left, 0.8), (left + steps * step, 0.8))
    axes.text(left - 1.5, 0.8, "time", ha="right", va="center")
    return figure


def structured_tokens():
    """Queries and keys [4000 1 64] of 20 places, each seen by 50 tokens at a time, four times."""
    place, noise_q, noise_k = jax.random.split(jax.random.key(2), 3)
    seen = jnp.repeat(jax.random.normal(place, (20, 1, 64)), 50, axis=0)
    seen = jnp.tile(seen, (4, 1, 1))
    return tuple(1.25 * seen + jax.random.normal(key, seen.shape) for key in (noise_q, noise_k))


def bisect(scores, probability):
    """The search of `pallas_kernels.selection.row` for a threshold, with its steps written down.

    Returns (low, high) before each step; (level, fits, blocks, probability) of each; the kept mask.
    """
    masses = np.exp(scores - scores.max())
    masses /= masses.sum()
    low, high = scores.min(), scores.max()
    num_low, num_high = scores.size, 1
    bounds, steps = [(low, high)], []
    while num_low - num_high > 1:
        level = np.float32(0.5) * low + np.float32(0.5) * high
        above = scores >= level
        count, mass = int(above.sum()), masses[above].sum()
        fits = mass <= probability
        low, high = (low, level) if fits else (level, high)
        num_low, num_high = (num_low, count) if fits else (count, num_high)
        steps.append((level, fits, count, mass))
        bounds.append((low, high))
    return bounds, steps, scores >= high


def draw_selection():
    threshold, row, rows_of_stripe = 0.9, 13, slice(8, 16)
    q, k = structured_tokens()
    selection = select_blocks(q, k, cdf_threshold=threshold)
    pooled_q, pooled_k = (
        pool(x, tokens_per_block(None, x.shape[0], block), block, "avg")[0]
        for x, block in ((q, 128), (k, 64))
    )
    scores = np.asarray(
        jnp.einsum("qh,kh->qk", pooled_q / 8, pooled_k, precision="highest")  # 8 = sqrt(64)
    )
    bounds, steps, kept = bisect(scores[row], threshold + 1e-5)
    expected = np.asarray(selection.block_map.to_dense_mask())[0, row]
    if not np.array_equal(kept, expected):
        raise RuntimeError(
            f"the trace keeps {np.flatnonzero(kept)}, not {np.flatnonzero(expected)}"
        )
    covered = float(selection.retained_mass[0, row])

    figure = plt.figure(figsize=(9, 9))
    draw_pooling(figure.add_axes((0.02, 0.69, 0.3, 0.27)), scores.shape)
    draw_stripe(figure.add_axes((0.41, 0.735, 0.56, 0.2)), scores, row, rows_of_stripe)
    curve = figure.add_axes((0.075, 0.345, 0.29, 0.265))
    search = figure.add_axes((0.41, 0.345, 0.56, 0.265), sharey=curve)
    draw_curve(curve, scores[row], kept, row, bounds[-1][1])
    draw_search(search, bounds, steps)
    list_axes = figure.add_axes((0.02, 0.01, 0.96, 0.235))
    draw_packing(list_axes, kept, covered, threshold)
    return figure


def draw_pooling(axes, shape):
    axes.set(xlim=(0, 30), ylim=(0, 29))
    axes.axis("off")
    axes.text(0, 27.3, "1  Pool", fontsize=10, weight="bold")
    for y, name, cells, block, count in ((20, "q", 8, 128, shape[0]), (7, "k", 4, 64, shape[1])):
        axes.text(0, y + 1.2, name, va="center")
        for i in range(3):
            x = 3 + i * 8.4
            for j in range(cells):
                width = 7.6 / cells
                box(axes, x + j * width, y, width, 2.4, PALE if i % 2 else "#c6d7ea")
            arrow(axes, (x + 3.8, y - 0.3), (x + 3.8, y - 2.6), mutation_scale=8)
            box(axes, x + 3.1, y - 5, 1.4, 2.2, KEPT)
        axes.text(3, y + 3.3, f"blocks of {block} tokens", va="bottom")
        axes.text(28, y - 6.5, f"{count} vectors, float32", ha="right", va="center")


def draw_stripe(axes, scores, row, stripe):
    """All scores pale, those of one stripe in full."""
    limits = {"vmin": scores.min(), "vmax": scores.max(), "cmap": "Blues", "aspect": "auto"}
    axes.imshow(scores, alpha=0.25, **limits)
    shown = np.full_like(scores, np.nan)
    shown[stripe] = scores[stripe]
    axes.imshow(shown, **limits)
    outline(axes, -0.5, stripe.start - 0.5, scores.shape[1], stripe.stop - stripe.start)
    outline(axes, -0.5, row - 0.5, scores.shape[1], 1, edgecolor="#d62728", lw=1.3)
    axes.set_title("2  Scores of one stripe of rows at a time", weight="bold")
    axes.set(xlabel="key block", ylabel="query block")
    axes.annotate(
        f"row {row}: one program",
        (scores.shape[1] - 1, row + 0.5),
        (scores.shape[1] - 1, 23),
        ha="right",
        color="#d62728",
        arrowprops={"arrowstyle": "-", "color": "#d62728"},
    )


def draw_curve(axes, scores, kept, row, level):
    order = np.argsort(-scores, kind="stable")
    for mask, color, text in ((kept, KEPT, "kept"), (~kept, "#b0b0b0", "not kept")):
        ranks = np.flatnonzero(mask[order])
        axes.plot(ranks + 1, scores[order][ranks], "o", ms=3.5, color=color, label=text)
    axes.axhline(level, color="#d62728", lw=1)
    axes.set_title(f"3  Row {row}, sorted for the eye only", weight="bold")
    axes.set(xlabel="rank", ylabel="score")
    axes.legend(frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)


def draw_search(axes, bounds, steps):
    """Low and high close in on the level, a column for each step."""
    for i, (low, high) in enumerate(bounds):
        axes.add_patch(Rectangle((i + 0.56, low), 0.88, high - low, facecolor=PALE))
    for i, (level, fits, _, _) in enumerate(steps):
        face = KEPT if fits else "white"
        axes.plot(
            i + 1, level, "o", ms=6, color=face, markeredgecolor=KEPT, clip_on=False, zorder=3
        )
    axes.axhline(bounds[-1][1], color="#d62728", lw=1, zorder=1)
    labels = [f"{i + 1}\n{count}\n{100 * mass:.2f}" for i, (_, _, count, mass) in enumerate(steps)]
    axes.set_xticks(range(1, len(steps) + 2), [*labels, "end"])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(0.4, len(steps) + 1.6)
    axes.set_title("4  Bisection: what may stand between low and high", weight="bold")
    for line, text in enumerate(("step", "blocks", "share, %")):
        axes.annotate(
            text,
            (0, 0),
            (-8, -5 - 12.9 * line),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="top",
            color="#555555",
        )
    axes.plot([], [], "o", ms=6, color=KEPT, label="fits: share at most 90 %, high moves down")
    axes.plot(
        [], [], "o", ms=6, color="white", markeredgecolor=KEPT, label="too much: low moves up"
    )
    axes.legend(frameon=False, loc="upper right")
    axes.tick_params(labelleft=False)
    axes.spines[["top", "right"]].set_visible(False)


def draw_packing(axes, kept, covered, threshold):
    num_blocks = kept.size
    axes.set(xlim=(0, 96), ylim=(0, 23.5))
    axes.axis("off")
    axes.text(0, 22, "5  Pack: slot = cumulative sum of kept - 1", fontsize=10, weight="bold")
    text = f"{kept.sum()} of {kept.size} blocks, covered {100 * covered:.2f} % of the probability"
    axes.text(95, 22, f"{text} (threshold {threshold})", ha="right")
    left, width = 8.5, 86 / num_blocks
    blocks = np.flatnonzero(kept)
    slots = np.cumsum(kept) - 1
    size = 3.2
    axes.text(left - 1, 16.4, "kept", ha="right", va="center")
    for i in range(num_blocks):
        box(axes, left + i * width, 15, width, 2.8, KEPT if kept[i] else OTHER)
    for block in blocks:
        x, slot = left + (block + 0.5) * width, slots[block]
        axes.text(x, 18.2, str(block), ha="center", va="bottom", fontsize=7, rotation=90)
        end = (left + (slot + 0.5) * size, 7.2)
        arrow(axes, (x, 14.8), end, mutation_scale=6, lw=0.7, color="#888888")
    axes.text(left - 1, 5.4, "list", ha="right", va="center")
    for slot, block in enumerate(blocks):
        x = left + slot * size
        box(axes, x, 4, size, 2.8, KEPT, str(block), color="white", fontsize=8)
        axes.text(x + size / 2, 3.5, str(slot), ha="center", va="top", fontsize=7, color="#777777")


if __name__ == "__main__":
    main()
