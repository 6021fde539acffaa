"""DINOv2 vision transformer, with register tokens or without: the image encoder."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax.layers.attention import Dense
from vggt_jax.layers.block import Block, FfnKind, stack_modules
from vggt_jax.layers.linear import Conv, apply_linear
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.resize import resize_bicubic

# ImageNet statistics (official file: vggt/models/aggregator.py)
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
Color = tuple[float, ...] | Float[Array, " i"]
_NORM_EPS = 1e-6  # official file: vggt/layers/vision_transformer.py


class VisionTransformer(nnx.Module):
    """Images to patch tokens, each frame by itself.

    Official files: vggt/layers/vision_transformer.py, vggt/layers/patch_embed.py;
    dinov2/models/vision_transformer.py for what is optional.

    Args:
        num_register_tokens: None for an encoder that was made without.
        position_offset: of encoders whose table of positions is resized by
            `resize_position_table_by_offset`; None for `resize_position_table`.
        ffn: see `Block`.
        has_norm: whether tokens are normalised at the end.
        keeps_class_token: whether the class token stands before those of the patches.
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
        num_register_tokens: int | None,
        in_channels: int = 3,
        ffn: FfnKind = "mlp",
        position_offset: float | None = None,
        has_norm: bool = True,
        keeps_class_token: bool = False,
        rngs: nnx.Rngs,
    ):
        self.position_offset = position_offset
        self.keeps_class_token = keeps_class_token
        draw = lambda *shape: jax.random.normal(rngs.params(), shape, jnp.float32)
        normal = lambda *shape: nnx.Param(0.02 * draw(*shape))
        self.patch_embed = Conv(in_channels, dim, patch_size, rngs=rngs)
        self.cls_token = normal(1, dim)
        self.register_tokens = (
            None if num_register_tokens is None else normal(num_register_tokens, dim)
        )
        self.pos_embed = normal(1 + (img_size // patch_size) ** 2, dim)
        make = lambda rngs: Block(
            dim, num_heads, mlp_ratio, norm_eps=_NORM_EPS, layer_scale=1.0, ffn=ffn, rngs=rngs
        )
        self.blocks = stack_modules(make, depth, rngs)
        self.norm = LayerNorm(dim, eps=_NORM_EPS) if has_norm else None

    def __call__(
        self,
        images: Float[Array, "f height width i"],
        dense: Dense,
        precision: Precision,
        *,
        mean: Color = IMAGE_MEAN,
        std: Color = IMAGE_STD,
    ) -> Float[Array, "f p d"]:
        """Encodes images to the tokens of their patches, row by row, float32; the class token
        comes before them where it is kept.

        Args:
            images: RGB in [0, 1], or other channels.
            mean, std: of the channels that the encoder expects, one each for every channel.
        """
        mean, std = (jnp.asarray(color, jnp.float32)[None, None, None] for color in (mean, std))
        x = self.embed((images - mean) / std, precision)
        x = self.blocks.stack_within_frames(x, None, dense, precision)
        x = x if self.norm is None else self.norm(x)
        registers = 0 if self.register_tokens is None else self.register_tokens.shape[0]
        patches = x[:, 1 + registers :]
        if not self.keeps_class_token:
            return patches
        return x if not registers else jnp.concatenate([x[:, :1], patches], axis=1)

    def embed(
        self, images: Float[Array, "f height width i"], precision: Precision
    ) -> Float[Array, "f p d"]:
        """Tokens before the first block, of images of the colours that the encoder expects."""
        frames, height, width, _ = images.shape
        side, dim = self.patch_embed.kernel.shape[0], self.patch_embed.kernel.shape[-1]
        rows, columns = height // side, width // side
        patches = embed_patches(self.patch_embed, images, precision)
        pos_embed = self.pos_embed[...].astype(jnp.float32)
        resized = (
            resize_position_table(pos_embed[1:], rows, columns)
            if self.position_offset is None
            else resize_position_table_by_offset(
                pos_embed[1:], rows, columns, offset=self.position_offset
            )
        )
        patches = patches + resized[None]
        cls_token = jnp.broadcast_to(self.cls_token[...] + pos_embed[:1], (frames, 1, dim))
        if self.register_tokens is None:
            return jnp.concatenate([cls_token, patches], axis=1)
        registers = self.register_tokens[...]
        registers = jnp.broadcast_to(registers, (frames, *registers.shape))
        return jnp.concatenate([cls_token, registers, patches], axis=1)


def embed_patches(
    conv: Conv, images: Float[Array, "f height width i"], precision: Precision
) -> Float[Array, "f p d"]:
    """A convolution whose kernel is a patch and steps from patch to patch: tokens, float32."""
    kernel = conv.kernel[...]
    side, dim = kernel.shape[0], kernel.shape[-1]
    frames, height, width, channels = images.shape
    rows, columns = height // side, width // side
    patches = images.reshape(frames, rows, side, columns, side, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(frames, rows * columns, -1)
    bias = None if conv.bias is None else conv.bias[...]
    tokens = apply_linear(patches, kernel.reshape(-1, dim), bias, precision)
    return tokens.astype(jnp.float32)


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


def resize_position_table_by_offset(
    table: Float[Array, "n d"], rows: int, columns: int, *, offset: float
) -> Float[Array, "p d"]:
    """Resizes a square table of position embeddings as DINOv2 without registers does.

    Bicubic without antialiasing, as if to sides that are longer by the offset. Both sides are
    resampled unless both fit (official file: dinov2/models/vision_transformer.py,
    interpolate_pos_encoding; dinov2/hub/backbones.py has the settings of each model).
    """
    side = round(table.shape[0] ** 0.5)
    if (rows, columns) == (side, side):
        return table
    table = table.reshape(1, side, side, -1)
    scales = [(size + offset) / side for size in (rows, columns)]
    return resize_bicubic(table, rows, columns, scales=scales).reshape(rows * columns, -1)
