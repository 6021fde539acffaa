"""Draws what ways to attend lose against how long they take, docs/images/loss_against_time.png.

    python scripts/plot_loss_against_time.py

The loss of AUC@3 is of a small trained model on scenes of 32 frames, by `sparsity_accuracy.py`. The
time is of one layer of 200 frames of 518x518, by `bench_scene_attention.py`: a sample of as many
keys, or blocks that keep the same share, of the size in pixels that comes nearest.
"""

import argparse
import json
import pathlib

import figures
import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

BENCHMARKS = pathlib.Path("docs/benchmarks")
# Blocks of 16x4 tokens of a 16 by 16 grid cover about what 64x16 do in one of 37 by 37.
TIMED_BLOCKS = {
    0.25: "25%, blocks of 64x16, 5% of it a sample, scored by 16",
    0.1: "10%, blocks of 64x16, 4% of it a sample, scored by 16",
    0.05: "5%, blocks of 64x16, 2% of it a sample, scored by 16",
}
STYLES = {
    "the paper's rule, blocks of 128x64": ("C3", "s--"),
    "small blocks with a sample": ("C0", "^-"),
    "small blocks with a sample, budgets": ("C0", "^--"),
    "sample": ("C2", "o-"),
    "sample, budgets": ("C2", "o--"),
}


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (BENCHMARKS / name).read_text().splitlines()]


def points() -> dict[str, list[tuple[float, float, float, str]]]:
    """Milliseconds, loss of AUC@3, its standard error and what is kept, by way to attend."""
    timed = {
        line["attention"]: line["ms"]
        for line in read("scene_attention_h200.jsonl")
        if line["frames"] == 200
    }
    found = {name: [] for name in STYLES}
    for line in read("blocks_accuracy.jsonl")[1:]:
        budgets = ", budgets" if line.get("budgets") else ""
        kept = round(1 - line["dropped"], 4)
        if line["rule"] == "avg":
            name, of_kernel = "the paper's rule, blocks of 128x64", f"{kept:.0%}, blocks of 128x64"
        elif line["rule"] == "sample":
            name, of_kernel = "sample" + budgets, f"{line['num_keys']} keys"
        elif line["rule"] == "blocks":
            name, of_kernel = "small blocks with a sample" + budgets, TIMED_BLOCKS[round(kept, 2)]
        else:
            continue
        mean, error = line["differences"]["auc_3"]
        label = f"{line['num_keys']}" if "num_keys" in line else f"{kept:.0%}"
        found[name].append((timed[of_kernel], -mean, error, label))
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("docs/images/loss_against_time.png")
    )
    args = parser.parse_args()
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name, values in points().items():
        colour, style = STYLES[name]
        ms, loss, error, labels = zip(*sorted(values), strict=True)
        axis.errorbar(ms, loss, error, fmt=style, color=colour, ms=4, capsize=2, label=name)
        if not name.endswith("budgets"):
            for x, y, label in zip(ms, loss, labels, strict=True):
                axis.annotate(label, (x, y), (4, 4), textcoords="offset points", fontsize=8)
    axis.set(
        xscale="log",
        xlabel="one layer of 200 frames of 518x518 on an H200, ms; dense: 564",
        ylabel="AUC@3 lost, of .385 when dense",
    )
    axis.grid(alpha=0.3, which="both")
    axis.legend(frameon=False, fontsize=8)
    figures.save(figure, args.out, dpi=120)


if __name__ == "__main__":
    main()
