"""Turns the JSON lines of bench_model.py into a table and a plot.

    python scripts/report_model.py docs/benchmarks/model_h100.jsonl

prints Markdown and writes a picture of the same name beside the file.
"""

import argparse
import json
import pathlib


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=pathlib.Path, nargs="+", help="JSON lines, newest last")
    args = parser.parse_args()
    lines = {}
    for path in args.results:
        for line in map(json.loads, path.read_text().splitlines()):
            lines[line["part"], line["frames"], line.get("cache", line.get("compile_cache"))] = line
    print(table(lines))
    plot(lines, args.results[-1].with_suffix(".png"))


def table(lines: dict) -> str:
    rows = [
        "| part | frames | ms | spread | peak GiB | official ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for (part, frames, _), line in lines.items():
        if part not in ("aggregator", "model"):
            continue
        official = (
            lines.get(("official", frames, None), {}).get("ms") if part == "aggregator" else None
        )
        ratio = f"{official / line['ms']:.2f}" if official else ""
        cells = [
            part,
            frames,
            line["ms"],
            line["spread_ms"],
            line["peak_gib"],
            official or "",
            ratio,
        ]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def plot(lines: dict, path: pathlib.Path):
    import matplotlib.pyplot as plt

    figure, (time_axes, memory_axes) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for part, label in (("official", "official PyTorch"), ("aggregator", "vggt-jax")):
        chosen = [line for (name, _, _), line in lines.items() if name == part]
        frames = [line["frames"] for line in chosen]
        time_axes.loglog(frames, [line["ms"] / 1e3 for line in chosen], "o-", label=label)
        memory_axes.plot(frames, [line["peak_gib"] for line in chosen], "o-", label=label)
    time_axes.set(xlabel="frames of 518x518", ylabel="seconds", title="encoder and trunk, dense")
    memory_axes.set(xlabel="frames of 518x518", ylabel="GiB", title="peak memory", ylim=0)
    for axes in (time_axes, memory_axes):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    main()
