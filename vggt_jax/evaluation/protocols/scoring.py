"""One sequence scored by a protocol."""

import dataclasses

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.evaluation.protocols import clouds, poses
from vggt_jax.evaluation.protocols.base import (
    CloudScore,
    PairScore,
    Prediction,
    Protocol,
    TrajectoryScore,
    Truth,
)
from vggt_jax.evaluation.protocols.clouds import Clouds, Tools

# Of DTU's own tool, in millimetres.
_THINNED_TO = 0.2
_MOST_DISTANCE = 20.0
_SEED = 42


def score(
    protocol: Protocol, truth: Truth, prediction: Prediction, *, tools: Tools = "own"
) -> dict[str, float]:
    """The metrics of a sequence, by name.

    Args:
        tools: "published" takes evo and Open3D for trajectories, ICP and normals.

    Returns:
        Shares in [0, 1], angles in degrees, lengths in the unit of the data set. `num_frames` are
        those that were scored: frames without a true pose are left out of camera metrics.

    Raises:
        InputError: the model does not predict what is compared, or too little of the truth is
            known.
    """
    rule = protocol.score
    if isinstance(rule, CloudScore):
        return _clouds(rule, truth, prediction, tools)
    cameras = prediction.camera_from_world
    if cameras is None:
        raise InputError("the model predicts no cameras, which this protocol compares")
    known = np.isfinite(truth.camera_from_world).all(axis=(1, 2))
    if known.sum() < 2:
        raise InputError("fewer than two of the frames have a true pose")
    found, expected = cameras[known].astype(np.float64), truth.camera_from_world[known]
    number = {"num_frames": int(known.sum())}
    if isinstance(rule, PairScore):
        metrics = poses.camera_metrics(found, expected, rule.relative)
        if rule.with_ate:
            metrics |= _relative_ate(found, expected, tools)
        return metrics | number
    return _trajectory(rule, found, expected, tools) | number | _mesh(rule, truth, prediction)


def _trajectory(rule: TrajectoryScore, found, expected, tools: Tools) -> dict[str, float]:
    found, expected = poses.square(found), poses.square(expected)
    if rule.poses == "world_from_camera":
        found, expected = poses.inverse(found), poses.inverse(expected)
    else:  # Relative to the first, as the published code has the true ones, and VGGT its own.
        found, expected = (x @ poses.inverse(x[0]) for x in (found, expected))
    if not np.isfinite(found).all():
        tools = "own"  # A failure, for which there is no tool.
    of = poses.trajectory_metrics if tools == "own" else poses.trajectory_metrics_of_evo
    return of(found, expected, align_origin=rule.align_origin)


def _relative_ate(found, expected, tools: Tools) -> dict[str, float]:
    """ATE in units of the largest distance of a true camera from the mean of all."""
    centres = poses.inverse(poses.square(expected))[:, :3, 3]
    extent = np.linalg.norm(centres - centres.mean(axis=0), axis=1).max()
    errors = _trajectory(TrajectoryScore(), found, expected, tools)
    return {"ate": errors["ate"] / extent if extent > 0 else float("nan")}


def _mesh(rule: TrajectoryScore, truth: Truth, prediction: Prediction) -> dict[str, float]:
    """FastVGGT's comparison of unprojected depth with the mesh of a scene, if there is one."""
    if not rule.clouds or truth.scan is None or prediction.points is None:
        return {}
    points = prediction.points.reshape(-1, 3).astype(np.float64)
    if prediction.confidence is not None and not prediction.bounded_confidence:
        points = points[prediction.confidence.reshape(-1) >= rule.min_confidence]
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return clouds.clipped_chamfer(points, truth.scan.points)
    cameras = prediction.camera_from_world
    assert cameras is not None
    first, true_first = poses.square(cameras[0]), poses.square(truth.camera_from_world[0])
    points = poses.apply(poses.inverse(true_first) @ first, points)
    expected = truth.scan.points.astype(np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    true_low, true_high = expected.min(axis=0), expected.max(axis=0)
    length = np.linalg.norm(high - low)
    scale = np.linalg.norm(true_high - true_low) / length if length > 0 else 1.0
    points = (points - (low + high) / 2) * scale + (true_low + true_high) / 2
    return clouds.clipped_chamfer(points, expected)


def _clouds(rule: CloudScore, truth: Truth, prediction: Prediction, tools: Tools):
    if prediction.points is None:
        raise InputError("the model predicts no points, which this protocol compares")
    number = {"num_frames": len(truth.camera_from_world)}
    if rule.observed:
        return _observed(truth, prediction) | number
    assert truth.points is not None and truth.valid is not None
    both = Clouds(points=prediction.points, truth=truth.points, valid=truth.valid)
    if rule.alignment == "umeyama":
        points, expected = clouds.aligned_by_umeyama(both)
    else:
        cameras = prediction.camera_from_world
        if cameras is None:
            raise InputError("the model predicts no cameras, by which this protocol aligns")
        points, expected = clouds.aligned_by_medians(both, cameras, truth.camera_from_world)
    distance = rule.icp_distance
    return clouds.cloud_metrics(points, expected, icp_distance=distance, tools=tools) | number


def _observed(truth: Truth, prediction: Prediction) -> dict[str, float]:
    """DTU's own metrics, of points that were brought to the true ones by the cameras."""
    scan, cameras = truth.scan, prediction.camera_from_world
    assert prediction.points is not None
    points = prediction.points.reshape(-1, 3).astype(np.float64)
    points = points[np.isfinite(points).all(axis=1)]
    if cameras is None:
        raise InputError("the model predicts no cameras, by which this protocol aligns")
    centres = [poses.inverse(poses.square(x))[:, :3, 3] for x in (cameras, truth.camera_from_world)]
    points = poses.apply(poses.umeyama(*centres), points)
    points = poses.apply(scan.scan_from_world, points)
    generator = np.random.RandomState(_SEED)
    points = clouds.thinned(points[generator.permutation(len(points))], _THINNED_TO)
    expected = scan.points.astype(np.float64)
    above = expected
    if scan.observed is not None:
        points = points[scan.observed.contains(points)]
        above = expected[scan.observed.above_table(expected)]
    to_truth = clouds.distances(points, expected)
    to_points = clouds.distances(above, points)
    mean = lambda x: float(np.mean(x[x < _MOST_DISTANCE])) if (x < _MOST_DISTANCE).any() else np.inf
    accuracy, completeness = mean(to_truth), mean(to_points)
    return {
        "accuracy": accuracy,
        "completeness": completeness,
        "chamfer": (accuracy + completeness) / 2,
    }


def turned(prediction: Prediction, matrix: np.ndarray) -> Prediction:
    """A prediction in another world, moved by a similarity [4 4]."""
    scale = np.cbrt(np.linalg.det(matrix[:3, :3]))
    cameras = prediction.camera_from_world
    if cameras is not None:
        world_from_camera = poses.inverse(poses.square(cameras))
        moved = world_from_camera.copy()
        moved[:, :3, :3] = matrix[:3, :3] / scale @ world_from_camera[:, :3, :3]
        moved[:, :3, 3] = poses.apply(matrix, world_from_camera[:, :3, 3])
        cameras = poses.inverse(moved)[:, :3]
    points = prediction.points
    if points is not None:
        points = poses.apply(matrix, points.astype(np.float64))
    return dataclasses.replace(prediction, camera_from_world=cameras, points=points)
