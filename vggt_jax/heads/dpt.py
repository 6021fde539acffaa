"""The dense prediction head (DPT): tokens of four layers to a map of every frame."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from pallas_kernels import tuned
from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.linear import Conv, Linear, Upsample
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.resize import resize_bilinear
from vggt_jax.trunk.alternation import TrunkOutput
from vggt_jax.trunk.token_layout import TokenLayout

_OUTPUT_HIDDEN = 32  # official file: vggt/heads/dpt_head.py, head_features_2
_POSITION_RATIO = 0.1  # official file: vggt/heads/dpt_head.py, _apply_pos_embed
_POSITION_OMEGA = 100.0  # official file: vggt/heads/utils.py, position_grid_to_embed


class ResidualConvUnit(nnx.Module):
    """Two convolutions beside a skip connection.

    The skip carries `relu(x)`, not `x`: the official ReLU works in place, on the very array that
    is added afterwards (official file: vggt/heads/dpt_head.py, ResidualConvUnit).
    """

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv(dim, dim, rngs=rngs)
        self.conv2 = Conv(dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], precision: Precision):
        x = jax.nn.relu(x)
        branch = self.conv2(jax.nn.relu(self.conv1(x, precision)), precision)
        return branch.astype(x.dtype) + x


class FeatureFusion(nnx.Module):
    """Adds a finer map to a coarser one and enlarges the sum."""

    def __init__(self, dim: int, *, has_residual: bool, rngs: nnx.Rngs):
        self.res_conf_unit1 = ResidualConvUnit(dim, rngs=rngs) if has_residual else None
        self.res_conf_unit2 = ResidualConvUnit(dim, rngs=rngs)
        self.out_conv = Linear(dim, dim, rngs=rngs)

    def __call__(self, x, finer, size: tuple[int, ...], precision: Precision):
        if self.res_conf_unit1 is not None:
            x = x + self.res_conf_unit1(finer, precision).astype(x.dtype)
        x = self.res_conf_unit2(x, precision)
        # The official code enlarges first. Interpolation weights sum to one, so that it commutes
        # with a per-pixel linear layer, which is cheaper on the small map.
        return resize_bilinear(self.out_conv(x, precision), *size)


class DPT(nnx.Module):
    """Dense prediction head (arXiv:2103.13413; official file: vggt/heads/dpt_head.py).

    With `out_dim=None` it ends at the features, at half the resolution of the images and without
    position embedding: the feature extractor of the tracker.
    """

    def __init__(
        self,
        dim: int,
        *,
        patch_size: int,
        features: int,
        out_channels: tuple[int, int, int, int],
        layers: tuple[int, int, int, int],
        out_dim: int | None,
        rngs: nnx.Rngs,
    ):
        self.patch_size = patch_size
        self.layers = layers
        self.norm = LayerNorm(dim)
        self.projects = nnx.List([Linear(dim, channels, rngs=rngs) for channels in out_channels])
        self.resize_0 = Upsample(out_channels[0], out_channels[0], 4, rngs=rngs)
        self.resize_1 = Upsample(out_channels[1], out_channels[1], 2, rngs=rngs)
        self.resize_3 = Conv(out_channels[3], out_channels[3], stride=2, rngs=rngs)
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            Conv(channels, features, use_bias=False, rngs=rngs) for channels in out_channels
        )
        self.refinenet1 = FeatureFusion(features, has_residual=True, rngs=rngs)
        self.refinenet2 = FeatureFusion(features, has_residual=True, rngs=rngs)
        self.refinenet3 = FeatureFusion(features, has_residual=True, rngs=rngs)
        self.refinenet4 = FeatureFusion(features, has_residual=False, rngs=rngs)
        self.is_extractor = out_dim is None
        if out_dim is None:
            self.output_conv1 = Conv(features, features, rngs=rngs)
        else:
            self.output_conv1 = Conv(features, features // 2, rngs=rngs)
            self.output_conv2_0 = Conv(features // 2, _OUTPUT_HIDDEN, rngs=rngs)
            self.output_conv2_2 = Linear(_OUTPUT_HIDDEN, out_dim, rngs=rngs)

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
        limit = pixels_per_chunk
        if limit is None:
            limit = tuned.value("dpt.pixels_per_chunk")
        b = trunk.kept.shape[0]
        pixels = b * layout.rows * layout.columns * self.patch_size**2
        return map_chunks(
            lambda kept: self._decode(kept, trunk.layers, layout, precision),
            trunk.kept,
            axis=1,
            max_chunk=limit // pixels,
        )

    def _decode(self, kept, kept_layers, layout, precision):
        b, s = kept.shape[:2]
        rows, columns = layout.rows, layout.columns
        height, width = rows * self.patch_size, columns * self.patch_size
        position = lambda x: x if self.is_extractor else add_position(x, width / height)

        maps = []
        for layer, project in zip(self.layers, self.projects, strict=True):
            x = kept[:, :, kept_layers.index(layer), layout.num_special :]
            x = project(self.norm(x), precision)
            maps.append(position(x.reshape(b * s, rows, columns, -1)))
        x1 = self.layer1_rn(self.resize_0(maps[0], precision), precision)
        x2 = self.layer2_rn(self.resize_1(maps[1], precision), precision)
        x3 = self.layer3_rn(maps[2], precision)
        x4 = self.layer4_rn(self.resize_3(maps[3], precision), precision)

        x = self.refinenet4(x4, None, x3.shape[1:3], precision)
        x = self.refinenet3(x, x3, x2.shape[1:3], precision)
        x = self.refinenet2(x, x2, x1.shape[1:3], precision)
        x = self.refinenet1(x, x1, (2 * x1.shape[1], 2 * x1.shape[2]), precision)
        x = self.output_conv1(x, precision)
        if self.is_extractor:
            x = resize_bilinear(x, height // 2, width // 2)
        else:
            x = position(resize_bilinear(x, height, width))
            x = jax.nn.relu(self.output_conv2_0(x, precision))
            x = self.output_conv2_2(x, precision.heads)  # float32 where training narrows the rest
        return x.reshape(b, s, *x.shape[1:])


def add_position(x: Float[Array, "b h w c"], aspect_ratio: float) -> Float[Array, "b h w c"]:
    """Adds a tenth of a sine-cosine embedding of where in the picture each pixel lies.

    Official files: vggt/heads/dpt_head.py (_apply_pos_embed), vggt/heads/utils.py.
    """
    _, height, width, channels = x.shape
    span_x = aspect_ratio / (aspect_ratio**2 + 1) ** 0.5
    span_y = 1 / (aspect_ratio**2 + 1) ** 0.5
    along_x = _sincos(_centres(span_x, width), channels // 2)[None, :]  # [1, w, c / 2]
    along_y = _sincos(_centres(span_y, height), channels // 2)[:, None]  # [h, 1, c / 2]
    half = (height, width, channels // 2)
    table = [jnp.broadcast_to(along_x, half), jnp.broadcast_to(along_y, half)]
    return x.astype(jnp.float32) + _POSITION_RATIO * jnp.concatenate(table, axis=-1)[None]


def _centres(span: float, num: int) -> np.ndarray:
    end = span * (num - 1) / num
    return np.linspace(-end, end, num, dtype=np.float32)


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
