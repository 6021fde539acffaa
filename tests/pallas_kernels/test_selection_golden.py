"""Selection against the masks of the paper's code."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.selection import pooling

CASES = ["t390", "t1000", "t8288"]


# All in the full tier; in the quick one the smallest and the largest case.
PAIRS = [
    pytest.param("t390", "avg", marks=pytest.mark.quick("xla")),
    pytest.param("t390", "max", marks=pytest.mark.quick()),
    pytest.param("t1000", "avg", marks=pytest.mark.quick()),
    pytest.param("t1000", "max", marks=pytest.mark.quick()),
    pytest.param("t8288", "avg", marks=pytest.mark.quick("triton-interpreted")),
    pytest.param("t8288", "max", marks=pytest.mark.quick("xla")),
]


@pytest.mark.parametrize(("case", "mode"), PAIRS)
def test_masks_are_those_of_the_papers_code(select, dense_mask, golden, case, mode):
    """All settings at once: each has copies of the heads."""
    arrays = golden(f"selector.{case}")
    pooled = arrays[f"pooled_{mode}"]
    settings = [re.fullmatch(rf"mask_{mode}_r(.+)_c(.+)", name) for name in arrays]
    settings = [match for match in settings if match]
    assert len(settings) == 7
    q, k = (np.tile(arrays[name], (7, 1, 1)).swapaxes(0, 1) for name in ("query", "key"))
    # A ratio of 1 and a threshold of 0 ask for nothing.
    ratios = [1.0 if match[1] == "None" else float(match[1]) for match in settings]
    thresholds = [0.0 if match[2] == "None" else float(match[2]) for match in settings]
    found = select(
        jnp.asarray(q),
        jnp.asarray(k),
        sparse_ratio=np.repeat(ratios, len(pooled)),
        cdf_threshold=np.repeat(thresholds, len(pooled)),
        pool_mode=mode,
    )
    expected = [
        np.unpackbits(arrays[match[0]], axis=-1, count=pooled.shape[-1]) for match in settings
    ]
    expected = np.concatenate(expected).astype(bool)
    np.testing.assert_array_equal(dense_mask(found.block_map), expected)
    # Probabilities are sums of float32 ones, up to 130 of them.
    covered = (np.tile(pooled, (7, 1, 1)) * expected).sum(-1)
    np.testing.assert_allclose(found.retained_mass, covered, atol=1e-5)
    np.testing.assert_allclose(found.density, expected.mean((-1, -2)), rtol=1e-6)
    assert not np.asarray(found.missing).any()


@pytest.mark.slow
def test_ratio_alone(select, dense_mask, golden):
    """As people call it."""
    arrays = golden("selector.t1000")
    q, k = (jnp.asarray(arrays[name].swapaxes(0, 1)) for name in ("query", "key"))
    found = select(q, k, sparse_ratio=0.75)
    num_blocks = arrays["pooled_avg"].shape[-1]
    expected = np.unpackbits(arrays["mask_avg_r0.75_cNone"], axis=-1, count=num_blocks)
    np.testing.assert_array_equal(dense_mask(found.block_map), expected.astype(bool))
    assert found.block_map.capacity == int(num_blocks * 0.25)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("case", CASES)
def test_pooling_is_that_of_the_papers_code(golden, case, mode):
    arrays = golden(f"selector.{case}")
    pooled = []
    pool = jax.jit(pooling.pool, static_argnames=("block", "mode"))
    for name, block in (("query", 128), ("key", 64)):
        x = jnp.asarray(arrays[name].swapaxes(0, 1))
        starts = np.arange(0, x.shape[0], block)
        tokens = jnp.asarray(np.minimum(block, x.shape[0] - starts))
        pooled.append(np.asarray(pool(x, tokens, block=block, mode=mode), np.float64))
    scores = np.einsum("nqh,nkh->nqk", *pooled) * 64**-0.5
    masses = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities = masses / masses.sum(-1, keepdims=True)
    np.testing.assert_allclose(probabilities, arrays[f"pooled_{mode}"], rtol=2e-5, atol=1e-7)
