import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.evaluation import pair_errors
from vggt_jax.geometry import camera_from_pose_encoding
from vggt_jax.outputs import VGGTOutput
from vggt_jax.training.losses import (
    LossWeights,
    camera_losses,
    gradient_loss,
    losses,
    map_losses,
    pair_losses,
)
from vggt_jax.training.normalization import Targets

B, S, H, W = 2, 3, 5, 7


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
    found = map_losses(
        output.world_points, output.world_points_conf, targets.world_points, targets.valid, 0.2
    )
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
        assert found[name] == pytest.approx(np.mean(values), rel=1e-5), name


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
    errors = pair_errors(
        *(camera_from_pose_encoding(jnp.asarray(x), (4, 4))[0] for x in (encodings, truth))
    )
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
    gradient = jax.grad(lambda x: pair_losses(x, truth)["pair_direction"])(
        jnp.asarray(place((0, 0, 0), (0, 0, 0)))
    )
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_total_and_missing_heads(case):
    output, targets = case
    weights = LossWeights(camera=2.0, depth=3.0, points=5.0, gradient=0.5)
    found = losses(output, targets, weights)
    of = lambda x: found[f"{x}_confidence"] + found[f"{x}_error"] + 0.5 * found[f"{x}_gradient"]
    expected = 2 * found["camera"] + 3 * of("depth") + 5 * of("points")
    assert found["total"] == pytest.approx(float(expected), rel=1e-6)
    without = losses(dataclasses.replace(output, world_points=None), targets, weights)
    assert without["total"] == pytest.approx(float(2 * found["camera"] + 3 * of("depth")), rel=1e-6)
    assert "points_error" not in without


def test_a_perfect_prediction_has_no_error(case):
    output, targets = case
    encodings = jnp.broadcast_to(targets.pose_enc, (4, B, S, 9))
    perfect = dataclasses.replace(
        output,
        pose_enc_list=encodings,
        depth=targets.depth[..., None],
        world_points=targets.world_points,
    )
    found = losses(perfect, targets, LossWeights())
    for name in ("camera", "depth_error", "depth_gradient", "points_error", "points_gradient"):
        assert found[name] == 0, name


@pytest.mark.parametrize("mask", ["none", "first scene only"])
def test_empty_masks_give_zero_and_finite_gradients(case, mask):
    output, targets = case
    valid = np.zeros((B, S, H, W), bool)
    valid[0] = mask != "none"
    depth = np.array(output.depth)
    depth[1, 0, 0, 0] = np.inf  # where nothing is valid it must not matter
    output = dataclasses.replace(output, depth=depth)
    targets = dataclasses.replace(targets, valid=valid, has_points=valid.any((1, 2, 3)))
    total = lambda output: losses(output, targets, LossWeights(pairs=1.0))["total"]
    value, gradient = jax.value_and_grad(total)(jax.tree.map(jnp.asarray, output))
    assert (value == 0) == (mask == "none") and np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_no_gradient_at_no_error_is_nan():
    gradient = jax.grad(
        lambda x: map_losses(x, jnp.ones((1, 1, 2, 2)), x * 0, jnp.ones((1, 1, 2, 2), bool), 0.2)[
            "error"
        ]
    )(jnp.zeros((1, 1, 2, 2, 3)))
    assert (gradient == 0).all()


def test_gradient_loss_ignores_a_constant_offset():
    valid = jnp.ones((1, 2, 9, 11), bool)
    assert gradient_loss(jnp.full((1, 2, 9, 11, 1), 3.0), valid) == 0
