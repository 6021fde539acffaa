"""Dense attention against a float64 softmax, and the layer around it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import block_sparse_attention
from pallas_kernels.norm_rope import apply_rope
from vggt_jax import Dense
from vggt_jax.layers import attention
from vggt_jax.layers.attention import Attention, Rope, dense_attention
from vggt_jax.layers.plain_attention import plain_attention
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.rope import rope_tables

B, T, KV, N, H = 2, 7, 11, 3, 8
FLOAT32 = Precision.from_compute_dtype(jnp.float32)


def draw(*shape, seed, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.fixture
def qkv():
    return draw(B, T, N, H, seed=0), draw(B, KV, N, H, seed=1), draw(B, KV, N, H, seed=2)


@pytest.fixture(scope="module")
def attend():
    """`dense_attention` of those with lengths, all by default: one program."""
    run = jax.jit(lambda q, k, v, lengths: dense_attention(q, k, v, kv_lengths=lengths))
    return lambda *qkv, kv_lengths=(KV, KV): np.asarray(run(*qkv, jnp.asarray(kv_lengths)))


def oracle(q, k, v, kv_lengths=None):
    """Softmax attention in float64, one query and one head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    result = np.empty((*q.shape[:3], v.shape[-1]))
    for b, t, n in np.ndindex(result.shape[:3]):
        length = k.shape[1] if kv_lengths is None else int(kv_lengths[b])
        scores = k[b, :length, n] @ q[b, t, n] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        result[b, t, n] = weights / weights.sum() @ v[b, :length, n]
    return result


@pytest.mark.parametrize("has_lengths", [True, False])
@pytest.mark.parametrize("scores_at_a_time", [None, 2 * T * KV, 3 * KV, 1])
def test_equals_softmax_in_float64(qkv, has_lengths, scores_at_a_time):
    most = scores_at_a_time and 4 * scores_at_a_time
    run = jax.jit(functools.partial(dense_attention, max_score_bytes=most))
    for lengths in ((11, 11), (4, 11), (1, 7)) if has_lengths else (None,):
        found = run(*qkv, kv_lengths=None if lengths is None else jnp.asarray(lengths))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, oracle(*qkv, lengths), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("heads", "queries"), [(B * N, T), (2, T), (1, T), (1, 3)], ids=["all", "two", "one", "some"]
)
def test_no_more_scores_than_fit(qkv, heads, queries):
    limit = 4 * heads * queries * KV
    program = jax.make_jaxpr(functools.partial(dense_attention, max_score_bytes=limit))(*qkv)
    scores = re.findall(rf"f32\[(\d+),(\d+),{KV}\] = dot_general", str(program))
    assert set(scores) == {(str(heads), str(queries))}


def test_large_scores_do_not_overflow(qkv, attend):
    q, k, v = map(np.asarray, qkv)
    expected = oracle(300 * q, 300 * k, v)
    np.testing.assert_allclose(attend(300 * q, 300 * k, v), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("garbage", [0.0, 1e6, -3e30])
def test_keys_beyond_the_length_do_not_matter(qkv, attend, garbage):
    q, k, v = map(np.asarray, qkv)
    lengths = np.array([3, 8])
    beyond = (np.arange(KV) >= lengths[:, None])[:, :, None, None]
    spoilt = (np.where(beyond, np.float32(garbage), x) for x in (k, v))
    found = attend(q, *spoilt, kv_lengths=lengths)
    np.testing.assert_array_equal(found, attend(q, k, v, kv_lengths=lengths))


def plus_one(x, *index):
    x = np.array(x)
    x[index] += 1.0
    return x


def test_a_key_moves_all_queries_of_its_head_and_row_and_nothing_else(qkv, attend):
    q, k, v = qkv
    before = attend(q, k, v)
    for changed in (attend(q, plus_one(k, 1, 4, 2), v), attend(q, k, plus_one(v, 1, 4, 2))):
        moved = np.any(changed != before, axis=-1)
        expected = np.zeros((B, T, N), bool)
        expected[1, :, 2] = True
        np.testing.assert_array_equal(moved, expected)


def test_a_query_moves_its_own_result_only(qkv, attend):
    q, k, v = qkv
    moved = np.any(attend(plus_one(q, 0, 5, 1), k, v) != attend(q, k, v), axis=-1)
    assert np.argwhere(moved).tolist() == [[0, 5, 1]]


def test_scores_are_scaled_by_the_root_of_the_head_dim(attend):
    # Two keys with scores 0 and s have weights 1 and e^s.
    q = np.full((B, T, N, H), 0.5, np.float32)
    k, v = np.zeros((2, B, KV, N, H), np.float32)
    k[:, 1], v[:, 1] = 0.25, 1.0
    score = 0.5 * 0.25 * H / np.sqrt(H)
    expected = np.exp(score) / (1 + np.exp(score))
    found = attend(q, k, v, kv_lengths=(2, 2))
    np.testing.assert_allclose(found, np.full_like(q, expected), rtol=1e-6)


def test_bfloat16_sums_in_float32():
    # One query on 4096 equal keys: sums in bfloat16 would stop at 256, where adding 1 is lost.
    k, v = (np.full((1, 4096, 1, 8), value, jnp.bfloat16) for value in (0, 1))
    found = jax.jit(dense_attention)(k[:, :1], k, v)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), 1.0)


