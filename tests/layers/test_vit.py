"""The image encoder: what it embeds and where, and its table of positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vggt_jax import Dense
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.vit import VisionTransformer, resize_position_table

FLOAT32 = Precision.from_compute_dtype(jnp.float32)
PATCH, SIDE, DIM, REGISTERS = 3, 5, 8, 2

encode = jax.jit(lambda encoder, images: encoder(images, Dense(), FLOAT32))
resize = jax.jit(resize_position_table, static_argnums=(1, 2))


@pytest.fixture(scope="module")
def encoder(randomised):
    return randomised(
        lambda rngs: VisionTransformer(
            img_size=SIDE * PATCH,
            patch_size=PATCH,
            dim=DIM,
            depth=2,
            num_heads=2,
            mlp_ratio=2.0,
            num_register_tokens=REGISTERS,
            rngs=rngs,
        )
    )


def draw_images(frames, rows, columns):
    rng = np.random.default_rng(1)
    return rng.uniform(size=(frames, rows * PATCH, columns * PATCH, 3)).astype(np.float32)


def bicubic_weights(old, new):
    """Weights [new old] of antialiased bicubic resampling, a = -0.5, in float64."""
    scale = max(old / new, 1.0)
    weights = np.zeros((new, old))
    for i, j in np.ndindex(new, old):
        x = abs((i + 0.5) * old / new - 0.5 - j) / scale
        if x < 1:
            weights[i, j] = 1.5 * x**3 - 2.5 * x**2 + 1
        elif x < 2:
            weights[i, j] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (10, 3), (1, 5)])
def test_the_position_table_is_resized_bicubically(rows, columns):
    table = np.random.default_rng(0).normal(size=(SIDE * SIDE, 3)).astype(np.float32)
    found = resize(table, rows, columns)
    expected = np.einsum(
        "ri,cj,ijd->rcd",
        bicubic_weights(SIDE, rows),
        bicubic_weights(SIDE, columns),
        table.reshape(SIDE, SIDE, 3),
    )
    np.testing.assert_allclose(found, expected.reshape(-1, 3), rtol=0, atol=5e-6)


def test_a_position_table_of_the_right_size_stays_as_it_is():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(SIDE * SIDE, 3)), jnp.float32)
    assert resize_position_table(table, SIDE, SIDE) is table


# Embeddings of size 1e-3 have a variance of 1e-6: the eps of the last norm counts.
@pytest.mark.parametrize(
    ("rows", "columns", "size"),
    [(2, 3, 1.0), (2, 3, 1e-3), pytest.param(5, 5, 1.0, marks=pytest.mark.slow)],
)
def test_patches_are_embedded_row_by_row(encoder, rows, columns, size):
    # Blocks that add nothing leave the embedding and the last norm.
    zero = nnx.Param(jnp.asarray(np.zeros((2, DIM), np.float32)))
    bare = jax.tree.map(lambda x: x, encoder)
    bare.blocks.ls1, bare.blocks.ls2 = zero, zero
    bare.patch_embed, bare.pos_embed = jax.tree.map(
        lambda x: jnp.asarray(np.float32(size) * np.asarray(x)),
        (encoder.patch_embed, encoder.pos_embed),
    )
    images = draw_images(2, rows, columns)
    mean, std = np.asarray([0.485, 0.456, 0.406]), np.asarray([0.229, 0.224, 0.225])
    kernel = np.asarray(bare.patch_embed.kernel[...], np.float64)
    bias = np.asarray(bare.patch_embed.bias[...])
    scale, shift = np.asarray(encoder.norm.scale[...]), np.asarray(encoder.norm.bias[...])
    table = resize(np.asarray(bare.pos_embed[...])[1:], rows, columns)
    table = np.asarray(table, np.float64).reshape(rows, columns, DIM)
    expected = np.empty((2, rows, columns, DIM))
    for f, i, j in np.ndindex(2, rows, columns):
        patch = images[f, i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH]
        token = np.einsum("yxc,yxcd->d", (patch - mean) / std, kernel) + bias + table[i, j]
        token = (token - token.mean()) / np.sqrt(token.var() + 1e-6)
        expected[f, i, j] = token * scale + shift
    found = encode(bare, images)
    np.testing.assert_allclose(found, expected.reshape(2, -1, DIM), rtol=1e-4, atol=1e-5)


def test_class_token_and_registers_are_read(encoder):
    images = draw_images(2, 2, 3)
    before = encode(encoder, images)
    # The first row of the position table is the class token's own.
    for name, row in (("cls_token", 0), ("register_tokens", 1), ("pos_embed", 0)):
        changed = jax.tree.map(lambda x: x, encoder)
        table = np.array(getattr(encoder, name)[...])
        table[row] = np.random.default_rng(2).normal(size=DIM)
        setattr(changed, name, nnx.Param(jnp.asarray(table)))
        difference = np.abs(np.asarray(encode(changed, images) - before)).max(axis=-1)
        assert np.all(difference > 1e-3), name


def test_a_patch_moves_all_tokens_of_its_frame_and_no_others(encoder):
    images = draw_images(2, 2, 3)
    changed = images.copy()
    changed[1, PATCH : 2 * PATCH, :PATCH] = 0.5
    before, after = (np.asarray(encode(encoder, x)) for x in (images, changed))
    np.testing.assert_array_equal(np.any(after != before, axis=-1), [[False] * 6, [True] * 6])
    after = np.asarray(encode(encoder, changed[::-1]))[1]
    np.testing.assert_array_equal(after, before[0])
