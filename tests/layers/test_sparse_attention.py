"""Block-sparse attention over a scene: its settings, and its values against a NumPy oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from pallas_kernels.selection.reference import select_by_sorting
from vggt_jax import BlockSparse
from vggt_jax.layers.sparse_attention import LayerSetting, sparse_attention

RNG = np.random.default_rng(0)
S, SPECIAL, PATCHES, N, H = 5, 3, 29, 2, 16
BLOCK_Q, BLOCK_K = 32, 16


def scene():
    return [RNG.normal(size=(S, SPECIAL + PATCHES, N, H)).astype(np.float32) for _ in range(3)]


def pooled(x, block):
    return np.stack([x[i : i + block].mean(0) for i in range(0, len(x), block)])


def oracle(q, k, v, frames, **rule):
    """Token by token in float64, for the first frames; and what was kept [n qb kb] of the patches."""
    q, k, v = (x[:frames].astype(np.float64) for x in (q, k, v))
    special = np.broadcast_to(np.arange(q.shape[1]) < SPECIAL, q.shape[:2]).reshape(-1)
    q, k, v = (x.reshape(-1, N, H) for x in (q, k, v))
    out, masks = np.empty_like(q), []
    for head in range(N):
        scores = q[:, head] @ k[:, head].T / np.sqrt(H)
        patch_q, patch_k = q[~special, head], k[~special, head]
        coarse = pooled(patch_q, BLOCK_Q) @ pooled(patch_k, BLOCK_K).T / np.sqrt(H)
        kept = select_by_sorting(coarse, **rule)
        fine = np.repeat(np.repeat(kept, BLOCK_Q, 0), BLOCK_K, 1)[: len(patch_q), : len(patch_k)]
        mask = np.ones(scores.shape, bool)
        mask[np.ix_(~special, ~special)] = fine
        weights = np.where(mask, np.exp(scores - scores.max(1, keepdims=True)), 0)
        out[:, head] = weights @ v[:, head] / weights.sum(1, keepdims=True)
        masks.append(kept)
    return out.reshape(frames, -1, N, H), np.array(masks)


def attend(qkv, frames=None, **rule):
    run = jax.jit(
        lambda q, k, v, frames: sparse_attention(
            q, k, v,
            num_special=SPECIAL,
            setting=LayerSetting(rule.get("sparse_ratio"), rule.get("cdf_threshold")),
            attention=BlockSparse(sparse_ratio=0.5, block_q=BLOCK_Q, block_k=BLOCK_K),
            num_frames=frames,
        )
    )  # fmt: skip
    return run(*qkv, frames)


@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize(
    ("rule", "oracle_rule"),
    [
        ({"sparse_ratio": 0.75}, lambda kb: {"num_kept": int(kb * 0.25)}),
        ({"cdf_threshold": 0.6}, lambda kb: {"num_kept": 1, "probability": 0.6 + 1e-5}),
    ],
)
def test_values(relative_error, rule, oracle_rule, frames):
    qkv = scene()
    num_blocks = -(-(frames or S) * PATCHES // BLOCK_K)
    expected, kept = oracle(*qkv, frames or S, **oracle_rule(num_blocks))
    assert 0 < kept.mean() < 0.7
    found, stats = attend(qkv, None if frames is None else jnp.int32(frames), **rule)
    assert relative_error(found[: frames or S], expected) <= 1e-5
    # Of all pairs of blocks; the special keys fill blocks of their own, which all see.
    sinks = -(-(frames or S) * SPECIAL // BLOCK_K)
    blocks = kept.sum((1, 2)) + sinks * kept.shape[1]
    np.testing.assert_allclose(stats.density, blocks / (kept.shape[1] * (num_blocks + sinks)), 1e-6)


def test_padded_frames_have_no_influence():
    qkv, rule = scene(), {"sparse_ratio": 0.5}
    first, _ = attend(qkv, jnp.int32(3), **rule)
    spoiled = [x.copy() for x in qkv]
    for x in spoiled:
        x[3:] = 1e3
    second, _ = attend(spoiled, jnp.int32(3), **rule)
    np.testing.assert_array_equal(first[:3], second[:3])


def test_special_tokens_see_and_are_seen_by_everything():
    q, k, v = scene()
    before, _ = attend((q, k, v), sparse_ratio=1.0)
    changed = v.copy()
    changed[4, 1] += 10  # a special token of the last frame
    after, _ = attend((q, k, changed), sparse_ratio=1.0)
    assert np.all(np.abs(after - before).max(-1) > 1e-4)
    changed = v.copy()
    changed[4, -1] += 10  # a patch, which not all patches see
    after, _ = attend((q, k, changed), sparse_ratio=1.0)
    moved = np.abs(after - before).max((-1, -2)) > 1e-4
    assert moved[:, :SPECIAL].all() and not moved[:, SPECIAL:].all()


def test_stats_of_the_pooled_probability():
    _, stats = attend(scene(), cdf_threshold=0.6)
    covered = np.asarray(stats.covered)
    # Rows that keep the most probable block may exceed the threshold.
    assert np.all((0.2 < covered) & (covered < 0.75))
    _, everything = attend(scene(), sparse_ratio=0.0)
    np.testing.assert_allclose(everything.covered, 1, 1e-6)
    np.testing.assert_allclose(everything.density, 1)
    np.testing.assert_allclose(everything.saved, 0)


def test_entropy_as_a_share_of_the_highest():
    q, k, v = scene()
    q = 5 * q  # Pooled noise hardly tells blocks apart.
    for frames in (S, 3):
        _, stats = attend((q, k, v), jnp.int32(frames), sparse_ratio=0.5)
        for head in range(N):
            patch_q, patch_k = (x[:frames, SPECIAL:, head].reshape(-1, H) for x in (q, k))
            scores = pooled(patch_q, BLOCK_Q) @ pooled(patch_k, BLOCK_K).T / np.sqrt(H)
            share = np.mean(entropy(softmax(scores, -1), axis=-1)) / np.log(scores.shape[1])
            np.testing.assert_allclose(stats.entropy[head], share, rtol=1e-5)
            assert share < 0.99
    _, stats = attend((q, 0 * k, v), sparse_ratio=0.5)
    np.testing.assert_allclose(stats.entropy, 1, rtol=1e-5)


def test_random_blocks_are_as_many_and_differ_by_layer_and_seed():
    qkv = scene()

    def run(layer, seed, frames=None):
        return sparse_attention(
            *qkv,
            num_special=SPECIAL,
            setting=LayerSetting(0.75, None),
            attention=BlockSparse(
                sparse_ratio=0.75, block_q=BLOCK_Q, block_k=BLOCK_K, random_seed=seed
            ),
            layer=layer,
            num_frames=frames,
        )

    (rule, expected), (lots, found) = run(0, None), run(0, 5)
    np.testing.assert_array_equal(found.density, expected.density)
    np.testing.assert_array_equal(found.entropy, expected.entropy)
    assert np.all(found.covered < expected.covered)
    np.testing.assert_array_equal(lots, run(jnp.int32(0), 5)[0])
    for other in (rule, run(1, 5)[0], run(0, 6)[0]):
        assert np.max(np.abs(lots - other)[:, SPECIAL:]) > 1e-2
        np.testing.assert_allclose(lots[:, :SPECIAL], other[:, :SPECIAL], atol=1e-5)


def test_saved_arithmetic():
    rng = np.random.default_rng(1)
    special, patches, s = 2, 62, 64
    q, k, v = (rng.normal(size=(s, special + patches, 1, H)).astype(np.float32) for _ in range(3))
    _, stats = sparse_attention(
        q, k, v,
        num_special=special,
        setting=LayerSetting(0.75, None),
        attention=BlockSparse(sparse_ratio=0.75, block_q=BLOCK_Q, block_k=BLOCK_K),
    )  # fmt: skip
    # 248 blocks of patches, of which 62 are kept, and 8 of special tokens; queries in 124 blocks.
    tokens = s * (special + patches)
    done = 124 * (62 + 8) * BLOCK_Q * BLOCK_K + s * special * tokens
    np.testing.assert_allclose(stats.saved, 1 - done / tokens**2, 1e-5)


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
    expected = [LayerSetting(0.1, 0.9), None, LayerSetting(0.3, 0.9)]
    assert attention.settings_of_layers(3) == expected
    with pytest.raises(ValueError, match="sparse_ratio has 3 numbers, but there are 4 layers"):
        attention.settings_of_layers(4)
    with pytest.raises(ValueError, match=r"must be layers of the trunk, in \[0, 2\)"):
        BlockSparse(sparse_ratio=0.5, layers=(2,)).settings_of_layers(2)
