"""Draws the curves of a training run from its log.

python scripts/plot_training.py RUN [RUN ...] [--out FILE.png]
"""

import argparse
import json
import pathlib

import figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "runs",
        type=pathlib.Path,
        nargs="+",
        metavar="RUN",
        help="folder that scripts/train.py wrote; several that went on from one another",
    )
    parser.add_argument("--out", type=pathlib.Path, help="by default training.png in the last RUN")
    args = parser.parse_args()
    lines, steps = {}, 0
    for run in args.runs:
        # What a killed run wrote after its last checkpoint was written again: the later line
        # counts.
        first = steps
        for text in (run / "train.jsonl").read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            line["step"] += first
            steps = max(steps, line["step"])
            lines[line["kind"], line["step"]] = line
    if not lines:
        raise SystemExit(f"{args.runs[-1]}: its log is empty")
    draw([lines[key] for key in sorted(lines)], args.out or args.runs[-1] / "training.png")


def draw(lines: list[dict], path: pathlib.Path) -> None:
    """Writes a picture with panels for losses, validation, learning rate and norm, and speed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = (
        (
            "train",
            ("camera", "depth_error", "points_error", "pair_rotation", "pair_direction"),
            True,
        ),
        ("validation", ("auc30", "abs_rel"), False),
        ("train", ("gradient_norm", "learning_rate"), True),
        ("train", ("scenes_per_second",), False),
    )
    is_there = lambda kind, name: any(x["kind"] == kind and x.get(name) is not None for x in lines)
    shown = [one for one in shown if any(is_there(one[0], name) for name in one[1])]
    figure = Figure(figsize=(4.6 * len(shown), 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown), squeeze=False)
    for panel, (kind, names, logarithmic) in zip(panels.flat, shown, strict=True):
        for name in names:
            points = [
                (line["step"], line[name])
                for line in lines
                if line["kind"] == kind and line.get(name) is not None
            ]
            if points:
                panel.plot(*zip(*points, strict=True), label=name, linewidth=1)
        panel.set(title=kind, xlabel="step", yscale="log" if logarithmic else "linear")
        panel.grid(alpha=0.3)
        panel.legend()
    figures.save(figure, path, dpi=110)


if __name__ == "__main__":
    main()
