"""All metrics of a scene: a known prediction, and one that is disturbed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vggt_jax import geometry
from vggt_jax.evaluation import SceneTruth, scene_metrics

S, H, W = 5, 26, 34


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(0)
    rotations = Rotation.from_rotvec(0.2 * rng.normal(size=(S, 3))).as_matrix()
    positions = rng.uniform(-1, 1, (S, 3))
    cameras = np.concatenate([rotations, -rotations @ positions[..., None]], -1)
    intrinsics = np.array([[30, 0, W / 2 + 1], [0, 32, H / 2], [0, 0, 1]])
    y, x = np.mgrid[:H, :W]
    depth = 4 + 0.02 * x + 0.03 * y + rng.uniform(0, 2, (S, 1, 1))
    valid = rng.random((S, H, W)) < 0.9
    return SceneTruth(
        camera_from_world=np.float32(cameras),
        intrinsics=np.float32(np.broadcast_to(intrinsics, (S, 3, 3))),
        depth=np.float32(np.where(valid, depth, 0)),
        valid=valid,
    )


@jax.jit
def in_another_world(truth, scale=0.3):
    """The exact prediction, as a model would have it: another origin and another unit."""
    first = truth.camera_from_world[0]
    points = scale * geometry.camera_points_from_world(truth.points().reshape(-1, 3), first)
    rotation = truth.camera_from_world[:, :, :3] @ first[:, :3].T
    translation = truth.camera_from_world[..., 3] - rotation @ first[:, 3]
    cameras = jnp.concatenate([rotation, scale * translation[..., None]], -1)
    return cameras, scale * truth.depth, points.reshape(S, H, W, 3)


compiled = jax.jit(scene_metrics, static_argnames="max_points")


def run(*prediction, **options):
    """In arrays of NumPy, whose operations are not compiled."""
    return jax.device_get(compiled(*prediction, **options))


def test_the_truth_in_another_world_is_perfect(truth):
    found = run(*in_another_world(truth), truth, max_points=1000)
    for name, value in found.items():
        if name.startswith(("auc", "rra", "rta", "delta", "normal", "f_score", "prec", "recall")):
            np.testing.assert_allclose(value, 1, atol=1e-4, err_msg=name)
        else:  # rotations in degrees
            assert value < (2e-3 if name == "rpe_rotation" else 1e-4), name
    assert found.keys() >= {"auc_30", "ate", "abs_rel", "chamfer", "normal_consistency"}


def test_errors_are_found_where_they_are(truth):
    cameras, depth, points = in_another_world(truth)
    perfect = run(cameras, depth, points, truth, max_points=1000)
    noise = np.float32(np.random.default_rng(1).normal(size=points.shape))
    found = run(
        cameras,
        1.5 * np.asarray(depth) ** 1.1,
        np.asarray(points) + 0.05 * noise,
        truth,
        max_points=1000,
    )
    assert found["auc_30"] == perfect["auc_30"] and found["ate"] == perfect["ate"]
    assert found["abs_rel"] > 0.005 and found["normal_consistency"] < 0.9
    # Noise of 0.05 / 0.3 per coordinate, in units of the truth, between samples of about this
    # pitch.
    assert 0.02 < found["accuracy"] < 0.5 and 0 < found["f_score"] < 0.9
    turned = np.array(cameras)
    turned[1, :, :3] = turned[1, :, :3] @ turned[2, :, :3]
    found = run(turned, depth, points, truth, max_points=1000)
    assert found["auc_30"] < 0.95 and found["abs_rel"] == perfect["abs_rel"]


def test_points_not_finite_and_truth_without_depth(truth):
    cameras, depth, points = in_another_world(truth)
    holes = np.array(points)
    holes[:, 3::5] = np.nan
    found = run(cameras, depth, holes, truth, max_points=S * H * W)
    assert found["accuracy"] == np.inf and np.isfinite(found["completeness"])
    unknown = SceneTruth(**{**vars(truth), "valid": np.zeros_like(truth.valid)})
    found = run(cameras, depth, points, unknown, max_points=1000)
    assert found["auc_30"] == 1 and np.isfinite(found["ate"])
    for name in ("abs_rel", "delta1", "accuracy", "chamfer", "f_score", "normal_consistency"):
        assert np.isnan(found[name]), name


def test_heads_that_a_model_lacks(truth):
    cameras, depth, _ = in_another_world(truth)
    names = lambda *prediction: jax.eval_shape(lambda: scene_metrics(*prediction, truth)).keys()
    assert names(None, depth, None) == {"abs_rel", "delta1", "delta2", "delta3"}
    assert "abs_rel" not in names(cameras, None, None) and "ate" in names(cameras, None, None)
