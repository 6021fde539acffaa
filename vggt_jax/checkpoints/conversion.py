"""An official PyTorch checkpoint into parameters of ours, by the keys of a known model."""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vggt_jax.checkpoints import native
from vggt_jax.checkpoints.config_fields import Config, read_fields
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.official import Configuration, OfficialKeys, identify
from vggt_jax.checkpoints.report import ConversionReport
from vggt_jax.checkpoints.rules import DTYPES, fill, leave_out
from vggt_jax.checkpoints.sources import find_checkpoint, read_tensors
from vggt_jax.checkpoints.wrapping import without_wrapping


def convert_tensors(
    source: str | os.PathLike,
    config: str | os.PathLike | Mapping[str, Any] | None = None,
    dtype: str | None = None,
    *,
    ignore: Sequence[str] = (),
    known: Mapping[str, OfficialKeys],
) -> tuple[dict[str, np.ndarray], Config, ConversionReport]:
    """Converts an official checkpoint in memory.

    The checkpoint is memory-mapped and read one tensor at a time: memory holds the result alone.

    Args:
        source, config, dtype, ignore: as `models.conversion.load_official` has them.
        known: the models by their names in our checkpoints.

    Returns:
        Parameters by name, the complete configuration, and the report.

    Raises:
        CheckpointError: the source cannot be read, is another model or does not fit its
            configuration, with every problem listed; or an argument is not one of those above.
    """
    begin = time.perf_counter()
    if dtype not in (None, *DTYPES):
        raise CheckpointError(f"{dtype=} must be None or one of {', '.join(DTYPES)}")
    found = None if native.is_native(source) else find_checkpoint(source)
    if found is None or any(map(native.is_native, found.files)):
        raise CheckpointError(f"{source}: is converted already; load it as it is")
    name = found.name
    tensors, ignored = _of_the_model(read_tensors(*found.files), ignore, name, known)
    model = identify(tensors, name, known)
    official = known[model]
    tensors, repeated = _canonical(tensors, official.canonical, name)
    settled, recognised_as = _configuration(official, config, found.beside, name, tensors)
    tensors, unused = leave_out(tensors, official.unused(settled))
    params = fill(official.rules(settled), tensors, source=name, model=recognised_as, dtype=dtype)
    dtypes = Counter()
    for array in params.values():
        dtypes[array.dtype.name] += array.size
    report = ConversionReport(
        source=name,
        destination=None,
        model=model,
        recognised_as=recognised_as,
        keys_read=len(tensors),
        ignored=ignored | repeated | unused,
        parameters=len(params),
        scalars=dtypes.total(),
        dtypes=dict(dtypes),
        checksum=native.checksum(params),
        seconds=time.perf_counter() - begin,
    )
    return params, settled.to_dict(), report


def _of_the_model(
    tensors: Mapping[str, np.ndarray],
    prefixes: Sequence[str],
    name: str,
    known: Mapping[str, OfficialKeys],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors by official key, and why others are left out: `--ignore` is heard for keys as
    they are in the file, and for official ones."""
    reasons = {prefix: f"--ignore {prefix}" for prefix in prefixes}
    left, ignored = leave_out(tensors, reasons)
    unwrapped, outside = without_wrapping(left, name, known)
    official, ignored_later = leave_out(unwrapped, reasons)
    heard = [*ignored, *ignored_later]
    for prefix in prefixes:
        if not any(key.startswith(prefix) for key in heard):
            raise CheckpointError(f"{name}: no key begins with {prefix!r}, as --ignore says")
    return official, ignored | outside | ignored_later


def _canonical(
    tensors: Mapping[str, np.ndarray], canonical: Callable[[str], str], source: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors by the one name that rules know, and why other names of them are left out.

    Raises:
        CheckpointError: tensors under two names of one parameter differ; all of them are listed.
    """
    renamed: dict[str, np.ndarray] = {}
    repeated, problems = {}, []
    # A tensor under its own name comes first.
    for key in sorted(tensors, key=lambda key: canonical(key) != key):
        name = canonical(key)
        if name not in renamed:
            renamed[name] = tensors[key]
            continue
        repeated[key] = f"another name of {name}"
        if not np.array_equal(renamed[name], tensors[key]):
            problems.append(f"  {key} differs from {name}, which is the same parameter")
    if problems:
        raise CheckpointError("\n".join([f"{source}: {len(problems)} problems", *problems]))
    return renamed, repeated


def _configuration(
    official: OfficialKeys,
    config: str | os.PathLike | Mapping[str, Any] | None,
    beside: Path,
    name: str,
    tensors: Mapping[str, np.ndarray],
) -> tuple[Configuration, str]:
    """Returns the configuration and where it comes from."""
    build = official.config.from_dict
    beside = beside.with_suffix(".json")
    if isinstance(config, Mapping):
        return build(config, "configuration"), "configuration given by the caller"
    if config is not None:
        return build(read_fields(config), str(config)), f"configuration {config}"
    if beside.is_file():
        found = f"configuration {beside.name}, found beside the checkpoint"
        return build(read_fields(beside), str(beside)), found
    return official.recognise({key: x.shape for key, x in tensors.items()}, name)
