"""`scripts/mutants.py`: its list still fits the code, and a run tells what tests notice."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import mutants

    return mutants


def test_every_mistake_can_still_be_made(script):
    """Where code has changed: put the snippet of scripts/mutants.toml right."""
    mutants = script.read_mutants()
    assert script.problems(mutants) == []
    assert len(mutants) >= 44


def test_what_does_not_fit_is_said(script, tmp_path):
    (tmp_path / "file.py").write_text("x = 1\ny = 1\n")
    mutant = script.Mutant(name="a", area="b", file="file.py", old="x = 1", new="x = 2", tests=())
    changed = lambda **changes: dataclasses.replace(mutant, **changes).problems(tmp_path)
    assert changed() == []
    assert changed(old="1") == ["'1' stands in file.py 2 times, not once"]
    assert changed(old="z") == ["'z' stands in file.py 0 times, not once"]
    assert "is no Python" in changed(new="x =")[0]
    assert changed(file="other.py") == ["other.py does not exist"]
    assert changed(tests=("tests/test_a.py",)) == ["tests/test_a.py does not exist"]
    assert script.problems([mutant, mutant], tmp_path) == ["a: stands there 2 times"]


def test_a_run(script, tmp_path, monkeypatch, capsys):
    """A small project: one mistake that the quick tier notices, one for the full tier, one for none."""
    project = tmp_path / "project"
    (project / "tests").mkdir(parents=True)
    (project / "sums.py").write_text("def add(a, b):\n    return a + b\n\n\nunused = 0\nlast = 3\n")
    (project / "tests/test_sums.py").write_text(
        "import pytest\nimport sums\n\n\ndef test_add():\n    assert sums.add(1, 2) == 3\n\n\n"
        "@pytest.mark.slow\ndef test_last():\n    assert sums.last == 3\n"
    )
    (project / "pytest.ini").write_text(
        "[pytest]\naddopts = -ra -m 'not slow'\nmarkers = slow: x\n"
    )
    for command in (["git", "init", "-q"], ["git", "add", "."]):
        subprocess.run(command, cwd=project, check=True)
    changes = {
        "minus": ("a + b", "a - b"),
        "one": ("unused = 0", "unused = 1"),
        "two": ("last = 3", "last = 2"),
    }
    entry = '[[mutant]]\nname = "{}"\narea = "sums"\nfile = "sums.py"\nold = "{}"\nnew = "{}"\ntests = ["tests"]\n'
    (tmp_path / "list.toml").write_text(
        "".join(entry.format(name, *change) for name, change in changes.items())
    )
    out = tmp_path / "results.jsonl"
    monkeypatch.setattr(script, "ROOT", project)
    mutants = script.read_mutants(tmp_path / "list.toml")
    monkeypatch.setattr(script, "read_mutants", lambda: mutants)
    monkeypatch.setattr(script, "problems", lambda mutants: [])
    monkeypatch.setattr(script, "OLDEST_JAX", (0, 0))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # of which some import JAX

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["mutants.py", "--out", str(out), *options])
        with pytest.raises(SystemExit) as end:
            script.main()
        return end.value.code, capsys.readouterr().out

    status, printed = run("--allow", "2")
    assert status is None
    assert "| sums | 3 | 1 | `one`, `two` |" in printed
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["name"]: line["noticed"] for line in lines} == {
        "minus": True,
        "one": False,
        "two": False,
    }
    (minus,) = (line for line in lines if line["name"] == "minus")
    assert minus["line"] == 2 and minus["change"] == "a + b -> a - b"
    assert minus["first_failure"] == "tests/test_sums.py::test_add"
    assert "a + b" in (project / "sums.py").read_text()

    status, printed = run("--tier", "full")
    assert status == "1 mutants were not noticed, 0 may be"
    assert "| sums | 3 | 2 | `one` |" in printed
    assert len(out.read_text().splitlines()) == 5  # the full tier tries what the quick one left

    (project / "sums.py").write_text("def add(a, b):\n    return 0\n")
    out.unlink()
    status, _ = run("--only", "minus")
    assert "fails without any mistake: tests/test_sums.py::test_add" in status
