"""Block-sparse attention over a scene: its settings, and its values against a NumPy oracle."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from pallas_kernels.selection.reference import select_by_sorting
from vggt_jax import BlockSparse, Dense
from vggt_jax.layers import few_queries
from vggt_jax.layers.scene_attention import SceneTokens
from vggt_jax.trunk.attention.block_sparse import sparse_attention
from vggt_jax.trunk.attention.sampled import draw_patches

S, SPECIAL, PATCHES, N, H = 5, 3, 29, 2, 16
BLOCK_Q, BLOCK_K = 32, 16


@pytest.fixture(autouse=True)
def few_parts(monkeypatch):
    """Special tokens see eleven blocks of keys in four parts, of which the last one is shorter."""
    monkeypatch.setattr(few_queries, "_ENOUGH_TILES", 8)


def scene():
    """The same in every test, whichever of them run before it in this process."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(S, SPECIAL + PATCHES, N, H)).astype(np.float32) for _ in range(3)]


def pooled(x, block):
    return np.stack([x[i : i + block].mean(0) for i in range(0, len(x), block)])


def oracle(q, k, v, frames, of_scene=None, *, score_block=BLOCK_Q, sample=None, weight=1.0, **rule):
    """Token by token in float64, for the first frames; and what was kept [n qb kb] of patches.

    Args:
        of_scene: tokens of the scene, [3 e n h]; results for these come after the others.
        score_block: queries that are pooled to predict what matters.
        sample: patches [m n], each of which counts `weight` times where its block is not kept.
    """
    q, k, v = (x[:frames].astype(np.float64) for x in (q, k, v))
    special = np.broadcast_to(np.arange(q.shape[1]) < SPECIAL, q.shape[:2]).reshape(-1)
    q, k, v = (x.reshape(-1, N, H) for x in (q, k, v))
    if of_scene is not None:
        q, k, v = (np.concatenate(pair) for pair in zip((q, k, v), of_scene, strict=True))
        special = np.append(special, np.ones(len(of_scene[0]), bool))
    out, masks = np.empty_like(q), []
    for head in range(N):
        scores = q[:, head] @ k[:, head].T / np.sqrt(H)
        patch_q, patch_k = q[~special, head], k[~special, head]
        coarse = pooled(patch_q, score_block) @ pooled(patch_k, BLOCK_K).T / np.sqrt(H)
        coarse = np.log(pooled(softmax(coarse, axis=1), BLOCK_Q // score_block))
        kept = select_by_sorting(coarse, **rule)
        fine = np.repeat(np.repeat(kept, BLOCK_Q, 0), BLOCK_K, 1)[: len(patch_q), : len(patch_k)]
        count = fine.astype(np.float64)
        if sample is not None:
            stands_in = np.zeros(len(patch_k))
            stands_in[sample[:, head]] = weight
            count = np.where(fine, 1.0, stands_in)
        counts = np.ones(scores.shape)
        counts[np.ix_(~special, ~special)] = count
        weights = counts * np.exp(scores - scores.max(1, keepdims=True))
        out[:, head] = weights @ v[:, head] / weights.sum(1, keepdims=True)
        masks.append(kept)
    return out if of_scene is not None else out.reshape(frames, -1, N, H), np.array(masks)


def run(qkv, ratio, threshold, frames=None, layer=0, seed=None, **settings):
    """One layer, of settings that are the same in all tests but for its rule."""
    out, _, stats = sparse_attention(
        *qkv,
        num_special=SPECIAL,
        grid=(1, PATCHES),
        sparse_ratio=ratio,
        cdf_threshold=threshold,
        attention=BlockSparse(
            sparse_ratio=0.5, block_q=BLOCK_Q, block_k=BLOCK_K, random_seed=seed, **settings
        ),
        layer=layer,
        num_frames=frames,
    )
    return out, stats


# With a ratio that is known, as people run it; and one program for all rules and numbers of frames.
by_ratio = jax.jit(run, static_argnums=1)
_by_rule = jax.jit(run)


def attend(qkv, *, ratio=1.0, threshold=0.0, frames=S):
    """Both rules at once; what neither is given asks for the one block that is always kept."""
    return _by_rule(qkv, *map(jnp.float32, (ratio, threshold)), jnp.int32(frames))


def assert_right(relative_error, found, stats, qkv, frames, **oracle_rule):
    expected, kept = oracle(*qkv, frames, **oracle_rule)
    assert 0 < kept.mean() < 0.7
    assert relative_error(np.asarray(found)[:frames], expected) <= 1e-5
    # Of all pairs of blocks; the special keys fill blocks of their own, which all see.
    sinks, num_blocks = -(-frames * SPECIAL // BLOCK_K), kept.shape[2]
    blocks = kept.sum((1, 2)) + sinks * kept.shape[1]
    np.testing.assert_allclose(stats.density, blocks / (kept.shape[1] * (num_blocks + sinks)), 1e-6)
    # Queries of patches see whole blocks, those of special tokens all tokens.
    tokens = frames * (SPECIAL + PATCHES)
    done = blocks * BLOCK_Q * BLOCK_K + frames * SPECIAL * tokens
    assert np.all(done < tokens**2)
    np.testing.assert_allclose(stats.saved, 1 - done / tokens**2, 1e-5)


def test_values(relative_error):
    """All frames and a ratio, as most people run it."""
    qkv = scene()
    found, stats = by_ratio(qkv, 0.75, None)
    kept = int(-(-S * PATCHES // BLOCK_K) * 0.25)
    assert_right(relative_error, found, stats, qkv, S, num_kept=kept)


@pytest.mark.parametrize("frames", [S, 3])
@pytest.mark.parametrize("threshold", [None, 0.6])
def test_values_of_any_rule_and_number_of_frames(relative_error, threshold, frames):
    qkv = scene()
    if threshold is None:
        found, stats = attend(qkv, ratio=0.75, frames=frames)
        rule = {"num_kept": int(-(-frames * PATCHES // BLOCK_K) * 0.25)}
    else:
        found, stats = attend(qkv, threshold=threshold, frames=frames)
        rule = {"num_kept": 1, "probability": threshold + 1e-5}
    assert_right(relative_error, found, stats, qkv, frames, **rule)


def test_padded_frames_have_no_influence():
    qkv = scene()
    first, _ = attend(qkv, ratio=0.5, frames=3)
    spoiled = [x.copy() for x in qkv]
    for x in spoiled:
        x[3:] = 1e3
    second, _ = attend(spoiled, ratio=0.5, frames=3)
    np.testing.assert_array_equal(first[:3], second[:3])


def test_special_tokens_see_and_are_seen_by_everything():
    q, k, v = scene()
    before = np.asarray(attend((q, k, v))[0])
    changed = v.copy()
    changed[4, 1] += 10  # a special token of the last frame
    after = np.asarray(attend((q, k, changed))[0])
    assert np.all(np.abs(after - before).max(-1) > 1e-4)
    changed = v.copy()
    changed[4, -1] += 10  # a patch, which not all patches see
    after = np.asarray(attend((q, k, changed))[0])
    moved = np.abs(after - before).max((-1, -2)) > 1e-4
    assert moved[:, :SPECIAL].all() and not moved[:, SPECIAL:].all()


def test_stats_of_the_pooled_probability():
    _, stats = attend(scene(), threshold=0.6)
    covered = np.asarray(stats.covered)
    # Rows that keep the most probable block may exceed the threshold.
    assert np.all((0.2 < covered) & (covered < 0.75))
    _, everything = attend(scene(), ratio=0.0)
    np.testing.assert_allclose(everything.covered, 1, 1e-6)
    np.testing.assert_allclose(everything.density, 1)
    np.testing.assert_allclose(everything.saved, 0)


def test_entropy_as_a_share_of_the_highest():
    q, k, v = scene()
    q = 5 * q  # Pooled noise hardly tells blocks apart.
    for frames in (S, 3):
        _, stats = attend((q, k, v), ratio=0.5, frames=frames)
        for head in range(N):
            patch_q, patch_k = (x[:frames, SPECIAL:, head].reshape(-1, H) for x in (q, k))
            scores = pooled(patch_q, BLOCK_Q) @ pooled(patch_k, BLOCK_K).T / np.sqrt(H)
            share = np.mean(entropy(softmax(scores, -1), axis=-1)) / np.log(scores.shape[1])
            np.testing.assert_allclose(np.asarray(stats.entropy)[head], share, rtol=1e-5)
            assert share < 0.99
    _, stats = attend((q, 0 * k, v), ratio=0.5)
    np.testing.assert_allclose(stats.entropy, 1, rtol=1e-5)


def test_random_blocks_are_as_many_and_differ_by_layer_and_seed():
    qkv = scene()
    at_random = jax.jit(functools.partial(run, qkv, 0.75, None, None))
    rule, expected = by_ratio(qkv, 0.75, None)
    drawn, found = at_random(jnp.int32(0), 5)
    np.testing.assert_array_equal(found.density, expected.density)
    np.testing.assert_array_equal(found.entropy, expected.entropy)
    assert np.all(np.asarray(found.covered) < np.asarray(expected.covered))
    np.testing.assert_array_equal(drawn, at_random(jnp.int32(0), 5)[0])
    drawn = np.asarray(drawn)
    for other in (rule, at_random(jnp.int32(1), 5)[0], at_random(jnp.int32(0), 6)[0]):
        assert np.max(np.abs(drawn - other)[:, SPECIAL:]) > 1e-2
        np.testing.assert_allclose(drawn[:, :SPECIAL], other[:, :SPECIAL], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs sparse_ratio or cdf_threshold"),
        ({"sparse_ratio": 1.5}, r"sparse_ratio=1.5 must be in \[0, 1\]"),
        ({"cdf_threshold": (0.5, -0.1)}, r"cdf_threshold=\(0.5, -0.1\) must be in \[0, 1\]"),
        ({"cdf_threshold": 0.5, "random_seed": 3}, "random_seed=3 draws a given number of blocks"),
        ({"sparse_ratio": 0.5, "pool_mode": "min"}, "pool_mode='min' is unknown; use one of"),
        ({"sparse_ratio": 0.5, "token_order": "z"}, "token_order='z' is unknown; use one of"),
        ({"sparse_ratio": 0.5, "implementation": "cudnn"}, "implementation='cudnn' is unknown"),
        ({"sparse_ratio": 0.5, "block_k": 0}, "block_k=0 must be at least 1"),
        ({"sparse_ratio": 0.5, "min_tokens": -1}, "min_tokens=-1 must be at least 0"),
    ],
)
def test_settings_check_themselves(settings, message):
    with pytest.raises(ValueError, match=message):
        BlockSparse(**settings)


def test_settings_by_layer():
    attention = BlockSparse(sparse_ratio=[0.1, 0.2, 0.3], cdf_threshold=0.9, layers=[0, 2])
    assert hash(attention) == hash(BlockSparse(**vars(attention)))
    first, third = (BlockSparse(sparse_ratio=ratio, cdf_threshold=0.9) for ratio in (0.1, 0.3))
    assert attention.of_layers(3) == [first, Dense(), third]
    with pytest.raises(ValueError, match="sparse_ratio has 3 numbers, but there are 4 layers"):
        attention.of_layers(4)
    with pytest.raises(ValueError, match=r"must be layers of the trunk, in \[0, 2\)"):
        BlockSparse(sparse_ratio=0.5, layers=(2,)).of_layers(2)


draw = jax.jit(
    draw_patches,
    static_argnames=("seed", "slots", "num_heads", "num_frames", "grid", "share"),
)
with_a_sample = jax.jit(functools.partial(run, sample_ratio=0.2, score_block_q=8))


@pytest.mark.parametrize("frames", [S, 3])
def test_a_sample_stands_for_what_is_left_out(relative_error, frames):
    """Blocks by finer scores, and a sample of which patches of kept blocks do not count twice."""
    qkv, layer = scene(), 4
    found, stats = with_a_sample(qkv, jnp.float32(0.75), None, jnp.int32(frames), layer)
    patches = frames * PATCHES
    sample, number, weight = draw(
        seed=0,
        slots=2**16,
        num_heads=N,
        num_frames=S,
        grid=(1, PATCHES),
        layer=layer,
        frames_that_count=frames,
        share=0.2,
    )
    assert number == math.ceil(0.2 * patches) and weight == pytest.approx(patches / number)
    settings = {"score_block": 8, "sample": np.asarray(sample)[:number], "weight": float(weight)}
    rule = {"num_kept": int(-(-patches // BLOCK_K) * 0.25)}
    expected, kept = oracle(*qkv, frames, **settings, **rule)
    assert relative_error(np.asarray(found)[:frames], expected) <= 1e-5
    without, _ = oracle(*qkv, frames, score_block=8, **rule)
    assert relative_error(without, expected) > 0.1
    if frames < S:
        return
    whole, _ = oracle(*qkv, frames, sample=settings["sample"], weight=float(weight), **rule)
    assert relative_error(whole, expected) > 0.01
    sinks = -(-S * SPECIAL // BLOCK_K)
    blocks = (kept.sum((1, 2)) + sinks * kept.shape[1]) / (kept.shape[1] * (kept.shape[2] + sinks))
    seen = number / patches * PATCHES / (SPECIAL + PATCHES)
    np.testing.assert_allclose(stats.density, blocks + seen, 1e-6)


@jax.jit
def with_tokens_of_the_scene(qkv, of_scene, frames):
    return sparse_attention(
        *qkv,
        num_special=SPECIAL,
        grid=(1, PATCHES),
        sparse_ratio=0.75,
        cdf_threshold=None,
        attention=BlockSparse(sparse_ratio=0.5, block_q=BLOCK_Q, block_k=BLOCK_K),
        num_frames=frames,
        scene=SceneTokens(*of_scene),
    )


@pytest.mark.parametrize("frames", [S, 3])
def test_tokens_of_the_scene_see_and_are_seen_by_everything(relative_error, frames):
    rng = np.random.default_rng(1)
    qkv, of_scene = scene(), rng.normal(size=(3, 2, N, H)).astype(np.float32)
    found, of_scene_found, stats = with_tokens_of_the_scene(qkv, of_scene, np.int32(frames))
    kept = max(1, int(-(-frames * PATCHES // BLOCK_K) * 0.25))
    expected, mask = oracle(*qkv, frames, of_scene, num_kept=kept)
    assert relative_error(np.asarray(found)[:frames].reshape(-1, N, H), expected[:-2]) <= 1e-5
    assert relative_error(of_scene_found, expected[-2:]) <= 1e-5
    # Special queries see everything, others what is kept, in whole blocks.
    tokens, special = frames * (SPECIAL + PATCHES) + 2, frames * SPECIAL + 2
    sinks = -(-(frames * SPECIAL + 2) // BLOCK_K)
    done = special * tokens + (mask.sum((1, 2)) + mask.shape[1] * sinks) * BLOCK_Q * BLOCK_K
    np.testing.assert_allclose(stats.saved, np.maximum(1 - done / tokens**2, 0), 1e-5)
