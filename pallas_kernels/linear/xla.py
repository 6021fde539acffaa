"""A linear layer in plain JAX, on any device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.linear.call import LinearCall
from pallas_kernels.linear.gelu import gelu
from pallas_kernels.linear.swiglu import swiglu

_ACTIVATIONS = {None: lambda y: y, "gelu": gelu, "swiglu": swiglu}


def run(call: LinearCall) -> Float[Array, "*b out"]:
    return linear(call.x, call.kernel, call.bias, call.activation, call.precision)


def linear(
    x: Float[Array, "*b i"],
    kernel: Float[Array, "i o"],
    bias: Float[Array, " o"] | None,
    activation: str | None,
    precision: jax.lax.Precision | None,
) -> Float[Array, "*b out"]:
    """As `pallas_kernels.linear`; the product is rounded before the bias joins."""
    y = jnp.einsum("...i,io->...o", x, kernel, precision=precision)
    y = y if bias is None else y + jax.lax.broadcast_to_rank(bias.astype(y.dtype), y.ndim)
    return _ACTIVATIONS[activation](y)
