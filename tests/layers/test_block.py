"""The transformer block and stacks of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vggt_jax.layers import block as block_module
from vggt_jax.layers.attention import Dense, Rope, dense_attention
from vggt_jax.layers.block import Block, stack_modules
from vggt_jax.layers.linear import Linear
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.rope import rope_tables
from vggt_jax.models.loading import named_parameters

FLOAT32 = Precision.from_compute_dtype(jnp.float32)
DIM, HEADS = 12, 3


def make_block(rngs, **options):
    return Block(DIM, HEADS, 2.5, norm_eps=1e-6, layer_scale=0.3, rngs=rngs, **options)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_branches_are_scaled_and_added_one_after_the_other(randomised):
    block = randomised(make_block)
    x, attended = draw(2, 5, DIM), draw(2, 5, HEADS, DIM // HEADS, seed=1)

    def expected(block, x, attended):
        x = x + block.ls1[...] * block.attn.proj(attended.reshape(2, 5, DIM), FLOAT32)
        return x + block.ls2[...] * block.mlp(block.norm2(x), FLOAT32)

    found = jax.jit(lambda block, *xs: block.after(*xs, FLOAT32))(block, x, attended)
    np.testing.assert_allclose(found, jax.jit(expected)(block, x, attended), rtol=1e-6, atol=1e-6)


def test_queries_keys_and_values_come_from_the_normalised_stream(randomised):
    block = randomised(make_block)
    x = draw(2, 5, DIM)
    found = jax.jit(lambda block, x: block.before(x, None, FLOAT32))(block, x)
    expected = jax.jit(lambda block, x: block.attn.project(block.norm1(x), None, FLOAT32))(block, x)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("has_rope", "dtype"),
    [
        (True, jnp.bfloat16),
        pytest.param(False, jnp.float32, marks=pytest.mark.slow),
        pytest.param(True, jnp.float32, marks=pytest.mark.slow),
    ],
)
def test_padding_for_a_kernel_is_not_seen(randomised, relative_error, monkeypatch, has_rope, dtype):
    make = lambda rngs: make_block(rngs, qk_norm=has_rope)
    module = randomised(lambda rngs: stack_modules(make, 2, rngs))
    x = draw(2, 3, 5, DIM)
    positions = np.stack([np.arange(5), 2 * np.arange(5)], axis=-1)
    rope = Rope(*map(jnp.asarray, rope_tables(positions, DIM // HEADS))) if has_rope else None
    precision = Precision.from_compute_dtype(dtype)
    run = lambda: jax.jit(lambda x: module.stack_within_frames(x, rope, Dense(), precision))(x)
    expected = run()
    lengths = []

    def attend(q, k, v, *, kv_lengths, **options):
        lengths.append((q.shape[1], kv_lengths.shape))
        return dense_attention(q, k, v, kv_lengths=kv_lengths, **options)

    monkeypatch.setattr(block_module, "padded_tokens", lambda num_tokens, *args, **options: 8)
    monkeypatch.setattr(block_module, "dense_attention", attend)
    found = run()
    assert lengths == [(8, (6,))]
    assert relative_error(found, expected) <= (1e-6 if dtype == jnp.float32 else 2**-9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_stream_is_float32_whatever_the_products_are(dtype, randomised):
    block = randomised(make_block)
    precision = Precision.from_compute_dtype(dtype)
    # A value that bfloat16 cannot hold survives a block that adds nothing.
    silent = jax.tree.map(lambda x: x, block)
    silent.ls1 = silent.ls2 = nnx.Param(jnp.zeros(DIM))
    x = np.full((1, 2, DIM), 1 + 2**-20, np.float32)

    def run(block, x):
        q, k, v = block.before(x, None, precision)
        return block.after(x, q + k + v, precision), q

    after, q = jax.jit(run)(silent, x)
    assert q.dtype == dtype
    assert after.dtype == jnp.float32
    np.testing.assert_array_equal(after, x)


def test_stacked_modules_differ_from_each_other():
    make = lambda rngs: Linear(5, 7, rngs=rngs)
    stack = jax.jit(lambda: stack_modules(make, 3, nnx.Rngs(0)))()
    kernels = np.asarray(stack.kernel[...])
    assert kernels.shape == (3, 5, 7) and stack.bias.shape == (3, 7)
    assert not np.any(np.all(kernels[[0, 0, 1]] == kernels[[1, 2, 2]], axis=(1, 2)))


def test_a_stack_has_every_parameter_of_the_module_in_front_of_an_axis_of_layers():
    make = lambda rngs: make_block(rngs, qk_norm=True)
    block = jax.eval_shape(lambda: make(nnx.Rngs(0)))
    stack = jax.eval_shape(lambda: stack_modules(make, 3, nnx.Rngs(0)))
    shapes = {name: leaf.shape for name, leaf in named_parameters(block).items()}
    assert {name: leaf.shape for name, leaf in named_parameters(stack).items()} == {
        name: (3, *shape) for name, shape in shapes.items()
    }
    assert shapes["mlp.fc1.kernel"] == (DIM, 30) and "attn.k_norm.scale" in shapes
