"""`--help` and `--version`, answered from a table of texts, because what the texts are made from
imports JAX, which takes seconds.

`scripts/write_help.py` writes the table, `help.json`, from the commands; a test compares the two.
"""

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib import resources
from typing import Any

_WIDEST = 100  # Columns.
_INDENT = 26  # Columns of the names of options.


def answer(arguments: Sequence[str]) -> int | None:
    """Prints what is asked for and returns the exit code; None for arguments that ask for work."""
    arguments = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    if "--version" in arguments[:1]:
        import vggt_jax

        print(f"vggt-jax {vggt_jax.__version__}")
        return 0
    asks = not {"-h", "--help"}.isdisjoint(arguments)
    if arguments and not asks:
        return None
    table = read_table()
    if command := table["commands"].get(next(iter(arguments), "")):
        print(of_command(arguments[0], command, _columns()))
        return 0
    if arguments and arguments[0] not in ("-h", "--help"):
        return None  # No command of ours, which is said by whoever reads the others.
    print(of_program(table, _columns()), file=sys.stdout if asks else sys.stderr)
    return 0 if asks else 2


def read_table() -> dict[str, Any]:
    """The texts: `about`, and `commands` with their texts by name."""
    file = resources.files("vggt_jax.cli") / "help.json"
    return json.loads(file.read_text(encoding="utf-8"))


def of_program(table: dict[str, Any], columns: int) -> str:
    """The help of `vggt-jax` itself."""
    lines = ["usage: vggt-jax COMMAND ...", "", *_filled(table["about"], columns), "", "commands:"]
    for name, command in table["commands"].items():
        lines += _row(name, command["about"].split("\n")[0], columns, indent=14)
    lines += ["", *_filled(table["end"], columns)]
    return "\n".join(lines)


def of_command(name: str, command: dict[str, Any], columns: int) -> str:
    """The help of a command."""
    lines = [f"usage: vggt-jax {name} {command['usage']}", ""]
    for paragraph in command["about"].split("\n"):
        lines += [*_filled(paragraph, columns), ""]
    if command["examples"]:
        lines += ["examples:", *(f"  {example}" for example in command["examples"]), ""]
    for title, options in command["groups"]:
        lines.append(f"{title}:")
        for option, text in options:
            lines += _row(option, text, columns, indent=_INDENT)
        lines.append("")
    return "\n".join(lines[:-1])


def _row(name: str, text: str, columns: int, *, indent: int) -> list[str]:
    lines = _filled(text, columns - indent) or [""]
    head = f"  {name}"
    if len(head) > indent - 2:
        return [head, *(" " * indent + line for line in lines)]
    return [f"{head:<{indent}}{lines[0]}", *(" " * indent + line for line in lines[1:])]


def _filled(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, columns, break_on_hyphens=False)


def _columns() -> int:
    return max(50, min(_WIDEST, shutil.get_terminal_size().columns))
