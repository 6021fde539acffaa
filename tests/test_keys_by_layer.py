"""Keys by layer: the rule, the drift that it goes by, and the choice of layers as data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vggt_jax
from vggt_jax import AttentionPlan, Dense, InputError, Sampled
from vggt_jax.evaluation import Drift, drift_between, pair_errors
from vggt_jax.pipeline import calibrate as module
from vggt_jax.pipeline.calibration_report import CalibrationReport
from vggt_jax.pipeline.key_budgets import key_budgets
from vggt_jax.trunk.attention.choice import LayerChoice


def drift(camera=None, depth=None):
    array = lambda x, other: np.full(np.shape(other), np.nan) if x is None else np.array(x, float)
    camera, depth = array(camera, depth), array(depth, camera)
    return Drift(rotation=camera, translation=camera, camera=camera, depth=depth)


def test_keys_go_with_the_root_of_the_drift():
    cameras = key_budgets(drift([4.0, 1.0, 16.0]), 6400, most=10**6, floor=0)
    np.testing.assert_allclose(cameras, np.array([2, 1, 4]) * 3 * 6400 / 7, atol=64)
    assert sum(cameras) == 3 * 6400
    # Depth counts for a quarter, in shares of its sum: 3/4 [.8, .2, 0] + 1/4 [0, 0, 1].
    both = key_budgets(drift([8.0, 2.0, 0.0], [0.0, 0.0, 1e-3]), 64_000, most=10**6)
    roots = np.sqrt([0.6, 0.15, 0.25])
    np.testing.assert_allclose(both, roots / roots.sum() * 3 * 64_000, atol=64)
    assert key_budgets(drift(depth=[4.0, 1.0, 16.0]), 6400, most=10**6, floor=0) == cameras


@pytest.mark.parametrize(
    ("camera", "num_keys", "most"),
    [
        ([1.0, 0.0, 0.0, 0.0], 512, 10**6),
        ([1.0, 0.0, 0.0, 0.0], 512, 1000),
        ([0.0, 0.0, 0.0], 640, 1000),
        ([1e-9, 30.0], 64, 100),
        (np.random.default_rng(0).exponential(size=24), 4096, 10**6),
        (np.random.default_rng(1).exponential(size=24) ** 8, 4096, 4097),
    ],
)
def test_what_budgets_keep_to(camera, num_keys, most):
    """Whole steps, the mean as asked for, a floor and a ceiling; more drift is no fewer keys."""
    keys = np.array(key_budgets(drift(camera), num_keys, most=most))
    assert np.all(keys % 64 == 0)
    assert keys.mean() == num_keys
    assert keys.min() >= max(64, 64 * (num_keys // 8 // 64))
    assert keys.max() < most + 64
    assert np.all(np.diff(keys[np.lexsort((keys, camera))]) >= 0)


def test_what_is_beyond_all_patches_goes_to_the_others():
    keys = key_budgets(drift([10_000.0, 1.0, 4.0]), 1280, most=1920)
    assert keys == (1920, 640, 1280)
    # 1,000 patches are 16 steps, lest a layer that is to see all of them lacks some.
    assert key_budgets(drift([1.0, 0.0, 0.0, 0.0]), 512, most=1000)[0] == 1024


def test_the_same_proportions_of_more_keys():
    layers = (Sampled(num_keys=100), Dense(), Sampled(num_keys=300), Sampled(num_keys=20))
    plan = AttentionPlan(layers=layers, min_tokens=7)
    more = plan.with_mean_keys(1400)
    keys = [getattr(layer, "num_keys", None) for layer in more.layers]
    assert keys == [1024, None, 3008, 192] and more.min_tokens == 7
    fewest = plan.with_mean_keys(64).layers
    assert [getattr(layer, "num_keys", None) for layer in fewest] == [64, None, 128, 64]
    dense = AttentionPlan(layers=(Dense(), Dense()))
    assert dense.with_mean_keys(64) == dense


def test_drift_of_cameras_and_depth():
    """Angles by hand: the second camera of three is turned, and the third moved, in one of them."""
    turn = np.deg2rad(3.0)
    rotation = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    # The second camera is at the origin of the world: turning it moves no position.
    dense = np.concatenate(
        [np.stack([np.eye(3)] * 3), [[[1.0], [0], [0]], [[0.0], [0], [0]], [[0.0], [0], [1]]]],
        axis=-1,
    ).astype(np.float32)
    found = dense.copy()
    found[1, :, :3] = rotation
    depth = np.full((3, 2, 2), 4.0, np.float32)
    moved = depth * np.array([1.0, 1.1, 3.5])[:, None, None].astype(np.float32)
    moved[0, 0, 0] = np.nan
    result = drift_between({"cameras": found, "depth": moved}, {"cameras": dense, "depth": depth})
    # Of the pairs 01, 02 and 12 the camera is in two. As the first of 12 it turns the direction, too.
    np.testing.assert_allclose(result.rotation, (3 + 0 + 3) / 3, rtol=1e-4)
    np.testing.assert_allclose(result.camera, (3 + 0 + 3) / 3, rtol=1e-4)
    # No pixel counts for more than its depth: 0.1 in four, 1 in four and where there is no number.
    np.testing.assert_allclose(result.depth, (0.4 + 4 + 1) / 12, rtol=1e-5)
    points = np.random.default_rng(0).normal(size=(3, 2, 2, 3)).astype(np.float32)
    size = np.linalg.norm(points - points.mean((0, 1, 2)), axis=-1).mean()
    result = drift_between({"points": points + [0.1, 0, 0]}, {"points": points})
    np.testing.assert_allclose(result.depth, 0.1 / size, rtol=1e-4)
    assert np.isnan(result.camera) and np.isnan(result.rotation)


def test_no_pair_counts_for_more_than_30_degrees():
    dense = np.concatenate([np.stack([np.eye(3)] * 3), np.eye(3)[..., None]], -1)
    found = dense.copy()
    found[0, :, 3] = np.inf
    result = drift_between({"cameras": found}, {"cameras": dense})
    np.testing.assert_allclose(result.camera, 30 * 2 / 3, rtol=1e-6)


def test_better_is_what_drifts_less():
    alike = drift(2.0, 0.04)
    assert drift(1.0, 0.04).relative_to(alike) == pytest.approx(0.75 * 0.5 + 0.25)
    assert drift(depth=0.02).relative_to(drift(depth=0.04)) == pytest.approx(0.5)
    # Depth counts less.
    assert drift(1.0, 0.08).relative_to(alike) < 1 < drift(4.0, 0.02).relative_to(alike)
    report = CalibrationReport(
        num_keys=128,
        num_frames=(9,),
        num_patches=(2000,),
        size=((28, 42),),
        layers=drift([2.0, 1.0]),
        keys=(192, 64),
        by_layer=drift(1.0),
        alike=drift(2.0),
    )
    assert report.is_better_by_layer and report.to_dict()["chosen"] == "by_layer"
    worse = dataclasses.replace(report, by_layer=report.alike, alike=report.by_layer)
    assert not worse.is_better_by_layer and worse.to_dict()["chosen"] == "alike"
    assert "chosen: all alike" in str(worse) and "192       2.000           -" in str(worse)
    assert drift(1.0).to_dict() == {"rotation": 1.0, "translation": 1.0, "camera": 1.0}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 70, 56, 3), np.uint8)  # 100 patches


@pytest.mark.slow
def test_layers_by_turns_are_one_program_and_what_plans_do(tiny):
    """Drifts are those of plans in which one layer is sampled; scenes of a shape share programs."""
    # 132 patches, and one frame more as padding.
    images = np.random.default_rng(0).integers(0, 256, (33, 28, 28, 3), np.uint8)
    model = tiny(depth=3, enable_depth=False, enable_point=False, enable_track=False)
    before = module._predict._cache_size()
    plan, report = vggt_jax.calibrate(
        [images, images[::-1]],
        num_keys=64,
        min_tokens=0,
        seed=3,
        model=model,
        compute_dtype=jnp.float32,
    )
    sampled = Sampled(num_keys=64, seed=3, min_tokens=0)
    assert report.keys == (64, 64, 64)
    assert plan == AttentionPlan(layers=(sampled,) * 3, min_tokens=0)
    assert module._predict._cache_size() == before + 1

    @jax.jit
    def expected(model, images):
        run = lambda attention: (
            vggt_jax.reconstruct(
                model, images, attention=attention, compute_dtype=jnp.float32
            ).camera_from_world
        )
        one = AttentionPlan(layers=(Dense(), sampled, Dense()), min_tokens=0)
        return [pair_errors(run(x), run(Dense())) for x in (one, sampled)]

    errors = [expected(model, x) for x in (images, images[::-1])]
    for found, of_scenes in (
        (jax.tree.map(lambda x: x[1], report.layers), [x[0] for x in errors]),
        (report.alike, [x[1] for x in errors]),
    ):
        mean = lambda name: np.mean([np.minimum(getattr(x, name), 30).mean() for x in of_scenes])
        np.testing.assert_allclose(found.rotation, mean("rotation"), rtol=1e-3)
        np.testing.assert_allclose(found.translation, mean("translation"), rtol=1e-3)
    assert report.layers.rotation[1] > 1e-3
    assert np.isnan(report.layers.depth).all() and "all alike" in str(report)
    assert report.by_layer is report.alike and not report.is_better_by_layer
    # The camera is read from special tokens of the last layer, which see everything.
    assert report.layers.camera[2] < 1e-3 * report.layers.camera[0]


def test_a_choice_of_layers():
    values = (Dense(), Sampled(num_keys=10, min_tokens=0))
    choice = LayerChoice(values=values, of_layer=jnp.array([1, 0, 1]))
    found, of_layer = choice.branches(3, num_tokens=30, num_patches=20)
    assert tuple(found) == values
    np.testing.assert_array_equal(of_layer, [1, 0, 1])
    assert choice.branches(3, num_tokens=12, num_patches=9)[0] == [Dense()] * 2
    with pytest.raises(ValueError, match="for 3 layers, but there are 4"):
        choice.branches(4, num_tokens=30, num_patches=20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"scenes": np.zeros((2, 28, 28, 3), np.uint8)},
            "scene 0: 2 frames of 28x28, but to calibrate takes three",
        ),
        ({"num_keys": 128}, "5 frames of 56x70 have 100 patches, no more than num_keys=128"),
        ({"min_tokens": 1000}, "tokens, fewer than min_tokens=1000, so that attention would be"),
        ({"num_keys": 100}, "num_keys=100 must be a multiple of 64"),
        ({"num_keys": 0}, "num_keys=0 must be a multiple of 64"),
        ({"num_keys": 2**16 + 64}, r"num_keys=65600 must be in \[1, 65536\]"),
        ({"min_tokens": -1}, "min_tokens=-1 must be at least 0"),
        ({"scenes": []}, "scenes must be a list"),
        ({"scenes": 7}, "scenes must be a list"),
        ({"reference": 7}, "frame 7 does not exist"),
    ],
)
def test_what_cannot_be_calibrated(tiny, images, change, message):
    options = {"scenes": [images], "num_keys": 64, "min_tokens": 0} | change
    with pytest.raises(InputError, match=message):
        vggt_jax.calibrate(model=tiny(), **options)
