"""VGGT with block-sparse attention: the whole model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from vggt_jax import BlockSparse, Dense

SMALL = {"block_q": 32, "block_k": 16, "min_tokens": 0}
NAMES = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
# Compiles in a third of the time.
CAMERAS_ONLY = {"enable_depth": False, "enable_point": False, "enable_track": False}


@pytest.fixture(scope="module")
def run(load_toy, golden):
    """Outputs of a golden case with some attention."""
    compute = jax.jit(
        lambda model, images, attention, num_frames: model(
            images, attention=attention, num_frames=num_frames, compute_dtype=jnp.float32
        ),
        static_argnames="attention",
    )

    def run(attention, num_frames=None, add_frames=0, **changes):
        images = golden("vggt_odd.b2n3_112x70")["images"]
        if add_frames:
            noise = np.random.default_rng(0).random(images[:, :1].shape, np.float32)
            images = np.concatenate([images] + [noise] * add_frames, axis=1)
        return compute(load_toy("vggt_odd", **changes), images, attention, num_frames)

    return run


@pytest.mark.parametrize(
    "attention",
    [
        pytest.param(BlockSparse(min_tokens=0, sparse_ratio=0.0), marks=pytest.mark.slow),
        # Eight rows of five patches are one tile, in raster order; along the curve they change places.
        pytest.param(
            BlockSparse(sparse_ratio=0.0, token_order="tiles", **SMALL), marks=pytest.mark.slow
        ),
        BlockSparse(cdf_threshold=1.0, token_order="hilbert", **SMALL),
    ],
)
def test_keeping_everything_is_the_official_result(run, golden, relative_error, attention):
    arrays, output = golden("vggt_odd.b2n3_112x70"), run(attention)
    for name in NAMES:
        expected = arrays["pose_enc_3" if name == "pose_enc" else name]
        value = toys.kept(name, getattr(output, name))
        assert relative_error(value, expected) <= 2e-5, name
    np.testing.assert_allclose(output.attention_stats.density, 1, 1e-6)


# One program each for the rule, for drawn blocks, and for dense attention, over five frames of which
# three count or all.
RULE = BlockSparse(
    sparse_ratio=(0.6, 0.6, 0.5, 0.9, 0.6), layers=(1, 2, 3), token_order="hilbert", **SMALL
)
DRAWN = dataclasses.replace(RULE, random_seed=7)


def run_padded(run, attention, num_frames=3):
    output = run(attention, num_frames=np.array([num_frames] * 2), add_frames=2, **CAMERAS_ONLY)
    return output.pose_enc[:, :3], output.attention_stats


@pytest.mark.slow
def test_leaving_blocks_out_changes_the_result_a_little(run, relative_error):
    (dense, none), (sparse, _) = (run_padded(run, attention) for attention in (Dense(), RULE))
    assert none is None
    assert 1e-4 < relative_error(sparse, dense) < 0.2


def test_padded_frames_change_nothing(run, relative_error):
    exact = run(RULE, num_frames=np.array([3, 3]), **CAMERAS_ONLY)
    padded, stats = run_padded(run, RULE)
    assert relative_error(padded, exact.pose_enc) <= 2e-5
    for name, value in vars(exact.attention_stats).items():
        np.testing.assert_allclose(getattr(stats, name), value, rtol=1e-5)
    # So that this can fail.
    assert relative_error(run_padded(run, RULE, num_frames=5)[0], exact.pose_enc) > 1e-3


@pytest.mark.slow
def test_random_blocks_are_as_many_and_cover_less(run, relative_error):
    (rule, of_rule), (drawn, of_drawn) = run_padded(run, RULE), run_padded(run, DRAWN)
    assert relative_error(drawn, rule) > 1e-4
    np.testing.assert_array_equal(of_drawn.density, of_rule.density)
    sparse = list(RULE.layers)
    assert np.all(of_drawn.covered.mean(-1)[:, sparse] < of_rule.covered.mean(-1)[:, sparse])
    assert np.all((0 < of_rule.entropy[:, sparse]) & (of_rule.entropy[:, sparse] < 1))


def test_layers_are_sparse_or_dense_as_asked(run):
    density = np.asarray(run_padded(run, RULE)[1].density)
    assert density.shape == (2, 5, 3)
    assert np.all(density[:, [0, 4]] == 1)
    # Of 8 blocks of patches, int(8 * (1 - ratio)) and at least one, beside one of special tokens.
    for layer, kept in ((1, 3), (2, 4), (3, 1)):
        np.testing.assert_allclose(density[:, layer], (kept + 1) / 9, rtol=1e-6)


def test_few_tokens_run_dense(tiny):
    model, patches = tiny(), jax.ShapeDtypeStruct((1, 3, 6, 16), jnp.float32)
    layout = model.layout(jnp.ones((1, 3, 28, 42, 3)))

    def is_dense(attention):
        def stats(model, patches):
            return model.aggregate(patches, layout, attention=attention).attention_stats

        return jax.eval_shape(stats, model, patches) is None

    # 3 frames of 3 special tokens and 6 patches.
    assert not is_dense(BlockSparse(sparse_ratio=0.9, min_tokens=27))
    assert is_dense(BlockSparse(sparse_ratio=0.9, min_tokens=28))
    assert is_dense(BlockSparse(sparse_ratio=0.9))


@pytest.mark.slow
def test_gradients_pass_through_sparse_attention(tiny):
    model = tiny()
    layout = model.layout(jnp.ones((1, 4, 28, 42, 3)))
    patches = jax.random.normal(jax.random.key(0), (1, 4, 6, 16))

    def loss(patches, attention):
        trunk = model.aggregate(patches, layout, attention=attention, compute_dtype=jnp.float32)
        return jnp.sum(jnp.square(trunk.first_tokens))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    dense = gradient(patches, Dense())
    sparse = gradient(patches, BlockSparse(sparse_ratio=0.0, **SMALL))
    scale = float(jnp.max(jnp.abs(dense)))
    assert scale > 0
    np.testing.assert_allclose(sparse / scale, dense / scale, atol=1e-5)
