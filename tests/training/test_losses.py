import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.evaluation import pair_errors
from vggt_jax.geometry import camera_from_pose_encoding
from vggt_jax.models.vggt.outputs import VGGTOutput
from vggt_jax.training.losses import LossWeights, camera_losses, losses, map_losses, pair_losses
from vggt_jax.training.normalization import Targets

B, S, H, W = 2, 3, 5, 7
WEIGHTS = LossWeights(camera=2.0, depth=3.0, points=5.0, gradient=0.5, pairs=7.0)


@jax.jit
def parts_and_gradient(output, targets):
    """What `losses` gives, and the gradient of the total: one program for all tests of one shape."""

    def total(output):
        parts = losses(output, targets, WEIGHTS)
        return parts["total"], parts

    gradient, parts = jax.grad(total, has_aux=True)(output)
    return parts, gradient


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    targets = Targets(
        pose_enc=normal(B, S, 9),
        depth=np.abs(normal(B, S, H, W)),
        world_points=normal(B, S, H, W, 3),
        valid=rng.uniform(size=(B, S, H, W)) < 0.6,
        has_points=np.ones(B, bool),
        scale=np.ones(B, np.float32),
    )
    encodings = normal(4, B, S, 9)
    output = VGGTOutput(
        pose_enc=encodings[-1],
        pose_enc_list=encodings,
        depth=np.abs(normal(B, S, H, W, 1)),
        depth_conf=1 + np.exp(normal(B, S, H, W)),
        world_points=normal(B, S, H, W, 3),
        world_points_conf=1 + np.exp(normal(B, S, H, W)),
    )
    return output, targets


def test_maps_against_loops(case):
    output, targets = case
    found, _ = parts_and_gradient(output, targets)
    of_scene = {"error": [], "confidence": [], "gradient": []}
    for b in range(B):
        valid, conf = targets.valid[b], output.world_points_conf[b]
        error = output.world_points[b] - targets.world_points[b]
        distance = np.sqrt((error**2).sum(-1))
        of_scene["error"].append(distance[valid].mean())
        of_scene["confidence"].append((conf * distance - 0.2 * np.log(conf))[valid].mean())
        total = 0
        for step in (1, 2, 4, 8):
            e, v = error[:, ::step, ::step], valid[:, ::step, ::step]
            value = 0
            for s, y, x in np.ndindex(v.shape):
                for y2, x2 in ((y + 1, x), (y, x + 1)):
                    inside = y2 < v.shape[1] and x2 < v.shape[2]
                    if inside and v[s, y, x] and v[s, y2, x2]:
                        value += np.abs(e[s, y2, x2] - e[s, y, x]).sum()
            total += value / max(3 * v.sum(), 1)
        of_scene["gradient"].append(total / 4)
    for name, values in of_scene.items():
        assert found[f"points_{name}"] == pytest.approx(np.mean(values), rel=1e-5), name


camera_losses = jax.jit(camera_losses, static_argnames="weights")
pair_losses = jax.jit(pair_losses)


def test_cameras_by_hand():
    targets = Targets(
        pose_enc=jnp.zeros((1, 1, 9)),
        depth=None,
        world_points=None,
        valid=jnp.ones((1, 1, 1, 1), bool),
        has_points=jnp.ones(1, bool),
        scale=None,
    )
    encodings = np.zeros((2, 1, 1, 9), np.float32)
    encodings[0, 0, 0] = [3, 0, 0, 0, 0, 0, 4, 0, 0]  # the earlier iteration counts 0.6
    encodings[1, 0, 0] = [0, 300, 0, 0, 2, 0, 0, 0, 1]  # translations are cut at 100
    found = camera_losses(encodings, targets, LossWeights())
    translation = (0.6 * 1 + 100 / 3) / 2
    rotation, field = (0.6 * 1 + 0.5) / 2, 0.5 / 2
    assert found["translation"] == pytest.approx(translation, rel=1e-6)
    assert found["rotation"] == pytest.approx(rotation, rel=1e-6)
    assert found["field_of_view"] == pytest.approx(field, rel=1e-6)
    assert found["camera"] == pytest.approx(translation + rotation + 0.5 * field, rel=1e-6)
    huber = camera_losses(encodings, targets, LossWeights(camera_error="huber"))
    assert huber["rotation"] == pytest.approx((0.6 * (4 - 0.05) / 4 + (2 - 0.05) / 4) / 2, rel=1e-6)


