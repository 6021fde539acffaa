"""The transformer inside the tracker."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vggt_jax.layers.precision import Precision
from vggt_jax.models.vggt.heads.update_former import (
    CrossBlock,
    MultiHeadAttention,
    SelfBlock,
    UpdateFormer,
)

FLOAT32 = Precision.from_compute_dtype(jnp.float32)
DIM, HEADS = 12, 3


run = jax.jit(lambda module, *xs: module(*xs, FLOAT32))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_attention_with_a_joint_projection_equals_the_formula(randomised):
    layer = randomised(lambda rngs: MultiHeadAttention(DIM, HEADS, rngs=rngs))
    x, context = draw(2, 5, DIM), draw(2, 7, DIM, seed=1)
    kernel, bias = np.asarray(layer.in_proj.kernel[...]), np.asarray(layer.in_proj.bias[...])
    parts = [slice(i * DIM, (i + 1) * DIM) for i in range(3)]
    q, k, v = (
        (y.astype(np.float64) @ kernel[:, part] + bias[part]).reshape(2, -1, HEADS, DIM // HEADS)
        for y, part in zip((x, context, context), parts, strict=True)
    )
    scores = np.einsum("btnh,bknh->bntk", q, k) / np.sqrt(DIM / HEADS)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    attended = np.einsum("bntk,bknh->btnh", weights, v).reshape(2, 5, DIM)
    expected = attended @ np.asarray(layer.out_proj.kernel[...]) + np.asarray(
        layer.out_proj.bias[...]
    )
    found = run(layer, x, context)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def zero(parameter):
    return nnx.Param(jnp.asarray(np.zeros(parameter.shape, np.float32)))


@pytest.mark.parametrize("make", [SelfBlock, CrossBlock])
def test_the_residual_starts_from_the_normalised_input(make, randomised):
    block = randomised(lambda rngs: make(DIM, HEADS, rngs=rngs))
    attention = block.attn if make is SelfBlock else block.cross_attn
    for layer in (attention.out_proj, block.mlp.fc2):
        layer.kernel, layer.bias = zero(layer.kernel), zero(layer.bias)
    x = draw(2, 5, DIM)
    inputs = (x,) if make is SelfBlock else (x, draw(2, 4, DIM, seed=1))
    expected = jax.jit(lambda norm, x: norm(x))(block.norm1, x)
    np.testing.assert_allclose(run(block, *inputs), expected, rtol=1e-6, atol=1e-6)


def test_the_context_is_normalised_by_its_own_norm(randomised):
    block = randomised(lambda rngs: CrossBlock(DIM, HEADS, rngs=rngs))
    x, context = draw(2, 5, DIM), draw(2, 4, DIM, seed=1)
    # A norm removes what is added to all channels.
    shifted = run(block, x, context + 3)
    np.testing.assert_allclose(shifted, run(block, x, context), rtol=1e-4, atol=1e-5)
    block.norm_context.scale = nnx.Param(jnp.asarray(np.asarray(block.norm_context.scale[...]) + 1))
    assert not np.allclose(run(block, x, context), shifted, atol=1e-3)


def test_tracks_meet_only_through_virtual_tracks(randomised):
    former = randomised(
        lambda rngs: UpdateFormer(
            10, DIM, 6, depth=1, num_heads=HEADS, num_virtual_tracks=4, rngs=rngs
        )
    )
    tokens = draw(2, 3, 5, 10)
    changed = tokens.copy()
    changed[1, 2, 4] += draw(10, seed=1)

    def moved():  # [scene, track, frame]
        before, after = (np.asarray(run(former, x)) for x in (tokens, changed))
        return np.any(after != before, axis=-1)

    everything = np.zeros((2, 3, 5), bool)
    everything[1] = True
    np.testing.assert_array_equal(moved(), everything)
    # Tracks that read nothing from the virtual ones: each moves itself alone, along time.
    out_proj = former.space_point2virtual_blocks.cross_attn.out_proj
    out_proj.kernel = zero(out_proj.kernel)
    own_track = np.zeros((2, 3, 5), bool)
    own_track[1, 2] = True
    np.testing.assert_array_equal(moved(), own_track)
