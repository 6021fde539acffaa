"""Reading feature maps around points, against brute force in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.models.vggt.heads.correlation import (
    build_pyramid,
    grid_position,
    lerp,
    sample_correlation,
    sample_features,
)

# On whole and broken positions, on borders, just outside and far outside of 9 x 6 pixels.
X = [3, 0, 8, 4.3, 7.99, -0.4, 8.6, -3.7, 50]
Y = [2, 0, 5, 1.8, 4.01, 2.5, 5.5, 9.2, -40]
POINTS = np.stack([X, Y], axis=-1).astype(np.float32)
WIDTH, HEIGHT, CHANNELS = 9, 6, 4


pyramid_of = jax.jit(build_pyramid, static_argnums=1)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bilinear(image, x, y, *, padding):
    """One sample of `image [h w ...]` at (x, y), outside either zero or the border's value."""
    height, width = image.shape[:2]
    if padding == "border":
        x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    result = 0.0
    for xi, yi in ((x0, y0), (x0 + 1, y0), (x0, y0 + 1), (x0 + 1, y0 + 1)):
        if 0 <= xi < width and 0 <= yi < height:
            result = result + (1 - abs(x - xi)) * (1 - abs(y - yi)) * image[yi, xi].astype(float)
    return result


def position_after_grid_sample(position, size):
    """To [-1, 1] and back. An axis of one pixel maps everything to that pixel."""
    return ((position * 2 / max(size - 1, 1) - 1) + 1) / 2 * (size - 1)


def test_the_pyramid_averages_and_drops_odd_ends():
    features = draw(2, 3, 11, 6, 4)
    pyramid = pyramid_of(features, 3)
    assert [level.shape[2:4] for level in pyramid] == [(11, 6), (5, 3), (2, 1)]
    np.testing.assert_array_equal(pyramid[0], features)
    below = features.astype(np.float64)
    for level in pyramid[1:]:
        expected = np.empty(level.shape)
        for i, j in np.ndindex(*level.shape[2:4]):
            tile = below[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            expected[:, :, i, j] = tile.mean(axis=(2, 3))
        np.testing.assert_allclose(level, expected, rtol=1e-5, atol=1e-6)
        below = expected


@pytest.mark.parametrize("size", [1, 2, 7, 56, 259])
def test_positions_take_the_roundings_of_grid_sample(size, optimized):
    # Bit by bit: the tracker would show the last one. Nothing may be fused or reordered.
    positions = np.random.default_rng(1).uniform(-3, size + 3, 5000).astype(np.float32)
    one, two = np.float32(1), np.float32(2)
    normalized = positions * np.float32(2 / max(size - 1, 1)) - one
    expected = (normalized + one) / two * np.float32(size - 1)
    assert expected.dtype == np.float32
    found = jax.jit(grid_position, static_argnums=1)(positions, size)
    np.testing.assert_array_equal(found, expected)
    # The product is used in a sum, as it is where features are sampled.
    found = jax.jit(lambda x: grid_position(x, size) - jnp.floor(x))(positions)
    np.testing.assert_array_equal(found, expected - np.floor(positions))


def test_features_are_sampled_bilinearly_and_from_the_border_outside():
    features = draw(HEIGHT, WIDTH, CHANNELS)
    found = jax.jit(sample_features)(features, POINTS)
    expected = [bilinear(features, x, y, padding="border") for x, y in POINTS]
    found = np.asarray(found)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[0], features[2, 3], atol=1e-5)  # x is the column
    np.testing.assert_allclose(found[8], features[0, 8], atol=1e-5)


@pytest.mark.parametrize("radius", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_correlations_equal_the_whole_volume_sampled(radius):
    features = draw(1, 1, HEIGHT, WIDTH, CHANNELS)
    targets = draw(len(POINTS), CHANNELS, seed=2)
    levels = [np.asarray(level[0, 0]) for level in pyramid_of(features, 3)]
    assert [level.shape[:2] for level in levels] == [(6, 9), (3, 4), (1, 2)]
    expected = []
    for point, target in zip(POINTS.astype(np.float64), targets, strict=True):
        for number, level in enumerate(levels):
            volume = level.astype(np.float64) @ target / np.sqrt(CHANNELS)  # [h w]
            x, y = point / 2**number
            for dx in range(-radius, radius + 1):  # x is the outer one
                for dy in range(-radius, radius + 1):
                    at_x = position_after_grid_sample(x + dx, level.shape[1])
                    at_y = position_after_grid_sample(y + dy, level.shape[0])
                    expected.append(bilinear(volume, at_x, at_y, padding="zeros"))
    expected = np.reshape(expected, (len(POINTS), -1))
    found = jax.jit(sample_correlation, static_argnames="radius")(
        tuple(levels), POINTS, targets, radius=radius
    )
    found = np.asarray(found)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    window = (2 * radius + 1) ** 2
    assert np.all(found[8, : 2 * window] == 0)  # far outside
    assert np.any(found[:8, 2 * window :] != 0)


def test_lerp_meets_both_ends():
    low, high = draw(5), draw(5, seed=1)
    between = jax.jit(lerp)
    np.testing.assert_array_equal(between(low, high, np.float32(0)), low)
    np.testing.assert_array_equal(between(low, high, np.float32(1)), high)
    quarter = 0.75 * low + 0.25 * high
    np.testing.assert_allclose(between(low, high, np.float32(0.25)), quarter, rtol=1e-6)
