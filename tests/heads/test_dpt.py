"""The dense head's parts: residual units, fusion, positions and activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vggt_jax.heads.dpt import FeatureFusion, ResidualConvUnit, activate, add_position
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.resize import resize_bilinear

FLOAT32 = Precision.from_compute_dtype(jnp.float32)


run = jax.jit(lambda module, x: module(x, FLOAT32))
with_position = jax.jit(add_position, static_argnums=1)
activation = jax.jit(activate, static_argnums=1)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_skip_of_a_residual_unit_carries_what_is_positive(randomised):
    unit = randomised(lambda rngs: ResidualConvUnit(3, rngs=rngs))
    unit.conv2.kernel = nnx.Param(jnp.asarray(np.zeros((3, 3, 3, 3), np.float32)))
    unit.conv2.bias = nnx.Param(jnp.asarray(np.zeros(3, np.float32)))
    x = draw(2, 4, 5, 3)
    assert np.any(x < 0)
    np.testing.assert_array_equal(run(unit, x), np.maximum(x, 0))


def test_a_residual_unit_is_two_convolutions_beside_the_skip(randomised):
    unit = randomised(lambda rngs: ResidualConvUnit(3, rngs=rngs))
    relu = jax.nn.relu

    def expected(x):
        return unit.conv2(relu(unit.conv1(relu(x), FLOAT32)), FLOAT32) + relu(x)

    x = draw(2, 4, 5, 3)
    np.testing.assert_allclose(run(unit, x), jax.jit(expected)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_residual", [True, False])
def test_fusion_adds_the_finer_map_and_enlarges_before_its_last_layer(has_residual, randomised):
    fusion = randomised(lambda rngs: FeatureFusion(3, has_residual=has_residual, rngs=rngs))
    x, finer = draw(2, 3, 4, 3), draw(2, 3, 4, 3, seed=1)

    def official_order(x, finer):
        if has_residual:
            x = x + fusion.res_conf_unit1(finer, FLOAT32)
        x = fusion.res_conf_unit2(x, FLOAT32)
        return fusion.out_conv(resize_bilinear(x, 7, 5), FLOAT32)

    finer = finer if has_residual else None
    found = jax.jit(lambda fusion, x, finer: fusion(x, finer, (7, 5), FLOAT32))(fusion, x, finer)
    expected = jax.jit(official_order)(x, finer)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(3, 5), (7, 1)])
def test_positions_are_those_of_a_picture_with_a_diagonal_of_two(height, width):
    aspect_ratio, channels = 1.75, 12
    zeros = np.zeros((1, height, width, channels), np.float32)
    found = np.asarray(with_position(zeros, aspect_ratio))[0]
    diagonal = np.hypot(aspect_ratio, 1)
    expected = np.empty((height, width, channels))
    for i, j in np.ndindex(height, width):
        # Pixel centres, of a picture that reaches from -span to span.
        x = aspect_ratio / diagonal * (2 * j + 1 - width) / width
        y = 1 / diagonal * (2 * i + 1 - height) / height
        parts = []
        for position in (x, y):
            angles = position / 100 ** (np.arange(3) / 3)
            parts += [*np.sin(angles), *np.cos(angles)]
        expected[i, j] = 0.1 * np.asarray(parts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def test_positions_are_added():
    x = draw(1, 3, 5, 12)
    found, table = (np.asarray(with_position(x, 1.75)) for x in (x, np.zeros_like(x)))
    np.testing.assert_allclose(found, x + table, rtol=1e-6, atol=1e-6)


def test_depth_is_exponential_and_its_confidence_above_one():
    raw = draw(2, 3, 4, 2)
    depth, confidence = activation(raw, "exp")
    np.testing.assert_allclose(depth, np.exp(raw[..., :1]), rtol=1e-6)
    np.testing.assert_allclose(confidence, 1 + np.exp(raw[..., 1]), rtol=1e-6)


def test_points_grow_exponentially_to_both_sides():
    raw = np.concatenate([3 * draw(2, 3, 4, 3), draw(2, 3, 4, 1, seed=1)], axis=-1)
    raw[0, 0, 0, :3] = 0, 1e-6, -1e-6
    points, confidence = activation(raw, "inv_log")
    expected = np.sign(raw[..., :3]) * np.expm1(np.abs(raw[..., :3].astype(np.float64)))
    np.testing.assert_allclose(points, expected, rtol=1e-5)
    np.testing.assert_allclose(confidence, 1 + np.exp(raw[..., 3]), rtol=1e-6)
