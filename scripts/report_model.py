"""Turns the JSON lines of bench_model.py into a table and a plot.

    python scripts/report_model.py docs/benchmarks/official_h100.jsonl \
        docs/benchmarks/sparse_h100.jsonl docs/benchmarks/model_h100.jsonl

prints Markdown and writes a picture beside the last file. A case that stands in several files is
taken from the last of them. Lines are those of VGGT; --model pi3 takes those of π³.
"""

import argparse
import json
import pathlib

import figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=pathlib.Path, nargs="+", help="files of JSON lines")
    parser.add_argument("--model", default="vggt", help="whose lines to take: vggt or pi3")
    args = parser.parse_args()
    cases = {}
    for path in args.results:
        for line in map(json.loads, path.read_text().splitlines()):
            if line.get("model", "vggt") != args.model:
                continue
            cases[line["part"], line["frames"], kept(line)] = line
    print(table(cases))
    plot(cases, args.results[-1].with_suffix(".png"))


def kept(line: dict) -> str | None:
    """What attention left out or sampled; None where it was dense."""
    if line.get("num_keys") is not None:
        special = ", special too" if line.get("sample_special_queries") else ""
        return f"{line['num_keys']:,} keys{special}"
    ratio = line.get("sparse_ratio")
    return None if ratio is None else f"{ratio:.0%} left out"


def memory(line: dict) -> float:
    """GiB of a program of ours while it runs: what it is given, and what it allocates.

    The measured peak of the process also holds what made the random weights.
    """
    height, width = line["size"]
    images = 3 * line["frames"] * height * width / 2**30
    parts = (line[f"{name}_gib"] for name in ("weights", "temporaries", "outputs"))
    return round(images + sum(parts), 2)


def table(cases: dict) -> str:
    rows = [
        "| | frames | attention | ms | spread | GiB | official ms | official GiB | faster |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (part, frames, attention), line in cases.items():
        if part not in ("aggregator", "model"):
            continue
        cells = [
            part,
            frames,
            attention or "dense",
            f"{line['ms']:.0f}",
            f"{line['spread_ms']:.0f}",
            memory(line),
        ]
        if part == "aggregator" and (official := cases.get(("official", frames, None))):
            ratio = official["ms"] / line["ms"]
            mark = "*" if "note" in official else ""
            cells += [
                f"{official['ms']:.0f}{mark}",
                f"{official['peak_gib']}{mark}",
                f"{ratio:.2f}",
            ]
        else:
            cells += ["", "", ""]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def plot(cases: dict, path: pathlib.Path):
    import matplotlib.pyplot as plt

    figure, (time_axes, memory_axes) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    series = {}
    for (part, frames, attention), line in sorted(cases.items(), key=lambda case: case[0][1]):
        if part in ("official", "aggregator"):
            series.setdefault((part, attention), []).append((frames, line))
    for (part, attention), lines in sorted(series.items(), key=lambda item: item[0][1] or ""):
        label = "official PyTorch" if part == "official" else f"vggt-jax, {attention or 'dense'}"
        frames = [count for count, _ in lines]
        used = [line["peak_gib"] if part == "official" else memory(line) for _, line in lines]
        time_axes.loglog(frames, [line["ms"] / 1e3 for _, line in lines], "o-", label=label)
        memory_axes.plot(frames, used, "o-", label=label)
    time_axes.set(xlabel="frames of 518x518", ylabel="seconds", title="encoder and trunk")
    memory_axes.set(xlabel="frames of 518x518", ylabel="GiB", title="memory", ylim=0)
    time_axes.legend(frameon=False)
    for axes in (time_axes, memory_axes):
        axes.grid(alpha=0.3)
    figures.save(figure, path, dpi=160)


if __name__ == "__main__":
    main()
