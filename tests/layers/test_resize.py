"""Bilinear resampling with coinciding corners, against values by hand and explicit loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.layers.resize import resize_bilinear

_resize = jax.jit(resize_bilinear, static_argnums=(1, 2))


def resize(image, height, width):
    """Of one image [h w] or [h w c]."""
    image = np.asarray(image, np.float32)
    flat = image[None, ..., None] if image.ndim == 2 else image[None]
    found = np.asarray(_resize(flat, height, width))[0]
    return found[..., 0] if image.ndim == 2 else found


def oracle(image, height, width):
    """One pixel at a time, in float64."""
    old = image.shape[:2]
    result = np.empty((height, width, *image.shape[2:]))
    for i, j in np.ndindex(height, width):
        y = i * (old[0] - 1) / (height - 1) if height > 1 else 0.0
        x = j * (old[1] - 1) / (width - 1) if width > 1 else 0.0
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, old[0] - 1), min(x0 + 1, old[1] - 1)
        top = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
        bottom = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
        result[i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return result


def test_values_by_hand():
    np.testing.assert_allclose(
        resize([[0, 3], [6, 12]], 3, 4), [[0, 1, 2, 3], [3, 4.5, 6, 7.5], [6, 8, 10, 12]], rtol=1e-6
    )


def test_five_to_three_takes_every_second():
    image = np.random.default_rng(0).normal(size=(5, 5))
    np.testing.assert_array_equal(resize(image, 3, 3), image[::2, ::2].astype(np.float32))


# Smaller and larger by each axis, and from and to one pixel.
@pytest.mark.parametrize(
    ("old", "size"),
    [
        ((5, 4), (7, 3)),
        ((5, 4), (4, 13)),
        ((2, 3), (1, 6)),
        ((1, 4), (5, 4)),
        ((3, 1), (11, 1)),
        ((3, 1), (2, 2)),
        ((2, 3), (1, 1)),
    ],
)
def test_equals_explicit_loops(old, size):
    image = np.random.default_rng(1).normal(size=(*old, 2))
    # A position of up to 13, rounded to float32, moves the result by 1e-6 of a difference.
    np.testing.assert_allclose(resize(image, *size), oracle(image, *size), rtol=0, atol=5e-6)


def test_corners_keep_their_values():
    image = np.random.default_rng(2).normal(size=(6, 9)).astype(np.float32)
    found = resize(image, 17, 5)
    corners = np.ix_([0, -1], [0, -1])
    np.testing.assert_allclose(found[corners], image[corners], rtol=1e-5)


def test_ramps_stay_ramps():
    ramp = np.linspace(-2, 5, 8)[None, :] + np.linspace(0, 3, 6)[:, None]
    found = resize(ramp, 13, 29)
    expected = np.linspace(-2, 5, 29)[None, :] + np.linspace(0, 3, 13)[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.all(np.diff(found, axis=0) > 0) and np.all(np.diff(found, axis=1) > 0)


def test_the_same_size_is_the_same_image():
    image = np.random.default_rng(3).normal(size=(3, 7)).astype(np.float32)
    np.testing.assert_array_equal(resize(image, 3, 7), image)


@pytest.mark.parametrize(("old", "new"), [((3, 5), (7, 9)), ((4, 4), (4, 13)), ((1, 2), (3, 4))])
def test_corners_of_images_coincide_where_those_of_pixels_do_not(old, new):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, *old, 3)), jnp.float32)
    # Enlarging, JAX's own does that: weights of pixels beyond the border go to those at it.
    expected = jax.image.resize(x, (2, *new, 3), "bilinear", precision="highest")
    found = resize_bilinear(x, *new, align_corners=False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
