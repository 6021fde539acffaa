"""Trains VGGT on rendered scenes, from scratch or from a checkpoint; see docs/training.md.

    python scripts/train.py --out runs/small --steps 8000 --max-minutes 20
    python scripts/train.py --out runs/tuned --init facebook/VGGT-1B --variants 1x8@518x518 \\
        --optimizer.learning-rate 1e-5 --execution.recompute encoder trunk heads

    python scripts/train.py --settings stage.json --out runs/stage

The same command again goes on after an interruption. `--settings` takes a file like the
settings.json of a run, which may leave out fields; options beside it count instead of its own.
"""

import argparse
import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.errors import InputError
from vggt_jax.files import read_json
from vggt_jax.training import TrainSettings, train


def options_of(document: dict, prefix: str = "") -> list[str]:
    """The options that stand for a document like the settings.json of a run; null is left out."""
    options = []
    for name, value in document.items():
        option = f"{prefix}{name.replace('_', '-')}"
        if isinstance(value, dict):
            options += options_of(value, f"{option}.")
        elif isinstance(value, bool):
            head, _, last = option.rpartition(".")
            options.append(f"--{head}{'.' if head else ''}{'' if value else 'no-'}{last}")
        elif isinstance(value, list):
            options += [f"--{option}", *map(str, value)]
        elif value is not None:
            options += [f"--{option}", str(value)]
    return options


def main():
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--settings", type=Path)
    given, options = parser.parse_known_args()
    try:
        if given.settings is not None:
            document = read_json(given.settings, "file of settings")
            if not isinstance(document, dict):
                raise InputError(f"{given.settings}: holds no settings by name")
            options = options_of(document) + options
        settings = tyro.cli(TrainSettings, args=options)
        train(settings, say=lambda line: print(line, flush=True))
    except (InputError, CheckpointError) as error:
        print(f"train: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
