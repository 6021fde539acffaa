"""What VGGT returns."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from vggt_jax import geometry
from vggt_jax.layers.scene_attention import AttentionStats


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VGGTOutput:
    """Predictions of VGGT under their official names, channels last.

    A head that the model does not have, or tracks that were not asked for, are None.

    Attributes:
        pose_enc: translation (3, camera from world), quaternion (4, x y z w, not normalised) and
            vertical and horizontal field of view (2, radians) of every frame.
        pose_enc_list: `pose_enc` after each iteration of the camera head; the last is `pose_enc`.
        depth: distance along the viewing axis, positive, up to the scene's scale.
        world_points: where each pixel's point lies, in the coordinates of the first camera.
        depth_conf, world_points_conf: confidence, `1 + exp(x)`, above 1 and not bounded.
        track: pixels `(x, y)` of the query points in every frame.
        vis, conf: visibility and confidence of each track, in [0, 1].
        attention_stats: what attention did in each layer; None where it was dense.
    """

    pose_enc: Float[Array, "b s 9"] | None = None
    pose_enc_list: Float[Array, "i b s 9"] | None = None
    depth: Float[Array, "b s height width 1"] | None = None
    depth_conf: Float[Array, "b s height width"] | None = None
    world_points: Float[Array, "b s height width 3"] | None = None
    world_points_conf: Float[Array, "b s height width"] | None = None
    track: Float[Array, "b s m 2"] | None = None
    vis: Float[Array, "b s m"] | None = None
    conf: Float[Array, "b s m"] | None = None
    attention_stats: AttentionStats | None = None

    def scene(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """The fields of a `Reconstruction` of frames of this (height, width)."""
        cameras = (None, None)
        if self.pose_enc is not None:
            cameras = geometry.camera_from_pose_encoding(self.pose_enc, image_size)
        return dict(
            camera_from_world=cameras[0],
            intrinsics=cameras[1],
            depth=None if self.depth is None else self.depth[..., 0],
            depth_confidence=self.depth_conf,
            world_points=self.world_points,
            world_points_confidence=self.world_points_conf,
            tracks=self.track,
            track_visibility=self.vis,
            track_confidence=self.conf,
            attention_stats=self.attention_stats,
        )
