"""The convolutional head of Pi3X: tokens of patches to maps of every pixel, stage by stage."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from pallas_kernels import tuned
from vggt_jax.heads.view_plane import view_plane
from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.linear import Conv, Linear, Upsample
from vggt_jax.layers.norm import GroupNorm
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.resize import resize_bilinear
from vggt_jax.trunk.token_layout import TokenLayout

_CHANNELS_IN_GROUP = 32  # official file: pi3/models/layers/conv_head.py, ResidualConvBlock


class NormalizedConvUnit(nnx.Module):
    """Two convolutions after a norm and a ReLU each, beside a skip connection.

    Unlike the unit of the DPT, the skip carries `x` itself: the official ReLU works in place on
    what the norm returned.
    """

    def __init__(self, dim: int, hidden_dim: int, *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(1, dim)
        self.conv1 = Conv(dim, hidden_dim, padding="edge", rngs=rngs)
        self.norm2 = GroupNorm(hidden_dim // _CHANNELS_IN_GROUP, hidden_dim)
        self.conv2 = Conv(hidden_dim, dim, padding="edge", rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], precision: Precision):
        branch = self.conv1(jax.nn.relu(self.norm1(x)), precision)
        return x + self.conv2(jax.nn.relu(self.norm2(branch)), precision)


class Stage(nnx.Module):
    """Doubles the sides of a map."""

    def __init__(self, dim: int, out_dim: int, hidden_dim: int, num_units: int, *, rngs: nnx.Rngs):
        self.enlarge = Upsample(dim, out_dim, 2, rngs=rngs)
        self.conv = Conv(out_dim, out_dim, padding="edge", rngs=rngs)
        self.units = nnx.List(
            [NormalizedConvUnit(out_dim, hidden_dim, rngs=rngs) for _ in range(num_units)]
        )

    def __call__(self, x: Float[Array, "b h w c"], precision: Precision):
        x = self.conv(self.enlarge(x, precision), precision)
        for unit in self.units:
            x = unit(x, precision)
        return x


class OutputConvs(nnx.Module):
    """What turns the last map into the values of an output."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.conv = Conv(dim, hidden_dim, padding="edge", rngs=rngs)
        self.linear = Linear(hidden_dim, out_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], precision: Precision):
        return self.linear(jax.nn.relu(self.conv(x, precision)), precision)


class ConvHead(nnx.Module):
    """Stages that double the sides of the grid of patches, then the size of the images.

    Before every stage, and before the outputs, each pixel is told where in the picture it lies. The
    official file is pi3/models/layers/conv_head.py, which is MoGe's (arXiv:2410.19115).
    """

    def __init__(
        self,
        dim: int,
        out_dims: tuple[int, ...],
        *,
        patch_size: int,
        stage_dims: tuple[int, ...],
        hidden_ratio: int,
        units_per_stage: int,
        last_dim: int,
        rngs: nnx.Rngs,
    ):
        self.patch_size = patch_size
        pairs = zip((dim, *stage_dims), stage_dims, strict=False)
        self.stages = nnx.List(
            [
                Stage(before + 2, after, hidden_ratio * after, units_per_stage, rngs=rngs)
                for before, after in pairs
            ]
        )
        self.outputs = nnx.List(
            [OutputConvs(stage_dims[-1] + 2, last_dim, out_dim, rngs=rngs) for out_dim in out_dims]
        )

    def __call__(
        self,
        tokens: Float[Array, "b s p c"],
        layout: TokenLayout,
        precision: Precision,
        *,
        pixels_per_chunk: int | None = None,
    ) -> Float[Array, "b s height width o"]:
        """Maps of all outputs, one after the other along the channels, float32.

        Frames are decoded in chunks; the result does not depend on them.

        Args:
            tokens: of patches, row by row.
        """
        limit = pixels_per_chunk
        if limit is None:
            limit = tuned.value("dpt.pixels_per_chunk")
        pixels = tokens.shape[0] * layout.rows * layout.columns * self.patch_size**2
        return map_chunks(
            lambda tokens: self._decode(tokens, layout, precision),
            tokens,
            axis=1,
            max_chunk=limit // pixels,
        )

    def _decode(self, tokens, layout, precision):
        b, s, _, dim = tokens.shape
        rows, columns = layout.rows, layout.columns
        x = tokens.astype(jnp.float32).reshape(b * s, rows, columns, dim)
        for stage in self.stages:
            x = stage(with_position(x, columns / rows), precision)
        size = (rows * self.patch_size, columns * self.patch_size)
        x = with_position(resize_bilinear(x, *size, align_corners=False), columns / rows)
        maps = jnp.concatenate([output(x, precision) for output in self.outputs], axis=-1)
        return maps.reshape(b, s, *maps.shape[1:])


def with_position(x: Float[Array, "b h w c"], aspect_ratio: float) -> Float[Array, "b h w c2"]:
    """Two more channels: x and y of each pixel, see `view_plane`."""
    _, height, width, _ = x.shape
    along_x, along_y = view_plane(height, width, aspect_ratio)
    plane = np.stack(np.broadcast_arrays(along_x[None, :], along_y[:, None]), axis=-1)
    position = jnp.broadcast_to(plane, (*x.shape[:-1], 2))
    return jnp.concatenate([x, position], axis=-1)
