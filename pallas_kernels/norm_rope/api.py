"""`norm_rope`: its arguments, checked, and its backends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels import devices
from pallas_kernels.arguments import DTYPES
from pallas_kernels.norm_rope.call import NormRopeCall
from pallas_kernels.operation import Backend, Operation

OPERATION = Operation(
    name="norm_rope",
    backends=[
        Backend(
            name="triton",
            module="pallas_kernels.norm_rope.triton",
            device=devices.triton_unsupported_because,
        ),
        Backend(name="xla", module="pallas_kernels.norm_rope.xla"),
    ],
    gradient="recomputed",
)


def norm_rope(
    x: Float[Array, "*b p n h"],
    cos: Float[Array | np.ndarray, "p h"],
    sin: Float[Array | np.ndarray, "p h"],
    *,
    bias: Float[Array, "n h"] | Float[Array, " n*h"],
    scale: Float[Array, " h"],
    offset: Float[Array, " h"],
    eps: float,
    implementation: str | None = None,
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
    _check_arguments(x, cos, sin, bias, scale, offset)
    cos, sin = (jnp.asarray(lax.stop_gradient(table), jnp.float32) for table in (cos, sin))
    call = NormRopeCall(
        x=x,
        cos=cos,
        sin=sin,
        bias=jnp.reshape(bias, x.shape[-2:]),
        scale=scale,
        offset=offset,
        eps=float(eps),
    )
    chosen = OPERATION.choose(call, implementation=implementation, interpret=interpret)
    return _norm_rope(call, chosen=chosen)


@functools.partial(jax.jit, static_argnames="chosen")
@jax.named_scope("norm_rope")
def _norm_rope(call, *, chosen):
    return chosen(call)


def _check_arguments(x, cos, sin, bias, scale, offset):
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
