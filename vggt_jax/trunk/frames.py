"""What every model does with images up to its trunk: checks, hiding of padding, encoding."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from pallas_kernels import tuned
from pallas_kernels.blocks import leading
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.layers.shards import map_frames
from vggt_jax.layers.vit import IMAGE_MEAN, IMAGE_STD, Color, VisionTransformer
from vggt_jax.trunk.alternation import TrunkOutput, frames_per_chunk
from vggt_jax.trunk.token_layout import TokenLayout


@runtime_checkable
class Encoder(Protocol):
    """What `encode_and_aggregate` asks of a model."""

    def layout(self, images: Array) -> TokenLayout:
        """Where the tokens of these images lie."""
        ...

    def encode(
        self,
        images: Array,
        *,
        attention: SceneAttention,
        compute_dtype: DTypeLike | None,
    ) -> Array:
        """Tokens of the patches of every frame."""
        ...

    def aggregate(
        self,
        patch_tokens: Array,
        layout: TokenLayout,
        *,
        attention: SceneAttention,
        num_frames: Array | None,
        compute_dtype: DTypeLike | None,
    ) -> TrunkOutput:
        """What the trunk makes of them."""
        ...


def encode_and_aggregate(
    model: Encoder,
    images: Float[Array, "b s height width 3"] | UInt8[Array, "b s height width 3"],
    *,
    attention: SceneAttention,
    num_frames: Int[Array, " b"] | None,
    compute_dtype: DTypeLike | None,
    priors: Any = None,
    mesh: Mesh | None = None,
    **of_trunk: Any,
) -> TrunkOutput:
    """What the heads of a model read; the arguments are those of its call.

    Args:
        priors: `scene.priors.Priors`, for a model whose methods take them; None for any model.
        mesh: devices that divide the frames, for a model whose frames can be; see `TrunkModel`.
        of_trunk: arguments that `aggregate` of this model takes besides.
    """
    layout = model.layout(images)
    images = hide_padding(images, num_frames)
    known: dict[str, Any] = {}
    if priors is not None:
        known["priors"] = priors if num_frames is None else priors.hide_padding(num_frames)
    if mesh is not None:
        return _on_devices(
            mesh,
            model,
            images,
            layout,
            known,
            attention=attention,
            num_frames=num_frames,
            compute_dtype=compute_dtype,
            **of_trunk,
        )
    patch_tokens = model.encode(images, attention=attention, compute_dtype=compute_dtype, **known)
    return model.aggregate(
        patch_tokens,
        layout,
        attention=attention,
        num_frames=num_frames,
        compute_dtype=compute_dtype,
        **known,
        **of_trunk,
    )


def decoded_together(pixels: int, num_devices: int = 1) -> int:
    """How many frames of so many pixels a head with convolutions over whole images decodes at a
    time: on several devices as many in all as on one, so that its temporaries are divided, too.
    """
    return max(1, tuned.value("dpt.pixels_per_chunk") // (num_devices * pixels))


def _on_devices(
    mesh, model, images, layout, known, *, attention, num_frames, compute_dtype, **of_trunk
):
    """`encode_and_aggregate` of padding that is hidden, by devices that divide the frames.

    Args:
        known: `priors`, if there are any. What they have of frames is divided, too.
    """
    layers = []
    leaves, tree = jax.tree.flatten(known)
    is_split = [jnp.ndim(x) > 1 for x in leaves]

    def run(whole, split, shards):
        (model, num_frames, *of_scene), (images, *of_frames) = whole, split
        parts = {True: iter(of_frames), False: iter(of_scene)}
        known = jax.tree.unflatten(tree, [next(parts[x]) for x in is_split])
        divided: dict[str, Any] = {"shards": shards}
        encode = lambda images: model.encode(
            images,
            attention=attention,
            compute_dtype=compute_dtype,
            **(known | divided if known else {}),
        )
        b, s = images.shape[:2]
        size = (b, s, layout.tokens_per_frame)
        # What is known of frames may be compared with that of others, so all of it goes at once.
        together = s if known else frames_per_chunk(*size, num_devices=shards.num)
        tokens = map_chunks(encode, images, axis=1, max_chunk=together)
        trunk = model.aggregate(
            tokens,
            layout,
            attention=attention,
            num_frames=num_frames,
            compute_dtype=compute_dtype,
            **divided,
            **known,
            **of_trunk,
        )
        layers[:] = trunk.layers
        return trunk.parts()

    part = lambda split: [x for x, y in zip(leaves, is_split, strict=True) if y == split]
    whole, split = (model, num_frames, *part(False)), (images, *part(True))
    of_frames, of_scene = map_frames(run, mesh, whole, split)
    return TrunkOutput(layers=tuple(layers), **of_frames, **of_scene)


def layout_of_images(images: Array, *, patch_size: int, num_special: int) -> TokenLayout:
    """Where the tokens of these images lie.

    Raises:
        ValueError: images are no `[b s height width 3]` of fitting sides and type.
    """
    if images.ndim != 5 or images.shape[-1] != 3 or not images.size:
        raise ValueError(
            f"images must be [scene, frame, height, width, 3], channels last, not {images.shape}"
        )
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8 or float in [0, 1], not {images.dtype}")
    height, width = images.shape[2:4]
    return TokenLayout.for_images(height, width, patch_size, num_special)


def hide_padding(
    images: Float[Array, "b s height width 3"] | UInt8[Array, "b s height width 3"],
    num_frames: Int[Array, " b"] | None,
) -> Float[Array, "b s height width 3"] | UInt8[Array, "b s height width 3"]:
    """The images with padded frames black: masked attention weighs them with zero, which NaN would
    survive.

    Raises:
        ValueError: `num_frames` is not one number for each scene.
    """
    if num_frames is None:
        return images
    b, s = images.shape[:2]
    if num_frames.shape != (b,):
        raise ValueError(f"num_frames must hold one number for each of {b} scenes")
    valid = leading(num_frames, s)
    return jnp.where(valid[:, :, None, None, None], images, jnp.zeros((), images.dtype))


def encode_frames(
    encoder: VisionTransformer,
    images: Float[Array, "b s height width i"] | UInt8[Array, "b s height width i"],
    layout: TokenLayout,
    *,
    dense: Dense,
    precision: Precision,
    mean: Color = IMAGE_MEAN,
    std: Color = IMAGE_STD,
) -> Float[Array, "b s p c"]:
    """Encodes every frame by itself, in chunks: normalised tokens of its patches, float32.

    Args:
        mean, std: of colours in [0, 1], one each for every channel.
    """
    b = images.shape[0]

    def run(images):
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        flat = images.astype(jnp.float32).reshape(-1, *images.shape[2:])
        tokens = encoder(flat, dense, precision, mean=mean, std=std)
        return tokens.reshape(b, -1, *tokens.shape[1:])

    with jax.named_scope("encoder"):
        max_chunk = frames_per_chunk(b, images.shape[1], layout.tokens_per_frame)
        return map_chunks(run, images, axis=1, max_chunk=max_chunk)
