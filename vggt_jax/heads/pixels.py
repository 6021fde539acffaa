"""Heads that turn every token into a tile of pixels: points in camera coordinates, confidence."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax.layers.linear import Linear
from vggt_jax.layers.precision import Precision
from vggt_jax.trunk.token_layout import TokenLayout


class PixelHead(nnx.Module):
    """A linear layer whose outputs are the pixels of a patch.

    The official file is pi3/models/layers/transformer_head.py (LinearPts3d).
    """

    def __init__(self, dim: int, out_dim: int, *, patch_size: int, rngs: nnx.Rngs):
        self.patch_size = patch_size
        self.proj = Linear(dim, out_dim * patch_size**2, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "*b p c"], layout: TokenLayout, precision: Precision
    ) -> Float[Array, "*b height width o"]:
        """Maps `out_dim` channels of every pixel, from the tokens of the patches row by row."""
        side, rows, columns = self.patch_size, layout.rows, layout.columns
        x = self.proj(tokens, precision)
        # Channels of the output, then rows and columns of the tile (pixel_shuffle in PyTorch).
        x = x.reshape(*x.shape[:-2], rows, columns, -1, side, side)
        x = jnp.einsum("...rcoyx->...rycxo", x)
        return x.reshape(*x.shape[:-5], rows * side, columns * side, x.shape[-1])


def points_from_raw(
    raw: Float[Array, "*b 3"], *, largest: float | None = None
) -> Float[Array, "*b 3"]:
    """Points in camera coordinates of a raw map: a ray `(x, y, 1)` times the depth `exp(z)`.

    The official files are pi3/models/pi3.py and pi3x.py.

    Args:
        largest: what z is cut to, before the exponential; None for no limit.
    """
    z = raw[..., 2:]
    depth = jnp.exp(z if largest is None else jnp.minimum(z, jnp.float32(largest)))
    return jnp.concatenate([raw[..., :2] * depth, depth], axis=-1)
