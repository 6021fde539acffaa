"""All metrics of one reconstruction against its truth."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vggt_jax import geometry
from vggt_jax.evaluation.alignment import umeyama
from vggt_jax.evaluation.cameras import accuracy_at, auc_at, pair_errors, trajectory_errors
from vggt_jax.evaluation.depth import DepthAlignment, depth_metrics
from vggt_jax.evaluation.points import normals_from_point_map, point_metrics

AUC_DEGREES = (3, 5, 10, 15, 20, 30)
ACCURACY_DEGREES = (5, 15, 30)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneTruth:
    """What is known of a scene, in pixels of the frames that a model sees.

    Attributes:
        camera_from_world: OpenCV axes.
        intrinsics: the centre of pixel i lies at i + 0.5.
        depth: along the viewing axis, in the unit of the cameras; anything where it is not valid.
        valid: which pixels have a known depth; none where no depth is known.
    """

    camera_from_world: Float[Array, "*b s 3 4"]
    intrinsics: Float[Array, "*b s 3 3"]
    depth: Float[Array, "*b s height width"]
    valid: Bool[Array, "*b s height width"]

    def points(self) -> Float[Array, "*b s height width 3"]:
        """World points of all pixels; they mean something where `valid` is true."""
        depth = jnp.where(self.valid, self.depth, 1.0)
        return geometry.unproject_depth(
            depth, self.camera_from_world, self.intrinsics, pixel_centre=0.5
        )


def scene_metrics(
    camera_from_world: Float[Array, "s 3 4"] | None,
    depth: Float[Array, "s height width"] | None,
    points: Float[Array, "s height width 3"] | None,
    truth: SceneTruth,
    *,
    depth_alignment: DepthAlignment = "median",
    max_points: int = 20_000,
    f_score_threshold: float = 0.02,
) -> dict[str, Float[Array, ""]]:
    """All metrics of a scene by name: a pure function for `jax.jit`, `jax.vmap` and `jax.lax.map`.

    Cameras are compared in pairs and, for the trajectory, after the best similarity of their
    positions; depth after one alignment of the whole scene; points after the best similarity
    between the points of the same pixels, whose cameras are not asked.

    Args:
        camera_from_world, depth, points: the prediction; None leaves out its metrics.
        depth_alignment: see `align_depth`.
        max_points: of each cloud; pixels on a regular grid of every frame.
        f_score_threshold: as a share of the scene's size, the mean distance of its true points from
            the first camera.

    Returns:
        `auc_3` and more, `rra_5` and `rta_5` and more, `ate`, `rpe_translation`, `rpe_rotation`,
        `abs_rel`, `delta1` to `delta3`, and the fields of `PointMetrics`. Lengths are in the unit
        of the truth. What the truth does not define is NaN; an infinite error is one of a
        prediction that is not finite.
    """
    found: dict[str, Array] = {}
    if camera_from_world is not None:
        errors = pair_errors(camera_from_world, truth.camera_from_world)
        found |= {f"auc_{k}": auc_at(errors, k) for k in AUC_DEGREES}
        found |= {f"rra_{k}": accuracy_at(errors.rotation, k) for k in ACCURACY_DEGREES}
        found |= {f"rta_{k}": accuracy_at(errors.translation, k) for k in ACCURACY_DEGREES}
        found |= vars(trajectory_errors(camera_from_world, truth.camera_from_world))
    if depth is not None:
        metrics = depth_metrics(depth, truth.depth, truth.valid, alignment=depth_alignment)
        found |= {name: value for name, value in vars(metrics).items() if name != "num_pixels"}
    if points is not None:
        found |= vars(_compare_points(points, truth, max_points, f_score_threshold))
    return found


def _compare_points(points, truth: SceneTruth, max_points, f_score_threshold):
    frames, height, width = truth.depth.shape
    stride = next(
        step
        for step in range(1, max(height, width) + 1)
        if frames * math.ceil(height / step) * math.ceil(width / step) <= max_points
        or step == max(height, width)
    )
    true_points = truth.points()
    positions = geometry.camera_positions(truth.camera_from_world)
    distances = jnp.linalg.norm(true_points - positions[0, None, None, None], axis=-1)
    num_valid = jnp.sum(truth.valid, dtype=jnp.int32).astype(jnp.float32)
    size = jnp.sum(jnp.where(truth.valid, distances, 0.0)) / num_valid

    # From the middle of each cell of the grid.
    of_grid = lambda x: x[:, stride // 2 :: stride, stride // 2 :: stride].reshape(-1, *x.shape[3:])
    normals = of_grid(normals_from_point_map(points, truth.valid))
    true_normals = of_grid(normals_from_point_map(true_points, truth.valid))
    found, expected, valid = map(of_grid, (points, true_points, truth.valid))
    is_finite = jnp.all(jnp.isfinite(found), axis=-1)
    similarity = umeyama(found, expected, valid & is_finite)
    aligned = similarity.apply(found)
    turn = dataclasses.replace(
        similarity, scale=jnp.float32(1), translation=jnp.zeros(3, jnp.float32)
    )
    return point_metrics(
        aligned,
        expected,
        valid=valid,
        truth_valid=valid,
        normals=turn.apply(normals),
        truth_normals=true_normals,
        threshold=f_score_threshold * size,
    )
