"""The dense head of Depth Anything 3: depth, and the rays of the world that pixels look along."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax.heads.dpt import DPT, DPTStyle, FeatureFusion, fuse_levels
from vggt_jax.layers.linear import Conv, Linear
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision
from vggt_jax.trunk.token_layout import TokenLayout

# Official file: depth_anything_3/model/dualdpt.py.
_RAY_CHANNELS = 7  # direction 3, origin 3, confidence
_HIDDEN = 32
_NORM_EPS = 1e-5
_STYLE = DPTStyle(skips_after_relu=False, output_hidden=_HIDDEN)


class DualDPT(DPT):
    """A pyramid of tokens with two chains of fusions: to depth, and to rays.

    Official file: depth_anything_3/model/dualdpt.py.
    """

    def __init__(
        self,
        dim: int,
        *,
        patch_size: int,
        features: int,
        out_channels: tuple[int, ...],
        layers: tuple[int, ...],
        rngs: nnx.Rngs,
    ):
        super().__init__(
            dim,
            patch_size=patch_size,
            features=features,
            out_channels=out_channels,
            layers=layers,
            out_dim=2,
            style=_STYLE,
            rngs=rngs,
        )
        self.refinenet1_aux, self.refinenet2_aux, self.refinenet3_aux, self.refinenet4_aux = (
            FeatureFusion(features, has_residual=has_residual, style=_STYLE, rngs=rngs)
            for has_residual in (True, True, True, False)
        )
        wide, half = features, features // 2
        self.output_conv1_aux = nnx.List(
            [Conv(*dims, rngs=rngs) for dims in ((wide, half), (half, wide)) * 2 + ((wide, half),)]
        )
        self.output_conv2_aux_0 = Conv(half, _HIDDEN, rngs=rngs)
        self.output_conv2_aux_norm = LayerNorm(_HIDDEN, eps=_NORM_EPS)
        self.output_conv2_aux_5 = Linear(_HIDDEN, _RAY_CHANNELS, rngs=rngs)

    def depth_map(
        self, levels: list[Float[Array, "f _ _ c"]], layout: TokenLayout, precision: Precision
    ) -> Float[Array, "f height width 2"]:
        """Raw depth and confidence of what `pyramid` gives."""
        blocks = self.refinenet1, self.refinenet2, self.refinenet3, self.refinenet4
        return self.map_of_features(fuse_levels(blocks, levels, precision), layout, precision)

    def ray_map(
        self, levels: list[Float[Array, "f _ _ c"]], layout: TokenLayout, precision: Precision
    ) -> Float[Array, "f h w 7"]:
        """Raw rays and confidence of what `pyramid` gives, 8 pixels for each patch."""
        x = self.ray_features(levels, precision)
        x = self.output_conv2_aux_0(self.with_position(x, layout), precision)
        x = jax.nn.relu(self.output_conv2_aux_norm(x))
        return self.output_conv2_aux_5(x, precision)

    def ray_features(
        self, levels: list[Float[Array, "f _ _ c"]], precision: Precision
    ) -> Float[Array, "f h w d"]:
        """What `ray_map` is read from."""
        blocks = self.refinenet1_aux, self.refinenet2_aux, self.refinenet3_aux, self.refinenet4_aux
        x = fuse_levels(blocks, levels, precision)
        for conv in self.output_conv1_aux:
            x = conv(x, precision)
        return x
