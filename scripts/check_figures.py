"""Checks that every figure of README.md has its line in a benchmark file.

    python scripts/check_figures.py

Figures are numbers with a unit (s, ms, GiB, GB, MiB, %) and shares such as 0.842 or .009.
docs/benchmarks/readme_figures.toml lists, by the words around them, where each comes from: a file
of docs/benchmarks, the values that pick its lines ("" for null), the field, and what to multiply
by; a row of a table of a page; or why it is no measurement of ours. A figure that no entry covers
is an error, and so is an entry that the README no longer has, or whose figure no line gives when it
is rounded alike.
"""

import dataclasses
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
LIST = ROOT / "docs" / "benchmarks" / "readme_figures.toml"
FIGURE = re.compile(
    r"(?<![\w.,/-])(?:\d[\d,]*(?:\.\d+)?(?=\s?(?:s|ms|GiB|GB|MiB|%)(?!\w))|0?\.\d{3}(?!\d))"
)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number of the README: where it stands, and its text."""

    start: int
    text: str


def figures_of(text: str) -> list[Figure]:
    """The figures of a text, without those of its blocks of code."""
    hidden = re.sub(
        r"```.*?```|`[^`\n]*`", lambda x: re.sub(r"\S", "_", x[0]), text, flags=re.DOTALL
    )
    return [Figure(found.start(), found[0]) for found in FIGURE.finditer(hidden)]


def problems(text: str, entries: list[dict[str, Any]], folder: Path) -> list[str]:
    """What is wrong, a line each."""
    found, covered = [], set()
    figures = figures_of(text)
    for entry in entries:
        says = entry["says"]
        places = [x.start() for x in re.finditer(re.escape(says), text)]
        if not places:
            found.append(f"not in the README any more: {says!r}")
            continue
        inside = [x for x in figures if places[0] <= x.start < places[0] + len(says)]
        covered |= {
            x.start for place in places for x in figures if place <= x.start < place + len(says)
        }
        if entry.get("why"):
            continue
        if len(inside) != len(entry["from"]):
            found.append(f"{says!r} has {len(inside)} figures, and {len(entry['from'])} origins")
            continue
        for figure, origin in zip(inside, entry["from"], strict=True):
            if "given" in origin:
                continue
            values = values_of(origin, folder)
            if not any(rounds_to(value, figure.text) for value in values):
                shown = ", ".join(f"{value:g}" for value in values) or "no line"
                found.append(f"{says!r}: {figure.text} is not in {origin['file']} ({shown})")
    for figure in figures:
        if figure.start not in covered:
            line = text.count("\n", 0, figure.start) + 1
            found.append(f"README.md:{line}: {figure.text} has no entry in {LIST.name}")
    return found


def values_of(origin: dict[str, Any], folder: Path) -> list[float]:
    """The values that lines of a benchmark file give for an origin, less those of `minus`."""
    text = (folder / origin["file"]).read_text(encoding="utf-8")
    if "row" in origin:  # Of a table of a page, the first that begins like this.
        row = next((x for x in text.splitlines() if x.startswith(origin["row"])), "")
        return [abs(float(x)) for x in re.findall(r"[-+]?\d+(?:\.\d+)?", row)]
    lines = [json.loads(x) for x in text.splitlines() if x]
    is_picked = lambda line: all(
        field(line, name) == (None if value == "" else value)
        for name, value in origin["where"].items()
    )
    values = [field(line, origin["field"]) for line in lines if is_picked(line)]
    return [origin.get("scale", 1.0) * x for x in values if x is not None]


def field(line: dict[str, Any], name: str) -> Any:
    """A value of a line by its dotted name; None where there is none."""
    value: Any = line
    for part in name.split("."):
        if isinstance(value, list):
            value = value[int(part)]
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def rounds_to(value: float, text: str) -> bool:
    """Whether a value reads like this when it is rounded to as many digits."""
    number = text.replace(",", "")
    digits = len(number.partition(".")[2])
    half = 0.5 * 10.0**-digits
    return abs(value - float(number)) <= half * (1 + 1e-9)


def main() -> int:
    entries = tomllib.loads(LIST.read_text(encoding="utf-8"))["figure"]
    found = problems(README.read_text(encoding="utf-8"), entries, LIST.parent)
    print("\n".join(found) or f"{len(entries)} entries, every figure of the README has its line")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
