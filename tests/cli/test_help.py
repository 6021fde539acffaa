"""`--help` and `--version` come from a table that agrees with the commands, at once."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vggt_jax import cli
from vggt_jax.cli import help_texts

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import write_help

    return write_help


def test_the_table_is_that_of_the_commands(script):
    """Otherwise run scripts/write_help.py."""
    assert help_texts.read_table() == json.loads(json.dumps(script.table()))


def test_required_options_come_first_and_every_option_once(script):
    commands = help_texts.read_table()["commands"]
    for name, command in commands.items():
        rows = [row[0] for _, rows in command["groups"] for row in rows]
        assert len(rows) == len(set(rows)), name
        assert all(text for _, rows in command["groups"] for _, text in rows), name
        if name not in ("doctor", "bench", "serve", "app"):
            assert command["groups"][0][0] == script.REQUIRED and command["examples"], name
    assert [row[0] for row in commands["infer"]["groups"][0][1]] == ["PATH ...", "--out PATH"]
    assert commands["export"]["usage"].startswith("PATH ... --out PATH --format {")


def test_examples_can_be_copied(script, monkeypatch):
    """Every example of the help is understood by the command line."""
    import tyro

    from vggt_jax.cli import commands

    for name, command in help_texts.read_table()["commands"].items():
        for example in command["examples"]:
            words = example.split()
            assert words[:2] in (["vggt-jax", name], ["vggt-jax", "infer"])
            tyro.cli(commands.Command, args=words[1:])


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_lines_fit_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main(["infer", "-h"]) == 0
    lines = capsys.readouterr().out.splitlines()
    wide = max(50, min(100, columns))
    long = [line for line in lines if len(line) > wide]
    assert all(line.startswith(("usage:", "  vggt-jax ", "  --")) for line in long), long


def test_what_asks_for_no_help_is_left_to_the_commands(capsys):
    assert help_texts.answer(["infer", "photographs"]) is None
    assert help_texts.answer(["infer", "--", "--help"]) is None
    assert help_texts.answer(["none_such", "--help"]) is None
    assert help_texts.answer([]) == 2
    assert "commands:" in capsys.readouterr().err
    assert help_texts.answer(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vggt-jax 0.")


def test_help_takes_less_than_a_second_and_no_jax():
    code = (
        "import sys; from vggt_jax.cli import main; main(['infer', '--help']); "
        "sys.exit('jax' in sys.modules or 'tyro' in sys.modules)"
    )
    times = []
    for _ in range(2):  # Of a busy machine the better of two.
        start = time.perf_counter()
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        times.append(time.perf_counter() - start)
        assert run.returncode == 0 and "examples:" in run.stdout, run.stderr
    assert min(times) < 1
