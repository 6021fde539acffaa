"""How well cameras are found: angles between pairs of frames, and the trajectory.

Two rules hold for all numbers here. What is not finite in a prediction makes errors infinite, so
that it counts as a failure; what the truth leaves undefined is NaN, so that it can be left out of a
mean over scenes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vggt_jax import geometry
from vggt_jax.evaluation.alignment import has_extent, umeyama
from vggt_jax.geometry import invert_rigid

_FULL_PRECISION = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PairErrors:
    """Errors of relative poses, in degrees, of every pair of frames `i < j` once, (0, 1) first.

    Attributes:
        rotation: the angle of the rotation between the two relative rotations, in [0, 180].
        translation: the angle between the two relative translations, of which neither length nor
            sign counts: in [0, 90].
    """

    rotation: Float[Array, "*batch pairs"]
    translation: Float[Array, "*batch pairs"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrajectoryErrors:
    """Errors of a trajectory after the best similarity; lengths are in units of the truth.

    Attributes:
        ate: absolute error, the root of the mean squared distance of positions.
        rpe_translation: relative error from one frame to the next, the root of the mean square.
        rpe_rotation: the same of its angle, in degrees.
    """

    ate: Float[Array, "*batch"]
    rpe_translation: Float[Array, "*batch"]
    rpe_rotation: Float[Array, "*batch"]


def pair_errors(
    camera_from_world: Float[Array, "*batch s 3 4"], truth: Float[Array, "*batch s 3 4"]
) -> PairErrors:
    """Compares the relative poses of all pairs of frames.

    The relative pose is that of the second camera in coordinates of the first, so that neither
    world nor scale matters. The conventions are those of the official evaluation of VGGT on CO3D
    (`evaluation/test_co3d.py`, branch `evaluation`): all pairs, and a translation and its opposite
    are the same. A translation of length 0, predicted or true, has no direction and counts as wrong
    by 90 degrees, as it does there.

    Args:
        camera_from_world: the prediction, s frames, at least 2. A pair with a frame that is not
            finite has infinite errors.
        truth: the same of the true cameras.

    Raises:
        ValueError: shapes differ, or there are fewer than two frames.
    """
    camera_from_world, truth = _checked(camera_from_world, truth)
    pairs = np.triu_indices(camera_from_world.shape[-3], k=1)
    first, second = (frames.astype(np.int32) for frames in pairs)
    found = _relative(camera_from_world, first, second)
    expected = _relative(truth, first, second)
    rotation = jnp.einsum(
        "...ij,...kj->...ik", found[..., :3], expected[..., :3], precision=_FULL_PRECISION
    )
    errors = PairErrors(
        rotation=_rotation_angle(rotation),
        translation=_angle_between_lines(found[..., 3], expected[..., 3]),
    )
    is_finite = jnp.all(jnp.isfinite(camera_from_world), axis=(-2, -1))
    is_finite = is_finite[..., first] & is_finite[..., second]
    return jax.tree.map(lambda x: jnp.where(is_finite, x, jnp.inf), errors)


def accuracy_at(errors: Float[Array, "*batch pairs"], degrees: float) -> Float[Array, "*batch"]:
    """The share of the pairs whose error is below so many degrees, in [0, 1].

    Of `PairErrors.rotation` it is the relative rotation accuracy, RRA@k; of
    `PairErrors.translation` the relative translation accuracy, RTA@k.
    """
    return jnp.mean(errors < degrees, axis=-1, dtype=jnp.float32)


def auc_at(errors: PairErrors, degrees: int) -> Float[Array, "*batch"]:
    """The area under the curve of accuracy up to so many degrees, AUC@k, in [0, 1].

    The error of a pair is the larger of both angles. The curve is read at 1, 2, ..., `degrees`, as
    the official evaluation of VGGT does with its bins of one degree, and the mean of these values
    is the result. An error of exactly `degrees` still counts at the end of the curve, since the
    last bin of a histogram is closed.

    Raises:
        ValueError: `degrees` is not a whole positive number.
    """
    if degrees != int(degrees) or degrees < 1:
        raise ValueError(f"{degrees=} must be a whole number of degrees, at least 1")
    worst = jnp.maximum(errors.rotation, errors.translation)[..., None]
    thresholds = jnp.arange(1, int(degrees) + 1, dtype=worst.dtype)
    thresholds = jax.lax.broadcast_to_rank(thresholds, worst.ndim)
    reached = (worst < thresholds) | (worst == degrees) & (thresholds == degrees)
    return jnp.mean(reached, axis=(-2, -1), dtype=jnp.float32)


def trajectory_errors(
    camera_from_world: Float[Array, "*batch s 3 4"], truth: Float[Array, "*batch s 3 4"]
) -> TrajectoryErrors:
    """Compares positions and steps after aligning the positions by a similarity (Umeyama).

    The relative error follows Sturm et al., "A benchmark for the evaluation of RGB-D SLAM systems"
    (IROS 2012): of the motion from each frame to the next, in the coordinates of the camera. Both
    are what `evo_ape` and `evo_rpe` report with `--align --correct_scale` and a step of one frame.

    NaN where the true positions all coincide, so that there is no trajectory; infinite where the
    prediction is not finite. Where all predicted positions coincide, the error is the spread of the
    true ones.

    Args:
        camera_from_world: the prediction, s frames, at least 2.
        truth: the same of the true cameras.

    Raises:
        ValueError: shapes differ, or there are fewer than two frames.
    """
    camera_from_world, truth = _checked(camera_from_world, truth)
    is_finite = jnp.all(jnp.isfinite(camera_from_world), axis=(-3, -2, -1))
    usable = jnp.where(is_finite[..., None, None, None], camera_from_world, truth)
    found, expected = invert_rigid(usable), invert_rigid(truth)
    found = umeyama(found[..., 3], expected[..., 3]).apply_to_cameras(found)
    distance = jnp.linalg.norm(found[..., 3] - expected[..., 3], axis=-1)

    steps = np.arange(camera_from_world.shape[-3] - 1, dtype=np.int32)
    move = lambda cameras: _relative(invert_rigid(cameras), steps, steps + 1)
    found_move, expected_move = move(found), move(expected)
    # Of the motion that is left, its angle and its length: rotations change neither.
    turn = jnp.einsum(
        "...ji,...jk->...ik",
        expected_move[..., :3],
        found_move[..., :3],
        precision=_FULL_PRECISION,
    )
    length = jnp.linalg.norm(found_move[..., 3] - expected_move[..., 3], axis=-1)

    is_path = has_extent(expected[..., 3])
    root_mean_square = lambda x: jnp.sqrt(jnp.mean(x * x, axis=-1))

    def defined(x):
        return jnp.where(is_path, jnp.where(is_finite, root_mean_square(x), jnp.inf), jnp.nan)

    return TrajectoryErrors(
        ate=defined(distance),
        rpe_translation=defined(length),
        rpe_rotation=defined(_rotation_angle(turn)),
    )


def _relative(camera_from_world, first, second):
    """The pose of the second camera in coordinates of the first: first_from_second [... 3 4]."""
    rotations = camera_from_world[..., :3]
    turn = jnp.einsum(
        "...ij,...kj->...ik",
        rotations[..., first, :, :],
        rotations[..., second, :, :],
        precision=_FULL_PRECISION,
    )
    # From the difference of positions: translations of cameras far from the origin are long.
    positions = geometry.camera_positions(camera_from_world)
    way = jnp.einsum(
        "...ij,...j->...i",
        rotations[..., first, :, :],
        positions[..., second, :] - positions[..., first, :],
        precision=_FULL_PRECISION,
    )
    return jnp.concatenate([turn, way[..., None]], axis=-1)


def _rotation_angle(rotation):
    """In degrees; exact for small angles too, where the arc cosine of the trace is not."""
    skew = jnp.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        axis=-1,
    )
    trace = jnp.trace(rotation, axis1=-2, axis2=-1)
    return jnp.rad2deg(jnp.arctan2(jnp.linalg.norm(skew, axis=-1), trace - 1))


def _angle_between_lines(a, b):
    """In degrees, in [0, 90]; 90 where one of them has no length."""
    # The largest number becomes 1, so that squares neither vanish nor overflow.
    unit = lambda x: (
        x / jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), jnp.finfo(x.dtype).tiny)
    )
    a, b = unit(a), unit(b)
    sine = jnp.linalg.norm(jnp.cross(a, b), axis=-1)
    cosine = jnp.abs(jnp.sum(a * b, axis=-1))
    has_length = jnp.any(a != 0, axis=-1) & jnp.any(b != 0, axis=-1)
    return jnp.where(has_length, jnp.rad2deg(jnp.arctan2(sine, cosine)), 90.0)


def _checked(camera_from_world, truth):
    camera_from_world, truth = jnp.asarray(camera_from_world), jnp.asarray(truth)
    shape = camera_from_world.shape
    if len(shape) < 3 or shape[-2:] != (3, 4) or truth.shape != shape:
        raise ValueError(
            f"predicted and true cameras must be [... s 3 4] alike, not {shape} and {truth.shape}"
        )
    if shape[-3] < 2:
        raise ValueError(f"errors between frames need at least two of them, not {shape[-3]}")
    return camera_from_world, truth
