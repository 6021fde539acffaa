"""`scripts/check_figures.py`: every figure of the README has its line, and the check notices."""

import json
import tomllib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import check_figures

    return check_figures


def test_every_figure_of_the_readme_has_its_line(script):
    entries = tomllib.loads(script.LIST.read_text(encoding="utf-8"))["figure"]
    text = script.README.read_text(encoding="utf-8")
    assert script.problems(text, entries, script.LIST.parent) == []
    assert len(script.figures_of(text)) > 60


def test_what_is_wrong_is_said(script, tmp_path):
    lines = [{"part": "a", "ms": 1234.0, "keys": None}, {"part": "b", "x": {"y": [0.25, 3]}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "page.md").write_text("| dense | 0.842 |\n")
    origin = {"file": "a.jsonl", "where": {"part": "a", "keys": ""}, "field": "ms", "scale": 1e-3}
    entry = {"says": "takes 1.2 s", "from": [origin]}
    check = lambda text, *entries: script.problems(text, list(entries), tmp_path)
    assert check("It takes 1.2 s.", entry) == []
    assert check("It takes 1.3 s, or 7 GiB.", entry) == [
        "not in the README any more: 'takes 1.2 s'",
        "README.md:1: 1.3 has no entry in readme_figures.toml",
        "README.md:1: 7 has no entry in readme_figures.toml",
    ]
    wrong = {"says": "takes 1.3 s", "from": [origin]}
    assert check("It takes 1.3 s.", wrong) == ["'takes 1.3 s': 1.3 is not in a.jsonl (1.234)"]
    assert "has 2 figures" in check("1.2 s, 3 s", {"says": "1.2 s, 3 s", "from": [origin]})[0]
    nested = {"file": "a.jsonl", "where": {"part": "b"}, "field": "x.y.0"}
    assert check("25 % and 0.250", {"says": "25 % and", "why": "asked for"},
                 {"says": "0.250", "from": [nested]}) == []  # fmt: skip
    row = {"file": "page.md", "row": "| dense |"}
    assert check("of .842 in all", {"says": "of .842", "from": [row]}) == []
    assert check("`0.123`\n```\n5 s\n```\n") == []  # Blocks of code are no figures.
