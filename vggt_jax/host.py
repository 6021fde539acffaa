"""JAX for callers on the host: whether it has a device, and its functions for NumPy arrays."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vggt_jax.errors import InputError


def check_device() -> None:
    """Checks that JAX has a device to compute on.

    Raises:
        InputError: it has none: JAX_PLATFORMS names a platform that is not installed or has no
            device here, or its driver does not start.
    """
    try:
        jax.devices()
    # JAX asserts that it found a backend, where the platform is known and has none.
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        of = f" for JAX_PLATFORMS={asked}" if asked else ""
        why = (str(error).splitlines() or ["none is installed"])[0]
        raise InputError(
            f"JAX has no device{of} ({why}); install JAX for that platform (on an NVIDIA GPU: pip "
            "install 'vggt-jax[cuda]'), or set JAX_PLATFORMS=cpu"
        ) from error


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
