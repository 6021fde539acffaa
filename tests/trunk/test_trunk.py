"""The trunk: who attends to whom, and which layers are kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import tuned
from vggt_jax import BlockSparse, Dense, VGGTConfig
from vggt_jax.layers import block
from vggt_jax.layers.attention import dense_attention
from vggt_jax.layers.precision import Precision
from vggt_jax.models.loading import abstract_model
from vggt_jax.trunk import alternation as trunk
from vggt_jax.trunk.token_layout import TokenLayout

B, S, ROWS, COLUMNS, SPECIAL, DIM, DEPTH = 2, 3, 2, 3, 3, 16, 3
LAYOUT = TokenLayout(num_special=SPECIAL, rows=ROWS, columns=COLUMNS)
TOKENS = SPECIAL + ROWS * COLUMNS
EVERY_FRAME = np.array([S, S])


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(depth=DEPTH, enable_track=False, enable_depth=False, enable_point=False)


@pytest.fixture(scope="module")
def aggregate(model):
    """The trunk with special tokens, every layer kept."""

    @functools.partial(jax.jit, static_argnames="dtype")
    def compute(model, patch_tokens, num_frames, dtype):
        return model.aggregate(
            patch_tokens, LAYOUT, taps=(0, 1, 2), num_frames=num_frames, compute_dtype=dtype
        )

    return lambda patch_tokens, num_frames=EVERY_FRAME, dtype=jnp.float32: compute(
        model, patch_tokens, num_frames, dtype
    )


@pytest.fixture(scope="module")
def patch_tokens():
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, S, ROWS * COLUMNS, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def tokens():
    """All tokens of all frames, as they enter the trunk."""
    return np.random.default_rng(3).normal(size=(B, S, TOKENS, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def run(model):
    """`run_trunk` itself: its chunks, its branches and its attention are arguments."""

    def compute(model, tokens, num_frames, *, taps=(0,), attention=Dense(), **options):
        return trunk.run_trunk(
            model.frame_blocks,
            model.global_blocks,
            tokens,
            layout=LAYOUT,
            taps=taps,
            attention=attention,
            num_frames=num_frames,
            precision=Precision.from_compute_dtype(jnp.float32),
            **options,
        )

    # A new function each time, lest one that was traced before a test patched something be used.
    make = lambda **options: jax.jit(functools.partial(compute, **options))
    return lambda tokens, num_frames=EVERY_FRAME, **options: make(**options)(
        model, tokens, num_frames
    )


@pytest.fixture(scope="module")
def plain(run, tokens):
    """The trunk in one piece, the first and the last layer kept."""
    return run(tokens)


def test_a_token_moves_its_frame_then_its_scene(aggregate, patch_tokens):
    changed = patch_tokens.copy()
    changed[1, 2, 4] += np.random.default_rng(1).normal(size=DIM)
    before, after = aggregate(patch_tokens), aggregate(changed)
    difference = np.abs(np.asarray(after.kept) - np.asarray(before.kept))[:, :, 0]
    frame, scene = difference[..., :DIM].max(axis=-1), difference[..., DIM:].max(axis=-1)
    # The frame block joins the tokens of a frame, its special tokens included. (Attention across
    # the heads of one token, instead of across tokens, would move that one alone.)
    assert np.all(frame[1, 2] > 1e-4)
    assert not frame[0].any() and not frame[1, :2].any()
    # The global block joins all frames of the scene, and no other scene.
    assert np.all(scene[1] > 1e-5)
    assert not scene[0].any()
    first = (np.asarray(after.first_tokens) != np.asarray(before.first_tokens)).any(axis=-1)
    np.testing.assert_array_equal(first, [[False] * 3, [True] * 3])


def test_the_first_frame_has_special_tokens_of_its_own(aggregate, patch_tokens):
    # Equal pictures: without a difference in special tokens, all frames would come out equal.
    equal = np.broadcast_to(patch_tokens[:, :1], patch_tokens.shape)
    kept = np.asarray(aggregate(equal).kept)[:, :, DEPTH - 1]
    np.testing.assert_allclose(kept[:, 1], kept[:, 2], rtol=1e-5, atol=1e-5)
    assert np.all(np.abs(kept[:, 0] - kept[:, 1]).max(axis=-1) > 1e-2)


def test_positions_matter(aggregate, patch_tokens):
    # Two equal patches at different places come out different, through RoPE alone.
    equal = patch_tokens.copy()
    equal[:, :, 5] = equal[:, :, 0]
    kept = np.asarray(aggregate(equal).kept)[:, :, 0, SPECIAL:]
    assert np.all(np.abs(kept[:, :, 5] - kept[:, :, 0]).max(axis=-1) > 1e-3)


@pytest.mark.parametrize("garbage", [0.0, -1e6])
def test_padded_frames_are_hidden_from_the_others(aggregate, patch_tokens, garbage):
    num_frames = np.asarray([2, 3])
    padded = patch_tokens.copy()
    padded[0, 2] = garbage
    found, expected = (np.asarray(aggregate(x, num_frames).kept) for x in (padded, patch_tokens))
    np.testing.assert_array_equal(found[0, :2], expected[0, :2])
    np.testing.assert_array_equal(found[1], expected[1])
    assert np.all(np.isfinite(found))


PARTLY_SPARSE = BlockSparse(
    sparse_ratio=(0.5, 0.0, 0.9), layers=(0, 2), min_tokens=0, block_q=4, block_k=2,
    token_order="hilbert",
)  # fmt: skip


@pytest.mark.parametrize(
    "attention",
    [
        pytest.param(Dense(), id="dense"),
        pytest.param(PARTLY_SPARSE, id="partly sparse"),
    ],
)
def test_tokens_padded_for_kernels_are_not_seen(
    run, tokens, monkeypatch, relative_error, attention
):
    """With two sizes of chunks, three kinds of layers, and frames that do not count."""
    num_frames = np.asarray([2, 3])
    expected = run(tokens, num_frames, attention=attention)
    seen = []

    def attend(q, k, v, **options):
        seen.append(q.shape[1])
        return dense_attention(q, k, v, **options)

    monkeypatch.setattr(block, "padded_tokens", lambda *args, **options: 16)
    monkeypatch.setattr(block, "dense_attention", attend)
    found = run(tokens, num_frames, attention=attention, tokens_per_chunk=2 * B * TOKENS)
    assert set(seen) == {16}
    assert relative_error(found.kept, expected.kept) <= 1e-6
    assert relative_error(found.first_tokens, expected.first_tokens) <= 1e-6
    jax.tree.map(
        lambda *xs: np.testing.assert_allclose(*xs, rtol=1e-5, atol=1e-6),
        found.attention_stats,
        expected.attention_stats,
    )


@pytest.mark.new_jax
@pytest.mark.parametrize(
    ("attention", "implementation"),
    [
        pytest.param(Dense, None, id="dense"),
        pytest.param(Dense, "xla", id="dense, plain", marks=pytest.mark.slow),
        pytest.param(
            functools.partial(BlockSparse, sparse_ratio=0.5),
            "xla",
            id="few tokens, plain",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_plain_attention_means_plain_blocks(model, pretend_device, attention, implementation):
    """Programs for other devices, exported on a Hopper GPU, have no kernels of it."""
    pretend_device("gpu", "9.0")
    sizes = {"embed_dim": 256, "num_heads": 4, "vit_num_heads": 4, "mlp_ratio": 2.0}
    config = VGGTConfig.from_dict(model.config.to_dict() | sizes)
    layout = TokenLayout(num_special=SPECIAL, rows=16, columns=16)
    attention = attention(implementation=implementation)

    def run(model, tokens):
        return model.aggregate(tokens, layout, attention=attention, compute_dtype=jnp.bfloat16).kept

    tokens = jax.ShapeDtypeStruct((1, 8, 256, 256), jnp.float32)
    with tuned.override({"linear.min_tiles_per_multiprocessor": 0}):
        jaxpr = str(jax.make_jaxpr(run)(abstract_model(config), tokens))
    # The last is norm_rope's.
    kernels = ("name=linear", "name=block_sparse_attention", "pallas_call")
    assert [kernel in jaxpr for kernel in kernels] == 3 * [implementation is None]


@pytest.mark.parametrize(
    "taps", [(0, 1, 2), pytest.param((2, 1, 1), marks=pytest.mark.slow)], ids=["all", "repeated"]
)
def test_kept_layers_do_not_depend_on_which_others_are(run, plain, tokens, taps):
    found = run(tokens, taps=taps)
    assert plain.layers == (0, DEPTH - 1)
    assert found.layers == tuple(sorted({*taps, DEPTH - 1}))
    assert found.kept.shape == (B, S, len(found.layers), TOKENS, 2 * DIM)
    for layer in set(found.layers) & set(plain.layers):
        np.testing.assert_allclose(found.tap(layer), plain.tap(layer), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.first_tokens, plain.first_tokens, rtol=1e-6, atol=1e-6)
    last = np.asarray(found.tap(DEPTH - 1))[:, :, 0]
    np.testing.assert_allclose(found.first_tokens, last, rtol=1e-6, atol=1e-6)


def test_many_tokens_are_written_behind_a_branch(run, plain, tokens):
    found = run(tokens, min_tokens_to_branch=0)
    np.testing.assert_array_equal(found.kept, plain.kept)
    np.testing.assert_array_equal(found.first_tokens, plain.first_tokens)


@pytest.mark.slow
def test_a_gradient_passes_the_branches(run, tokens):
    def gradient(min_tokens_to_branch):
        loss = lambda tokens: jnp.sum(
            run(tokens, taps=(1,), min_tokens_to_branch=min_tokens_to_branch).kept ** 2
        )
        traced = jax.jit(jax.grad(loss)).trace(tokens)
        assert ("cond[" in str(traced.jaxpr)) == (min_tokens_to_branch == 0)
        return traced.lower().compile()(tokens)

    np.testing.assert_allclose(gradient(0), gradient(10**6), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("taps", [(DEPTH,), (0, -1)])
def test_taps_are_layers(run, tokens, taps):
    with pytest.raises(ValueError, match=rf"must be layers of the trunk, in \[0, {DEPTH}\)"):
        run(tokens, taps=taps)


def test_what_is_kept_has_the_compute_type_and_first_tokens_are_float32(aggregate, patch_tokens):
    found = aggregate(patch_tokens, dtype=jnp.bfloat16)
    assert found.kept.dtype == jnp.bfloat16
    assert found.first_tokens.dtype == jnp.float32
    last = np.asarray(found.kept)[:, :, DEPTH - 1, 0]
    np.testing.assert_array_equal(np.asarray(found.first_tokens).astype(last.dtype), last)


def test_frames_of_a_chunk():
    assert trunk.frames_per_chunk(1, 200, 1374) == 100  # docs/performance.md has its memory
    assert trunk.frames_per_chunk(1, 3, 300, 1000) == 3  # whole
    assert trunk.frames_per_chunk(1, 11, 300, 1000) == 3
    assert trunk.frames_per_chunk(2, 11, 300, 1000) == 1
    assert trunk.frames_per_chunk(1, 11, 5000, 1000) == 1
