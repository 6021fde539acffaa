import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.training.validation import absolute_relative_error, pose_auc


def encoding(position, degrees):
    """Camera at `position`, turned about z."""
    half = np.radians(degrees) / 2
    c, s = np.cos(2 * half), np.sin(2 * half)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return np.concatenate([-rotation @ position, [0, 0, np.sin(half), np.cos(half), 1, 1]])


def test_auc_by_hand():
    places = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.5]], float)
    true = np.stack([encoding(place, 0) for place in places])
    turned = np.stack([encoding(place, turn) for place, turn in zip(places, (0, 0, 9.5))])
    # Pairs (0, 1): no error. (0, 2) and (1, 2): turned by 9.5 degrees; the directions of their
    # translations turn with the camera, by less. Below 10, 11, ..., 30 degrees: 21 of 30.
    found = pose_auc(jnp.asarray(turned[None], jnp.float32), jnp.asarray(true[None], jnp.float32))
    assert found[0] == pytest.approx((1 + 2 * 21 / 30) / 3, abs=1e-6)


def test_auc_ignores_the_sign_and_length_of_translations():
    rng = np.random.default_rng(0)
    true = np.stack([encoding(rng.normal(size=3), 40 * i) for i in range(4)])
    other = true.copy()
    other[:, :3] *= -2.5
    found = pose_auc(*(jnp.asarray(x[None], jnp.float32) for x in (other, true)))
    assert found[0] == 1.0


def test_depth_error_after_the_median_scale():
    true = np.array([1.0, 2, 4, 8, 5]).reshape(1, 1, 1, 5)
    predicted = np.array([2.0, 4, 8, 8, 77]).reshape(1, 1, 1, 5)
    valid = np.array([1, 1, 1, 1, 0], bool).reshape(1, 1, 1, 5)
    # Ratios 1/2, 1/2, 1/2, 1: scale 1/2, so that only the fourth is off, by half.
    assert absolute_relative_error(predicted, true, valid)[0] == pytest.approx(0.125)
    assert absolute_relative_error(predicted, true, valid & False)[0] == 0
