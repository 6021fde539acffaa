"""Alignments: against SciPy and NumPy in float64, known maps, and what they leave open."""

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vggt_jax import evaluation

# Compiled whole: one program instead of one for each operation.
apply = jax.jit(evaluation.Similarity.apply)
least_squares_scale = jax.jit(evaluation.least_squares_scale)
least_squares_scale_and_shift = jax.jit(evaluation.least_squares_scale_and_shift)
median_scale = jax.jit(evaluation.median_scale)
compiled_umeyama = jax.jit(evaluation.umeyama, static_argnames="with_scale")


def umeyama(*pairs, **options):
    """The similarity in arrays of NumPy, whose operations are not compiled."""
    return jax.device_get(compiled_umeyama(*pairs, **options))


B, M = 2, 41


def clouds(seed, noise):
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(B, M, 3)) * [3, 1, 0.5] + [5, -7, 11]
    rotations = Rotation.random(B, random_state=seed).as_matrix()
    scales, translations = rng.uniform(0.2, 4, B), 9 * rng.normal(size=(B, 3))
    target = scales[:, None, None] * np.einsum("bij,bmj->bmi", rotations, source)
    target += translations[:, None] + noise * rng.normal(size=source.shape)
    return source, target, (scales, rotations, translations)


def test_a_known_similarity_is_found():
    source, target, (scales, rotations, translations) = clouds(0, noise=0.0)
    found = umeyama(np.float32(source), np.float32(target))
    np.testing.assert_allclose(found.scale, scales, rtol=1e-5)
    np.testing.assert_allclose(found.rotation, rotations, atol=1e-5)
    np.testing.assert_allclose(found.translation, translations, atol=1e-3)
    np.testing.assert_allclose(apply(found, np.float32(source)), target, atol=1e-4)


@pytest.mark.parametrize("with_scale", [True, False])
def test_noisy_clouds_of_which_some_points_count(with_scale):
    source, target, _ = clouds(1, noise=0.7)
    valid = np.random.default_rng(2).random((B, M)) < 0.6
    dirty = [np.where(valid[..., None], x, np.nan).astype(np.float32) for x in (source, target)]
    found = umeyama(*dirty, valid, with_scale=with_scale)
    for scene in range(B):
        a, b = source[scene, valid[scene]], target[scene, valid[scene]]
        middle_a, middle_b = a.mean(0), b.mean(0)
        rotation = Rotation.align_vectors(b - middle_b, a - middle_a)[0].as_matrix()
        turned = (a - middle_a) @ rotation.T
        scale = np.sum((b - middle_b) * turned) / np.sum(turned**2) if with_scale else 1.0
        np.testing.assert_allclose(found.scale[scene], scale, rtol=1e-5)
        np.testing.assert_allclose(found.rotation[scene], rotation, atol=1e-5)
        expected = middle_b - scale * rotation @ middle_a
        np.testing.assert_allclose(found.translation[scene], expected, atol=1e-3)


def test_a_mirrored_cloud_gives_a_proper_rotation():
    source, _, _ = clouds(3, noise=0.0)
    source = source.astype(np.float32)
    found = umeyama(source, source * np.array([-1, 1, 1], np.float32))
    np.testing.assert_allclose(np.linalg.det(found.rotation), 1, rtol=1e-5)


def test_what_points_leave_open_is_defined():
    source = np.random.default_rng(4).normal(size=(5, 3)).astype(np.float32)
    same = np.full((5, 3), 2.5, np.float32)
    # All sources at one place.
    found = umeyama(same, source)
    assert found.scale == 1
    np.testing.assert_array_equal(found.rotation, np.eye(3))
    np.testing.assert_allclose(apply(found, same)[0], source.mean(0), atol=1e-6)
    # All targets at one place.
    found = umeyama(source, same)
    assert found.scale == 0
    np.testing.assert_allclose(apply(found, source), same)
    # Two pairs: a line, met exactly, by a rotation.
    line, other = source[:2], 3 * source[2:4]
    found = umeyama(line, other)
    np.testing.assert_allclose(apply(found, line), other, atol=1e-5)
    np.testing.assert_allclose(found.rotation @ found.rotation.T, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(found.rotation), 1, rtol=1e-5)
    # One pair, and none.
    found = umeyama(line[:1], other[:1])
    np.testing.assert_allclose(apply(found, line[:1]), other[:1], atol=1e-6)
    found = umeyama(line, other, np.zeros(2, bool))
    assert all(np.isnan(x).all() for x in jax.tree.leaves(found))


def test_sizes_near_the_ends_of_float32():
    source, target, (scales, rotations, _) = clouds(5, noise=0.0)
    tiny, huge = np.float32(1e-25 * source), np.float32(1e25 * target)
    found = umeyama(tiny / 1e4, huge / 1e20)
    np.testing.assert_allclose(found.rotation, rotations, atol=1e-5)
    np.testing.assert_allclose(found.scale, scales * 1e34, rtol=1e-4)


def test_cameras_keep_their_rotations():
    source, target, _ = clouds(6, noise=0.3)
    found = umeyama(np.float32(source), np.float32(target))
    looks = Rotation.random(B * M, random_state=6).as_matrix().reshape(B, M, 3, 3)
    cameras = np.concatenate([looks, source[..., None]], -1).astype(np.float32)
    moved = np.asarray(jax.jit(evaluation.Similarity.apply_to_cameras)(found, cameras))
    np.testing.assert_allclose(moved[..., 3], apply(found, np.float32(source)), atol=1e-5)
    # What a camera sees ahead of it is where the map takes it.
    ahead = source + looks[..., 2]
    expected = np.asarray(apply(found, np.float32(ahead))) - apply(found, np.float32(source))
    direction = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(moved[..., 2], direction, atol=1e-4)


def test_scales_of_numbers():
    rng = np.random.default_rng(7)
    source = rng.uniform(1, 5, (B, M))
    target = 2.3 * source - 0.7 + 0.1 * rng.normal(size=(B, M))
    valid = rng.random((B, M)) < 0.7
    arrays = [np.where(valid, x, np.nan).astype(np.float32) for x in (source, target)]
    found = [np.asarray(f(*arrays, valid)) for f in (median_scale, least_squares_scale)]
    scale, shift = map(np.asarray, least_squares_scale_and_shift(*arrays, valid))
    for scene in range(B):
        a, b = source[scene, valid[scene]], target[scene, valid[scene]]
        np.testing.assert_allclose(found[0][scene], np.median(b) / np.median(a), rtol=1e-5)
        factor = np.linalg.lstsq(a[:, None], b)[0]
        np.testing.assert_allclose(found[1][scene], factor[0], rtol=1e-5)
        slope, offset = np.polyfit(a, b, 1)
        np.testing.assert_allclose([scale[scene], shift[scene]], [slope, offset], rtol=1e-4)


def test_scales_of_nothing():
    zeros, numbers = np.zeros(3, np.float32), np.arange(3, dtype=np.float32)
    nothing = np.zeros(3, bool)
    valid = ~nothing
    assert np.isnan(median_scale(numbers, numbers, nothing))
    assert np.isnan(least_squares_scale(numbers, numbers, nothing))
    assert np.isnan(np.stack(least_squares_scale_and_shift(numbers, numbers, nothing))).all()
    assert least_squares_scale(zeros, numbers, valid) == 1
    assert least_squares_scale_and_shift(zeros + 4, numbers, valid) == (1, -3)
