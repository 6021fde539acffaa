"""Errors of cameras: against SciPy, plain loops in float64, `evo`, and by hand."""

import itertools

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vggt_jax import evaluation
from vggt_jax.evaluation import PairErrors

# Compiled whole: one program instead of one for each operation.
accuracy_at = jax.jit(evaluation.accuracy_at)
auc_at = jax.jit(evaluation.auc_at, static_argnums=1)
pair_errors = jax.jit(evaluation.pair_errors)
trajectory_errors = jax.jit(evaluation.trajectory_errors)

B, S = 3, 7
# Of an angle in float32, in degrees: matrix products of a few roundings.
ANGLE = 2e-4


def random_cameras(seed, shape=(B, S)):
    rng = np.random.default_rng(seed)
    number = int(np.prod(shape))
    rotations = Rotation.random(number, random_state=seed).as_matrix()
    translations = 3 * rng.normal(size=(number, 3, 1))
    return np.concatenate([rotations, translations], -1).reshape(*shape, 3, 4).astype(np.float32)


def disturbed(cameras, degrees, seed):
    """The same cameras turned and moved a little, in another world of another scale."""
    rng = np.random.default_rng(seed)
    flat = cameras.reshape(-1, 3, 4).astype(np.float64)
    turns = Rotation.from_rotvec(np.deg2rad(degrees) * rng.normal(size=(len(flat), 3)))
    world = Rotation.random(random_state=seed).as_matrix()
    rotations = turns.as_matrix() @ flat[:, :, :3]
    moved = flat[:, :, 3] + 0.02 * degrees * rng.normal(size=(len(flat), 3))
    # x_new = world @ (0.4 x + offset)
    offset = rng.normal(size=3)
    translations = 0.4 * moved - rotations @ offset
    result = np.concatenate([rotations @ world.T, translations[..., None]], -1)
    return result.reshape(cameras.shape).astype(np.float32)


def homogeneous(camera):
    return np.vstack([camera, [0, 0, 0, 1]]).astype(np.float64)


def angles_by_loops(found, truth):
    """In degrees, with 4 x 4 inverses, quaternions of SciPy and arc cosines."""
    rotations, translations = [], []
    for i, j in itertools.combinations(range(len(found)), 2):
        one, other = (homogeneous(c[i]) @ np.linalg.inv(homogeneous(c[j])) for c in (found, truth))
        turn = Rotation.from_matrix(one[:3, :3].T @ other[:3, :3])
        rotations.append(np.degrees(turn.magnitude()))
        a, b = one[:3, 3], other[:3, 3]
        cosine = abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
        translations.append(np.degrees(np.arccos(min(1.0, cosine))))
    return np.array(rotations), np.array(translations)


