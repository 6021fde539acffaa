"""One step: what it learns from, what it leaves alone, and that devices and memory change nothing."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.models.loading import named_parameters
from vggt_jax.models.vggt.model import VGGT
from vggt_jax.training.normalization import Targets
from vggt_jax.training.predict import predict
from vggt_jax.training.state import initial_state
from vggt_jax.training.step import AXIS, make_steps, update
from vggt_jax.training.variants import Variant

# The forward pass


def test_predict_is_the_models_own_call_of_all_or_some_frames(config, randomised):
    config = dataclasses.replace(config, enable_point=True)
    model = randomised(lambda rngs: VGGT(config, rngs=rngs))
    images = np.random.default_rng(0).random((2, 3, 28, 42, 3), np.float32)
    frames = np.array([0, 2])

    @jax.jit
    def run(model, images):  # one program, in which encoder and trunk are computed once
        return predict(model, images), predict(model, images, dense_frames=frames), model(images)

    found, of_some, expected = run(model, images)
    for name in ("pose_enc_list", "depth", "depth_conf", "world_points", "world_points_conf"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)
    np.testing.assert_allclose(of_some.pose_enc_list, found.pose_enc_list, atol=1e-6)
    for name in ("depth", "depth_conf", "world_points", "world_points_conf"):
        expected_part = getattr(found, name)[:, frames]
        # Fewer frames may be summed in another order: the last bits of a value of 14, too.
        np.testing.assert_allclose(getattr(of_some, name), expected_part, rtol=2e-6, atol=1e-5)


def test_targets_of_some_frames():
    rng = np.random.default_rng(0)
    targets = Targets(
        pose_enc=rng.normal(size=(2, 3, 9)),
        depth=rng.normal(size=(2, 3, 4, 5)),
        world_points=rng.normal(size=(2, 3, 4, 5, 3)),
        valid=rng.random((2, 3, 4, 5)) < 0.5,
        has_points=np.ones(2, bool),
        scale=np.ones(2),
    )
    frames = np.array([0, 2])
    part = targets.with_maps_of(frames)
    np.testing.assert_array_equal(part.pose_enc, targets.pose_enc)
    for name in ("depth", "world_points", "valid"):
        np.testing.assert_array_equal(getattr(part, name), getattr(targets, name)[:, frames])
    assert targets.with_maps_of(None) is targets


# The update, of parameters of each kind

PARAMS = {
    "encoder.norm.scale": np.full(5, 2.0, np.float32),
    "frame_blocks.attn.qkv.kernel": np.full((2, 3, 4), 3.0, np.float32),
    "camera_head.fc.bias": np.full(7, 0.5, np.float32),
}
ONES = {name: np.ones_like(x) for name, x in PARAMS.items()}


def start(recipe):
    """The first state and the step from there, as a function of gradients and loss."""
    state = jax.jit(lambda: initial_state(PARAMS, recipe.optimizer))()
    step = jax.jit(lambda gradients, total: update(recipe, state, gradients, {"total": total}, 10))
    return state, step


def test_update_skips_what_is_not_finite(make_recipe):
    state, step = start(make_recipe())
    fine, metrics = step(ONES, 1.0)
    assert metrics["skipped"] == 0 and fine.skipped == 0 and fine.step == 1
    assert metrics["gradient_norm"] == pytest.approx((5 + 24 + 7) ** 0.5)
    # The first step of Adam is one learning rate long; kernels decay by 0.05 of it, too.
    rate = float(metrics["learning_rate"])
    for name, x in PARAMS.items():
        moved = rate * (1 + 0.05 * x * name.endswith("kernel"))
        np.testing.assert_allclose(x - fine.params[name], moved, rtol=1e-3, err_msg=name)
        # The average starts with a tenth of the way.
        expected = x - 0.9 * (x - np.asarray(fine.params[name]))
        np.testing.assert_allclose(fine.ema[name], expected, rtol=1e-6, err_msg=name)
    broken = ONES | {"encoder.norm.scale": np.array([np.nan, 1, 1, 1, 1], np.float32)}
    for gradients, total in ((broken, 1.0), (ONES, np.inf)):
        after, metrics = step(gradients, total)
        assert metrics["skipped"] == 1 and after.skipped == 1 and after.step == 1
        for name in ("params", "ema", "moments"):
            jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))


def test_frozen_parameters_stay(make_recipe):
    _, step = start(make_recipe(frozen=("encoder.",)))
    after, _ = step(ONES, 1.0)
    for name, x in after.params.items():
        assert np.array_equal(x, PARAMS[name]) == name.startswith("encoder."), name


# All of it


@pytest.mark.slow
def test_one_batch_is_learnt(cameras_config, first_model, make_recipe, render):
    model = first_model(cameras_config)
    always = lambda keys, frames, size: render(
        jax.random.split(jax.random.key(3), keys.shape[0]), frames, size
    )
    recipe = make_recipe(model, always, frozen=("encoder.",))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (AXIS,))
    steps = make_steps(recipe, Variant.parse("2x2@28x28"), num_steps=2, mesh=mesh)
    state = jax.jit(lambda model: initial_state(model, recipe.optimizer))(model)
    total = []
    for _ in range(20):
        state, found = steps(state, jax.random.key(0), jnp.asarray(40))
        total.append(found["total"].mean())
        assert not found["skipped"].any()
    assert state.step == 40
    assert total[-1] < 0.6 * total[0]
    for name, x in named_parameters(model).items():
        same = np.array_equal(x, state.params[name])
        assert same == name.startswith("encoder."), name


# Only cameras, from a frozen encoder: what is tested are the devices, and less is compiled.
TWO_DEVICES = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import jax, numpy as np, jax.numpy as jnp
from jax.sharding import Mesh
from conftest import CAMERAS, plane_scenes
from vggt_jax.training.initialization import initial_model
from vggt_jax.training.losses import LossWeights
from vggt_jax.training.optimizer import OptimizerSettings, make_optimizer
from vggt_jax.training.predict import Execution
from vggt_jax.training.state import initial_state
from vggt_jax.training.step import AXIS, Recipe, make_steps
from vggt_jax.training.variants import Variant

assert jax.device_count() == 2
shapes = jax.eval_shape(lambda: initial_model(CAMERAS, jax.random.key(0)))
rng = np.random.default_rng(0)
draw = lambda x: (0.1 * rng.normal(size=x.shape)).astype(x.dtype)
model = jax.tree.map(draw, shapes)  # without a program that draws
settings = OptimizerSettings(warmup_steps=0)
recipe = Recipe(
    model=model, render=plane_scenes, optimizer=make_optimizer(settings), settings=settings,
    weights=LossWeights(), execution=Execution(), frozen=("encoder.",),
)
start = jax.jit(lambda model: initial_state(model, recipe.optimizer))
results = []
for devices in (1, 2):
    mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
    steps = make_steps(recipe, Variant.parse("4x2@28x28"), num_steps=1, mesh=mesh)
    state, found = steps(start(model), jax.random.key(1), jnp.asarray(10))
    results.append(jax.device_get(found))
for name, one in results[0].items():
    np.testing.assert_allclose(results[1][name], one, rtol=1e-4, err_msg=name)
print("same", float(results[0]["total"][0]))
"""


@pytest.mark.slow
def test_two_devices_find_what_one_finds(monkeypatch):
    two = "--xla_force_host_platform_device_count=2"
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {two}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    folder = Path(__file__).parent
    code = TWO_DEVICES.format(tests=str(folder), root=str(folder.parents[1]))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("same")
