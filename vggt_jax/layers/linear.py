"""Layers that multiply by a kernel: linear, convolution, and upsampling by a whole factor."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

import pallas_kernels
from vggt_jax.layers.abstract import OneKey
from vggt_jax.layers.precision import Precision

_INIT_STD = 0.02  # official file: vggt/layers/vision_transformer.py, init_weights_vit_timm


def _kernel(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    if isinstance(rngs, OneKey):  # Tracing a draw takes longer than all else in a constructor.
        return nnx.Param(jnp.zeros(shape, jnp.float32))
    draw = jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32)
    return nnx.Param(_INIT_STD * draw)


class Linear(nnx.Module):
    """`x @ kernel + bias`, in the compute type."""

    def __init__(self, in_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.kernel = _kernel(rngs, in_dim, out_dim)
        self.bias = nnx.Param(jnp.zeros(out_dim, jnp.float32))

    def __call__(
        self, x: Float[Array, "*b i"], precision: Precision, **options
    ) -> Float[Array, "*b out"]:
        """`options`: of `apply_linear`."""
        return apply_linear(x, self.kernel[...], self.bias[...], precision, **options)


def apply_linear(
    x: Float[Array, "*b i"],
    kernel: Float[Array, "i o"],
    bias: Float[Array, " o"] | None,
    precision: Precision,
    *,
    activation: Literal["gelu", "swiglu"] | None = None,
    implementation: Literal["xla"] | None = "xla",
) -> Float[Array, "*b out"]:
    """`x @ kernel + bias`, if any: operands and result in the compute type, sums in float32.

    Args:
        activation: of the result; see `pallas_kernels.linear`.
        implementation: of `pallas_kernels.linear`; None to choose by device, type and size. XLA's
            is fastest where there is no bias, or what follows can add it.
    """
    dtype = precision.compute_dtype
    return pallas_kernels.linear(
        x.astype(dtype),
        kernel.astype(dtype),
        bias,
        activation=activation,
        precision=precision.matmul,
        implementation=implementation,
    )


class Conv(nnx.Module):
    """2D convolution, channels last, `kernel [kh kw i o]`, padded so that the size stays.

    What lies beyond the border is 0 (`padding="zeros"`), or the nearest pixel ("edge").
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        use_bias: bool = True,
        padding: Literal["zeros", "edge"] = "zeros",
        rngs: nnx.Rngs,
    ):
        self.stride, self.padding = stride, padding
        self.kernel = _kernel(rngs, kernel_size, kernel_size, in_dim, out_dim)
        self.bias = nnx.Param(jnp.zeros(out_dim, jnp.float32)) if use_bias else None

    def __call__(
        self, x: Float[Array, "b h w i"], precision: Precision
    ) -> Float[Array, "b h2 w2 o"]:
        dtype, kernel = precision.compute_dtype, self.kernel[...]
        padding = kernel.shape[0] // 2
        if self.padding == "edge":
            beyond = (padding, padding)
            x, padding = jnp.pad(x, ((0, 0), beyond, beyond, (0, 0)), mode="edge"), 0
        y = jax.lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            window_strides=(self.stride, self.stride),
            padding=((padding, padding), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision.matmul,
        )
        return y if self.bias is None else y + self.bias[...].astype(dtype)[None, None, None]


class Upsample(nnx.Module):
    """Transposed convolution whose kernel is as large as its stride: every pixel becomes a tile."""

    def __init__(self, in_dim: int, out_dim: int, factor: int, *, rngs: nnx.Rngs):
        self.kernel = _kernel(rngs, in_dim, factor, factor, out_dim)
        self.bias = nnx.Param(jnp.zeros(out_dim, jnp.float32))

    def __call__(
        self, x: Float[Array, "b h w i"], precision: Precision
    ) -> Float[Array, "b h2 w2 o"]:
        dtype, kernel = precision.compute_dtype, self.kernel[...]
        _, factor, _, out_dim = kernel.shape
        y = jnp.einsum(
            "bhwi,ixyo->bhxwyo", x.astype(dtype), kernel.astype(dtype), precision=precision.matmul
        )
        b, height, _, width, _, _ = y.shape
        y = y.reshape(b, height * factor, width * factor, out_dim)
        return y + self.bias[...].astype(dtype)[None, None, None]
