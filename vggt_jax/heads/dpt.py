"""The dense prediction head (DPT): tokens of four layers to a map of every frame."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from pallas_kernels import tuned
from vggt_jax.heads.view_plane import view_plane
from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.linear import Conv, Linear, Upsample
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.resize import resize_bilinear
from vggt_jax.trunk.alternation import TrunkOutput
from vggt_jax.trunk.token_layout import TokenLayout

_POSITION_RATIO = 0.1  # official file: vggt/heads/dpt_head.py, _apply_pos_embed
_POSITION_OMEGA = 100.0  # official file: vggt/heads/utils.py, position_grid_to_embed


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPTStyle:
    """In what the dense heads of models differ, whatever their sizes; as given, those of VGGT.

    Attributes:
        has_norm: whether the head itself normalises tokens, those of all layers alike.
        has_positions: whether maps are told where in the picture each pixel lies.
        skips_after_relu: whether skip connections carry `relu(x)`, not `x`: the official ReLU of
            VGGT works in place, on the very array that is added afterwards
            (vggt/heads/dpt_head.py, ResidualConvUnit).
        doubles: whether maps are made twice as large and cut to the size of the finer one, which
            differs where that is odd; else they are resized to it.
        output_hidden: channels before the last layer; None for as many as before.
    """

    has_norm: bool = True
    has_positions: bool = True
    skips_after_relu: bool = True
    doubles: bool = False
    output_hidden: int | None = 32  # official file: vggt/heads/dpt_head.py, head_features_2


class ResidualConvUnit(nnx.Module):
    """Two convolutions beside a skip connection.

    Args:
        skips_after_relu: see `DPTStyle`.
    """

    def __init__(self, dim: int, *, skips_after_relu: bool = True, rngs: nnx.Rngs):
        self.skips_after_relu = skips_after_relu
        self.conv1 = Conv(dim, dim, rngs=rngs)
        self.conv2 = Conv(dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], precision: Precision):
        positive = jax.nn.relu(x)
        branch = self.conv2(jax.nn.relu(self.conv1(positive, precision)), precision)
        return branch.astype(x.dtype) + (positive if self.skips_after_relu else x)


class FeatureFusion(nnx.Module):
    """Adds a finer map to a coarser one and enlarges the sum."""

    def __init__(
        self, dim: int, *, has_residual: bool, style: DPTStyle = DPTStyle(), rngs: nnx.Rngs
    ):
        unit = lambda: ResidualConvUnit(dim, skips_after_relu=style.skips_after_relu, rngs=rngs)
        self.doubles = style.doubles
        self.res_conf_unit1 = unit() if has_residual else None
        self.res_conf_unit2 = unit()
        self.out_conv = Linear(dim, dim, rngs=rngs)

    def __call__(self, x, finer, size: tuple[int, ...], precision: Precision):
        if self.res_conf_unit1 is not None:
            x = x + self.res_conf_unit1(finer, precision).astype(x.dtype)
        x = self.res_conf_unit2(x, precision)
        # The official code enlarges first. Interpolation weights sum to one, so that it commutes
        # with a per-pixel linear layer, which is cheaper on the small map.
        x = self.out_conv(x, precision)
        if not self.doubles:
            return resize_bilinear(x, *size)
        height, width = x.shape[1:3]
        return resize_bilinear(x, 2 * height, 2 * width)[:, : size[0], : size[1]]


class DPT(nnx.Module):
    """Dense prediction head (arXiv:2103.13413; official file: vggt/heads/dpt_head.py).

    With `out_dim=None` it ends at the features, at half the resolution of the images and without
    position embedding: the feature extractor of the tracker.

    Args:
        dim: of the tokens of each of the four layers, or of all.
        layers: of the trunk, from which the tokens come.
    """

    def __init__(
        self,
        dim: int | Sequence[int],
        *,
        patch_size: int,
        features: int,
        out_channels: tuple[int, ...],
        layers: tuple[int, ...],
        out_dim: int | None,
        style: DPTStyle = DPTStyle(),
        rngs: nnx.Rngs,
    ):
        dims = [dim] * len(out_channels) if isinstance(dim, int) else dim
        self.patch_size = patch_size
        self.layers = layers
        self.style = style
        self.norm = LayerNorm(dims[0]) if style.has_norm else None
        self.projects = nnx.List(
            [Linear(*dims, rngs=rngs) for dims in zip(dims, out_channels, strict=True)]
        )
        self.resize_0 = Upsample(out_channels[0], out_channels[0], 4, rngs=rngs)
        self.resize_1 = Upsample(out_channels[1], out_channels[1], 2, rngs=rngs)
        self.resize_3 = Conv(out_channels[3], out_channels[3], stride=2, rngs=rngs)
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            Conv(channels, features, use_bias=False, rngs=rngs) for channels in out_channels
        )
        self.refinenet1, self.refinenet2, self.refinenet3, self.refinenet4 = (
            FeatureFusion(features, has_residual=has_residual, style=style, rngs=rngs)
            for has_residual in (True, True, True, False)
        )
        self.is_extractor = out_dim is None
        if out_dim is None:
            self.output_conv1 = Conv(features, features, rngs=rngs)
        else:
            hidden = style.output_hidden or features // 2
            self.output_conv1 = Conv(features, features // 2, rngs=rngs)
            self.output_conv2_0 = Conv(features // 2, hidden, rngs=rngs)
            self.output_conv2_2 = Linear(hidden, out_dim, rngs=rngs)

    def __call__(
        self,
        trunk: TrunkOutput,
        layout: TokenLayout,
        precision: Precision,
        *,
        pixels_per_chunk: int | None = None,
    ) -> Float[Array, "b s h w c"]:
        """The raw map, `out_dim` channels at full size (or features at half), float32.

        Frames are decoded in chunks; the result does not depend on them.
        """

        def run(kept):
            tokens = [kept[:, :, trunk.layers.index(i), layout.num_special :] for i in self.layers]
            return self.decode(tokens, layout, precision)

        max_chunk = frames_per_decoding(
            trunk.kept.shape[0], layout, self.patch_size, pixels_per_chunk
        )
        return map_chunks(run, trunk.kept, axis=1, max_chunk=max_chunk)

    def decode(
        self, tokens: Sequence[Float[Array, "b s p _"]], layout: TokenLayout, precision: Precision
    ) -> Float[Array, "b s h w c"]:
        """The raw map of all frames at once, of the tokens of their patches in the four layers."""
        x = self.map_of_features(self.fuse(tokens, layout, precision), layout, precision)
        return x.reshape(*tokens[0].shape[:2], *x.shape[1:])

    def map_of_features(
        self, x: Float[Array, "f h w c"], layout: TokenLayout, precision: Precision
    ) -> Float[Array, "f height width o"]:
        """The raw map of what `fuse` gives."""
        x = self.output_conv1(x, precision)
        rows, columns = layout.rows, layout.columns
        height, width = rows * self.patch_size, columns * self.patch_size
        if self.is_extractor:
            x = resize_bilinear(x, height // 2, width // 2)
        else:
            x = self.with_position(resize_bilinear(x, height, width), layout)
            x = jax.nn.relu(self.output_conv2_0(x, precision))
            x = self.output_conv2_2(x, precision.heads)  # float32 where training narrows the rest
        return x

    def with_position(
        self, x: Float[Array, "f h w c"], layout: TokenLayout
    ) -> Float[Array, "f h w c"]:
        """A map that knows where in the picture each of its pixels lies, in heads that tell."""
        if self.is_extractor or not self.style.has_positions:
            return x
        return add_position(x, layout.columns / layout.rows)

    def fuse(
        self, tokens: Sequence[Float[Array, "b s p _"]], layout: TokenLayout, precision: Precision
    ) -> Float[Array, "f h w c"]:
        """The features of all frames, 8 times as large as their grids of patches."""
        levels = self.pyramid(tokens, layout, precision)
        blocks = self.refinenet1, self.refinenet2, self.refinenet3, self.refinenet4
        return fuse_levels(blocks, levels, precision)

    def pyramid(
        self, tokens: Sequence[Float[Array, "b s p _"]], layout: TokenLayout, precision: Precision
    ) -> list[Float[Array, "f _ _ c"]]:
        """Maps of all frames by the four layers: 4, 2, 1 and half times as large as their grids of
        patches."""
        maps = []
        for x, project in zip(tokens, self.projects, strict=True):
            x = project(x if self.norm is None else self.norm(x), precision)
            x = x.reshape(-1, layout.rows, layout.columns, x.shape[-1])
            maps.append(self.with_position(x, layout))
        x1 = self.layer1_rn(self.resize_0(maps[0], precision), precision)
        x2 = self.layer2_rn(self.resize_1(maps[1], precision), precision)
        x3 = self.layer3_rn(maps[2], precision)
        x4 = self.layer4_rn(self.resize_3(maps[3], precision), precision)
        return [x1, x2, x3, x4]


def fuse_levels(
    blocks: Sequence[FeatureFusion], levels: Sequence[Float[Array, "f _ _ c"]], precision: Precision
) -> Float[Array, "f h w c"]:
    """Joins the maps of a pyramid, from the coarsest on: one twice as large as the finest.

    Args:
        blocks, levels: from the finest to the coarsest.
    """
    x1, x2, x3, x4 = levels
    finest, finer, coarser, coarsest = blocks
    x = coarsest(x4, None, x3.shape[1:3], precision)
    x = coarser(x, x3, x2.shape[1:3], precision)
    x = finer(x, x2, x1.shape[1:3], precision)
    return finest(x, x1, (2 * x1.shape[1], 2 * x1.shape[2]), precision)


def frames_per_decoding(
    num_scenes: int, layout: TokenLayout, patch_size: int, pixels_per_chunk: int | None = None
) -> int:
    """How many frames of each scene are decoded together.

    Args:
        pixels_per_chunk: the limit; None for the tuned one.
    """
    limit = pixels_per_chunk
    if limit is None:
        limit = tuned.value("dpt.pixels_per_chunk")
    return limit // (num_scenes * layout.rows * layout.columns * patch_size**2)


def add_position(x: Float[Array, "b h w c"], aspect_ratio: float) -> Float[Array, "b h w c"]:
    """Adds a tenth of a sine-cosine embedding of where in the picture each pixel lies.

    Official files: vggt/heads/dpt_head.py (_apply_pos_embed), vggt/heads/utils.py.
    """
    _, height, width, channels = x.shape
    x_of_column, y_of_row = view_plane(height, width, aspect_ratio)
    along_x = _sincos(x_of_column, channels // 2)[None, :]  # [1, w, c / 2]
    along_y = _sincos(y_of_row, channels // 2)[:, None]  # [h, 1, c / 2]
    half = (height, width, channels // 2)
    table = [jnp.broadcast_to(along_x, half), jnp.broadcast_to(along_y, half)]
    return x.astype(jnp.float32) + _POSITION_RATIO * jnp.concatenate(table, axis=-1)[None]


def _sincos(position: np.ndarray, dim: int) -> np.ndarray:
    """`[sin, cos]` of the positions at `dim / 2` frequencies, in float64, rounded to float32."""
    omega = _POSITION_OMEGA ** -(np.arange(dim // 2, dtype=np.float64) / (dim / 2))
    angles = position.astype(np.float64)[:, None] * omega
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def activate(
    raw: Float[Array, "*b c"], activation: Literal["exp", "inv_log"]
) -> tuple[Float[Array, "*b c1"], Float[Array, "*b"]]:
    """Splits a raw map into values and confidence (official file: vggt/heads/head_act.py).

    Values: `exp(x)` (depth) or `sign(x) (exp|x| - 1)` (points). Confidence: `1 + exp(x)`, above 1.
    """
    values, confidence = raw[..., :-1], raw[..., -1]
    if activation == "exp":
        values = jnp.exp(values)
    else:
        values = jnp.sign(values) * jnp.expm1(jnp.abs(values))
    return values, 1 + jnp.exp(confidence)
