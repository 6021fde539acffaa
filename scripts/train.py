"""Trains VGGT on rendered scenes, from scratch or from a checkpoint; see docs/training.md.

    python scripts/train.py --out runs/small --steps 8000 --max-minutes 20
    python scripts/train.py --out runs/tuned --init facebook/VGGT-1B --variants 1x8@518x518 \\
        --optimizer.learning-rate 1e-5 --execution.recompute encoder trunk heads

The same command again goes on after an interruption.
"""

import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.errors import InputError
from vggt_jax.training import TrainSettings, train


def main():
    try:
        settings = tyro.cli(TrainSettings)
        train(settings, say=lambda line: print(line, flush=True))
    except (InputError, CheckpointError) as error:
        print(f"train: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
