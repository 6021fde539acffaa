"""The command `vggt-jax`, one file for each of its commands."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

import vggt_jax
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.cli.bench import Bench
from vggt_jax.cli.convert import Convert
from vggt_jax.cli.doctor import Doctor
from vggt_jax.cli.export import Export
from vggt_jax.cli.infer import Infer
from vggt_jax.cli.scene import in_our_spelling
from vggt_jax.cli.view import View
from vggt_jax.errors import InputError

_INTERRUPTED = 130  # what shells report for a command that Ctrl-C ended

Command = (
    Annotated[Infer, tyro.conf.subcommand("infer")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[View, tyro.conf.subcommand("view")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, or 2 where the input is at fault."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"vggt-jax {vggt_jax.__version__}")
        return 0
    command = tyro.cli(
        Command,
        args=in_our_spelling(arguments),
        prog="vggt-jax",
        description="Photographs in; cameras, depth, point maps and tracks out.\n\n"
        "Options are the same in all commands. Underscores are as good as dashes, and the "
        "spellings of VGGT's scripts are understood: --image_folder, --scene_dir, "
        "--conf_thres_value, --use_ba, ... `vggt-jax --version` tells the version.",
    )
    try:
        command.run()
    except (InputError, CheckpointError) as error:
        print(f"vggt-jax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vggt-jax: interrupted", file=sys.stderr)
        return _INTERRUPTED
    return 0


def entry() -> None:
    """The console command: `main`, which ends the process."""
    code = main()
    if code == _INTERRUPTED:
        # Threads of the compiler may still run, and do not survive an orderly end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
