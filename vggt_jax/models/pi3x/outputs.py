"""What Pi3X returns."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels import tuned
from vggt_jax import geometry
from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.scene_attention import AttentionStats
from vggt_jax.scene.surfaces import normal_edges, normals_of_points

# Points below this confidence have no edges, as in the official example_mm.py.
_MIN_CONFIDENCE = 0.1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pi3XOutput:
    """Predictions of Pi3X under their official names, channels last; lengths are in metres.

    Attributes:
        points: where each pixel's point lies in the world, which is no camera's.
        local_points: where it lies in the coordinates of its own camera; z, the depth, is positive.
        rays: unit vectors from the camera to these.
        conf: confidence in the points before the sigmoid.
        camera_poses: world_from_camera.
        metric: metres per unit of length in which the trunk sees the scene.
        attention_stats: what attention did in each layer; None where it was dense.
    """

    points: Float[Array, "b s height width 3"]
    local_points: Float[Array, "b s height width 3"]
    rays: Float[Array, "b s height width 3"]
    conf: Float[Array, "b s height width 1"]
    camera_poses: Float[Array, "b s 4 4"]
    metric: Float[Array, " b"]
    attention_stats: AttentionStats | None = None


def scene_of(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Reconstruction` that outputs of frames give, by their names."""
    confidence = jax.nn.sigmoid(outputs["conf"][..., 0])
    local_points = outputs["local_points"]
    return dict(
        camera_from_world=geometry.invert_rigid(outputs["camera_poses"])[..., :3, :],
        intrinsics=geometry.intrinsics_from_point_maps(local_points),
        depth=local_points[..., 2],
        depth_confidence=confidence,
        depth_edges=depth_normal_edges(local_points, confidence > _MIN_CONFIDENCE),
        world_points=outputs["points"],
        world_points_confidence=confidence,
    )


def depth_normal_edges(
    points: Float[Array, "b s height width 3"], valid: Bool[Array, "b s height width"]
) -> Bool[Array, "b s height width"]:
    """Which pixels lie at a jump of depth and near a bend of the surface.

    Other than jumps of depth alone, this leaves alone what is seen at a low angle. Values as those
    of the official `depth_normal_edge` with its defaults (pi3/utils/geometry.py).

    Args:
        points: in camera coordinates.
        valid: pixels that count; others have no edges, and make none.
    """
    b, _, height, width = valid.shape

    def run(maps):
        points, valid = maps
        depth = points[..., 2]
        valid = valid & jnp.all(jnp.isfinite(points), axis=-1) & (depth > 0)
        normals, has_normal = normals_of_points(points, valid)
        bends = normal_edges(normals, has_normal) & has_normal
        return geometry.depth_edges(depth, mask=valid) & valid & bends

    # In chunks of frames for the sake of temporaries.
    max_chunk = tuned.value("dpt.pixels_per_chunk") // (b * height * width)
    return map_chunks(run, (points, valid), axis=1, max_chunk=max_chunk)
