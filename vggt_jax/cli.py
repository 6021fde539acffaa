"""The command `vggt-jax`."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from convert.errors import CheckpointError
from vggt_jax.errors import InputError

_INTERRUPTED = 130  # what shells report for a command that Ctrl-C ended


@dataclasses.dataclass(frozen=True, kw_only=True)
class Infer:
    """Reconstruct the scene of photographs into files.

    Writes predictions.npz (all arrays), points.ply (coloured point cloud), cameras.json,
    overview.png, depth_pictures/*.png and, with query points, track_pictures/*.png.
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    """A folder, or image files in the order to use."""
    model: str
    """Checkpoint: ours, an official .safetensors or .pt, or a hub name such as facebook/VGGT-1B or
    yyfz233/Pi3."""
    out: Path
    """Folder to write."""
    mode: Literal["crop", "pad", "budget"] | None = None
    """How photographs come to size: crop keeps the width and cuts tall ones, pad keeps everything
    and fills with white, budget stretches all to one size of about the shape of the first. Needed
    only if their shapes differ; otherwise what the model was made for, crop (VGGT) or budget (Pi3)."""
    size: int | None = None
    """Side in pixels to resize to, a multiple of the patch size; with budget, the side of the square
    of as many pixels. By default the model's own."""
    query_points: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A point x,y of the first photograph, in its own pixels, to track through all; may be
    repeated."""
    points: Literal["depth", "head"] | None = None
    """Make the point cloud from depth and cameras, which is VGGT's default and more accurate, or from
    the model's point head, which is so for Pi3."""
    confidence_percentile: float | None = None
    """Leave out this percentage of the points, the least confident; by default 25 for VGGT and 0 for
    Pi3, of which points with a confidence below 0.1 or at an edge of depth are left out always."""
    max_points: int = 2_000_000
    """Most points in the cloud."""
    sparse_ratio: float | None = None
    """Leave out this share of the blocks in attention over all photographs, in [0, 1]: 0.75 keeps a
    quarter and suits a hundred photographs and more. By default nothing is left out."""
    cdf_threshold: float | None = None
    """Keep as many of the most probable blocks as have this share of the probability, in [0, 1]. With
    both, the larger number is kept."""
    pool_mode: Literal["avg", "max"] = "avg"
    """How a block of tokens becomes one vector to predict its attention from."""
    token_order: Literal["raster", "hilbert", "tiles"] = "raster"
    """How patches are put into blocks: row by row, along a Hilbert curve, or 8 by 8."""
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    """Of matrix products; by default bfloat16 on a GPU and float32 elsewhere."""
    config: Path | None = None
    """JSON configuration of an official checkpoint that is not of a released size."""
    allow_single_image: bool = False
    """Reconstruct a single photograph, which the models were not trained for."""
    memory_check: bool = True
    """Refuse to start if the estimate exceeds the free memory."""
    overwrite: bool = False
    """Replace the results of an earlier run in the output folder."""

    def run(self) -> None:
        from vggt_jax.reconstruct_files import reconstruct_files

        reconstruct_files(**vars(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert an official PyTorch checkpoint into ours."""

    source: tyro.conf.Positional[str]
    """.safetensors, .pt or .pth file, a folder that holds one, or a hub name."""
    destination: tyro.conf.Positional[Path]
    """Folder to make, or FILE.safetensors."""
    config: Path | None = None
    """JSON configuration; without it the file beside SOURCE, or the released size."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """bfloat16 stores the kernels of encoder, trunk and (Pi3) decoders in bfloat16; without it, as
    stored."""
    ignore: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Leave out the keys that begin like this; may be repeated."""
    overwrite: bool = False
    """Replace DESTINATION if it is a checkpoint of ours."""

    def run(self) -> None:
        from convert.from_torch import convert

        print(convert(**vars(self)))


Command = (
    Annotated[Infer, tyro.conf.subcommand("infer")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, or 2 where the input is at fault."""
    command = tyro.cli(
        Command,
        args=argv,
        prog="vggt-jax",
        description="Photographs in; cameras, depth, point maps and tracks out.",
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


if __name__ == "__main__":
    entry()
