"""Converts an official PyTorch checkpoint of VGGT or π³ into ours.

python convert/from_torch.py SOURCE DESTINATION [--config FILE.json] [--dtype float32|bfloat16]
"""

import sys
from pathlib import Path
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "convert":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vggt_jax.models.conversion import convert

    return convert


def main() -> int:
    """Runs the command line and returns its exit code."""
    from vggt_jax.models.conversion import main

    return main()


if __name__ == "__main__":
    # The package of this repository, whether or not it is installed.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from vggt_jax.cli.endings import run_program

    run_program(main, "from_torch.py")
