"""The forward pass of training: the model's own parts, with choices inference does not have."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vggt_jax.errors import InputError
from vggt_jax.heads.dpt import activate
from vggt_jax.layers.precision import Precision
from vggt_jax.models.vggt.model import VGGT
from vggt_jax.models.vggt.outputs import VGGTOutput

Part = Literal["encoder", "trunk", "heads"]
PARTS = ("encoder", "trunk", "heads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How the model runs in training. But for rounding, only `dense_share` changes learning."""

    compute_type: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of matrix products in encoder and trunk; auto is bfloat16 on a GPU. Parameters, gradients and
    the optimiser are float32 always."""
    dense_heads: Literal["bfloat16", "float32"] = "bfloat16"
    """Of convolutions in the depth and point heads, where compute-type is bfloat16; float32 runs
    through TF32 on a GPU. The last layer and the camera head are float32 always."""
    dense_share: float = 1.0
    """Share of the frames, random in every step, that the depth and point heads decode and learn
    from. These heads are nearly half of a step of `small_config`, and each frame has thousands of
    pixels to learn from."""
    recompute: tuple[Part, ...] = ()
    """Parts to compute a second time in the backward pass instead of keeping their intermediate
    values: encoder, trunk (block by block), heads. Saves memory, costs up to a third more time."""

    def __post_init__(self):
        if not 0 < self.dense_share <= 1:
            raise InputError(f"dense_share is {self.dense_share}, and must be in (0, 1]")

    def dense_frames(self, key: Array, num_frames: int) -> Int[Array, " f"] | None:
        """Which frames the dense heads decode in a step, ascending; None for all."""
        count = math.ceil(self.dense_share * num_frames)
        if count == num_frames:
            return None
        frames = jnp.arange(num_frames, dtype=jnp.int32)
        return jnp.sort(jax.random.permutation(key, frames)[:count])

    @property
    def precision(self) -> Precision:
        dtype = None if self.compute_type == "auto" else jnp.dtype(self.compute_type)
        return Precision.from_compute_dtype(dtype)


def predict(
    model: VGGT,
    images: Float[Array, "b s height width 3"],
    execution: Execution = Execution(),
    *,
    dense_frames: Int[Array, " f"] | None = None,
) -> VGGTOutput:
    """Cameras, depth and points, as `model(images)` gives them; differentiable.

    Args:
        dense_frames: the frames of which depth and points are asked, distinct; None for all.
    """
    precision = execution.precision
    dtype = precision.compute_dtype
    dense = precision if execution.dense_heads == "bfloat16" else precision.heads
    again = lambda part, fn: jax.checkpoint(fn) if part in execution.recompute else fn
    layout = model.layout(images)
    encode = again("encoder", lambda model, images: model.encode(images, compute_dtype=dtype))
    trunk = model.aggregate(
        encode(model, images),
        layout,
        compute_dtype=dtype,
        recompute="trunk" in execution.recompute,
    )
    dense_trunk = trunk
    if dense_frames is not None:
        dense_trunk = trunk.of_frames(
            lambda x: x.at[:, dense_frames].get(unique_indices=True, indices_are_sorted=True)
        )
    outputs = {}
    if model.camera_head is not None:
        with jax.named_scope("camera_head"):
            encodings = model.camera_head(trunk.first_tokens, precision.heads)
        outputs |= {"pose_enc": encodings[-1], "pose_enc_list": encodings}
    # All frames at once: in a backward pass, chunks cost more than they save (38 instead of
    # 53 ms for a step of 256 frames of 112x112 on an H100).
    whole = images.size
    decode = again(
        "heads",
        lambda head, trunk: head(trunk, layout, dense, pixels_per_chunk=whole).astype(jnp.float32),
    )
    if model.depth_head is not None:
        with jax.named_scope("depth_head"):
            depth, conf = activate(decode(model.depth_head, dense_trunk), "exp")
        outputs |= {"depth": depth, "depth_conf": conf}
    if model.point_head is not None:
        with jax.named_scope("point_head"):
            points, conf = activate(decode(model.point_head, dense_trunk), "inv_log")
        outputs |= {"world_points": points, "world_points_conf": conf}
    return VGGTOutput(**outputs)
