"""What MapAnything makes of things that are known: maps and vectors to tokens."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax.layers.linear import Conv, Linear
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision

_NORM_EPS = 1e-6  # official files: uniception/models/encoders


def _gelu(x):
    return jax.nn.gelu(x, approximate=False)


class ResidualConv(nnx.Module):
    """Two convolutions beside a linear layer, and GELU of their sum."""

    def __init__(self, in_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv(in_dim, out_dim, rngs=rngs)
        self.conv2 = Conv(out_dim, out_dim, rngs=rngs)
        self.shortcut = Linear(in_dim, out_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "f r c i"], precision: Precision):
        branch = self.conv2(_gelu(self.conv1(x, precision)), precision)
        return _gelu(branch + self.shortcut(x, precision))


class DenseEncoder(nnx.Module):
    """Maps of the pixels of a frame, rays or depth, to tokens of its patches.

    Official file: uniception/models/encoders/dense_rep_encoder.py.

    Args:
        channels: of the maps.
        dims: channels after the first convolution and after each residual unit.
    """

    def __init__(
        self,
        channels: int,
        dims: tuple[int, ...],
        out_dim: int,
        *,
        patch_size: int,
        rngs: nnx.Rngs,
    ):
        self.patch_size = patch_size
        self.conv_in = Conv(channels * patch_size**2, dims[0], rngs=rngs)
        pairs = itertools.pairwise(dims)
        self.units = nnx.List([ResidualConv(*pair, rngs=rngs) for pair in pairs])
        self.out = Linear(dims[-1], out_dim, rngs=rngs)
        self.norm = LayerNorm(out_dim, eps=_NORM_EPS)

    def __call__(
        self, maps: Float[Array, "*b height width i"], precision: Precision
    ) -> Float[Array, "*b p c"]:
        """Normalised tokens, row by row."""
        (*batch, height, width, channels), side = maps.shape, self.patch_size
        rows, columns = height // side, width // side
        x = maps.reshape(-1, rows, side, columns, side, channels)
        # Channels of the map, then rows and columns of the patch (pixel_unshuffle in PyTorch).
        x = jnp.einsum("fryczi->frciyz", x).reshape(-1, rows, columns, channels * side**2)
        x = self.conv_in(x, precision)
        for unit in self.units:
            x = unit(x, precision)
        x = self.norm(self.out(x, precision))
        return x.reshape(*batch, rows * columns, x.shape[-1])


class GlobalEncoder(nnx.Module):
    """A few numbers, such as a quaternion, to a vector.

    Official file: uniception/models/encoders/global_rep_encoder.py.
    """

    def __init__(self, in_dim: int, dims: tuple[int, ...], out_dim: int, *, rngs: nnx.Rngs):
        pairs = zip((in_dim, *dims[:-1]), dims, strict=True)
        self.layers = nnx.List([Linear(*pair, rngs=rngs) for pair in pairs])
        self.out = Linear(dims[-1], out_dim, rngs=rngs)
        self.norm = LayerNorm(out_dim, eps=_NORM_EPS)

    def __call__(self, x: Float[Array, "*b i"], precision: Precision) -> Float[Array, "*b c"]:
        for linear in self.layers:
            x = _gelu(linear(x, precision))
        return self.norm(self.out(x, precision))