def cameras_only(pose_enc):
    has_points = np.ones(len(pose_enc), bool)
    return Targets(
        pose_enc=pose_enc,
        depth=None,
        world_points=None,
        valid=None,
        has_points=has_points,
        scale=None,
    )


def test_pairs_against_the_metric():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(2, 5, 9)).astype(np.float32)  # baselines of 1 and more count fully
    encodings = truth + 0.01 * rng.normal(size=truth.shape).astype(np.float32)
    found = pair_losses(encodings, cameras_only(truth))
    cameras = lambda encoding: camera_from_pose_encoding(encoding, (4, 4))[0]
    errors = jax.jit(lambda *x: pair_errors(*map(cameras, x)))(encodings, truth)
    # A chord is shorter than its angle a by a^3 / 24.
    assert found["pair_rotation"] == pytest.approx(np.deg2rad(errors.rotation).mean(), rel=1e-3)
    assert found["pair_direction"] == pytest.approx(np.deg2rad(errors.translation).mean(), rel=1e-3)


def test_near_cameras_count_less():
    place = lambda *positions: np.array(
        [[[*position, 0, 0, 0, 1, 1, 1] for position in positions]], np.float32
    )
    truth = cameras_only(place((0, 0, 0), (0.05, 0, 0)))  # a quarter of the full baseline
    found = pair_losses(place((0, 0, 0), (0, 7, 0)), truth)
    assert found["pair_direction"] == pytest.approx(2**0.5 / 4, rel=1e-4)
    assert found["pair_rotation"] == pytest.approx(0.0, abs=1e-6)
    # Where both cameras are predicted at one place there is no direction, and still a way to go.
    gradient = jax.jit(jax.grad(lambda x: pair_losses(x, truth)["pair_direction"]))(
        place((0, 0, 0), (0, 0, 0))
    )
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_total_and_missing_heads(case):
    output, targets = case
    found, _ = parts_and_gradient(output, targets)
    of = lambda x: found[f"{x}_confidence"] + found[f"{x}_error"] + 0.5 * found[f"{x}_gradient"]
    cameras = 2 * found["camera"] + 7 * (found["pair_rotation"] + found["pair_direction"])
    expected = cameras + 3 * of("depth") + 5 * of("points")
    assert found["total"] == pytest.approx(float(expected), rel=1e-6)
    without = dataclasses.replace(output, world_points=None, world_points_conf=None)
    without, _ = parts_and_gradient(without, targets)
    assert without["total"] == pytest.approx(float(cameras + 3 * of("depth")), rel=1e-6)
    assert "points_error" not in without


def test_a_perfect_prediction_has_no_error(case):
    output, targets = case
    perfect = dataclasses.replace(
        output,
        pose_enc_list=np.repeat(targets.pose_enc[None], 4, axis=0),
        depth=targets.depth[..., None],
        world_points=targets.world_points,
    )
    found, gradient = parts_and_gradient(perfect, targets)
    for name in ("camera", "depth_error", "depth_gradient", "points_error", "points_gradient"):
        assert found[name] == 0, name
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("mask", ["none", "first scene only"])
def test_empty_masks_give_zero_and_finite_gradients(case, mask):
    output, targets = case
    valid = np.zeros((B, S, H, W), bool)
    valid[0] = mask != "none"
    depth = np.array(output.depth)
    depth[1, 0, 0, 0] = np.inf  # where nothing is valid it must not matter
    output = dataclasses.replace(output, depth=depth)
    targets = dataclasses.replace(targets, valid=valid, has_points=valid.any((1, 2, 3)))
    found, gradient = parts_and_gradient(output, targets)
    assert (found["total"] == 0) == (mask == "none") and np.isfinite(found["total"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_no_gradient_at_no_error_is_nan():
    ones = np.ones((1, 1, 2, 2), np.float32)
    error = lambda x: map_losses(x, ones, jnp.zeros_like(x), ones > 0, 0.2)["error"]
    gradient = jax.jit(jax.grad(error))(np.zeros((1, 1, 2, 2, 3), np.float32))
    assert (gradient == 0).all()


def test_gradient_loss_ignores_a_constant_offset(case):
    output, targets = case
    targets = dataclasses.replace(
        targets, depth=np.zeros((B, S, H, W), np.float32), valid=np.ones((B, S, H, W), bool)
    )
    output = dataclasses.replace(output, depth=np.full((B, S, H, W, 1), 3.0, np.float32))
    found, _ = parts_and_gradient(output, targets)
    assert found["depth_gradient"] == 0 and found["depth_error"] == 3
