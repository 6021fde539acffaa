"""Rotary embedding against its formula in complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.norm_rope import apply_rope
from vggt_jax.layers.rope import rope_tables

# Row by row: the origin, one axis each, a far corner (37 x 37 patches and the official shift by 1).
POSITIONS = np.asarray([[0, 0], [1, 0], [0, 1], [3, 5], [37, 37]])


def oracle(x, positions, base=100.0):
    """Turns the pairs (j, j + h / 4) of the y half and of the x half of a head `[p n h]`."""
    quarter = x.shape[-1] // 4
    result = np.array(x, np.float64)
    for p, j in np.ndindex(len(positions), quarter):
        for axis in range(2):
            first, second = 2 * axis * quarter + j, (2 * axis + 1) * quarter + j
            turned = (x[p, :, first] + 1j * x[p, :, second]) * np.exp(
                1j * positions[p][axis] * base ** (-j / quarter)
            )
            result[p, :, first], result[p, :, second] = turned.real, turned.imag
    return result


_turn = jax.jit(apply_rope)


def turn(x, positions):
    cos, sin = rope_tables(positions, x.shape[-1])
    return np.asarray(_turn(x, cos, sin))


@pytest.mark.parametrize("head_dim", [4, 20])
def test_equals_the_complex_formula(head_dim):
    x = np.random.default_rng(0).normal(size=(len(POSITIONS), 3, head_dim)).astype(np.float32)
    # Angles up to 37, rounded to float32, are off by up to 2e-6.
    np.testing.assert_allclose(turn(x, POSITIONS), oracle(x, POSITIONS), rtol=0, atol=1e-5)


def test_position_zero_is_the_identity():
    x = np.random.default_rng(1).normal(size=(len(POSITIONS), 3, 20)).astype(np.float32)
    np.testing.assert_array_equal(turn(x, 0 * POSITIONS), x)


def test_only_differences_of_positions_matter_to_scores():
    q, k = np.random.default_rng(2).normal(size=(2, 1, 1, 32)).astype(np.float32)
    score = lambda y, x: np.sum(turn(q, np.asarray([[y, x]])) * turn(k, np.asarray([[2, 9]])))
    moved = np.sum(turn(q, np.asarray([[13, 17]])) * turn(k, np.asarray([[10, 20]])))
    np.testing.assert_allclose(score(5, 6), moved, rtol=1e-4)
    assert abs(score(6, 5) - moved) > 1e-2  # y and x are not the same


def test_leading_axes_share_the_tables():
    x = np.random.default_rng(3).normal(size=(2, 3, len(POSITIONS), 1, 8)).astype(np.float32)
    found = turn(x, POSITIONS)
    np.testing.assert_array_equal(found[1, 2], turn(x[1, 2], POSITIONS))


def test_the_result_is_float32():
    cos, sin = map(jnp.asarray, rope_tables(POSITIONS, 8))
    assert cos.dtype == sin.dtype == jnp.float32
    x = jax.ShapeDtypeStruct((len(POSITIONS), 1, 8), jnp.bfloat16)
    assert jax.eval_shape(apply_rope, x, cos, sin).dtype == jnp.float32
