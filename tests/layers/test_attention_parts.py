"""cuDNN attention over parts of the keys: all that can be seen of it without a GPU."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from vggt_jax.layers import attention


@pytest.mark.parametrize("num_keys", [8192, 8200, 68_700, 137_400, 274_800, 1_374_000])
def test_parts_cover_the_keys_in_whole_tiles(num_keys):
    cuts = attention._cut_keys(num_keys)
    sizes = [stop - start for start, stop in itertools.pairwise(cuts)]
    assert cuts[0] == 0 and cuts[-1] == num_keys and min(sizes) > 0
    remainder = num_keys % 128
    assert [size % 128 for size in sizes] == [0] * (len(sizes) - bool(remainder)) + [
        remainder
    ] * bool(remainder)
    assert max(sizes) <= 544 * 128


def softmax_attention_with_lse(q, k, v):
    """What cuDNN computes: products of narrow types, sums in float32, a narrow result."""
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    scores = jnp.einsum("btnh,bknh->btnk", *wide[:2]) * q.shape[-1] ** -0.5
    lse = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse[..., None])
    return jnp.einsum("btnk,bknh->btnh", weights, wide[2]).astype(q.dtype), lse


def test_merged_parts_are_as_good_as_the_whole(monkeypatch, relative_error):
    monkeypatch.setattr(attention, "_cudnn_with_lse", softmax_attention_with_lse)
    monkeypatch.setattr(attention, "_MAX_KEYS_IN_PART", 256)
    keys = jax.random.split(jax.random.key(0), 3)
    # Scores of uneven size, so that parts weigh differently for each query.
    q, k, v = (2 * jax.random.normal(key, (2, 709, 3, 32)) for key in keys)
    exact, _ = softmax_attention_with_lse(q, k, v)
    assert relative_error(attention._cudnn_in_parts(q, k, v), exact) <= 1e-6
    narrow = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    whole, _ = softmax_attention_with_lse(*narrow)
    parts = attention._cudnn_in_parts(*narrow)
    assert relative_error(parts, exact) <= 1.2 * relative_error(whole, exact)


def test_program_for_a_gpu_merges_in_float32(monkeypatch):
    """Holds the signature of the function that is not public, and the type of what it returns."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(attention, "_MAX_KEYS_IN_PART", 4096)
    x = jax.ShapeDtypeStruct((1, 9000, 2, 64), jnp.bfloat16)
    traced = jax.jit(attention._cudnn_in_parts).trace(x, x, x)
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("__cudnn$fmhaSoftmax") == 4
    converted = [line for line in program.splitlines() if "stablehlo.convert" in line]
    assert converted and all("1x9000x2x64x" in line for line in converted)
