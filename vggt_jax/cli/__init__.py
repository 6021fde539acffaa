"""The command `vggt-jax`, one file for each of its commands."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import tqdm
import tyro

import vggt_jax
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.cli.batch import Batch
from vggt_jax.cli.bench import Bench
from vggt_jax.cli.calibrate import Calibrate
from vggt_jax.cli.convert import Convert
from vggt_jax.cli.doctor import Doctor
from vggt_jax.cli.export import Export
from vggt_jax.cli.generated import in_dashes
from vggt_jax.cli.infer import Infer
from vggt_jax.cli.paths import check_paths
from vggt_jax.cli.scene import in_our_spelling
from vggt_jax.cli.view import View
from vggt_jax.errors import InputError, InputWarning, printable
from vggt_jax.pipeline.many_scenes import ManyScenesOptions

_INTERRUPTED = 130  # what shells report for a command that Ctrl-C ended

Command = (
    Annotated[Infer, tyro.conf.subcommand("infer")]
    | Annotated[Batch, tyro.conf.subcommand("batch")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[View, tyro.conf.subcommand("view")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Calibrate, tyro.conf.subcommand("calibrate")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, 2 where the input is at fault, or 1 where
    some of many scenes are."""
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
        check_paths(command)
        with _warnings_on_lines():
            return command.run() or 0
    except (InputError, CheckpointError) as error:
        text = in_dashes(str(error), ManyScenesOptions)
        lines = "\n".join(map(printable, text.split("\n")))  # Those of checkpoints are several.
        print(f"vggt-jax: error: {lines}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vggt-jax: interrupted", file=sys.stderr)
        return _INTERRUPTED


@contextlib.contextmanager
def _warnings_on_lines() -> Iterator[None]:
    """Prints what is said of input as errors are printed, each once."""
    said: set[str] = set()

    with warnings.catch_warnings():
        show = warnings.showwarning

        def on_a_line(message: Any, category: Any, *place: Any, **options: Any) -> None:
            if not issubclass(category, InputWarning):
                show(message, category, *place, **options)
            elif (text := in_dashes(str(message), ManyScenesOptions, words=False)) not in said:
                said.add(text)
                tqdm.tqdm.write(f"vggt-jax: warning: {text}", file=sys.stderr)

        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = on_a_line
        yield


def entry() -> None:
    """The console command: `main`, which ends the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # Names of files are any bytes.
    code = main()
    if code == _INTERRUPTED:
        # Threads of the compiler may still run, and do not survive an orderly end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
