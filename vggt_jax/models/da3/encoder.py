"""The blocks of Depth Anything 3 that see one frame each, before the camera token joins."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vggt_jax.layers.attention import Dense
from vggt_jax.layers.block import Block
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.vit import IMAGE_MEAN, IMAGE_STD, Color, VisionTransformer


class Encoder(VisionTransformer):
    """The first blocks of the vision transformer, of which the trunk is the rest.

    Official file: depth_anything_3/model/dinov2/vision_transformer.py.
    """

    def __call__(
        self,
        images: Float[Array, "f height width i"],
        dense: Dense,
        precision: Precision,
        *,
        mean: Color = IMAGE_MEAN,
        std: Color = IMAGE_STD,
    ) -> Float[Array, "f p d"]:
        """Encodes images: the tokens of their patches after the last block, row by row, float32.

        The class token before them is that of one block earlier: by it the reference view is
        chosen, and it goes no further.
        """
        mean, std = (jnp.asarray(color, jnp.float32)[None, None, None] for color in (mean, std))
        x = self.embed((images - mean) / std, precision)
        p = x.shape[-2]
        x, _ = self.blocks.pad_tokens(x, None, dense, precision)

        def layer(x, block: Block):
            return block.within_frames(x, None, dense, precision, num_valid=p), x[:, :1]

        x, class_tokens = jax.lax.scan(layer, x, self.blocks)
        return jnp.concatenate([class_tokens[-1], x[:, 1:p]], axis=1)
