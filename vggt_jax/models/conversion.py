"""Official PyTorch checkpoints into ours, of every model that the registry knows."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vggt_jax.checkpoints import native, rules
from vggt_jax.checkpoints.config_fields import Config
from vggt_jax.checkpoints.conversion import convert_tensors
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.report import ConversionReport
from vggt_jax.checkpoints.rules import DTYPES, Shape
from vggt_jax.models.registry import official_keys


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    config: str | os.PathLike | Mapping[str, Any] | None = None,
    dtype: str | None = None,
    ignore: Sequence[str] = (),
    overwrite: bool = False,
) -> ConversionReport:
    """Converts an official checkpoint and writes ours, whole or not at all.

    Args:
        source: as in `load_official`.
        destination: a folder to make, or a path that ends in `.safetensors`.
        config: as in `load_official`.
        dtype: as in `load_official`.
        ignore: as in `load_official`.
        overwrite: whether to replace a checkpoint of ours that exists.

    Returns:
        The report, which is also written with the checkpoint.

    Raises:
        CheckpointError: as `load_official`; or the destination exists or cannot be written.
    """
    native.check_destination(destination, overwrite=overwrite)
    params, config, report = load_official(source, config, dtype, ignore=ignore)
    report = dataclasses.replace(report, destination=str(destination))
    document = {"model": report.model, "config": config, "checksum": report.checksum}
    native.write(destination, params, document, report=report.to_dict(), overwrite=overwrite)
    return report


def load_official(
    source: str | os.PathLike,
    config: str | os.PathLike | Mapping[str, Any] | None = None,
    dtype: str | None = None,
    *,
    ignore: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], Config, ConversionReport]:
    """Converts an official checkpoint in memory.

    The checkpoint is memory-mapped and read one tensor at a time: memory holds the result alone.

    Args:
        source: a `.safetensors`, `.pt`, `.pth`, `.ckpt` or `.bin` file (its content tells which), a
            folder that holds one or its shards, or a name on huggingface.co such as
            `facebook/VGGT-1B` or `yyfz233/Pi3X`. Its keys tell which model it is, whatever training
            put around it (see `without_wrapping`).
        config: fields of the configuration or the path of a JSON file with them; None takes the
            JSON file of the same name beside the source, or recognises the released size.
        dtype: None as stored (float64 becomes float32); `"float32"`; or `"bfloat16"`, which stores
            the kernels of encoder, frame and global blocks (and of the decoders of π³) in bfloat16
            and all else in float32.
        ignore: prefixes of official keys to leave out.

    Returns:
        Parameters by name, the complete configuration, and the report.

    Raises:
        CheckpointError: the source cannot be read, is another model or does not fit its
            configuration, with every problem listed; or an argument is not as above.
    """
    return convert_tensors(source, config, dtype, ignore=ignore, known=official_keys())


def native_shapes(config: Mapping[str, Any], model: str = "vggt") -> dict[str, Shape]:
    """Returns the shape of every parameter of a model, by name, without allocating any.

    Args:
        config: fields of a configuration; absent ones are as released.
        model: its name in our checkpoints: "vggt" or "pi3".

    Raises:
        CheckpointError: the configuration is not a valid one.
    """
    official = official_keys()[model]
    return rules.native_shapes(official.rules(official.config.from_dict(config, "configuration")))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, or 2 where the checkpoint is at fault."""
    parser = argparse.ArgumentParser(
        prog="from_torch.py", description="Convert an official checkpoint of VGGT or Pi3 into ours."
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=".safetensors, .pt, .ckpt or .bin file, folder that holds one or its shards, or hub "
        "name such as facebook/VGGT-1B or yyfz233/Pi3X",
    )
    parser.add_argument(
        "destination", metavar="DESTINATION", help="folder to make, or FILE.safetensors"
    )
    parser.add_argument(
        "--config",
        metavar="FILE.json",
        help="configuration; without it, the JSON file beside SOURCE or the released size",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="float32, or bfloat16 for the kernels of encoder, frame and global blocks (and of "
        "Pi3's decoders) and float32 for all else; without it, as stored",
    )
    parser.add_argument(
        "--ignore",
        metavar="PREFIX",
        action="append",
        default=[],
        help="leave out the keys that begin like this; may be repeated",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace DESTINATION if it is a checkpoint of ours"
    )
    arguments = parser.parse_args(argv)
    try:
        report = convert(**vars(arguments))
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(report)  # noqa: T201
    return 0
