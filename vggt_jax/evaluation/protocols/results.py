"""Results of an evaluation: a file of JSON lines, their mean, a table beside published numbers."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.evaluation.protocols.base import Protocol, Published
from vggt_jax.files import replacing

FORMAT = "vggt-jax evaluation"
VERSION = 1
# What a table shows, of what a protocol has.
SHOWN = (
    "auc_30 auc_15 auc_5 auc_3 rra_5 rta_5 ate rpe_translation rpe_rotation accuracy completeness "
    "chamfer normal_consistency chamfer_sum"
).split()
# What weighs sequences, and is no metric.
NUMBERS = ("num_pairs", "num_frames")


def aggregated(protocol: Protocol, lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """One number a metric, of sequences that were scored.

    Args:
        lines: of sequences, each with "metrics" and "category". A metric that is None is not
            defined there, and left out.
    """
    names = dict.fromkeys(x for line in lines for x in line["metrics"] if x not in NUMBERS)
    found = {}
    for name in names:
        values, weights, categories = [], [], []
        for line in lines:
            if (value := line["metrics"].get(name)) is not None and not math.isnan(value):
                values.append(value)
                weights.append(line["metrics"].get("num_pairs", 1))
                categories.append(line.get("category"))
        if not values:
            continue
        if protocol.aggregate == "sequences":
            found[name] = float(np.mean(values))
        elif protocol.aggregate == "pairs":
            found[name] = float(np.average(values, weights=weights))
        else:
            by_category: dict[Any, list[tuple[float, float]]] = {}
            for category, *pair in zip(categories, values, weights, strict=True):
                by_category.setdefault(category, []).append((pair[0], pair[1]))
            means = []
            for pairs in by_category.values():
                of, by = zip(*pairs, strict=True)
                means.append(np.average(of, weights=by))
            found[name] = float(np.mean(means))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultFile:
    """A file of JSON lines: the run first, then a line a sequence.

    Attributes:
        path: the file.
        about: the first line, everything that decides the results.
    """

    path: Path
    about: Mapping[str, Any]

    def open(self) -> list[dict[str, Any]]:
        """Makes the file, or reads what an earlier run of the same kind wrote.

        A last line that a killed process left unfinished is dropped, and sequences that failed are
        tried again.

        Returns:
            Lines of the sequences that are done.

        Raises:
            InputError: the file is none of ours, or of another run, or cannot be written.
        """
        try:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path}: cannot be read ({error})") from error
        lines = read_lines(text, self.path)
        if text:
            self._check(lines[0] if lines else {})
        done = [line for line in lines[1:] if "metrics" in line]
        with replacing(self.path) as file:
            file.write(_as_text([lines[0] if lines else self.about, *done]).encode())
        return done

    def add(self, line: Mapping[str, Any]) -> None:
        """Writes the line of a sequence.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_as_text([line]))
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from error

    def _check(self, found: Mapping[str, Any]) -> None:
        if found.get("format") != FORMAT:
            raise InputError(f"{self.path}: holds no results of vggt-jax evaluate; choose another")
        mine = json.loads(json.dumps(self.about))
        differing = [
            name
            for name in dict.fromkeys([*mine, *found])
            if name not in ("started", "jax", "device") and mine.get(name) != found.get(name)
        ]
        if differing:
            raise InputError(
                f"{self.path}: holds results of another run, which differs in "
                f"{', '.join(differing)}; choose another file"
            )


def _as_text(lines: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def read_lines(text: str, path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; a last one without an end is dropped.

    Raises:
        InputError: another line is no JSON object.
    """
    lines = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}: line {number} is no JSON ({error})") from error
        if not isinstance(lines[-1], dict):
            raise InputError(f"{path}: line {number} is no result")
    return lines


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON has them: None for NaN, and 1e9 for what is infinitely wrong."""
    return {
        name: None if math.isnan(value) else min(value, 1e9) if isinstance(value, float) else value
        for name, value in metrics.items()
    }


def table(
    protocol: Protocol, ours: Mapping[str, float], *, label: str, count: int | None = None
) -> str:
    """Our numbers, the published ones below, and in brackets how far ours are above them.

    Args:
        label: what our row is called.
        count: of frames; published rows of other numbers are left out.
    """
    rows = [
        row
        for row in protocol.published
        if row.count is None or count is None or row.count == count
    ]
    known = {name for row in rows for name, _ in row.metrics}
    names = [name for name in SHOWN if name in ours and (name in known or _is_main(name))]
    cells = [["", *names]]
    cells.append([label, *(_shown(ours[name]) for name in names)])
    for row in rows:
        values = dict(row.metrics)
        cells.append([_name(row), *(_against(values.get(x), ours[x]) for x in names)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        right = (x.rjust(width) for x, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]).rstrip())
    sources = dict.fromkeys(row.source for row in rows)
    return "\n".join([*lines, *(f"published: {source}" for source in sources)])


def _is_main(name: str) -> bool:
    return name not in ("auc_15", "auc_3")


def _name(row: Published) -> str:
    how = row.attention
    if row.attention != "dense":
        how += "" if row.sparsity is None else f" {row.sparsity:.1%}"
    return f"{row.model}, {how}" + ("" if row.exact else " (about)")


def _shown(value: float) -> str:
    return f"{value:.4f}"


def _against(published: float | None, ours: float) -> str:
    return "-" if published is None else f"{published:.4g} ({ours - published:+.3f})"
