"""How well points are found: nearest neighbours between two clouds, exact, in bounded memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# Pairs of points whose distances exist at a time: 8 million, 32 MiB.
_QUERIES_PER_CHUNK = 1024
_POINTS_PER_CHUNK = 8192


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PointMetrics:
    """Distances between a predicted and a true cloud, in the units of both.

    NaN where the true cloud is empty; where the predicted one is, distances are infinite, and
    shares and consistencies 0.

    Attributes:
        accuracy, accuracy_median: from predicted points to the nearest true one.
        completeness, completeness_median: from true points to the nearest predicted one.
        chamfer: the mean of accuracy and completeness, which tables also call "overall".
        precision, recall: the share of the predicted points, and of the true ones, whose nearest
            counterpart is closer than the threshold; None without one.
        f_score: their harmonic mean.
        normal_accuracy, normal_accuracy_median: the absolute cosine between the normal of a
            predicted point and that of the nearest true one, in [0, 1]; None without normals.
        normal_completeness, normal_completeness_median: the same from true points to predicted
            ones.
        normal_consistency: the mean of normal_accuracy and normal_completeness.
    """

    accuracy: Float[Array, "*batch"]
    accuracy_median: Float[Array, "*batch"]
    completeness: Float[Array, "*batch"]
    completeness_median: Float[Array, "*batch"]
    chamfer: Float[Array, "*batch"]
    precision: Float[Array, "*batch"] | None = None
    recall: Float[Array, "*batch"] | None = None
    f_score: Float[Array, "*batch"] | None = None
    normal_accuracy: Float[Array, "*batch"] | None = None
    normal_accuracy_median: Float[Array, "*batch"] | None = None
    normal_completeness: Float[Array, "*batch"] | None = None
    normal_completeness_median: Float[Array, "*batch"] | None = None
    normal_consistency: Float[Array, "*batch"] | None = None


@functools.partial(jax.jit, static_argnames=("queries_per_chunk", "points_per_chunk"))
def nearest_neighbours(
    queries: Float[Array, "m 3"],
    points: Float[Array, "k 3"],
    valid: Bool[Array, " k"] | None = None,
    *,
    queries_per_chunk: int = _QUERIES_PER_CHUNK,
    points_per_chunk: int = _POINTS_PER_CHUNK,
) -> tuple[Float[Array, " m"], Int[Array, " m"]]:
    """Distance and index of the nearest point of every query, by comparing all with all.

    Distances come from differences of coordinates, so that those of close points are exact far from
    the origin too. Memory is bounded by the two chunks, whatever the numbers of points; the work is
    their product. Of points at one distance the first is taken.

    Args:
        queries: a query that is not finite is infinitely far from everything.
        points: at least one. Points that are not finite are never the nearest.
        valid: which points may be found; None for all.
        queries_per_chunk, points_per_chunk: so many distances exist at a time.

    Returns:
        Distances, and indices into `points`; infinite and 0 where there is nothing to be found.
    """
    (num_queries, _), (num_points, _) = queries.shape, points.shape
    if not num_points:
        raise ValueError("there must be at least one point to be the nearest; mark it not valid")
    queries, points = queries.astype(jnp.float32), points.astype(jnp.float32)
    query_counts = jnp.all(jnp.isfinite(queries), axis=-1)
    counts = jnp.all(jnp.isfinite(points), axis=-1)
    counts = counts if valid is None else counts & valid
    queries = jnp.where(query_counts[:, None], queries, 0.0)
    points = jnp.where(counts[:, None], points, jnp.inf)

    query_chunk = max(1, min(queries_per_chunk, num_queries))
    point_chunk = min(points_per_chunk, num_points)
    points = jnp.pad(points, ((0, -num_points % point_chunk), (0, 0)), constant_values=jnp.inf)
    points = points.reshape(-1, point_chunk, 3)
    queries = jnp.pad(queries, ((0, -num_queries % query_chunk), (0, 0)))
    queries = queries.reshape(-1, query_chunk, 3)

    def of_queries(some):
        def compare(best, inputs):
            chunk, first = inputs
            squares = (jnp.square(some[:, None, i] - chunk[None, :, i]) for i in range(3))
            squared = sum(squares)  # [query_chunk, point_chunk]
            nearest = jax.lax.argmin(squared, 1, jnp.int32)
            smallest = jnp.min(squared, axis=1)
            is_closer = smallest < best[0]
            index = first + nearest
            return (
                jnp.where(is_closer, smallest, best[0]),
                jnp.where(is_closer, index, best[1]),
            ), None

        nothing = (
            jnp.full(query_chunk, jnp.inf, jnp.float32),
            jnp.zeros(query_chunk, jnp.int32),
        )
        starts = point_chunk * jnp.arange(len(points), dtype=jnp.int32)
        return jax.lax.scan(compare, nothing, (points, starts))[0]

    squared, indices = jax.lax.map(of_queries, queries)
    distances = jnp.sqrt(squared.reshape(-1)[:num_queries])
    return jnp.where(query_counts, distances, jnp.inf), indices.reshape(-1)[:num_queries]


def point_metrics(
    points: Float[Array, "m 3"],
    truth: Float[Array, "k 3"],
    *,
    valid: Bool[Array, " m"] | None = None,
    truth_valid: Bool[Array, " k"] | None = None,
    normals: Float[Array, "m 3"] | None = None,
    truth_normals: Float[Array, "k 3"] | None = None,
    threshold: float | Float[Array, ""] | None = None,
) -> PointMetrics:
    """Compares two clouds of points, which `umeyama` may have brought together before.

    The definitions of the DTU and 7-Scenes tables of VGGT, π³ and their relatives: distances to the
    nearest neighbour in both directions, their means and medians. A pure function: `jax.vmap` gives
    several scenes at a time, `jax.lax.map` one after the other in the memory of one.

    Args:
        points: the prediction. A valid point that is not finite is infinitely far away.
        truth: must be finite where it is valid.
        valid, truth_valid: which points count; None for all.
        normals, truth_normals: of unit length, give both or none; their sign does not matter. See
            `normals_from_point_map`. A normal of length 0, where none is known, takes no part.
        threshold: of precision, recall and F-score.

    Raises:
        ValueError: shapes do not fit, or normals of one cloud only are given.
    """
    for name, cloud in (("points", points), ("truth", truth)):
        if cloud.ndim != 2 or cloud.shape[1] != 3 or not len(cloud):
            raise ValueError(f"{name} must be [m 3] with at least one point, not {cloud.shape}")
    if (normals is None) != (truth_normals is None):
        raise ValueError("give the normals of both clouds or of none")
    valid = jnp.ones(len(points), bool) if valid is None else valid
    truth_valid = jnp.ones(len(truth), bool) if truth_valid is None else truth_valid
    to_truth, nearest_truth = nearest_neighbours(points, truth, truth_valid)
    to_points, nearest_point = nearest_neighbours(truth, points, valid)
    # What is empty leaves nothing to average.
    has_points, has_truth = jnp.any(valid), jnp.any(truth_valid)

    def defined(value, worst):
        return jnp.where(has_truth, jnp.where(has_points, value, worst), jnp.nan)

    accuracy = defined(_mean(to_truth, valid), jnp.inf)
    completeness = defined(_mean(to_points, truth_valid), jnp.inf)
    found = dict(
        accuracy=accuracy,
        accuracy_median=defined(_median(to_truth, valid), jnp.inf),
        completeness=completeness,
        completeness_median=defined(_median(to_points, truth_valid), jnp.inf),
        chamfer=(accuracy + completeness) / 2,
    )
    if threshold is not None:
        precision = defined(_mean(to_truth < threshold, valid), 0.0)
        recall = defined(_mean(to_points < threshold, truth_valid), 0.0)
        total = precision + recall
        f_score = jnp.where(
            total == 0, 0.0, 2 * precision * recall / jnp.where(total == 0, 1, total)
        )
        found |= dict(precision=precision, recall=recall, f_score=f_score)
    if normals is not None and truth_normals is not None:

        def cosines(normals, nearest, valid):
            known = valid & jnp.any(normals != 0, axis=-1) & jnp.any(nearest != 0, axis=-1)
            return jnp.abs(jnp.sum(jnp.where(known[:, None], normals * nearest, 0.0), -1)), known

        accurate = cosines(normals, truth_normals[nearest_truth], valid & jnp.isfinite(to_truth))
        complete = cosines(
            truth_normals, normals[nearest_point], truth_valid & jnp.isfinite(to_points)
        )
        found |= dict(
            normal_accuracy=defined(_mean(*accurate), 0.0),
            normal_accuracy_median=defined(_median(*accurate), 0.0),
            normal_completeness=defined(_mean(*complete), 0.0),
            normal_completeness_median=defined(_median(*complete), 0.0),
        )
        found["normal_consistency"] = (found["normal_accuracy"] + found["normal_completeness"]) / 2
    return PointMetrics(**found)


def normals_from_point_map(
    points: Float[Array, "*batch height width 3"],
    valid: Bool[Array, "*batch height width"] | None = None,
) -> Float[Array, "*batch height width 3"]:
    """Unit normals of the surfaces that a map of points shows.

    The cross product of the differences to the next pixels down and to the right: of neighbours on
    both sides where both are valid, of one side at borders. The tables of π³ and others estimate
    them from the neighbours in the cloud instead (Open3D's `estimate_normals`).

    Args:
        points: in any coordinates, one for each pixel.
        valid: which pixels count; None for all that are finite.

    Returns:
        Unit normals, of zeros where neighbours are missing or span no plane. They point towards
        the camera where points are in an OpenCV camera's coordinates or a rotation of them.
    """
    finite = jnp.all(jnp.isfinite(points), axis=-1)
    valid = finite if valid is None else finite & valid
    points = jnp.where(valid[..., None], points, 0.0)

    def difference(axis):
        """Of the next and the last valid neighbour along an axis; and whether there is any."""
        axis = axis % points.ndim
        size = points.shape[axis]
        ahead = np.minimum(np.arange(size, dtype=np.int32) + 1, size - 1)
        behind = np.maximum(np.arange(size, dtype=np.int32) - 1, 0)
        here = valid[..., None]
        pick = lambda index: jnp.where(
            jnp.take(here, index, axis), jnp.take(points, index, axis), points
        )
        step = pick(ahead) - pick(behind)
        return jnp.where(here, step, 0.0)

    # Down x right points towards the camera.
    normals = jnp.cross(difference(-3), difference(-2))
    largest = jnp.max(jnp.abs(normals), axis=-1, keepdims=True)
    normals = normals / jnp.where(largest > 0, largest, 1.0)
    length = jnp.linalg.norm(normals, axis=-1, keepdims=True)
    return normals / jnp.where(length > 0, length, 1.0)


def _mean(x, valid):
    number = jnp.sum(valid, dtype=jnp.int32)
    return jnp.sum(jnp.where(valid, x.astype(jnp.float32), 0.0)) / number.astype(jnp.float32)


def _median(x, valid):
    """`jnp.nanmedian` would average two infinite values to NaN."""
    number = jnp.sum(valid, dtype=jnp.int32)
    ordered = jnp.sort(jnp.where(valid, x, jnp.inf))
    low, high = ordered[jnp.maximum(number - 1, 0) // 2], ordered[number // 2]
    # The difference of two infinite values would be NaN.
    middle = jnp.where(low == high, low, low + (high - jnp.where(low == high, 0.0, low)) / 2)
    return jnp.where(number > 0, middle, jnp.nan)
