"""The camera head: which frames it joins, and what its encodings obey."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vggt_jax.layers.precision import Precision
from vggt_jax.models.vggt.heads.camera import CameraHead

FLOAT32 = Precision.from_compute_dtype(jnp.float32)
DIM = 16

run = jax.jit(lambda head, tokens, num_frames=None: head(tokens, FLOAT32, num_frames))


@pytest.fixture(scope="module")
def head(randomised):
    return randomised(
        lambda rngs: CameraHead(
            DIM, depth=2, num_heads=4, mlp_ratio=2.0, num_iterations=3, rngs=rngs
        )
    )


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_every_iteration_is_returned(head):
    found = np.asarray(run(head, draw(3, 5, DIM)))
    assert found.shape == (3, 3, 5, 9)
    assert np.all(np.any(found[1:] != found[:-1], axis=-1))


def test_an_iteration_modulates_the_normalised_tokens(randomised):
    head = randomised(
        lambda rngs: CameraHead(
            DIM, depth=1, num_heads=4, mlp_ratio=2.0, num_iterations=1, rngs=rngs
        )
    )
    # A block that adds nothing. Tokens of size 1e-3, whose variance meets the eps of 1e-6.
    small = lambda x, factor: nnx.Param(jnp.asarray(np.float32(factor) * np.asarray(x[...])))
    head.trunk.ls1 = head.trunk.ls2 = small(head.trunk.ls1, 0)
    head.token_norm.scale, head.token_norm.bias = (
        small(x, 1e-3) for x in (head.token_norm.scale, head.token_norm.bias)
    )
    tokens = draw(2, 3, DIM)
    linear = lambda layer, x: x @ np.float64(layer.kernel[...]) + np.float64(layer.bias[...])
    condition = linear(head.embed_pose, np.float64(head.empty_pose_tokens[...]))
    silu = condition / (1 + np.exp(-condition))
    shift, scale, gate = np.split(linear(head.modulation, silu), 3)
    x = np.asarray(jax.jit(lambda head, x: head.token_norm(x))(head, tokens), np.float64)
    normalised = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = gate * (normalised * (1 + scale) + shift) + x
    branch = jax.jit(lambda head, x: head.pose_branch(head.trunk_norm(x), FLOAT32))
    expected = np.array(branch(head, x.astype(np.float32)))
    expected[..., 7:] = np.maximum(expected[..., 7:], 0)
    np.testing.assert_allclose(run(head, tokens)[0], expected, rtol=1e-4, atol=1e-4)


def test_fields_of_view_are_not_negative(head):
    found = np.asarray(run(head, draw(3, 5, DIM)))
    assert np.any(found[..., :7] < 0)
    assert np.all(found[..., 7:] >= 0)
    assert np.any(found[..., 7:] == 0) and np.any(found[..., 7:] > 0)


def test_a_frame_moves_all_frames_of_its_scene_and_no_other(head):
    tokens = draw(3, 5, DIM)
    changed = tokens.copy()
    changed[1, 3] += 0.5
    before, after = (np.asarray(run(head, x)) for x in (tokens, changed))
    moved = np.any(after != before, axis=(0, -1))
    np.testing.assert_array_equal(moved, [[False] * 5, [True] * 5, [False] * 5])


def test_padded_frames_change_no_valid_one(head):
    tokens, num_frames = draw(3, 5, DIM), np.array([3, 5, 1])
    garbage = tokens.copy()
    garbage[0, 3:] = 1e6 * draw(2, DIM, seed=1)
    found, expected = (np.asarray(run(head, x, num_frames)) for x in (garbage, tokens))
    np.testing.assert_array_equal(found[:, 0, :3], expected[:, 0, :3])
    np.testing.assert_array_equal(found[:, 1], expected[:, 1])
    assert np.all(np.isfinite(found))
    assert np.any(np.asarray(run(head, tokens))[:, 0, :3] != expected[:, 0, :3])
