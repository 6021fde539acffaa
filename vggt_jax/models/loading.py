"""`load_model` and `save_model`: models from and to checkpoints."""

import functools
import hashlib
import json
import os
import pathlib
import warnings
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from vggt_jax import checkpoints, weights
from vggt_jax.checkpoints import native
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.rules import FLOATING
from vggt_jax.checkpoints.sources import find_checkpoint
from vggt_jax.host import check_device
from vggt_jax.layers.abstract import OneKey
from vggt_jax.models.base import ModelConfig, SceneModel
from vggt_jax.models.conversion import load_official
from vggt_jax.models.origin import Origin, remember
from vggt_jax.models.registry import families, family_of
from vggt_jax.scene.provenance import is_share

SomeModel = TypeVar("SomeModel", bound=nnx.Module | SceneModel)

# Smaller official files are converted anew each time, which takes less than a second.
_CACHE_FROM_BYTES = 256 * 2**20


def load_model(
    source: str | os.PathLike | None = None,
    *,
    dtype: DTypeLike | None = None,
    config: ModelConfig | str | os.PathLike | None = None,
) -> SceneModel:
    """Loads a model onto the default device.

    Args:
        source: a checkpoint of ours (a folder, or a `.safetensors` file); an official
            `.safetensors`, `.pt`, `.pth`, `.ckpt` or `.bin` file, or a folder that holds one or its
            shards; or a name on huggingface.co such as
            `"facebook/VGGT-1B"` or `"yyfz233/Pi3"`. It tells which model it is. What is not ours is
            converted on the way, and the result is kept under `cache_folder()` if it is large. None
            is the small model that ships with the package (vggt_jax/weights/MODEL_CARD.md).
        dtype: type to store the kernels of encoder, trunk and frame decoders in (see `with_dtype`);
            None as stored.
        config: of an official checkpoint that is not of a released size, as an object or a JSON
            file; None takes the JSON file of the same name beside it.

    Raises:
        vggt_jax.CheckpointError: the checkpoint is missing, damaged or of another model, or does
            not fit its configuration; every problem is listed.
        vggt_jax.InputError: JAX has no device.
    """
    check_device()
    is_small = source is None
    named, least_agreement = source, None
    source = weights.small_model_path() if source is None else _ours_in(source)
    if checkpoints.is_native(source):
        if config is not None:
            raise CheckpointError(f"{source}: holds its own configuration; leave out config")
        params, document = checkpoints.read(source)
        name, fields, checksum = document["model"], document["config"], document["checksum"]
        least_agreement = document.get("least_agreement")
        if least_agreement is not None and not is_share(least_agreement):
            raise CheckpointError(f"{source}: {least_agreement=!s:.60} must be in [0, 1]")
    else:
        is_object = not isinstance(config, str | os.PathLike | None)
        params, name, fields, checksum = _load_official(
            source, config.to_dict() if is_object else config
        )
    known = families()
    if name not in known:
        raise CheckpointError(
            f"{source}: model {name[:60]!r} is unknown; known are {sorted(known)}"
        )
    model = abstract_model(known[name].config.from_dict(fields))
    model = with_parameters(model, params, source=str(source))
    if dtype is not None:
        model = with_dtype(model, dtype)
    called = weights.NAME if named is None else os.fspath(named)
    origin = Origin(called, checksum, is_small=is_small, least_agreement=least_agreement)
    remember(model, origin)
    return model


def abstract_model(config: ModelConfig) -> SceneModel:
    """The model of a configuration, with shapes and types in place of parameters."""
    return jax.eval_shape(_constructor(family_of(config).model, config))


@functools.cache
def _constructor(kind: type[SceneModel], config: ModelConfig) -> Callable[[], SceneModel]:
    """One function a configuration, which JAX traces once and no more."""
    return lambda: kind(config, rngs=OneKey())


def save_model(
    model: SceneModel,
    destination: str | os.PathLike,
    *,
    overwrite: bool = False,
    int8: Collection[str] = (),
) -> None:
    """Writes a model as a checkpoint of ours, whole or not at all.

    Args:
        destination: a folder to make, or a path that ends in `.safetensors`.
        overwrite: whether to replace a checkpoint of ours that exists.
        int8: names of kernels to store in eight bits, with a scale for each output channel. They
            are read as bfloat16.

    What results must agree with themselves by is not written, since parameters may have changed:
    `scripts/calibrate_confidence.py` measures it.

    Raises:
        vggt_jax.CheckpointError: the destination cannot be written, or exists; or there is no
            kernel of a name in `int8`.
    """
    params = jax.device_get(named_parameters(model))
    document = {"model": model.traits.name, "config": model.config.to_dict()}
    checkpoints.write(destination, params, document, overwrite=overwrite, int8=int8)


