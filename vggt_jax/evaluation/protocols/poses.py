"""Metrics of cameras in float64, to the letter of the published evaluations.

`evaluation.cameras` has them for `jax.jit`, in one convention; published numbers are in several.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

Relative = Literal["first", "second", "common"]
"""In whose coordinates the translation between two cameras is measured: those of the first
(`E_i inv(E_j)`, VGGT's evaluation), those of the second (`E_j inv(E_i)`, π³'s), or, after both sets
were moved so that frame 0 is the world, those of frame 0 (`inv(E_i) E_j`, Depth Anything 3's)."""

_TINY = 1e-15
_FAILED = 1e6


def pair_errors(
    camera_from_world: Float[np.ndarray, "s 3 4"],
    truth: Float[np.ndarray, "s 3 4"],
    relative: Relative,
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Angles in degrees between relative rotations, and between relative translations.

    Pairs are all i < j, (0, 1) first. Of translations neither length nor sign counts, so that their
    angle is in [0, 90]. What is not finite counts as wrong by 1e6 degrees.
    """
    found, expected = (_relative(square(x), relative) for x in (camera_from_world, truth))
    rotation = _rotation_angle(found[:, :3, :3], expected[:, :3, :3])
    translation = _line_angle(found[:, :3, 3], expected[:, :3, 3])
    return tuple(np.where(np.isfinite(x), x, _FAILED) for x in (rotation, translation))  # pyright: ignore[reportReturnType]


def auc(worst: Float[np.ndarray, " pairs"], degrees: int) -> float:
    """The mean over the bins of one degree of the share of pairs up to the end of the bin.

    Args:
        worst: the larger error of each pair, in degrees. The last bin is closed, as NumPy's.
    """
    counts, _ = np.histogram(worst, bins=np.arange(degrees + 1))
    return float(np.mean(np.cumsum(counts / len(worst))))


def camera_metrics(
    camera_from_world: Float[np.ndarray, "s 3 4"],
    truth: Float[np.ndarray, "s 3 4"],
    relative: Relative,
    *,
    aucs: tuple[int, ...] = (3, 5, 15, 30),
    accuracies: tuple[int, ...] = (5, 15, 30),
) -> dict[str, float]:
    """`auc_K`, `rra_K` and `rta_K` of all pairs, in [0, 1], and `num_pairs`."""
    rotation, translation = pair_errors(camera_from_world, truth, relative)
    worst = np.maximum(rotation, translation)
    found = {f"auc_{k}": auc(worst, k) for k in aucs}
    found |= {f"rra_{k}": float(np.mean(rotation < k)) for k in accuracies}
    found |= {f"rta_{k}": float(np.mean(translation < k)) for k in accuracies}
    return found | {"num_pairs": len(worst)}


def umeyama(
    source: Float[np.ndarray, "m 3"],
    target: Float[np.ndarray, "m 3"],
    *,
    with_scale: bool = True,
) -> Float[np.ndarray, "4 4"]:
    """The similarity that brings points closest to their counterparts, by squared distances.

    Umeyama (TPAMI 1991): scale = trace(D S) / variance of the source, reflections excluded. Where
    all sources coincide, the rotation is the identity and the scale 1.
    """
    source, target = (np.asarray(x, np.float64) for x in (source, target))
    mean_source, mean_target = source.mean(axis=0), target.mean(axis=0)
    centred = source - mean_source
    variance = np.mean(np.sum(centred**2, axis=1))
    covariance = (target - mean_target).T @ centred / len(source)
    rotation, scale = np.eye(3), 1.0
    if variance > 0 and np.any(covariance):
        u, spread, vt = np.linalg.svd(covariance)
        signs = np.ones(3)
        signs[2] = np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0
        rotation = (u * signs) @ vt
        scale = float(spread @ signs / variance) if with_scale else 1.0
    matrix = np.eye(4)
    matrix[:3, :3] = scale * rotation
    matrix[:3, 3] = mean_target - matrix[:3, :3] @ mean_source
    return matrix


def apply(matrix: Float[np.ndarray, "4 4"], points: Float[np.ndarray, "*b 3"]) -> np.ndarray:
    """Points moved by a similarity."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def trajectory_metrics(
    poses: Float[np.ndarray, "s 4 4"],
    truth: Float[np.ndarray, "s 4 4"],
    *,
    align_origin: bool = False,
) -> dict[str, float]:
    """`ate`, `rpe_translation` and `rpe_rotation` (degrees), as evo finds them.

    What `evo_ape` and `evo_rpe` report for the translation part and the angle in degrees with
    `--align --correct_scale`, steps of one frame, root mean squares.

    Args:
        poses: world_from_camera, or what a protocol takes for it.
        align_origin: whether the first pose is moved onto the true one after that, as evo does
            where both are asked for.
    """
    poses, truth = (np.asarray(x, np.float64) for x in (poses, truth))
    if not np.isfinite(poses).all():
        return dict.fromkeys(("ate", "rpe_translation", "rpe_rotation"), float("inf"))
    similarity = umeyama(poses[:, :3, 3], truth[:, :3, 3])
    scale = np.cbrt(np.linalg.det(similarity[:3, :3]))
    turn = similarity[:3, :3] / scale if scale > 0 else np.eye(3)
    aligned = poses.copy()
    aligned[:, :3, :3] = turn @ poses[:, :3, :3]
    aligned[:, :3, 3] = apply(similarity, poses[:, :3, 3])
    if align_origin:
        aligned = truth[0] @ np.linalg.inv(aligned[0]) @ aligned
    root_mean_square = lambda x: float(np.sqrt(np.mean(np.square(x))))
    distance = np.linalg.norm(aligned[:, :3, 3] - truth[:, :3, 3], axis=1)
    found = {"ate": root_mean_square(distance)}
    if len(poses) > 1:
        steps = [np.linalg.inv(x[:-1]) @ x[1:] for x in (truth, aligned)]
        left = np.linalg.inv(steps[0]) @ steps[1]
        angle = _angle_of(left[:, :3, :3])
        found["rpe_translation"] = root_mean_square(np.linalg.norm(left[:, :3, 3], axis=1))
        found["rpe_rotation"] = root_mean_square(angle)
    return found


def trajectory_metrics_of_evo(
    poses: Float[np.ndarray, "s 4 4"],
    truth: Float[np.ndarray, "s 4 4"],
    *,
    align_origin: bool = False,
) -> dict[str, float]:
    """`trajectory_metrics` by evo, which the published evaluations call.

    Raises:
        ModuleNotFoundError: evo is not installed.
    """
    from evo.core import metrics, trajectory  # pyright: ignore[reportMissingImports]

    reference, found = (trajectory.PosePath3D(poses_se3=list(x)) for x in (truth, poses))
    found.align(reference, correct_scale=True)
    if align_origin:
        found.align_origin(reference)
    results = {}
    for name, metric in (
        ("ate", metrics.APE(metrics.PoseRelation.translation_part)),
        ("rpe_translation", _rpe(metrics, metrics.PoseRelation.translation_part)),
        ("rpe_rotation", _rpe(metrics, metrics.PoseRelation.rotation_angle_deg)),
    ):
        metric.process_data((reference, found))
        results[name] = float(metric.get_statistic(metrics.StatisticsType.rmse))
    return results


def _rpe(metrics, relation):
    return metrics.RPE(
        relation, delta=1, delta_unit=metrics.Unit.frames, rel_delta_tol=0.01, all_pairs=True
    )


def square(poses: Float[np.ndarray, "*b 3 4"]) -> Float[np.ndarray, "*b 4 4"]:
    """Poses with their last row."""
    poses = np.asarray(poses, np.float64)
    last = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (*poses.shape[:-2], 1, 4))
    return np.concatenate([poses[..., :3, :], last], axis=-2)