def test_bfloat16_stays_near_float64(qkv):
    q, k, v = (np.asarray(x, jnp.bfloat16) for x in qkv)
    found = np.asarray(jax.jit(dense_attention)(q, k, v), np.float64)
    expected = oracle(q, k, v)
    # Weights and result are rounded to 8 bits once each, by up to 2^-8 of their size.
    largest = np.abs(np.asarray(v, np.float64)).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * 2**-8 * largest)


def test_unknown_implementations_are_refused(unchecked):
    with pytest.raises(
        ValueError, match="implementation='flash' is unknown; use 'mosaic_gpu', 'cudnn', 'xla'"
    ):
        Dense(implementation="flash")


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="kernels may run here")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "cudnn",
            r"cudnn: cuDNN needs an NVIDIA GPU.*default_backend\(\)='cpu', bfloat16, head_dim=8",
        ),
        (
            "mosaic_gpu",
            "mosaic_gpu: .*(is no NVIDIA GPU of the Hopper generation|is older than 0.11)",
        ),
    ],
)
def test_kernels_are_refused_without_a_gpu(qkv, name, reason):
    q, k, v = (jnp.asarray(np.asarray(x), jnp.bfloat16) for x in qkv)
    with pytest.raises(NotImplementedError, match=f"{reason}.*; use implementation='xla' or None"):
        dense_attention(q, k, v, implementation=name)


@pytest.mark.parametrize(
    ("capability", "dtype", "h", "t", "kv", "chosen"),
    [
        ("9.0", jnp.bfloat16, 64, 3, 4096, "mosaic_gpu"),
        ("9.0", jnp.bfloat16, 64, 3, 4095, "cudnn"),
        ("9.0", jnp.bfloat16, 64, 8, 256, "mosaic_gpu"),
        ("9.0", jnp.bfloat16, 64, 3, 256, "cudnn"),
        ("9.0", jnp.bfloat16, 64, 8, 257, "cudnn"),
        ("9.0", jnp.bfloat16, 64, 8, 248, "cudnn"),
        ("9.0", jnp.bfloat16, 64, 8, 64 * 2**16 + 8, "cudnn"),
        ("9.0", jnp.float16, 128, 3, 5000, "mosaic_gpu"),
        ("9.0", jnp.bfloat16, 72, 3, 5000, "cudnn"),
        ("9.0", jnp.bfloat16, 68, 3, 5000, "xla"),
        ("9.0", jnp.float32, 64, 3, 5000, "xla"),
        ("8.0", jnp.bfloat16, 64, 3, 5000, "cudnn"),
        ("7.5", jnp.bfloat16, 64, 3, 5000, "xla"),
        (None, jnp.bfloat16, 64, 3, 5000, "xla"),
    ],
)
def test_the_implementation_fits_device_type_and_keys(
    pretend_device, monkeypatch, capability, dtype, h, t, kv, chosen
):
    pretend_device("cpu" if capability is None else "gpu", capability)
    monkeypatch.setattr("pallas_kernels.mosaic_gpu_call.is_supported", lambda: True)
    q, k = (jax.ShapeDtypeStruct((1, tokens, 2, h), dtype) for tokens in (t, kv))
    called = []

    def run(*args, name, **options):
        called.append(name)
        return args[0]

    for name, where in (
        ("mosaic_gpu", "_mosaic_gpu"),
        ("cudnn", "_cudnn"),
        ("xla", "plain_attention"),
    ):
        monkeypatch.setattr(attention, where, functools.partial(run, name=name))
    jax.eval_shape(lambda *qkv: dense_attention(*qkv), q, k, k)  # a function of its own, not cached
    assert called == [chosen]


