"""What Depth Anything 3 returns."""

import dataclasses

import jax
from jaxtyping import Array, Float

from vggt_jax.layers.scene_attention import AttentionStats


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DA3Output:
    """Predictions of Depth Anything 3 under their official names, channels last.

    Lengths are in one arbitrary unit per scene, also where poses are given.

    Attributes:
        depth: along the viewing axis (z), positive.
        depth_conf: confidence, `1 + exp(x)`, above 1 and not bounded.
        extrinsics: camera_from_world. The world is near the camera of the reference view.
        intrinsics: in pixels of the frames; the principal point is the middle of the image.
        pose_enc: from which they come, see `cameras_from_encoding`.
        ray: in which direction pixels look (3), not normalised, and from where (3), in the world.
            There are 8 pixels for each patch. None where it was not asked for.
        ray_conf: confidence of rays, `1 + exp(x)`; None where they were not asked for.
        attention_stats: what attention did in each layer; None where it was dense.
    """

    depth: Float[Array, "b s height width"]
    depth_conf: Float[Array, "b s height width"]
    extrinsics: Float[Array, "b s 3 4"]
    intrinsics: Float[Array, "b s 3 3"]
    pose_enc: Float[Array, "b s 9"]
    ray: Float[Array, "b s h w 6"] | None = None
    ray_conf: Float[Array, "b s h w"] | None = None
    attention_stats: AttentionStats | None = None
