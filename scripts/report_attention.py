"""Turns the JSON lines of bench_attention.py into tables and a plot.

    python scripts/report_attention.py docs/benchmarks/attention_h100.jsonl

prints Markdown and writes a picture beside the last file. A case that stands in the files several
times is taken from the last of them.
"""

import argparse
import json
import pathlib

import figures

ATTENTION = ("dense", "sparse", "torch")
# Told apart without colour: by marker, and by dashes where there are only lines.
STYLES = [
    ("o", "-"),
    ("s", "--"),
    ("^", "-."),
    ("D", ":"),
    ("v", (0, (8, 2))),
    ("P", (0, (1, 3))),
    ("X", (0, (6, 2, 1, 2, 1, 2))),
    ("*", (0, (3, 4))),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=pathlib.Path, nargs="+", help="files of JSON lines")
    args = parser.parse_args()
    lines = [
        json.loads(line) for path in args.results for line in path.read_text().splitlines() if line
    ]
    print(tables(lines))
    plot(lines, args.results[-1].with_suffix(".png"))


def tables(lines: list[dict]) -> str:
    lines = latest(lines)
    measured = [line for line in lines if "ms" in line]
    parts = [attention_table(measured), selection_table(measured)]
    failed = [line for line in lines if "error" in line]
    parts += [
        f"Failed: {line['part']} {line.get('name', '')}, {line.get('tokens')} tokens, "
        f"keep {line.get('keep')}: {line['error']}"
        for line in failed
    ]
    return "\n\n".join(part for part in parts if part)


def latest(lines: list[dict]) -> list[dict]:
    """The last line of each case that was measured or failed."""
    what = ("part", "name", "tokens", "keep", "lists", "pool_mode", "dtype", "head_dim", "heads")
    what += ("block_q", "block_k", "keys", "bias")
    lines = [line for line in lines if "ms" in line or "error" in line]
    cases = {tuple(str(line.get(key)) for key in what): line for line in lines}
    return list(cases.values())


def column(line: dict) -> str:
    extra = line.get("lists") or ("tail" if "tail" in line else "")
    return f"{100 * line['keep']:g} % {extra}".strip()


def whole_tokens(line: dict) -> int:
    """Tokens with the few that the case of an unfinished block lacks, to show it in one row."""
    return line["tokens"] + line.get("tail", 0)


def geometry(line: dict) -> str:
    return f"{line['dtype']}, {line['heads']} heads of {line['head_dim']}"


def attention_table(lines: list[dict]) -> str:
    lines = [line for line in lines if line["part"] in ATTENTION]
    if not lines:
        return ""
    columns = sorted(
        {column(line) for line in lines}, key=lambda c: (len(c.split()), -float(c.split()[0]), c)
    )
    rows = {}
    for line in lines:
        rows.setdefault((geometry(line), whole_tokens(line), line["name"]), []).append(line)
    geometries = list(dict.fromkeys(key[0] for key in rows))
    text = [
        (
            "TFLOP/s over the arithmetic needed, milliseconds in brackets, by share of kept "
            f"blocks. {'; '.join(geometries)}.\n"
        ),
        "| | tokens | " + " | ".join(columns) + " | relative error |",
        "|---|---|" + "---|" * (len(columns) + 1),
    ]
    for (kind, tokens, name), row in sorted(rows.items(), key=lambda item: item[0][:2]):
        cells = {column(line): f"{line['tflops']:.0f} ({line['ms']:.3g})" for line in row}
        errors = [line["relative_error"] for line in row if "relative_error" in line]
        label = name if len(geometries) == 1 else f"{name}, {kind}"
        text.append(
            f"| {label} | {tokens:,} | "
            + " | ".join(cells.get(c, "") for c in columns)
            + f" | {span(errors)} |"
        )
    return "\n".join(text)


def span(errors: list[float]) -> str:
    if not errors:
        return ""
    low, high = f"{min(errors):.1e}", f"{max(errors):.1e}"
    return low if low == high else f"{low} to {high}"


def selection_table(lines: list[dict]) -> str:
    lines = [line for line in lines if line["part"] == "select"]
    if not lines:
        return ""
    text = [
        "Selection, all heads.\n",
        "| | pooling | tokens | ms | spread | density | covered | GiB beyond inputs | measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in sorted(lines, key=lambda line: line["tokens"]):
        cells = (
            line["name"],
            line["pool_mode"],
            f"{line['tokens']:,}",
            f"{line['ms']:.3g}",
            f"{line['spread_ms']:.2g}",
            f"{line['density']:.3f}",
            f"{line['covered']:.3f}",
            f"{line['beyond_inputs_gib']:.2f}",
            f"{line['peak_beyond_inputs_gib']:.2f}" if "peak_beyond_inputs_gib" in line else "",
        )
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def plot(lines: list[dict], path: pathlib.Path):
    import matplotlib.pyplot as plt
    import matplotlib.ticker

    lines = [x for x in latest(lines) if x["part"] in ATTENTION and "ms" in x]
    lines = [line for line in lines if not line.get("lists") and "tail" not in line]
    sizes = sorted({line["tokens"] for line in lines})
    if not sizes:
        return
    names = list(dict.fromkeys(line["name"] for line in lines))
    styles = {name: STYLES[i % len(STYLES)] for i, name in enumerate(names)}
    figure, axes = plt.subplots(
        2, len(sizes), figsize=(1.5 + 4 * len(sizes), 6.6), layout="constrained", squeeze=False
    )
    for (rates, times), tokens in zip(axes.T, sizes, strict=True):
        for i, name in enumerate(names):
            of_name = [x for x in lines if x["name"] == name and x["tokens"] == tokens]
            of_name.sort(key=lambda line: line["keep"])
            if not of_name:
                continue
            marker, dashes = styles[name]
            style = {"marker": marker, "linestyle": dashes, "color": f"C{i}", "label": name}
            shares = [100 * line["keep"] for line in of_name]
            rates.semilogx(shares, [line["tflops"] for line in of_name], **style)
            if "block_k" in of_name[0]:
                times.loglog(shares, [line["ms"] for line in of_name], **style)
            else:
                # What is dense takes the same time whatever could be left out.
                style["marker"] = ""
                times.axhline(of_name[0]["ms"], **style)
        kept = sorted({100 * line["keep"] for line in lines})
        for panel, label in ((rates, "TFLOP/s needed"), (times, "milliseconds")):
            panel.set_xscale("log")
            panel.set_xticks(kept, [f"{share:g}" for share in kept])
            panel.minorticks_off()
            panel.set(xlabel="kept blocks, %", ylabel=label)
            panel.grid(alpha=0.3)
        highest = max(line["tflops"] for line in lines if line["tokens"] == tokens)
        rates.set(title=f"{tokens:,} tokens", ylim=(0, 1.1 * highest))
        times.set_yscale("log")
        times.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        times.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
        times.minorticks_off()
    handles = {}
    for panel in axes[0]:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        handlelength=4,
    )
    figures.save(figure, path, dpi=160)


if __name__ == "__main__":
    main()
