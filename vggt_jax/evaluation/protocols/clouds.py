"""Metrics of clouds of points in float64, to the letter of the published evaluations.

Neighbours come from a k-d tree (SciPy), which millions of points need; `evaluation.points` compares
all with all under `jax.jit`.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import KDTree

from vggt_jax.evaluation.protocols.poses import apply, square, umeyama

Tools = Literal["own", "published"]
"""Who computes ICP, normals and trajectories: this package, or Open3D and evo."""

# Open3D's defaults.
_NEIGHBOURS = 30
_MOST_STEPS = 30
_RELATIVE = 1e-6
# Points whose neighbours are gathered at a time.
_CHUNK = 200_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clouds:
    """Points of the same pixels, predicted and true.

    Attributes:
        points: [s height width 3], predicted.
        truth: [s height width 3].
        valid: [s height width], where the truth is known.
    """

    points: Float[np.ndarray, "s height width 3"]
    truth: Float[np.ndarray, "s height width 3"]
    valid: Bool[np.ndarray, "s height width"]

    def central(self, side: int) -> "Clouds":
        """The middle of every frame, of at most so many pixels a side."""
        height, width = self.valid.shape[1:]
        top, left = (max(0, (size - side) // 2) for size in (height, width))
        cut = lambda x: x[:, top : top + side, left : left + side]
        return Clouds(points=cut(self.points), truth=cut(self.truth), valid=cut(self.valid))


def aligned_by_umeyama(clouds: Clouds) -> tuple[np.ndarray, np.ndarray]:
    """Valid points [m 3] after the best similarity between those of the same pixels, and the true
    ones."""
    points, truth = (x[clouds.valid].astype(np.float64) for x in (clouds.points, clouds.truth))
    finite = np.isfinite(points).all(axis=1)
    if finite.any():
        points = apply(umeyama(points[finite], truth[finite]), points)
    return points, truth


def aligned_by_medians(
    clouds: Clouds,
    camera_from_world: Float[np.ndarray, "s 3 4"],
    true_camera_from_world: Float[np.ndarray, "s 3 4"],
    *,
    side: int | None = 224,
) -> tuple[np.ndarray, np.ndarray]:
    """Points of the middle of the frames after an alignment by medians, and the true ones.

    Spann3R's, which CUT3R and FastVGGT took over: both clouds in coordinates of their first camera,
    each less its median depth; the prediction times the ratio of the median distances from the
    median points. Medians are of all valid pixels, before the middle is cut.

    Args:
        side: of the square that is scored, in pixels; None for all.
    """
    both = []
    pairs = ((clouds.points, camera_from_world), (clouds.truth, true_camera_from_world))
    for points, cameras in pairs:
        points = apply(square(cameras[0]), points.astype(np.float64))
        points[..., 2] -= np.nanmedian(points[clouds.valid][:, 2])
        valid = points[clouds.valid]
        distance = np.linalg.norm(valid - np.nanmedian(valid, axis=0), axis=1)
        both.append((points, np.nanmedian(distance)))
    (points, size), (truth, true_size) = both
    points = points * (true_size / size)
    moved = Clouds(points=points, truth=truth, valid=clouds.valid)
    moved = moved if side is None else moved.central(side)
    return moved.points[moved.valid], moved.truth[moved.valid]


def icp(
    points: Float[np.ndarray, "m 3"], truth: Float[np.ndarray, "k 3"], max_distance: float
) -> Float[np.ndarray, "4 4"]:
    """Point-to-point ICP from the identity, as Open3D's `registration_icp` with its defaults.

    Args:
        max_distance: pairs that are farther apart do not count.
    """
    tree = KDTree(truth)
    matrix = np.eye(4)
    moved = np.asarray(points, np.float64)

    def match():
        distance, nearest = tree.query(moved, distance_upper_bound=max_distance, workers=-1)
        pairs = np.isfinite(distance)
        number = int(pairs.sum())
        error = float(np.sqrt(np.mean(distance[pairs] ** 2))) if number else 0.0
        return pairs, nearest, number / len(moved), error

    pairs, nearest, fitness, error = match()
    for _ in range(_MOST_STEPS):
        if not pairs.any():
            break
        step = umeyama(moved[pairs], truth[nearest[pairs]], with_scale=False)
        matrix, moved = step @ matrix, apply(step, moved)
        before = fitness, error
        pairs, nearest, fitness, error = match()
        if abs(before[0] - fitness) < _RELATIVE and abs(before[1] - error) < _RELATIVE:
            break
    return matrix


def normals(points: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "m 3"]:
    """The direction in which the 30 nearest points of a cloud spread least, of each point.

    As Open3D's `estimate_normals` with its defaults; the sign means nothing. A cloud of fewer
    points than three has normals along z.
    """
    points = np.asarray(points, np.float64)
    result = np.zeros_like(points)
    result[:, 2] = 1
    number = min(_NEIGHBOURS, len(points))
    if number < 3:
        return result
    tree = KDTree(points)
    for first in range(0, len(points), _CHUNK):
        some = slice(first, first + _CHUNK)
        _, nearest = tree.query(points[some], k=number, workers=-1)
        around = points[nearest]
        around -= around.mean(axis=1, keepdims=True)
        covariance = np.einsum("mki,mkj->mij", around, around)
        result[some] = np.linalg.eigh(covariance)[1][:, :, 0]
    return result


def cloud_metrics(
    points: Float[np.ndarray, "m 3"],
    truth: Float[np.ndarray, "k 3"],
    *,
    icp_distance: float | None = None,
    tools: Tools = "own",
) -> dict[str, float]:
    """Accuracy, completeness, chamfer and normal consistency, after ICP.

    Args:
        points, truth: aligned. A predicted point that is not finite makes the errors infinite.
        icp_distance: of `icp`, in units of the truth; None for no ICP.
        tools: who does ICP and normals.

    Returns:
        `accuracy`, `completeness`, `nc1` (from points to truth), `nc2`, each with `_median`;
        `chamfer`, the mean of accuracy and completeness, and `normal_consistency`, that of nc1 and
        nc2, with `_median`.
    """
    if not len(points) or not len(truth) or not np.isfinite(points).all():
        names = ("accuracy", "completeness", "chamfer")
        worst = {x: float("inf") for name in names for x in (name, f"{name}_median")}
        names = ("nc1", "nc2", "normal_consistency")
        return worst | {x: 0.0 for name in names for x in (name, f"{name}_median")}
    if tools == "published":
        points, normal, true_normal = _by_open3d(points, truth, icp_distance)
    else:
        if icp_distance is not None:
            points = apply(icp(points, truth, icp_distance), points)
        normal, true_normal = normals(points), normals(truth)
    to_truth, nearest_truth = KDTree(truth).query(points, workers=-1)
    to_points, nearest_point = KDTree(points).query(truth, workers=-1)
    cosine = lambda one, other: np.abs(np.sum(one * other, axis=1))
    values = {
        "accuracy": to_truth,
        "completeness": to_points,
        "nc1": cosine(normal, true_normal[nearest_truth]),
        "nc2": cosine(true_normal, normal[nearest_point]),
    }
    found = {}
    for name, value in values.items():
        found |= {name: float(np.mean(value)), f"{name}_median": float(np.median(value))}
    for name, (one, other) in {
        "chamfer": ("accuracy", "completeness"),
        "normal_consistency": ("nc1", "nc2"),
    }.items():
        for end in ("", "_median"):
            found[name + end] = (found[one + end] + found[other + end]) / 2
    return found


def f_score(
    points: Float[np.ndarray, "m 3"], truth: Float[np.ndarray, "k 3"], threshold: float
) -> dict[str, float]:
    """`precision`, `recall` and `f_score` of two clouds that are in one place, in [0, 1]."""
    if not len(points) or not len(truth):
        return dict.fromkeys(("precision", "recall", "f_score"), 0.0)
    precision = float(np.mean(KDTree(truth).query(points, workers=-1)[0] < threshold))
    recall = float(np.mean(KDTree(points).query(truth, workers=-1)[0] < threshold))
    total = precision + recall
    score = 2 * precision * recall / total if total else 0.0
    return {"precision": precision, "recall": recall, "f_score": score}


def clipped_chamfer(
    points: Float[np.ndarray, "m 3"],
    truth: Float[np.ndarray, "k 3"],
    *,
    most: int = 100_000,
    voxel: float = 0.05,
    clip: float = 0.5,
    seed: int = 33,
) -> dict[str, float]:
    """FastVGGT's chamfer on ScanNet: the *sum* of both mean distances, in metres.

    Args:
        most: so many points of each cloud are drawn.
        voxel: the points in a cube of this side become their mean.
        clip: longer distances count as this.
    """
    generator = np.random.RandomState(seed)
    clouds = []
    for cloud in (points, truth):
        cloud = cloud[np.isfinite(cloud).all(axis=1)]
        if len(cloud) > most:
            cloud = cloud[generator.choice(len(cloud), most, replace=False)]
        clouds.append(_voxels(cloud, voxel))
    if not all(map(len, clouds)):
        return {"chamfer_sum": 2 * clip}
    points, truth = clouds
    both = (KDTree(truth).query(points, workers=-1), KDTree(points).query(truth, workers=-1))
    return {"chamfer_sum": float(sum(np.mean(np.minimum(x, clip)) for x, _ in both))}


def thinned(points: Float[np.ndarray, "m 3"], radius: float) -> Float[np.ndarray, "k 3"]:
    """Points of which no two are closer than a radius: each in turn removes those around it."""
    tree, kept = KDTree(points), np.ones(len(points), bool)
    for first in range(0, len(points), _CHUNK):
        some = range(first, min(first + _CHUNK, len(points)))
        for i, around in zip(some, tree.query_ball_point(points[some], radius), strict=True):
            if kept[i]:
                kept[around] = False
                kept[i] = True
    return points[kept]


def distances(points: Float[np.ndarray, "m 3"], others: Float[np.ndarray, "k 3"]) -> np.ndarray:
    """From each point to the nearest of others; infinite where there are none."""
    if not len(others):
        return np.full(len(points), np.inf)
    return KDTree(others).query(points, workers=-1)[0]


def _voxels(cloud: np.ndarray, side: float) -> np.ndarray:
    """The mean of the points in each cube of a grid that begins at the lowest coordinates."""
    if not len(cloud):
        return cloud
    cubes = np.floor((cloud - cloud.min(axis=0)) / side).astype(np.int64)
    _, inverse, counts = np.unique(cubes, axis=0, return_inverse=True, return_counts=True)
    sums = [np.bincount(inverse.reshape(-1), weights=cloud[:, i]) for i in range(3)]
    return np.stack(sums, axis=1) / counts[:, None]


def _by_open3d(points, truth, icp_distance) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import open3d  # pyright: ignore[reportMissingImports]

    def cloud(x: np.ndarray) -> Any:
        made = open3d.geometry.PointCloud()
        made.points = open3d.utility.Vector3dVector(x)
        return made

    found, expected = cloud(points), cloud(truth)
    if icp_distance is not None:
        registration = open3d.pipelines.registration
        result = registration.registration_icp(
            found,
            expected,
            icp_distance,
            np.eye(4),
            registration.TransformationEstimationPointToPoint(),
        )
        found = found.transform(result.transformation)
    for one in (found, expected):
        one.estimate_normals()
    return np.asarray(found.points), np.asarray(found.normals), np.asarray(expected.normals)