def named_parameters(model: nnx.Module | SceneModel) -> dict[str, jax.Array]:
    """The parameters of a model by their dotted names, as checkpoints hold them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return {_name(path): leaf for path, leaf in leaves}


def with_parameters(
    model: SomeModel, params: dict[str, np.ndarray], *, source: str = "parameters"
) -> SomeModel:
    """The model with these parameters, on the default device.

    Kernels of encoder, trunk and frame decoders may be bfloat16 (see `with_dtype`); all else
    becomes float32.

    Args:
        model: may be abstract, as `jax.eval_shape` makes it.
        source: what messages call the parameters.

    Raises:
        vggt_jax.CheckpointError: names or shapes differ from the model's, or values are not finite
            or no floating-point numbers; all of them are listed.
    """
    shapes = {name: leaf.shape for name, leaf in named_parameters(model).items()}
    problems = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in params]
    problems += [f"unknown: {name} {x.shape}" for name, x in params.items() if name not in shapes]
    problems += [
        f"wrong shape: {name} {params[name].shape}, the model has {shape}"
        for name, shape in shapes.items()
        if name in params and params[name].shape != shape
    ]
    problems += [
        f"wrong type: {name} {x.dtype.name}, expected a floating-point one"
        for name, x in params.items()
        if x.dtype.name not in FLOATING
    ]
    if problems:
        summary = f"{source}: {len(problems)} parameters do not fit the configuration"
        raise CheckpointError("\n  ".join([summary, *problems]))
    if broken := [name for name, x in params.items() if not np.isfinite(x).all()]:
        summary = f"{source}: {len(broken)} parameters hold NaN or infinite values; copy it again"
        raise CheckpointError("\n  ".join([summary, *broken]))

    in_compute_type = _in_compute_type(model)

    def put(path, _):
        name = _name(path)
        narrow = in_compute_type(name) and params[name].dtype == jnp.bfloat16
        dtype = jnp.bfloat16 if narrow else jnp.float32
        x = params[name]
        if isinstance(x, jax.Array):
            return x.astype(dtype)
        return jax.device_put(x.astype(dtype, copy=False))

    return jax.tree_util.tree_map_with_path(put, model)


def with_dtype(model: SomeModel, dtype: DTypeLike) -> SomeModel:
    """Stores the kernels of encoder, trunk and frame decoders in another type, and nothing else.

    In bfloat16 this saves 1.7 GiB of VGGT-1B, 1.8 GiB of π³, and changes no result as long as
    `compute_dtype` is bfloat16, since these products round their operands anyway.

    Args:
        dtype: float32 or bfloat16.
    """
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"dtype={dtype.name} is not supported (float32, bfloat16)")

    in_compute_type = _in_compute_type(model)

    def cast(path, leaf):
        return leaf.astype(dtype) if in_compute_type(_name(path)) else leaf

    return jax.tree_util.tree_map_with_path(cast, model)


def cache_folder() -> pathlib.Path:
    """Where converted checkpoints and compiled programs are kept.

    The environment variable VGGT_JAX_CACHE, or `vggt_jax` in XDG_CACHE_HOME or `~/.cache`.
    """
    if folder := os.environ.get("VGGT_JAX_CACHE"):
        return pathlib.Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "vggt_jax"


def _ours_in(source: str | os.PathLike) -> str | os.PathLike:
    """The checkpoint of ours that a folder holds under any name; the source where it is another."""
    if not checkpoints.is_native(source) and os.path.isdir(source):
        files = find_checkpoint(source).files
        if len(files) == 1 and checkpoints.is_native(files[0]):
            return files[0]
    return source


def _load_official(source, config) -> tuple[dict[str, np.ndarray], str, dict, str]:
    found = find_checkpoint(source)
    stats = [path.stat() for path in found.files]
    if sum(stat.st_size for stat in stats) < _CACHE_FROM_BYTES:
        params, config, report = load_official(source, config)
        return params, report.model, config, report.checksum
    beside = found.beside.with_suffix(".json")
    if config is None and beside.is_file():
        config = beside
    if isinstance(config, str | os.PathLike):
        config = checkpoints.read_fields(config)
    files = [
        [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
        for path, stat in zip(found.files, stats, strict=True)
    ]
    key = json.dumps([native.VERSION, files, config])
    stem = found.name.replace(os.sep, "--")[-80:]
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    cached = cache_folder() / "checkpoints" / f"{stem}-{digest}.safetensors"
    if cached.exists():
        try:
            params, document = checkpoints.read(cached)
            return params, document["model"], document["config"], document["checksum"]
        except CheckpointError as error:
            warnings.warn(f"converting again: {error}", stacklevel=3)
    params, config, report = load_official(source, config)
    document = {"model": report.model, "config": config, "checksum": report.checksum}
    try:
        if not checkpoints.is_native(cached):
            cached.unlink(missing_ok=True)
        checkpoints.write(cached, params, document, overwrite=True)
    except (CheckpointError, OSError) as error:
        warnings.warn(f"the converted checkpoint is not kept: {error}", stacklevel=3)
    return params, report.model, config, report.checksum


def _in_compute_type(model: Any) -> Callable[[str], bool]:
    """Whether a parameter of this name is a kernel whose products run in the compute type: none of
    a module that is no model, such as a head by itself."""
    traits = getattr(model, "traits", None)
    modules = () if traits is None else traits.compute_type_modules
    return lambda name: name.startswith(modules) and name.endswith(".kernel")


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
