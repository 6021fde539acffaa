"""The trunk: who attends to whom, and which layers are kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.matmul import api as linear_api
from vggt_jax import BlockSparse, Dense, VGGTConfig
from vggt_jax.layers import block
from vggt_jax.layers.attention import dense_attention
from vggt_jax.loading import abstract_model
from vggt_jax.models import trunk
from vggt_jax.models.token_layout import TokenLayout

B, S, ROWS, COLUMNS, SPECIAL, DIM, DEPTH = 2, 3, 2, 3, 3, 16, 3
LAYOUT = TokenLayout(num_special=SPECIAL, rows=ROWS, columns=COLUMNS)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(depth=DEPTH, enable_track=False, enable_depth=False, enable_point=False)


def make_aggregate():
    def aggregate(
        model,
        patch_tokens,
        num_frames=None,
        *,
        taps=(0, 1, 2),
        dtype=jnp.float32,
        attention=Dense(),
    ):
        return model.aggregate(
            patch_tokens,
            LAYOUT,
            taps=taps,
            attention=attention,
            num_frames=num_frames,
            compute_dtype=dtype,
        )

    return jax.jit(aggregate, static_argnames=("taps", "dtype", "attention"))


@pytest.fixture(scope="module")
def aggregate():
    return make_aggregate()


@pytest.fixture(scope="module")
def patch_tokens():
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, S, ROWS * COLUMNS, DIM)).astype(np.float32)


def test_a_token_moves_its_frame_then_its_scene(model, aggregate, patch_tokens):
    changed = patch_tokens.copy()
    changed[1, 2, 4] += np.random.default_rng(1).normal(size=DIM)
    before, after = aggregate(model, patch_tokens), aggregate(model, changed)
    difference = np.abs(np.asarray(after.tap(0) - before.tap(0)))  # [b s p (frame, global)]
    frame, scene = difference[..., :DIM].max(axis=-1), difference[..., DIM:].max(axis=-1)
    # The frame block joins the tokens of a frame, its special tokens included. (Attention across
    # the heads of one token, instead of across tokens, would move that one alone.)
    assert np.all(frame[1, 2] > 1e-4)
    assert not frame[0].any() and not frame[1, :2].any()
    # The global block joins all frames of the scene, and no other scene.
    assert np.all(scene[1] > 1e-5)
    assert not scene[0].any()
    first = np.asarray(after.first_tokens != before.first_tokens).any(axis=-1)
    np.testing.assert_array_equal(first, [[False] * 3, [True] * 3])


def test_the_first_frame_has_special_tokens_of_its_own(model, aggregate, patch_tokens):
    # Equal pictures: without a difference in special tokens, all frames would come out equal.
    equal = np.broadcast_to(patch_tokens[:, :1], patch_tokens.shape)
    kept = np.asarray(aggregate(model, equal).tap(DEPTH - 1))
    np.testing.assert_allclose(kept[:, 1], kept[:, 2], rtol=1e-5, atol=1e-5)
    assert np.all(np.abs(kept[:, 0] - kept[:, 1]).max(axis=-1) > 1e-2)


def test_positions_matter(model, aggregate, patch_tokens):
    # Two equal patches at different places come out different, through RoPE alone.
    equal = patch_tokens.copy()
    equal[:, :, 5] = equal[:, :, 0]
    kept = np.asarray(aggregate(model, equal).tap(0))[:, :, SPECIAL:]
    assert np.all(np.abs(kept[:, :, 5] - kept[:, :, 0]).max(axis=-1) > 1e-3)


@pytest.mark.parametrize("garbage", [0.0, -1e6])
def test_padded_frames_are_hidden_from_the_others(model, aggregate, patch_tokens, garbage):
    num_frames = jnp.asarray([2, 3])
    padded = patch_tokens.copy()
    padded[0, 2] = garbage
    found = aggregate(model, padded, num_frames)
    expected = aggregate(model, patch_tokens, num_frames)
    np.testing.assert_array_equal(found.kept[0, :2], expected.kept[0, :2])
    np.testing.assert_array_equal(found.kept[1], expected.kept[1])
    assert np.all(np.isfinite(found.kept))


@pytest.mark.parametrize("order", ["raster", "hilbert"])
@pytest.mark.parametrize("ratio", [None, 0.5, (0.5, 0.9, 0.5)])
@pytest.mark.parametrize("chunked", [False, True])
def test_tokens_padded_for_kernels_are_not_seen(
    model, patch_tokens, monkeypatch, relative_error, order, ratio, chunked
):
    attention = Dense()
    if ratio is not None:
        attention = BlockSparse(
            sparse_ratio=ratio, min_tokens=0, block_q=4, block_k=2, token_order=order
        )
    run = functools.partial(make_aggregate(), attention=attention)
    expected = run(model, patch_tokens, jnp.asarray([2, 3]))
    if chunked:
        monkeypatch.setattr(trunk, "_TOKENS_PER_CHUNK", 2 * B * (SPECIAL + ROWS * COLUMNS))
    tokens = []

    def attend(q, k, v, **options):
        tokens.append(q.shape[1])
        return dense_attention(q, k, v, **options)

    monkeypatch.setattr(block, "padded_tokens", lambda *args, **options: 16)
    monkeypatch.setattr(block, "dense_attention", attend)
    found = functools.partial(make_aggregate(), attention=attention)(
        model, patch_tokens, jnp.asarray([2, 3])
    )
    assert set(tokens) == {16}
    assert relative_error(found.kept, expected.kept) <= 1e-6
    assert relative_error(found.first_tokens, expected.first_tokens) <= 1e-6
    jax.tree.map(
        lambda *xs: np.testing.assert_allclose(*xs, rtol=1e-5, atol=1e-6),
        found.attention_stats,
        expected.attention_stats,
    )


@pytest.mark.new_jax
@pytest.mark.parametrize(
    "attention",
    [Dense, functools.partial(BlockSparse, sparse_ratio=0.5)],
    ids=["dense", "few tokens"],
)
@pytest.mark.parametrize("implementation", [None, "xla"])
def test_plain_attention_means_plain_blocks(
    model, pretend_device, monkeypatch, attention, implementation
):
    """Programs for other devices, exported on a Hopper GPU, have no kernels of it."""
    pretend_device("gpu", "9.0")
    monkeypatch.setattr(linear_api, "MIN_ROUNDS", 0)
    sizes = {"embed_dim": 256, "num_heads": 4, "vit_num_heads": 4, "mlp_ratio": 2.0}
    config = VGGTConfig.from_dict(model.config.to_dict() | sizes)
    layout = TokenLayout(num_special=SPECIAL, rows=16, columns=16)
    attention = attention(implementation=implementation)

    def run(model, tokens):
        return model.aggregate(tokens, layout, attention=attention, compute_dtype=jnp.bfloat16).kept

    tokens = jax.ShapeDtypeStruct((1, 8, 256, 256), jnp.float32)
    jaxpr = str(jax.make_jaxpr(run)(abstract_model(config), tokens))
    # The last is norm_rope's.
    kernels = ("name=linear", "name=block_sparse_attention", "pallas_call")
    assert [kernel in jaxpr for kernel in kernels] == 3 * [implementation is None]


@pytest.mark.parametrize("taps", [(0,), (2, 1, 1)])
def test_kept_layers_do_not_depend_on_which_others_are(model, aggregate, patch_tokens, taps):
    everything = aggregate(model, patch_tokens)
    found = aggregate(model, patch_tokens, taps=taps)
    assert found.layers == tuple(sorted({*taps, DEPTH - 1}))
    assert found.kept.shape == (B, S, len(found.layers), SPECIAL + ROWS * COLUMNS, 2 * DIM)
    for layer in found.layers:
        np.testing.assert_allclose(found.tap(layer), everything.tap(layer), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        found.first_tokens, everything.tap(DEPTH - 1)[:, :, 0], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("taps", [(0,), (1, 2)])
def test_many_tokens_are_written_behind_a_branch(model, aggregate, patch_tokens, taps, monkeypatch):
    expected = aggregate(model, patch_tokens, taps=taps)
    monkeypatch.setattr(trunk, "_MIN_TOKENS_TO_BRANCH", 0)
    branching = make_aggregate()
    assert "cond[" in str(branching.trace(model, patch_tokens, taps=taps).jaxpr)
    found = branching(model, patch_tokens, taps=taps)
    np.testing.assert_array_equal(found.kept, expected.kept)
    np.testing.assert_array_equal(found.first_tokens, expected.first_tokens)

    # A gradient passes the branches.
    loss = lambda tokens, aggregate: jnp.sum(aggregate(model, tokens, taps=taps).kept ** 2)
    gradients = [jax.grad(loss)(patch_tokens, run) for run in (branching, aggregate)]
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("taps", [(DEPTH,), (0, -1)])
def test_taps_are_layers(model, aggregate, patch_tokens, taps):
    with pytest.raises(ValueError, match=rf"must be layers of the trunk, in \[0, {DEPTH}\)"):
        aggregate(model, patch_tokens, taps=taps)


def test_what_is_kept_has_the_compute_type_and_first_tokens_are_float32(
    model, aggregate, patch_tokens
):
    found = aggregate(model, patch_tokens, dtype=jnp.bfloat16)
    assert found.kept.dtype == jnp.bfloat16
    assert found.first_tokens.dtype == jnp.float32
    last = found.tap(DEPTH - 1)[:, :, 0]
    np.testing.assert_array_equal(found.first_tokens.astype(last.dtype) == last, True)


def test_frames_of_a_chunk(monkeypatch):
    assert trunk.frames_per_chunk(1, 200, 1374) == 100  # docs/performance.md has its memory
    monkeypatch.setattr(trunk, "_TOKENS_PER_CHUNK", 1000)
    assert trunk.frames_per_chunk(1, 3, 300) == 3  # whole
    assert trunk.frames_per_chunk(1, 11, 300) == 3
    assert trunk.frames_per_chunk(2, 11, 300) == 1
    assert trunk.frames_per_chunk(1, 11, 5000) == 1
