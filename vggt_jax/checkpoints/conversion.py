"""Converts an official PyTorch checkpoint of VGGT or π³ into ours."""

import argparse
import dataclasses
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vggt_jax.checkpoints import native, pi3, pi3_config, vggt, vggt_config
from vggt_jax.checkpoints.config_fields import Config
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.recognition import identify
from vggt_jax.checkpoints.report import ConversionReport
from vggt_jax.checkpoints.rules import DTYPES, Shape, fill, leave_out
from vggt_jax.checkpoints.sources import find_checkpoint, read_tensors

MODELS = {
    vggt.MODEL: (vggt, vggt_config),
    pi3.MODEL: (pi3, pi3_config),
}
"""The table and the configuration of every model, by its name in our checkpoints."""


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
        source: a `.safetensors`, `.pt` or `.pth` file, a folder with model.safetensors or model.pt,
            or a name on huggingface.co such as `facebook/VGGT-1B` or `yyfz233/Pi3`. Its keys tell
            which model it is.
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
    begin = time.perf_counter()
    if dtype not in (None, *DTYPES):
        raise CheckpointError(f"{dtype=} must be None or one of {', '.join(DTYPES)}")
    if native.is_native(source):
        raise CheckpointError(f"{source}: is converted already; load it as it is")
    path, name = find_checkpoint(source)
    tensors, ignored = _without(read_tensors(path), ignore, name)
    model, _ = MODELS[identify(tensors, name)]
    config, recognised_as = _configuration(model.MODEL, config, path, name, tensors)
    tensors, unused = leave_out(tensors, model.unused(config))
    params = fill(model.rules(config), tensors, source=name, model=recognised_as, dtype=dtype)
    dtypes = Counter()
    for array in params.values():
        dtypes[array.dtype.name] += array.size
    report = ConversionReport(
        source=name,
        destination=None,
        model=model.MODEL,
        recognised_as=recognised_as,
        keys_read=len(tensors),
        ignored=ignored | unused,
        parameters=len(params),
        scalars=dtypes.total(),
        dtypes=dict(dtypes),
        checksum=native.checksum(params),
        seconds=time.perf_counter() - begin,
    )
    return params, config, report


def native_shapes(config: Mapping[str, Any], model: str = vggt.MODEL) -> dict[str, Shape]:
    """Returns the shape of every parameter of a model, by name, without allocating any.

    Args:
        config: fields of a configuration; absent ones are as released.
        model: "vggt" or "pi3".

    Raises:
        CheckpointError: the configuration is not a valid one.
    """
    return MODELS[model][0].native_shapes(config)


def _without(
    tensors: Mapping[str, np.ndarray], prefixes: Sequence[str], name: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    for prefix in prefixes:
        if not any(key.startswith(prefix) for key in tensors):
            raise CheckpointError(f"{name}: no key begins with {prefix!r}, as --ignore says")
    return leave_out(tensors, {prefix: f"--ignore {prefix}" for prefix in prefixes})


def _configuration(
    model: str,
    config: str | os.PathLike | Mapping[str, Any] | None,
    path: Path,
    name: str,
    tensors: Mapping[str, np.ndarray],
) -> tuple[Config, str]:
    """Returns the complete configuration and where it comes from."""
    table, fields = MODELS[model]
    beside = path.with_suffix(".json")
    if isinstance(config, Mapping):
        return fields.complete_config(config, "configuration"), "configuration given by the caller"
    if config is not None:
        return fields.read_config(config), f"configuration {config}"
    if beside.is_file():
        found = f"configuration {beside.name}, found beside the checkpoint"
        return fields.read_config(beside), found
    return table.recognise({key: x.shape for key, x in tensors.items()}, name)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, or 2 where the checkpoint is at fault."""
    parser = argparse.ArgumentParser(
        prog="from_torch.py", description="Convert an official checkpoint of VGGT or Pi3 into ours."
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=".safetensors, .pt or .pth file, folder with model.safetensors or model.pt, or hub "
        "name such as facebook/VGGT-1B or yyfz233/Pi3",
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
