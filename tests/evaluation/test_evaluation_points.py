"""Errors of points: against SciPy's k-d tree and loops, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from vggt_jax import evaluation
from vggt_jax.evaluation import nearest_neighbours

# Compiled whole: one program instead of one for each operation.
normals_from_point_map = jax.jit(evaluation.normals_from_point_map)
point_metrics = jax.jit(evaluation.point_metrics)


def clouds(seed, m=701, k=509):
    rng = np.random.default_rng(seed)
    points, truth = (rng.normal(size=(n, 3)).astype(np.float32) for n in (m, k))
    return points, truth


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("chunks", [(97, 61), (10_000, 10_000), (1, 509)])
def test_nearest_neighbours_are_those_of_a_tree(chunks):
    points, truth = clouds(0)
    found, index = nearest_neighbours(
        points, truth, queries_per_chunk=chunks[0], points_per_chunk=chunks[1]
    )
    expected, expected_index = cKDTree(truth).query(points)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(index, expected_index)


def test_distances_are_exact_far_from_the_origin():
    rng = np.random.default_rng(1)
    grid = rng.integers(-8, 8, (2, 300, 3)) / 64 + 1000  # exact in float32
    points, truth = grid.astype(np.float32)
    found, _ = nearest_neighbours(points, truth)
    np.testing.assert_allclose(found, cKDTree(grid[1]).query(grid[0])[0], rtol=1e-6)


def test_points_that_do_not_count_are_not_found():
    points, truth = clouds(2)
    valid = np.random.default_rng(3).random(len(truth)) < 0.5
    truth[5] = np.nan
    points[7] = np.inf
    found, index = nearest_neighbours(points, truth, valid, points_per_chunk=100)
    kept = np.flatnonzero(valid & (np.arange(len(truth)) != 5))
    expected, place = cKDTree(truth[kept]).query(np.delete(points, 7, 0))
    np.testing.assert_allclose(np.delete(found, 7), expected, rtol=1e-5)
    np.testing.assert_array_equal(np.delete(index, 7), kept[place])
    assert np.isinf(found[7])
    found, index = nearest_neighbours(points, truth, np.zeros(len(truth), bool))
    assert np.isinf(found).all() and not np.any(index)
    # Of equally near points the first, across chunks too.
    same = np.zeros((7, 3), np.float32)
    assert not np.any(nearest_neighbours(same[:2], same, points_per_chunk=2)[1])


def test_memory_does_not_grow_with_the_clouds():
    shape = jax.ShapeDtypeStruct((100_003, 3), jnp.float32)
    compiled = nearest_neighbours.lower(shape, shape).compile()
    # All distances would be 40 GB; the chunks have 8 million of them.
    assert compiled.memory_analysis().temp_size_in_bytes < 200e6


def test_metrics():
    points, truth = clouds(4)
    rng = np.random.default_rng(5)
    valid, truth_valid = rng.random(len(points)) < 0.7, rng.random(len(truth)) < 0.6
    normals, truth_normals = (unit(rng.normal(size=x.shape)) for x in (points, truth))
    found = point_metrics(
        points, truth, valid=valid, truth_valid=truth_valid, normals=normals,
        truth_normals=truth_normals, threshold=0.25,
    )  # fmt: skip
    a, b, na, nb = points[valid], truth[truth_valid], normals[valid], truth_normals[truth_valid]
    to_truth, i = cKDTree(b).query(a)
    to_points, j = cKDTree(a).query(b)
    cosine, cosine_back = np.abs((na * nb[i]).sum(1)), np.abs((nb * na[j]).sum(1))
    precision, recall = np.mean(to_truth < 0.25), np.mean(to_points < 0.25)
    expected = dict(
        accuracy=to_truth.mean(),
        accuracy_median=np.median(to_truth),
        completeness=to_points.mean(),
        completeness_median=np.median(to_points),
        chamfer=(to_truth.mean() + to_points.mean()) / 2,
        precision=precision,
        recall=recall,
        f_score=2 / (1 / precision + 1 / recall),
        normal_accuracy=cosine.mean(),
        normal_accuracy_median=np.median(cosine),
        normal_completeness=cosine_back.mean(),
        normal_completeness_median=np.median(cosine_back),
        normal_consistency=(cosine.mean() + cosine_back.mean()) / 2,
    )
    assert expected.keys() == vars(found).keys()
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-5, err_msg=name)
    # A part of the options gives a part of the metrics.
    found = point_metrics(points, truth)
    assert found.f_score is None and found.normal_consistency is None


def test_several_scenes_at_a_time():
    points, truth = (np.stack(x) for x in zip(clouds(6, 53, 47), clouds(7, 53, 47), strict=True))
    together = jax.jit(jax.vmap(point_metrics))(points, truth)
    one_by_one = jax.lax.map(lambda pair: point_metrics(*pair), (points, truth))
    for scene in range(2):
        alone = point_metrics(points[scene], truth[scene])
        for found in (together, one_by_one):
            np.testing.assert_allclose(found.chamfer[scene], alone.chamfer, rtol=1e-6)


def test_by_hand():
    truth = np.array([[0, 0, 0], [1, 0, 0]], np.float32)
    points = np.array([[0, 0, 2], [0, 0, 0], [0, 1, 0], [1, 0, 0]], np.float32)
    found = point_metrics(points, truth, threshold=1.0)
    assert (found.accuracy, found.accuracy_median) == (3 / 4, 1 / 2)
    assert (found.completeness, found.chamfer) == (0, 3 / 8)
    assert (found.precision, found.recall) == (2 / 4, 1)  # a distance of 1 is not below 1
    np.testing.assert_allclose(found.f_score, 2 / 3, rtol=1e-6)


def test_empty_and_lost_clouds():
    points, truth = clouds(8, 31, 29)
    nothing, no_truth = np.zeros(31, bool), np.zeros(29, bool)
    normals = {"normals": unit(points), "truth_normals": unit(truth)}
    found = point_metrics(points, truth, valid=nothing, threshold=0.5, **normals)
    assert found.accuracy == found.completeness == found.chamfer == np.inf
    assert found.f_score == found.precision == found.normal_consistency == 0
    found = point_metrics(points, truth, truth_valid=no_truth, threshold=0.5, **normals)
    assert all(np.isnan(x) for x in vars(found).values())
    points[0] = np.nan
    found = point_metrics(points, truth, threshold=0.5)
    assert found.accuracy == np.inf and np.isfinite(found.accuracy_median)
    assert np.isfinite(found.completeness)
    # Far from each other nothing is within the threshold, and there is no harmonic mean.
    assert point_metrics(points + 100, truth, threshold=0.5).f_score == 0


def test_arguments_are_checked():
    points, truth = clouds(9, 5, 6)
    with pytest.raises(ValueError, match="normals of both clouds or of none"):
        point_metrics(points, truth, normals=points)
    with pytest.raises(ValueError, match=r"points must be \[m 3\] with at least one point"):
        point_metrics(points[:0], truth)
    with pytest.raises(ValueError, match="at least one point"):
        nearest_neighbours(points, truth[:0])


def test_normals_of_a_sphere_and_their_direction():
    # A sphere of radius 2 at distance 5, seen by parallel rays.
    y, x = np.mgrid[-1:1:41j, -1:1:43j]
    points = np.stack([x, y, 5 - np.sqrt(4 - x**2 - y**2)], -1).astype(np.float32)
    normals = np.asarray(normals_from_point_map(points))
    expected = (points - [0, 0, 5]) / 2
    # Differences to both sides are of second order in the step of 1/20; at borders of first.
    inner = (slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(normals[inner], expected[inner], atol=2e-3)
    np.testing.assert_allclose(normals, expected, atol=5e-2)
    assert (normals[..., 2] < 0).all()  # towards the camera


def test_normals_where_neighbours_are_missing():
    y, x = np.mgrid[:5.0, :4.0]
    points = np.stack([x, y, 2 * x], -1).astype(np.float32)
    valid = np.ones((5, 4), bool)
    valid[2, 1] = False
    valid[0, 1:] = False
    points[2, 1] = np.nan
    normals = np.asarray(normals_from_point_map(points, valid))
    # Without a neighbour to the side, or above and below.
    unknown = ~valid
    unknown[[0, 2, 1], [0, 0, 1]] = True
    assert not normals[unknown].any()
    expected = np.array([2, 0, -1], np.float32) / np.sqrt(np.float32(5))
    np.testing.assert_allclose(normals[~unknown], np.tile(expected, (13, 1)), atol=1e-6)
    assert not np.asarray(normals_from_point_map(np.zeros((3, 3, 3), np.float32))).any()
