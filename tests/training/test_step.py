import dataclasses
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.loading import named_parameters
from vggt_jax.training.initialization import initial_model
from vggt_jax.training.losses import LossWeights, losses
from vggt_jax.training.normalization import normalize_scenes
from vggt_jax.training.predict import Execution, predict
from vggt_jax.training.state import initial_state, with_named
from vggt_jax.training.step import AXIS, make_steps, update
from vggt_jax.training.variants import Variant

pytestmark = pytest.mark.slow

SIZE = (28, 42)


@pytest.fixture(scope="module")
def model(config):
    return jax.jit(lambda: initial_model(config, jax.random.key(0)))()


@pytest.fixture(scope="module")
def scenes(render):
    return vars(render(jax.random.split(jax.random.key(3), 2), 3, SIZE))


def loss_of(params, model, scenes, execution):
    truth = types.SimpleNamespace(**scenes)
    output = predict(with_named(model, params), truth.images, execution)
    return losses(output, normalize_scenes(truth), LossWeights())["total"]


@pytest.fixture(scope="module")
def whole_model(config):
    config = dataclasses.replace(config, enable_point=True)
    return jax.jit(lambda: initial_model(config, jax.random.key(0)))()


@pytest.fixture(scope="module")
def gradients(whole_model, scenes):
    def of(**execution):
        fn = jax.jit(jax.value_and_grad(loss_of), static_argnums=3)
        return fn(named_parameters(whole_model), whole_model, scenes, Execution(**execution))

    return of


def test_predict_is_the_models_own_call(whole_model, scenes):
    images = scenes["images"]
    found = jax.jit(predict)(whole_model, images)
    expected = jax.jit(lambda model, images: model(images))(whole_model, images)
    for name in ("pose_enc_list", "depth", "depth_conf", "world_points", "world_points_conf"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)


def test_dense_frames_are_decoded_alone(whole_model, scenes):
    frames = jnp.array([0, 2])
    expected = jax.jit(predict)(whole_model, scenes["images"])
    found = jax.jit(predict)(whole_model, scenes["images"], dense_frames=frames)
    np.testing.assert_allclose(found.pose_enc_list, expected.pose_enc_list, atol=1e-6)
    for name in ("depth", "depth_conf", "world_points", "world_points_conf"):
        expected_part = getattr(expected, name)[:, frames]
        np.testing.assert_allclose(getattr(found, name), expected_part, atol=1e-5)

    targets = normalize_scenes(types.SimpleNamespace(**scenes))
    part = targets.with_maps_of(frames)
    np.testing.assert_array_equal(part.pose_enc, targets.pose_enc)
    np.testing.assert_array_equal(part.world_points, targets.world_points[:, frames])
    np.testing.assert_array_equal(part.valid, targets.valid[:, frames])


def test_every_parameter_learns_and_recomputing_changes_nothing(gradients):
    value, found = gradients(compute_type="float32")
    assert np.isfinite(value)
    for name, gradient in found.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name
    again_value, again = gradients(compute_type="float32", recompute=("encoder", "trunk", "heads"))
    assert again_value == pytest.approx(float(value), rel=1e-6)
    scale = max(np.abs(x).max() for x in found.values())
    for name, gradient in found.items():
        np.testing.assert_allclose(again[name], gradient, atol=1e-5 * scale, err_msg=name)


def test_update_skips_what_is_not_finite(model, make_recipe):
    recipe = make_recipe(model)
    state = jax.jit(lambda model: initial_state(model, recipe.optimizer))(model)
    ones = jax.tree.map(jnp.ones_like, state.params)
    step = jax.jit(lambda *args: update(recipe, *args, 10))
    fine, metrics = step(state, ones, {"total": jnp.ones(())})
    assert metrics["skipped"] == 0 and fine.skipped == 0 and fine.step == 1
    kernel = "encoder.norm.scale"
    # The first step of Adam is one learning rate long.
    rate = float(metrics["learning_rate"])
    moved = np.asarray(state.params[kernel] - fine.params[kernel])
    np.testing.assert_allclose(moved, rate, rtol=1e-3)
    broken = ones | {kernel: ones[kernel].at[0].set(jnp.nan)}
    for gradients, total in ((broken, 1.0), (ones, jnp.inf)):
        after, metrics = step(state, gradients, {"total": jnp.asarray(total)})
        assert metrics["skipped"] == 1 and after.skipped == 1 and after.step == 1
        for name in ("params", "ema", "moments"):
            same = jax.tree.map(
                lambda a, b: (a == b).all(), getattr(after, name), getattr(state, name)
            )
            assert all(jax.tree.leaves(same))


def test_frozen_parameters_stay(model, make_recipe):
    recipe = dataclasses.replace(make_recipe(model), frozen=("encoder.",))
    state = jax.jit(lambda model: initial_state(model, recipe.optimizer))(model)
    ones = jax.tree.map(jnp.ones_like, state.params)
    step = jax.jit(lambda *args: update(recipe, *args, 10))
    after, _ = step(state, ones, {"total": jnp.ones(())})
    for name, x in after.params.items():
        assert (x == state.params[name]).all() == name.startswith("encoder."), name


def test_one_batch_is_learnt(model, make_recipe, render):
    always = lambda keys, frames, size: render(
        jax.random.split(jax.random.key(3), keys.shape[0]), frames, size
    )
    recipe = make_recipe(model, always)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (AXIS,))
    steps = make_steps(recipe, Variant.parse("2x2@28x28"), num_steps=40, mesh=mesh)
    state = jax.jit(lambda model: initial_state(model, recipe.optimizer))(model)
    state, found = steps(state, jax.random.key(0), jnp.asarray(40))
    assert state.step == 40 and found["skipped"].sum() == 0
    first, last = (
        {name: float(np.mean(x[part])) for name, x in found.items()}
        for part in (slice(0, 2), slice(-2, None))
    )
    assert last["total"] < 0.6 * first["total"]
    for name in ("camera", "depth_error"):
        assert last[name] < first[name], name


TWO_DEVICES = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import jax, numpy as np, jax.numpy as jnp
from jax.sharding import Mesh
from conftest import CONFIG, plane_scenes
from vggt_jax.training.initialization import initial_model
from vggt_jax.training.losses import LossWeights
from vggt_jax.training.optimizer import OptimizerSettings, make_optimizer
from vggt_jax.training.predict import Execution
from vggt_jax.training.state import initial_state
from vggt_jax.training.step import AXIS, Recipe, make_steps
from vggt_jax.training.variants import Variant

assert jax.device_count() == 2
model = jax.jit(lambda: initial_model(CONFIG, jax.random.key(0)))()
settings = OptimizerSettings(warmup_steps=0)
recipe = Recipe(
    model=model, render=plane_scenes, optimizer=make_optimizer(settings), settings=settings,
    weights=LossWeights(), execution=Execution(),
)
results = []
for devices in (1, 2):
    mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
    steps = make_steps(recipe, Variant.parse("4x2@28x28"), num_steps=1, mesh=mesh)
    state, found = steps(
        initial_state(model, recipe.optimizer), jax.random.key(1), jnp.asarray(10)
    )
    results.append(jax.device_get(found))
for name, one in results[0].items():
    np.testing.assert_allclose(results[1][name], one, rtol=1e-4, err_msg=name)
print("same", float(results[0]["total"][0]))
"""


def test_two_devices_find_what_one_finds(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    folder = Path(__file__).parent
    code = TWO_DEVICES.format(tests=str(folder), root=str(folder.parents[1]))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("same")
