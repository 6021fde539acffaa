"""What π³ returns."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from vggt_jax import geometry
from vggt_jax.layers.scene_attention import AttentionStats


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pi3Output:
    """Predictions of π³ under their official names, channels last.

    Attributes:
        points: where each pixel's point lies in the world, which is no camera's.
        local_points: where it lies in the coordinates of its own camera; z, the depth, is positive.
        conf: confidence in the points before the sigmoid.
        camera_poses: world_from_camera.
        attention_stats: what attention did in each layer; None where it was dense.
    """

    points: Float[Array, "b s height width 3"]
    local_points: Float[Array, "b s height width 3"]
    conf: Float[Array, "b s height width 1"]
    camera_poses: Float[Array, "b s 4 4"]
    attention_stats: AttentionStats | None = None

    def scene(self) -> dict[str, Any]:
        """The fields of a `Reconstruction`."""
        confidence = jax.nn.sigmoid(self.conf[..., 0])
        depth = self.local_points[..., 2]
        return dict(
            camera_from_world=geometry.invert_rigid(self.camera_poses)[..., :3, :],
            intrinsics=geometry.intrinsics_from_point_maps(self.local_points),
            depth=depth,
            depth_confidence=confidence,
            depth_edges=geometry.depth_edges(depth),
            world_points=self.points,
            world_points_confidence=confidence,
            attention_stats=self.attention_stats,
        )
