"""Writes what `vggt-jax --help` prints, `vggt_jax/cli/help.json`, from the commands.

    python scripts/write_help.py

The command line answers from this file, because the commands import JAX.
"""

import argparse
import inspect
import json
import re
import warnings
from pathlib import Path
from typing import Any, get_args

import tyro

from vggt_jax.cli import commands

FILE = Path(__file__).parents[1] / "vggt_jax" / "cli" / "help.json"
ABOUT = "Photographs in; cameras, depth, point maps and tracks out."
END = (
    "`vggt-jax COMMAND --help` explains the options, which are the same in all commands. "
    "Underscores are as good as dashes, and the spellings of VGGT's scripts are understood: "
    "--image_folder, --scene_dir, --conf_thres_value, --use_ba. `vggt-jax --version` tells the "
    "version, and `vggt-jax --tyro-print-completion bash` (or zsh, tcsh) prints a script that "
    "completes commands and options in a shell."
)
# Titles of groups and the options in them, in this order; what is in none comes under `OTHERS`.
REQUIRED = "required"
NEEDED = {"out"}  # Optional to Python, and needed to do what the command is for.
GROUPS = {
    "photographs": (
        "image-folder pattern recursive fps frames mode size stretch reference allow-single-image "
        "images"
    ),
    "model": "model config camera-source compute-dtype width architecture dtype ignore",
    "results": "export max-points data-factor depth-maps voxel-size points use-point-map "
    "confidence-percentile min-confidence mask-edges overwrite",
    "attention over all photographs": (
        "attention num-keys keys max-error sparse-ratio cdf-threshold pool-mode token-order "
        "min-tokens sparse-layers seed sample-special-queries"
    ),
    "masks": "masks mask-white mask-black mask-sky",
    "what is known": "focal intrinsics known-distance known-depth priors use metric",
    "tracks": "query-points tracks min-track-length min-visibility depth-tolerance "
    "max-reprojection-error",
    "video": "path seconds rate height width point-size",
    "cameras": "cameras camera-size camera-model shared-camera bundle-adjustment",
}
OTHERS = "running"


def table() -> dict[str, Any]:
    """The texts of all commands."""
    found = {}
    for annotated in get_args(commands.Command):
        kind, *marks = get_args(annotated)
        (name,) = (mark.name for mark in marks if getattr(mark, "name", None))
        found[name] = described(kind)
    return {"about": ABOUT, "end": END, "commands": found}


def described(kind: type) -> dict[str, Any]:
    """The texts of a command."""
    text = inspect.cleandoc(kind.__doc__ or "")
    lines = text.split("\n")
    examples = [line.strip() for line in lines if line.strip().startswith("vggt-jax ")]
    about = "\n".join(line for line in lines if not line.strip().startswith("vggt-jax "))
    about = "\n".join(" ".join(x.split()) for x in re.split(r"\n\s*\n", about.strip()))
    groups: dict[str, list[list[str]]] = {title: [] for title in (REQUIRED, *GROUPS, OTHERS)}
    usage = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(kind)
    for action in parser._actions:
        if "--help" in action.option_strings:
            continue
        row, name = _row(action)
        is_positional = not action.option_strings
        is_needed = is_positional or action.required or name in NEEDED
        if is_needed:
            usage.append(row[0].split(", ")[-1])
        title = REQUIRED if is_needed else _group_of(name)
        groups[title].append(row)
    for title, options in GROUPS.items():
        place = {option: i for i, option in enumerate(options.split())}
        groups[title].sort(key=lambda row: place.get(_name(row[0]), len(place)))
    return {
        "about": about,
        "usage": " ".join([*usage, "[OPTIONS]"]),
        "examples": examples,
        "groups": [[title, rows] for title, rows in groups.items() if rows],
    }


def _row(action: argparse.Action) -> tuple[list[str], str]:
    text = " ".join(str(action.help).split())
    text = re.sub(r"\s*\((required|default|default: )\)$", lambda x: _DEFAULTS[x[1]], text)
    metavar = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar or ())
    metavar = re.sub(r"\[\{(.*?)\} \[\{.*\} \.\.\.\]\]", r"{\1} ...", metavar)
    if not action.option_strings:
        return [metavar.strip("[]") if metavar == "[PATH ...]" else metavar, text], action.dest
    names = [name for name in action.option_strings if not name.startswith("--no-")]
    if negative := [name for name in action.option_strings if name.startswith("--no-")]:
        names = [*names, *negative]
    spelled = ", ".join(names)
    return [f"{spelled} {metavar}".strip(), text], names[0].removeprefix("--")


_DEFAULTS = {"required": "", "default": " (on by default)", "default: ": ""}


def _name(option: str) -> str:
    return option.partition(" ")[0].rstrip(",").removeprefix("--")


def _group_of(name: str) -> str:
    return next((title for title, names in GROUPS.items() if name in names.split()), OTHERS)


def main() -> None:
    FILE.write_text(json.dumps(table(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{FILE}: {len(table()['commands'])} commands")


if __name__ == "__main__":
    main()
