"""A stand-in for the synthetic world that compiles at once, and models that learn from it."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import pytest

from vggt_jax import geometry
from vggt_jax.models.vggt.config import VGGTConfig
from vggt_jax.training.initialization import initial_model
from vggt_jax.training.losses import LossWeights
from vggt_jax.training.optimizer import OptimizerSettings, make_optimizer
from vggt_jax.training.predict import Execution
from vggt_jax.training.step import Recipe

CONFIG = VGGTConfig(
    img_size=28,
    embed_dim=64,
    num_heads=2,
    depth=2,
    vit_depth=1,
    vit_num_heads=2,
    mlp_ratio=1.5,
    num_register_tokens=2,
    camera_trunk_depth=1,
    camera_num_heads=2,
    camera_iters=2,
    dpt_features=8,
    dpt_out_channels=(4, 8, 8, 8),
    dpt_layers=(0, 0, 1, 1),
    enable_point=False,  # half the time to compile
    enable_track=False,
    pixel_centre=0.5,
)


# What learns in the quick tier: a gradient through the depth head compiles for as long again.
CAMERAS = dataclasses.replace(CONFIG, depth=1, dpt_layers=(0,) * 4, enable_depth=False)


def plane_scenes(keys, num_frames, size):
    """A patterned plane seen by cameras that look along z, turned about it by a little."""
    height, width = size

    def one(key):
        turn, place, distance = jax.random.split(key, 3)
        angle = 0.3 * jax.random.normal(turn, (num_frames,))
        zero, unit = jnp.zeros_like(angle), jnp.ones_like(angle)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        rows = [[cos, -sin, zero], [sin, cos, zero], [zero, zero, unit]]
        rotation = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
        translation = 0.5 * jax.random.normal(place, (num_frames, 3, 1))
        far = 2 + jax.random.uniform(distance)
        camera_from_world = jnp.concatenate([rotation, translation], axis=-1)
        focal = 0.9 * width
        intrinsics = jnp.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        intrinsics = jnp.broadcast_to(intrinsics, (num_frames, 3, 3))
        depth = far + jnp.broadcast_to(translation[:, 2:], (num_frames, height, width))
        valid = depth > 0.5
        points = geometry.unproject_depth(depth, camera_from_world, intrinsics, pixel_centre=0.5)
        images = 0.5 + 0.5 * jnp.sin(7 * points)
        return dict(
            images=images,
            depth=jnp.where(valid, depth, 0.0),
            valid=valid,
            camera_from_world=camera_from_world,
            intrinsics=intrinsics,
        )

    return types.SimpleNamespace(**jax.vmap(one)(keys))


@pytest.fixture(scope="session")
def config():
    return CONFIG


@pytest.fixture(scope="session")
def render():
    return plane_scenes


@pytest.fixture(scope="session")
def cameras_config():
    return CAMERAS


@pytest.fixture(scope="session")
def first_model():
    """What a run from scratch with this configuration starts from."""
    return functools.cache(
        lambda config: jax.jit(lambda: initial_model(config, jax.random.key(0)))()
    )


@pytest.fixture(scope="session")
def make_recipe():
    def make(model=None, render=plane_scenes, *, frozen=(), **changes):
        settings = OptimizerSettings(**{"warmup_steps": 3, "learning_rate": 3e-3, **changes})
        return Recipe(
            model=model and jax.eval_shape(lambda: model),
            render=render,
            optimizer=make_optimizer(settings),
            settings=settings,
            weights=LossWeights(),
            execution=Execution(),
            frozen=frozen,
        )

    return make