def inverse(poses: Float[np.ndarray, "*b 4 4"]) -> Float[np.ndarray, "*b 4 4"]:
    """Of rigid poses, in closed form: that of float32 costs AUC where baselines are small."""
    result = np.zeros_like(poses)
    turned = np.swapaxes(poses[..., :3, :3], -1, -2)
    result[..., :3, :3] = turned
    result[..., :3, 3] = -np.einsum("...ij,...j->...i", turned, poses[..., :3, 3])
    result[..., 3, 3] = 1
    return result


def _relative(poses, relative: Relative):
    first, second = np.triu_indices(len(poses), k=1)
    if relative == "first":
        return poses[first] @ inverse(poses)[second]
    if relative == "second":
        return poses[second] @ inverse(poses)[first]
    poses = poses @ inverse(poses[0])
    return inverse(poses)[first] @ poses[second]


def _rotation_angle(found, expected):
    """Degrees; arc cosines of quaternions lose small angles, arc tangents do not."""
    return _angle_of(np.swapaxes(expected, -1, -2) @ found)


def _angle_of(rotation):
    skew = rotation - np.swapaxes(rotation, -1, -2)
    sine = np.sqrt(skew[..., 0, 1] ** 2 + skew[..., 0, 2] ** 2 + skew[..., 1, 2] ** 2)
    cosine = np.trace(rotation, axis1=-2, axis2=-1) - 1
    return np.degrees(np.arctan2(sine, cosine))


def _line_angle(found, expected):
    """Degrees, by the formula of VGGT's and π³'s evaluations."""
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = lambda x: x / (np.linalg.norm(x, axis=-1, keepdims=True) + _TINY)
        cosine = np.sum(unit(found) * unit(expected), axis=-1)
        squared = np.maximum(1 - cosine**2, _TINY)
        angle = np.degrees(np.arccos(np.sqrt(1 - squared)))
    return np.minimum(angle, np.abs(180 - angle))