@pytest.mark.parametrize(
    ("capability", "num_tokens", "implementation", "padded"),
    [
        ("9.0", 1374, None, 1376),
        ("9.0", 1376, None, 1376),
        ("9.0", 256, None, 256),
        ("9.0", 255, None, 255),
        ("9.0", 1374, "mosaic_gpu", 1376),
        ("9.0", 1374, "cudnn", 1374),
        ("8.0", 1374, None, 1374),
        (None, 1374, None, 1374),
    ],
)
def test_tokens_of_a_frame_are_padded_for_the_own_kernel(
    pretend_device, monkeypatch, capability, num_tokens, implementation, padded
):
    pretend_device("cpu" if capability is None else "gpu", capability)
    monkeypatch.setattr("pallas_kernels.mosaic_gpu_call.is_supported", lambda: True)
    dense = Dense(implementation=implementation)
    found = attention.padded_tokens(num_tokens, dense, head_dim=64, dtype=jnp.bfloat16)
    assert found == padded
    wide = attention.padded_tokens(num_tokens, dense, head_dim=64, dtype=jnp.float32)
    assert wide == num_tokens


@pytest.mark.parametrize("kv_lengths", [pytest.param(None, marks=pytest.mark.slow), (301, 150)])
def test_the_block_sparse_kernel_is_asked_for_everything(monkeypatch, kv_lengths):
    """With another implementation of the same, which runs anywhere."""
    asked = []

    def anywhere(*args, implementation, **options):
        asked.append(implementation)
        return block_sparse_attention(*args, implementation="xla", **options)

    monkeypatch.setattr(attention, "block_sparse_attention", anywhere)
    q, k, v = (draw(2, t, 3, 64, seed=20 + i) for i, t in enumerate((149, 301, 301)))
    lengths = None if kv_lengths is None else jnp.asarray(kv_lengths)
    found = jax.jit(lambda *args: attention._mosaic_gpu(*args))(q, k, v, lengths)
    assert asked == ["mosaic_gpu"]
    np.testing.assert_allclose(found, oracle(q, k, v, lengths), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_lengths", [pytest.param(None, marks=pytest.mark.slow), (31, 15)])
def test_the_gradient_with_the_own_kernel(monkeypatch, kv_lengths):
    """With plain attention in place of cuDNN's, whose gradient it is."""
    plain = lambda q, k, v, lengths: plain_attention(q, k, v, lengths, None, FLOAT32.matmul)
    anywhere = lambda *args, implementation, **options: block_sparse_attention(*args, **options)
    monkeypatch.setattr(attention, "block_sparse_attention", anywhere)
    monkeypatch.setattr(attention, "_cudnn", plain)
    q, k, v = (draw(2, t, 3, 64, seed=40 + i) for i, t in enumerate((19, 31, 31)))
    weights = draw(2, 19, 3, 64, seed=43)
    lengths = None if kv_lengths is None else jnp.asarray(kv_lengths)

    def gradients(attend):
        loss = jax.checkpoint(lambda *qkv: jnp.sum(weights * attend(*qkv, lengths)))
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

    for found, expected in zip(gradients(attention._mosaic_gpu), gradients(plain), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.new_jax
def test_the_own_kernel_in_the_simulator(monkeypatch, relative_error):
    """As on a Hopper GPU: scenes in one launch, all queries one block, keys that do not count."""
    simulated = functools.partial(block_sparse_attention, interpret=True)
    monkeypatch.setattr(attention, "block_sparse_attention", simulated)
    q, k, v = (
        draw(2, t, 2, 64, seed=30 + i, dtype=jnp.bfloat16) for i, t in enumerate((149, 131, 131))
    )
    k, v = (np.array(x) for x in (k, v))
    k[1, 67:], v[1, 67:] = 30.0, np.nan
    found = attention._mosaic_gpu(q, k, v, jnp.array([131, 67]))
    expected = oracle(q, k, v, [131, 67])
    # Weights and results are rounded to 8 bits.
    assert relative_error(found, expected) <= 2**-8


project = jax.jit(lambda layer, x, rope: layer.project(x, rope, FLOAT32))
norm = jax.jit(lambda layer, x: layer(x))


def test_projections_are_cut_into_three_and_then_into_heads(randomised):
    layer = randomised(lambda rngs: Attention(12, 3, qk_norm=False, rngs=rngs))
    x = draw(2, 5, 12, seed=5)
    kernel, bias = np.asarray(layer.qkv.kernel[...]), np.asarray(layer.qkv.bias[...])
    joint = np.asarray(x) @ kernel + bias  # [2, 5, (q, k, v) (head) 4]
    for part, found in enumerate(map(np.asarray, project(layer, x, None))):
        for head in range(3):
            start = 12 * part + 4 * head
            np.testing.assert_allclose(
                found[:, :, head], joint[..., start : start + 4], rtol=1e-5, atol=1e-5
            )
    attended = draw(2, 5, 3, 4, seed=7)
    kernel, bias = np.asarray(layer.proj.kernel[...]), np.asarray(layer.proj.bias[...])
    expected = np.asarray(attended).reshape(2, 5, 12) @ kernel + bias
    found = jax.jit(lambda layer, x: layer.output(x, FLOAT32))(layer, attended)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_queries_and_keys_are_normalised_and_then_turned(randomised):
    layer = randomised(lambda rngs: Attention(24, 3, qk_norm=True, rngs=rngs))
    x = draw(2, 5, 24, seed=12)
    positions = np.stack([np.arange(5), 2 * np.arange(5)], axis=-1)
    rope = Rope(*map(jnp.asarray, rope_tables(positions, 8)))
    plain = randomised(lambda rngs: Attention(24, 3, qk_norm=False, rngs=rngs))
    plain.qkv = layer.qkv
    q, k, v = project(layer, x, rope)
    raw_q, raw_k, raw_v = project(plain, x, None)
    np.testing.assert_allclose(v, raw_v, rtol=1e-6, atol=1e-6)
    turn = jax.jit(lambda x: apply_rope(x, *rope))
    np.testing.assert_allclose(q, turn(norm(layer.q_norm, raw_q)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(k, turn(norm(layer.k_norm, raw_k)), rtol=1e-6, atol=1e-6)
    assert not np.allclose(q, norm(layer.q_norm, turn(raw_q)), atol=1e-2)


def test_queries_and_keys_in_bfloat16_are_rounded_after_the_turn(randomised, relative_error):
    layer = randomised(lambda rngs: Attention(64, 2, qk_norm=True, rngs=rngs))
    x = draw(2, 5, 64, seed=13, dtype=jnp.bfloat16)
    positions = np.stack([np.arange(5), 2 * np.arange(5)], axis=-1)
    rope = Rope(*map(jnp.asarray, rope_tables(positions, 32)))
    narrow = Precision.from_compute_dtype(jnp.bfloat16)
    rounded = np.asarray(np.asarray(layer.qkv.kernel[...], jnp.bfloat16), np.float32)
    layer.qkv.kernel.set_value(jnp.asarray(rounded))
    exact = project(layer, np.asarray(x, np.float32), rope)
    found = jax.jit(lambda layer, x, rope: layer.project(x, rope, narrow))(layer, x, rope)
    for value, expected in zip(found, exact, strict=True):
        assert value.dtype == jnp.bfloat16
        # Two roundings by half of 2^-8 at most: of the product without its bias, and of the result.
        assert relative_error(value, expected) <= 2**-8


@pytest.mark.parametrize(
    ("implementation", "plain"), [("xla", "xla"), ("cudnn", None), (None, None)]
)
def test_plain_attention_is_plain_around_it_too(implementation, plain):
    """A program exported on a GPU for other devices has no kernels of one."""
    assert Dense(implementation=implementation).around == plain
