"""The command `vggt-jax`, one file for each of its commands.

Imports wait until signals are handled: importing JAX takes seconds.
"""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0; 2 where the input or the machine is at
    fault; 1 where some of many scenes are; 130 or 143 where Ctrl-C or SIGTERM ended it."""
    from vggt_jax.cli.help_texts import answer

    arguments = list(sys.argv[1:] if argv is None else argv)
    if (code := answer(arguments)) is not None:
        return code
    from vggt_jax.cli.commands import run

    return run(arguments)


def entry() -> None:
    """The console command: `main`, which ends the process."""
    from vggt_jax.cli.endings import run_program

    run_program(main, "vggt-jax")
