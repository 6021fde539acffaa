"""`norm_rope`: what was asked for, checked and handed to the implementation for it."""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels import devices
from pallas_kernels.arguments import DTYPES, check_implementation, check_interpret
from pallas_kernels.rope import xla

Implementation = Literal["triton", "xla"]


def norm_rope(
    x: Float[Array, "*b p n h"],
    cos: Float[Array | np.ndarray, "p h"],
    sin: Float[Array | np.ndarray, "p h"],
    *,
    bias: Float[Array, "n h"] | Float[Array, " n*h"],
    scale: Float[Array, " h"],
    offset: Float[Array, " h"],
    eps: float,
    implementation: Implementation | None = None,
    interpret: bool = False,
) -> Float[Array, "*b p n h"]:
    """Adds a bias, normalises every head, and turns it by its token's angles.

    `y = x + bias`; `z = (y - mean) / sqrt(variance + eps) * scale + offset` with mean and variance
    of the head; then rotary embedding. A head is four quarters a, b, c, d, of which a and b turn by
    one set of angles and c and d by another:
    `a cos - b sin, b cos + a sin, c cos - d sin, d cos + c sin`. All of it is float32, and rounded
    once, to the type of `x`. `jax.vmap` and `jax.grad` work; the gradient is that of "xla". The
    tables have none.

    Args:
        x: float32, bfloat16 or float16.
        cos, sin: of the angles of each token, in float32 or rounded from it. Members of a pair turn
            by the same angle: the second quarter of a row equals the first, the fourth the third.
        bias: added to every token.
        scale, offset: of layer normalisation, shared by all heads.
        eps: added to the variance, known when tracing.
        implementation: "triton" (a Pallas kernel for NVIDIA GPUs from Ampere on that reads and
            writes once: bfloat16 and float16, head dims 32, 64 and 128, a number of heads that is a
            power of two), "xla" (any device), or None for the first that can do this here. A name
            means that one or an error.
        interpret: run the Triton kernel in Pallas's interpreter, on any device, slowly.

    Raises:
        ValueError: arguments that no implementation could make sense of.
        NotImplementedError: the implementation named cannot do this here.
    """
    if implementation is None and interpret:
        implementation = "triton"
    _check_arguments(x, cos, sin, bias, scale, offset, implementation, interpret)
    implementation = _choose_implementation(implementation, x, interpret)
    return _norm_rope(
        x,
        *(jnp.asarray(lax.stop_gradient(table), jnp.float32) for table in (cos, sin)),
        jnp.reshape(bias, x.shape[-2:]),
        scale,
        offset,
        eps=float(eps),
        implementation=implementation,
        interpret=interpret,
    )


@functools.partial(jax.jit, static_argnames=("eps", "implementation", "interpret"))
@jax.named_scope("norm_rope")
def _norm_rope(x, cos, sin, bias, scale, offset, *, eps, implementation, interpret):
    if implementation == "xla":
        return xla.norm_rope(x, cos, sin, bias, scale, offset, eps)
    return _run_kernel(eps, interpret, x, cos, sin, bias, scale, offset)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run_kernel(eps, interpret, x, cos, sin, bias, scale, offset):
    from pallas_kernels.rope import triton

    return triton.norm_rope(x, cos, sin, bias, scale, offset, eps, interpret=interpret)


def _forward(eps, interpret, *arrays):
    return _run_kernel(eps, interpret, *arrays), arrays


def _backward(eps, interpret, saved, cotangent):
    x, cos, sin, *parameters = saved
    compute = lambda x, bias, scale, offset: xla.norm_rope(x, cos, sin, bias, scale, offset, eps)
    of_x, *of_parameters = jax.vjp(compute, x, *parameters)[1](cotangent)
    return of_x, None, None, *of_parameters


_run_kernel.defvjp(_forward, _backward)


def _check_arguments(x, cos, sin, bias, scale, offset, implementation, interpret):
    if x.ndim < 3 or not x.size or x.shape[-1] % 4:
        raise ValueError(
            f"x must be [*b p n h] with tokens, heads and a head dim that is a multiple of 4, "
            f"not {x.shape}"
        )
    if x.dtype not in DTYPES:
        raise ValueError(f"x must be float32, bfloat16 or float16, not {x.dtype}")
    p, n, h = x.shape[-3:]
    allowed = {
        "cos": (cos, [(p, h)]),
        "sin": (sin, [(p, h)]),
        "bias": (bias, [(n, h), (n * h,)]),
        "scale": (scale, [(h,)]),
        "offset": (offset, [(h,)]),
    }
    for name, (array, shapes) in allowed.items():
        if jnp.shape(array) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(f"{name} must be {expected} for x {x.shape}, not {jnp.shape(array)}")
    check_implementation(implementation, get_args(Implementation))
    check_interpret(interpret, implementation, ("triton",))


def _choose_implementation(implementation, x, interpret):
    """The implementation that runs this. A name is that one or an error."""
    if implementation == "xla":
        return implementation
    obstacle = _obstacle_to_triton(x, interpret)
    if obstacle is None:
        return "triton"
    if implementation is None:
        return "xla"
    raise NotImplementedError(f"triton: {obstacle}; use implementation='xla' or None")


def _obstacle_to_triton(x, interpret):
    """Why the kernel cannot do this here; None if it can."""
    if not interpret and not devices.is_ampere_or_later():
        return f"{jax.default_backend()=} is no NVIDIA GPU from Ampere on"
    if x.dtype == jnp.float32:
        return "float32 is not supported (bfloat16, float16)"
    n, h = x.shape[-2:]
    if h not in (32, 64, 128):
        return f"head_dim={h} is not supported (32, 64, 128)"
    if n & (n - 1):
        return f"num_heads={n} is no power of two"
    return None
