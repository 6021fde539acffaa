"""Kernels stored in eight bits, with a scale for each output channel: half of bfloat16."""

from collections.abc import Collection, Mapping

import ml_dtypes
import numpy as np

from vggt_jax.checkpoints.errors import CheckpointError

Params = dict[str, np.ndarray]

_SCALE = ".int8_scale"  # after the name of a kernel
_MOST = 127


def compressed(params: Mapping[str, np.ndarray], names: Collection[str]) -> Params:
    """Parameters of which those of these names are stored in eight bits.

    Each is followed by its scales: the largest magnitude along the second last axis, the inputs of
    a channel, is 127.

    Args:
        params: by name.
        names: of arrays `[... inputs outputs]` in a floating-point type.

    Raises:
        CheckpointError: there is no such array.
    """
    stored = dict(params)
    for name in names:
        if name not in params or np.ndim(params[name]) < 2:
            raise CheckpointError(f"{name}: no array [... inputs outputs] to store in eight bits")
        x = np.asarray(params[name], np.float32)
        scale = np.abs(x).max(axis=-2, keepdims=True, initial=0.0) / np.float32(_MOST)
        levels = np.rint(np.divide(x, scale, out=np.zeros_like(x), where=scale > 0))
        stored[name] = np.clip(levels, -_MOST, _MOST).astype(np.int8)
        stored[name + _SCALE] = scale
    return stored


def restored(stored: Mapping[str, np.ndarray]) -> Params:
    """The parameters that `compressed` stored; those of eight bits are bfloat16.

    Raises:
        CheckpointError: a kernel of eight bits and its scales do not belong together.
    """
    params = {name: x for name, x in stored.items() if not name.endswith(_SCALE)}
    for name in stored.keys() - params.keys():
        name, scale = name.removesuffix(_SCALE), stored[name]
        levels = params.get(name)
        expected = None if levels is None else (*levels.shape[:-2], 1, *levels.shape[-1:])
        if levels is None or levels.dtype != np.int8 or scale.shape != expected:
            raise CheckpointError(
                f"{name}{_SCALE}: scales of no kernel of eight bits; copy it again"
            )
        params[name] = (levels * scale.astype(np.float32)).astype(ml_dtypes.bfloat16)
    return params
