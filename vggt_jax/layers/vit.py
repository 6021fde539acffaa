"""DINOv2 vision transformer with register tokens: the image encoder."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax.layers.attention import Dense
from vggt_jax.layers.block import Block, stack_modules
from vggt_jax.layers.linear import Conv, apply_linear
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision

# ImageNet statistics (official file: vggt/models/aggregator.py)
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
Color = tuple[float, float, float] | Float[Array, "3"]
_NORM_EPS = 1e-6  # official file: vggt/layers/vision_transformer.py


class VisionTransformer(nnx.Module):
    """Images to normalised patch tokens, each frame by itself.

    Official files: vggt/layers/vision_transformer.py, vggt/layers/patch_embed.py.
    """

    def __init__(
        self,
        *,
        img_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        num_register_tokens: int,
        rngs: nnx.Rngs,
    ):
        draw = lambda *shape: jax.random.normal(rngs.params(), shape, jnp.float32)
        normal = lambda *shape: nnx.Param(0.02 * draw(*shape))
        self.patch_embed = Conv(3, dim, patch_size, rngs=rngs)
        self.cls_token = normal(1, dim)
        self.register_tokens = normal(num_register_tokens, dim)
        self.pos_embed = normal(1 + (img_size // patch_size) ** 2, dim)
        make = lambda rngs: Block(
            dim, num_heads, mlp_ratio, norm_eps=_NORM_EPS, layer_scale=1.0, rngs=rngs
        )
        self.blocks = stack_modules(make, depth, rngs)
        self.norm = LayerNorm(dim, eps=_NORM_EPS)

    def __call__(
        self,
        images: Float[Array, "f height width 3"],
        dense: Dense,
        precision: Precision,
        *,
        mean: Color = IMAGE_MEAN,
        std: Color = IMAGE_STD,
    ) -> Float[Array, "f p d"]:
        """Encodes images to the tokens of their patches, row by row, float32.

        Args:
            images: RGB in [0, 1].
            mean, std: of the colours that the encoder expects, three each.
        """
        mean, std = (jnp.asarray(color, jnp.float32)[None, None, None] for color in (mean, std))
        x = self._embed((images - mean) / std, precision)
        x = self.blocks.stack_within_frames(x, None, dense, precision)
        return self.norm(x)[:, 1 + self.register_tokens.shape[0] :]

    def _embed(self, images, precision):
        frames, height, width, _ = images.shape
        kernel = self.patch_embed.kernel[...]
        side, dim = kernel.shape[0], kernel.shape[-1]
        rows, columns = height // side, width // side
        patches = images.reshape(frames, rows, side, columns, side, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(frames, rows * columns, -1)
        bias = self.patch_embed.bias
        patches = apply_linear(
            patches, kernel.reshape(-1, dim), None if bias is None else bias[...], precision
        ).astype(jnp.float32)

        pos_embed = self.pos_embed[...].astype(jnp.float32)
        patches = patches + resize_position_table(pos_embed[1:], rows, columns)[None]
        cls_token = jnp.broadcast_to(self.cls_token[...] + pos_embed[:1], (frames, 1, dim))
        registers = self.register_tokens[...]
        registers = jnp.broadcast_to(registers, (frames, *registers.shape))
        return jnp.concatenate([cls_token, registers, patches], axis=1)


def resize_position_table(
    table: Float[Array, "n d"], rows: int, columns: int
) -> Float[Array, "p d"]:
    """Resizes a square table of position embeddings: bicubic, antialiased, to an exact size."""
    side = round(table.shape[0] ** 0.5)
    if (rows, columns) == (side, side):
        return table
    table = table.reshape(side, side, -1)
    with jax.enable_x64(False):  # It would weigh in float64 where that is JAX's default.
        table = jax.image.resize(
            table,
            (rows, columns, table.shape[-1]),
            "bicubic",
            antialias=True,
            precision=jax.lax.Precision.HIGHEST,
        )
    return table.reshape(rows * columns, -1)
