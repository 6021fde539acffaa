"""The commands, and what becomes of their errors."""

import sys
from collections.abc import Sequence
from typing import Annotated

import jax
import tyro

from vggt_jax.checkpoints.errors import CheckpointError, first_line
from vggt_jax.cli.analyze import Analyze
from vggt_jax.cli.batch import Batch
from vggt_jax.cli.bench import Bench
from vggt_jax.cli.calibrate import Calibrate
from vggt_jax.cli.convert import Convert
from vggt_jax.cli.doctor import Doctor
from vggt_jax.cli.endings import EndedError, exit_code, said
from vggt_jax.cli.evaluate import Evaluate
from vggt_jax.cli.export import Export
from vggt_jax.cli.frames import ExtractFrames
from vggt_jax.cli.generated import in_dashes
from vggt_jax.cli.infer import Infer
from vggt_jax.cli.paths import check_paths
from vggt_jax.cli.printed import print_error
from vggt_jax.cli.render import Render
from vggt_jax.cli.scene import in_our_spelling
from vggt_jax.cli.serve import App, Serve
from vggt_jax.cli.view import View
from vggt_jax.cli.warned import print_any_names, warnings_on_lines
from vggt_jax.errors import InputError, printable
from vggt_jax.export.format import ExportOptions
from vggt_jax.host import check_device
from vggt_jax.pipeline.many_scenes import ManyScenesOptions
from vggt_jax.pipeline.memory import is_out_of_memory

Command = (
    Annotated[Infer, tyro.conf.subcommand("infer")]
    | Annotated[Batch, tyro.conf.subcommand("batch")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[View, tyro.conf.subcommand("view")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Render, tyro.conf.subcommand("render")]
    | Annotated[ExtractFrames, tyro.conf.subcommand("frames")]
    | Annotated[App, tyro.conf.subcommand("app")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Calibrate, tyro.conf.subcommand("calibrate")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Analyze, tyro.conf.subcommand("analyze")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def run(argv: Sequence[str]) -> int:
    """Runs the command line and returns its exit code; see `vggt_jax.cli.main`."""
    print_any_names()
    arguments = list(argv)
    if empty := [name for name in arguments if name[-1:] == "=" or not name]:
        return _fail(f"{empty[0] or repr('')}: is empty; name a file, a folder or a value")
    command = tyro.cli(
        Command,
        args=in_our_spelling(arguments),
        prog="vggt-jax",
        description="Photographs in; cameras, depth, point maps and tracks out.\n\n"
        "Options are the same in all commands. Underscores are as good as dashes, and the "
        "spellings of VGGT's scripts are understood: --image_folder, --scene_dir, "
        "--conf_thres_value, --use_ba, ...",
    )
    try:
        if not isinstance(command, Convert | Doctor | ExtractFrames):
            check_device()
        check_paths(command)
        with warnings_on_lines():
            return command.run() or 0
    except (InputError, CheckpointError) as error:
        message = in_dashes(str(error), ManyScenesOptions, ExportOptions)
        if getattr(command, "json", False):
            print_error(message)
        return _fail(message)
    except (KeyboardInterrupt, EndedError) as error:
        code = exit_code(error)
        print(f"vggt-jax: {said(code)}", file=sys.stderr)
        return code
    except BrokenPipeError:
        raise
    except OSError as error:  # Of the machine: disks, permissions, limits.
        where = f"{error.filename}: " if error.filename else ""
        out = getattr(command, "out", None)
        advice = "" if out is None else f"; --out is {out}"
        return _fail(f"{where}{error.strerror or error}{advice}")
    except MemoryError as error:
        return _fail(
            f"the memory of this machine is exhausted ({first_line(error)}); use fewer frames or a "
            "smaller --size"
        )
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return _fail("the memory of the device is exhausted; use fewer frames or a smaller --size")


def _fail(message: str) -> int:
    lines = "\n".join(map(printable, message.split("\n")))  # Those of checkpoints are several.
    print(f"vggt-jax: error: {lines}", file=sys.stderr)
    return 2