@pytest.mark.parametrize("degrees", [0.5, 5.0, 60.0])
def test_angles_of_all_pairs(degrees):
    truth = random_cameras(0)
    found = disturbed(truth, degrees, 1)
    errors = jax.device_get(pair_errors(found, truth))
    assert errors.rotation.shape == errors.translation.shape == (B, S * (S - 1) // 2)
    for scene in range(B):
        rotations, translations = angles_by_loops(found[scene], truth[scene])
        np.testing.assert_allclose(errors.rotation[scene], rotations, atol=ANGLE)
        np.testing.assert_allclose(errors.translation[scene], translations, atol=ANGLE)
    assert np.asarray(errors.rotation).max() > degrees


def test_another_world_and_scale_and_the_sign_of_translations_do_not_matter():
    truth = random_cameras(2)
    errors = pair_errors(disturbed(truth, 0.0, 3), truth)
    assert np.asarray(errors.rotation).max() < ANGLE
    assert np.asarray(errors.translation).max() < ANGLE
    # A world turned inside out: every relative translation becomes its opposite.
    opposite = truth * np.array([1, 1, 1, -1], np.float32)
    errors = pair_errors(opposite, truth)
    assert np.asarray(errors.translation).max() < ANGLE


def test_angles_by_hand():
    # Cameras that look ahead, at 0, 1 and 2 along x; the prediction sees the last one at (1, 1).
    cameras = np.zeros((3, 3, 4), np.float32)
    cameras[:, :, :3] = np.eye(3)
    truth, found = cameras.copy(), cameras.copy()
    truth[:, 0, 3] = [0, -1, -2]
    found[:, 0, 3] = [0, -1, -1]
    found[2, 1, 3] = -1
    found[1, :, :] = np.diag([-1, -1, 1]) @ found[1]  # half a turn about the viewing axis
    errors = pair_errors(found, truth)
    np.testing.assert_allclose(errors.rotation, [180, 0, 180], atol=ANGLE)
    # Pairs (0, 1), (0, 2), (1, 2): from the second camera the third lies along y.
    np.testing.assert_allclose(errors.translation, [0, 45, 90], atol=ANGLE)


def test_tiny_rotations_are_exact():
    truth = random_cameras(4, (1, 2)).astype(np.float64)
    truth[:] = np.eye(3, 4)
    found = truth.copy()
    found[0, 1, :, :3] = Rotation.from_rotvec([0, 1e-4, 0]).as_matrix()
    errors = pair_errors(found.astype(np.float32), truth.astype(np.float32))
    np.testing.assert_allclose(errors.rotation, np.degrees(1e-4), rtol=1e-5)


def test_pairs_without_direction_or_numbers():
    truth, found = random_cameras(5, (4,)), random_cameras(5, (4,))
    found[1] = found[0]  # predicted at one place
    found[3, 0, 0] = np.nan
    errors = pair_errors(found, truth)
    pairs = list(itertools.combinations(range(4), 2))
    lost = np.array([3 in pair for pair in pairs])
    assert (
        np.isinf(np.asarray(errors.rotation)[lost]).all()
        and np.isinf(np.asarray(errors.translation)[lost]).all()
    )
    assert np.asarray(errors.translation)[pairs.index((0, 1))] == 90
    np.testing.assert_allclose(np.asarray(errors.rotation)[pairs.index((0, 2))], 0, atol=ANGLE)
    assert auc_at(errors, 30) <= 3 / 6 and accuracy_at(errors.rotation, 180) <= 3 / 6
    # Two true cameras at one place: as wrong as can be, as in the official evaluation.
    truth[1] = truth[0]
    assert np.asarray(pair_errors(random_cameras(6, (4,)), truth).translation)[0] == 90


def test_two_frames_are_one_pair_and_one_is_none():
    truth = random_cameras(7, (2,))
    assert pair_errors(truth, truth).rotation.shape == (1,)
    with pytest.raises(ValueError, match="at least two of them, not 1"):
        pair_errors(truth[:1], truth[:1])
    with pytest.raises(ValueError, match=r"must be \[... s 3 4\] alike"):
        pair_errors(truth, random_cameras(7, (3,)))


@pytest.mark.parametrize("degrees", [3, 5, 30])
def test_auc_is_the_mean_of_a_cumulative_histogram(degrees):
    rng = np.random.default_rng(8)
    rotation, translation = (rng.exponential(9.0, (2, 101)).astype(np.float32) for _ in range(2))
    found = np.asarray(auc_at(PairErrors(rotation=rotation, translation=translation), degrees))
    for scene in range(2):
        worst = np.maximum(rotation[scene], translation[scene])
        histogram = np.zeros(degrees)
        for error in worst:
            if error < degrees:
                histogram[int(error)] += 1 / worst.size
        curve = [histogram[:i].sum() for i in range(1, degrees + 1)]
        np.testing.assert_allclose(found[scene], np.mean(curve), rtol=1e-5)


def test_auc_and_accuracy_by_hand():
    errors = PairErrors(
        rotation=np.array([0.5, 1.0, 3.0, 2.0], np.float32),
        translation=np.array([0.0, 1.0, 0.0, np.inf], np.float32),
    )
    # Below 1: one of four; below 2: two; up to 3, the end of the last bin: three.
    np.testing.assert_allclose(auc_at(errors, 3), (1 / 4 + 2 / 4 + 3 / 4) / 3, rtol=1e-6)
    np.testing.assert_allclose(auc_at(errors, 4), (1 / 4 + 2 / 4 + 2 / 4 + 3 / 4) / 4, rtol=1e-6)
    assert accuracy_at(errors.rotation, 3) == 3 / 4
    assert accuracy_at(errors.translation, 5) == 3 / 4
    for degrees in (0, 2.5):
        with pytest.raises(ValueError, match="whole number of degrees"):
            auc_at(errors, degrees)


def similarity_by_quaternions(source, target):
    """Horn's way: the rotation is the largest eigenvector of a 4 x 4 matrix."""
    a, b = source - source.mean(0), target - target.mean(0)
    rotation = Rotation.align_vectors(b, a)[0].as_matrix()
    scale = np.sum(b * (a @ rotation.T)) / np.sum(a * a)
    return scale, rotation, target.mean(0) - scale * rotation @ source.mean(0)


def trajectory_by_loops(found, truth):
    found, truth = (np.linalg.inv([homogeneous(c) for c in x]) for x in (found, truth))
    scale, rotation, translation = similarity_by_quaternions(found[:, :3, 3], truth[:, :3, 3])
    aligned = found.copy()
    aligned[:, :3, :3] = rotation @ found[:, :3, :3]
    aligned[:, :3, 3] = scale * found[:, :3, 3] @ rotation.T + translation
    ate = np.sqrt(np.mean(np.sum((aligned - truth)[:, :3, 3] ** 2, -1)))
    rest = [
        np.linalg.inv(np.linalg.inv(truth[i]) @ truth[i + 1])
        @ (np.linalg.inv(aligned[i]) @ aligned[i + 1])
        for i in range(len(truth) - 1)
    ]
    lengths = [np.linalg.norm(x[:3, 3]) for x in rest]
    angles = [np.degrees(Rotation.from_matrix(x[:3, :3]).magnitude()) for x in rest]
    return ate, np.sqrt(np.mean(np.square(lengths))), np.sqrt(np.mean(np.square(angles)))


def test_trajectory():
    truth = random_cameras(9)
    found = disturbed(truth, 8.0, 10)
    errors = jax.device_get(trajectory_errors(found, truth))
    for scene in range(B):
        expected = trajectory_by_loops(found[scene], truth[scene])
        result = [x[scene] for x in (errors.ate, errors.rpe_translation, errors.rpe_rotation)]
        np.testing.assert_allclose(result, expected, rtol=1e-4)
        assert expected[0] > 0.1


def test_trajectory_is_that_of_evo():
    pytest.importorskip("evo", reason="evo is not installed")
    from evo.core import metrics
    from evo.core.trajectory import PosePath3D

    truth = random_cameras(11, (S,))
    found = disturbed(truth, 8.0, 12)
    paths = [
        PosePath3D(poses_se3=[np.linalg.inv(homogeneous(c)) for c in cameras])
        for cameras in (truth, found)
    ]
    paths[1].align(paths[0], correct_scale=True)
    relation = metrics.PoseRelation

    def rmse(metric):
        metric.process_data(paths)
        return metric.get_statistic(metrics.StatisticsType.rmse)

    step = {"delta": 1, "delta_unit": metrics.Unit.frames, "all_pairs": True}
    expected = [
        rmse(metrics.APE(relation.translation_part)),
        rmse(metrics.RPE(relation.translation_part, **step)),
        rmse(metrics.RPE(relation.rotation_angle_deg, **step)),
    ]
    errors = trajectory_errors(found, truth)
    result = [errors.ate, errors.rpe_translation, errors.rpe_rotation]
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_trajectories_that_are_none():
    truth, found = random_cameras(13, (4,)), random_cameras(14, (4,))
    # All predicted at one place: the error is the spread of the true positions.
    standing = found.copy()
    standing[:, :, 3] = -standing[:, :, :3] @ np.array([1.0, 2.0, 3.0], np.float32)
    positions = -np.einsum("sji,sj->si", truth[:, :, :3], truth[:, :, 3])
    spread = np.sqrt(np.sum(positions.var(0)))
    np.testing.assert_allclose(trajectory_errors(standing, truth).ate, spread, rtol=1e-4)
    # All true cameras at one place: nothing to compare.
    turning = truth.copy()
    turning[:, :, 3] = -turning[:, :, :3] @ np.array([1.0, 2.0, 3.0], np.float32)
    assert all(np.isnan(x) for x in jax.tree.leaves(trajectory_errors(found, turning)))
    found[2, 1, 1] = np.inf
    assert all(np.isposinf(x) for x in jax.tree.leaves(trajectory_errors(found, truth)))


def test_two_frames_fit_up_to_their_rotations():
    truth, found = random_cameras(15, (2,)), random_cameras(16, (2,))
    errors = trajectory_errors(found, truth)
    assert errors.ate < 1e-5
    assert np.isfinite(errors.rpe_rotation)
