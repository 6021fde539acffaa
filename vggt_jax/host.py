"""Functions of JAX for callers who have NumPy arrays."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def with_numpy(function: Callable[..., Any], *arrays: Any, **settings: Any) -> Any:
    """`function(*arrays, **settings)`, from NumPy arrays to NumPy arrays; floats are float32.

    It is compiled as a whole, and arrays are moved to the device and back explicitly, since
    `jax.transfer_guard` can forbid other ways.

    Args:
        function: pure; one that lives as long as the process, because what it compiles to is kept.
        settings: known when tracing, and hashable.
    """
    as_float32 = [
        np.asarray(x, np.float32) if np.issubdtype(x.dtype, np.floating) else x for x in arrays
    ]
    compiled = _compiled(function, tuple(sorted(settings.items())))
    return jax.device_get(compiled(*jax.device_put(as_float32)))


@functools.cache
def _compiled(function: Callable[..., Any], settings: tuple[tuple[str, Any], ...]):
    return jax.jit(functools.partial(function, **dict(settings)))
