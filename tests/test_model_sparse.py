"""VGGT with block-sparse attention, from the model to `infer`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import vggt_jax
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
        BlockSparse(min_tokens=0, sparse_ratio=0.0),
        BlockSparse(sparse_ratio=0.0, token_order="hilbert", **SMALL),
        BlockSparse(cdf_threshold=1.0, token_order="tiles", **SMALL),
    ],
)
def test_keeping_everything_is_the_official_result(run, golden, relative_error, attention):
    arrays, output = golden("vggt_odd.b2n3_112x70"), run(attention)
    for name in NAMES:
        expected = arrays["pose_enc_3" if name == "pose_enc" else name]
        value = toys.kept(name, getattr(output, name))
        assert relative_error(value, expected) <= 2e-5, name
    np.testing.assert_allclose(output.attention_stats.density, 1, 1e-6)


def test_leaving_blocks_out_changes_the_result_a_little(run, relative_error):
    sparse = BlockSparse(sparse_ratio=0.5, **SMALL)
    dense, sparse = (run(attention, **CAMERAS_ONLY) for attention in (Dense(), sparse))
    assert dense.attention_stats is None
    assert 1e-4 < relative_error(sparse.pose_enc, dense.pose_enc) < 0.2


def test_padded_frames_change_nothing(run, relative_error):
    attention = BlockSparse(sparse_ratio=0.6, token_order="hilbert", **SMALL)
    exact = run(attention, **CAMERAS_ONLY)
    padded = run(attention, num_frames=np.array([3, 3]), add_frames=2, **CAMERAS_ONLY)
    assert relative_error(padded.pose_enc[:, :3], exact.pose_enc) <= 2e-5
    for name, value in vars(exact.attention_stats).items():
        np.testing.assert_allclose(getattr(padded.attention_stats, name), value, rtol=1e-5)


def test_random_blocks_differ_by_layer_and_not_by_padding(run, relative_error):
    attention = BlockSparse(sparse_ratio=0.6, random_seed=7, **SMALL)
    rule = run(BlockSparse(sparse_ratio=0.6, **SMALL), **CAMERAS_ONLY)
    lots = run(attention, **CAMERAS_ONLY)
    padded = run(attention, num_frames=np.array([3, 3]), add_frames=2, **CAMERAS_ONLY)
    assert relative_error(padded.pose_enc[:, :3], lots.pose_enc) <= 2e-5
    assert relative_error(lots.pose_enc, rule.pose_enc) > 1e-4
    np.testing.assert_array_equal(lots.attention_stats.density, rule.attention_stats.density)
    assert np.all(lots.attention_stats.covered.mean(-1) < rule.attention_stats.covered.mean(-1))
    assert np.all((0 < rule.attention_stats.entropy) & (rule.attention_stats.entropy < 1))


def test_layers_are_sparse_or_dense_as_asked(run):
    attention = BlockSparse(sparse_ratio=(0.3, 0.3, 0.5, 0.9, 0.6), layers=(1, 2, 3), **SMALL)
    density = np.asarray(run(attention, **CAMERAS_ONLY).attention_stats.density)
    assert density.shape == (2, 5, 3)
    assert np.all(density[:, [0, 4]] == 1)
    # Of 8 blocks of patches, int(8 * (1 - ratio)) and at least one, beside one of special tokens.
    for layer, kept in ((1, 5), (2, 4), (3, 1)):
        np.testing.assert_allclose(density[:, layer], (kept + 1) / 9, rtol=1e-6)


def test_few_tokens_run_dense(tiny):
    model, patches = tiny(), jnp.ones((1, 3, 6, 16))
    layout = model.layout(jnp.ones((1, 3, 28, 42, 3)))
    # 3 frames of 3 special tokens and 6 patches.
    for min_tokens, is_dense in ((27, False), (28, True)):
        attention = BlockSparse(sparse_ratio=0.9, min_tokens=min_tokens)
        trunk = model.aggregate(patches, layout, attention=attention)
        assert (trunk.attention_stats is None) == is_dense
    assert (
        model.aggregate(patches, layout, attention=BlockSparse(sparse_ratio=0.9)).attention_stats
        is None
    )


def test_infer_returns_statistics(tiny):
    images = np.random.default_rng(1).integers(0, 256, (33, 56, 28, 3), np.uint8)
    attention = BlockSparse(sparse_ratio=0.5, **SMALL)
    # 33 frames are padded to 34, or not at all: results and statistics are the same.
    model = tiny(enable_point=False, enable_track=False)
    recon, exact = (
        vggt_jax.infer(images, model=model, attention=attention, pad_frames=pad)
        for pad in (True, False)
    )
    assert recon.attention_stats.saved.shape == (2, 2)
    assert recon.depth.shape == (33, 56, 28)
    np.testing.assert_allclose(recon.depth, exact.depth, rtol=2e-4)
    for name, value in vars(exact.attention_stats).items():
        assert isinstance(value, np.ndarray)
        np.testing.assert_allclose(getattr(recon.attention_stats, name), value, rtol=1e-5)


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
