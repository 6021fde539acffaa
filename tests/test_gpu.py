"""What only a GPU shows: kernels for dense attention, no TF32 in the parity mode, bfloat16."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import vggt_jax
from pallas_kernels import devices, mosaic_gpu_call, norm_rope, tuned
from vggt_jax.layers import attention
from vggt_jax.layers.rope import rope_tables
from vggt_jax.models.loading import with_dtype
from vggt_jax.pipeline.placing import on_host, sent_to_host
from vggt_jax.trunk.attention.block_sparse import sparse_attention

pytestmark = pytest.mark.gpu


def random_tokens(seed, b, t, n, h):
    return jax.random.normal(jax.random.key(seed), (b, t, n, h))


@pytest.mark.parametrize(("toy", "case"), [("vggt_odd", "n5_84x112"), ("vggt_late", "n3_70x98")])
def test_float32_equals_the_official_code(run_toy, golden, relative_error, toy, case):
    found, expected = run_toy(toy, case), golden(f"{toy}.{case}")
    for name in found.keys() & expected.keys():
        limit = 2e-4 if name in ("track", "vis", "conf") else 2e-5
        assert relative_error(toys.kept(name, found[name]), expected[name]) <= limit, name


@pytest.mark.parametrize(("toy", "case"), [("pi3_toy", "n1_56x84"), ("pi3_odd", "b2n3_42x70")])
def test_float32_of_pi3_equals_the_official_code(run_pi3_toy, golden, relative_error, toy, case):
    found, expected = run_pi3_toy(toy, case), golden(f"{toy}.{case}")
    for name, value in found.items():
        limit = 1e-4 if "points" in name else 2e-5
        assert relative_error(toys.kept(name, value), expected[name]) <= limit, name


@pytest.mark.parametrize(
    "attention", [vggt_jax.Dense(), vggt_jax.BlockSparse(min_tokens=0, sparse_ratio=0.0)]
)
def test_bfloat16_of_pi3_is_as_good_with_kernels_as_without(tiny_pi3, relative_error, attention):
    model = tiny_pi3(
        encoder_dim=128, encoder_num_heads=2, decoder_dim=128, decoder_num_heads=2, head_dim=128,
        head_num_heads=2,
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (5, 70, 98, 3), np.uint8)
    run = jax.jit(vggt_jax.reconstruct, static_argnames=("attention", "compute_dtype"))
    exact = run(model, images, compute_dtype=jnp.float32)
    plain = vggt_jax.Dense(implementation="xla")
    plain = run(model, images, attention=plain, compute_dtype=jnp.bfloat16)
    found = run(model, images, attention=attention, compute_dtype=jnp.bfloat16)
    for name in ("camera_from_world", "depth", "world_points", "depth_confidence"):
        expected = getattr(exact, name)
        error = relative_error(getattr(found, name), expected)
        assert error <= 2 * relative_error(getattr(plain, name), expected), name


@pytest.mark.parametrize("implementation", ["cudnn", "mosaic_gpu"])
@pytest.mark.parametrize(("keys", "kv_lengths"), [(8192, None), (8300, None), (8300, (8300, 5003))])
def test_kernels_are_as_good_as_plain_jax(relative_error, implementation, keys, kv_lengths):
    skip_if_older(implementation)
    lengths = None if kv_lengths is None else jnp.array(kv_lengths)
    q, k, v = (random_tokens(i, 2, keys, 3, 64) for i in range(3))
    attend = functools.partial(attention.dense_attention, kv_lengths=lengths)
    exact = attend(q[:, :637], k, v, implementation="xla")
    narrow = [x.astype(jnp.bfloat16) for x in (q[:, :637], k, v)]
    plain = attend(*narrow, implementation="xla")
    found = attend(*narrow, implementation=implementation)
    assert relative_error(found, exact) <= 2 * relative_error(plain, exact)


def skip_if_older(implementation):
    if implementation == "mosaic_gpu" and not mosaic_gpu_call.is_supported():
        pytest.skip(f"mosaic_gpu needs JAX 0.11 or later, not {jax.__version__}")


def test_block_sparse_attention_that_keeps_everything(load_toy, golden, relative_error):
    arrays = golden("vggt_odd.n5_84x112")
    sparse = vggt_jax.BlockSparse(
        min_tokens=0, sparse_ratio=0.0, token_order="tiles", implementation="triton"
    )
    output = jax.jit(
        lambda model, images: model(images, attention=sparse, compute_dtype=jnp.float32)
    )(load_toy("vggt_odd"), arrays["images"])
    for name in ("depth", "depth_conf", "world_points", "world_points_conf"):
        value = toys.kept(name, getattr(output, name))
        assert relative_error(value, arrays[name]) <= 2e-5, name


def test_block_sparse_attention_of_a_batch_in_bfloat16(relative_error):
    b, s, special, patches, n, h = 2, 7, 5, 131, 3, 64
    q, k, v = (
        jax.random.normal(jax.random.key(i), (b, s, special + patches, n, h)) for i in range(3)
    )

    everything = vggt_jax.BlockSparse(min_tokens=0, sparse_ratio=0.0, implementation="triton")

    @jax.jit
    @jax.vmap
    def attend(q, k, v):
        return sparse_attention(
            q,
            k,
            v,
            num_special=special,
            grid=(1, patches),
            sparse_ratio=0.0,
            cdf_threshold=None,
            attention=everything,
            num_frames=jnp.int32(6),
        )[0]

    def dense(q, k, v):
        scene = lambda x: x[:, :6].reshape(b, -1, n, h)
        return attention.dense_attention(scene(q), scene(k), scene(v), implementation="xla")

    exact = dense(q, k, v)
    narrow = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    sparse = attend(*narrow)[:, :6].reshape(exact.shape)
    assert relative_error(sparse, exact) <= 2 * relative_error(dense(*narrow), exact)


def test_gradient_of_the_own_kernel(relative_error):
    skip_if_older("mosaic_gpu")
    # cuDNN, whose gradient it is, wants an even number of tokens.
    q, k, v = (random_tokens(i, 2, 4302, 2, 64).astype(jnp.bfloat16) for i in range(3))
    weights = random_tokens(3, 2, 4302, 2, 64)

    def gradients(implementation):
        attend = functools.partial(
            attention.dense_attention,
            implementation=implementation,
            kv_lengths=jnp.array([4302, 99]),
        )
        loss = lambda *qkv: jnp.sum(weights * attend(*qkv).astype(jnp.float32))
        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    for own, other in zip(gradients("mosaic_gpu"), gradients("cudnn"), strict=True):
        assert relative_error(own, other) <= 1e-2


def test_padded_keys_are_hidden(relative_error):
    q, k, v = (random_tokens(i, 2, 517, 3, 64).astype(jnp.bfloat16) for i in range(3))
    lengths = jnp.array([517, 300])
    whole = attention.dense_attention(q, k, v, kv_lengths=lengths, implementation="cudnn")
    for i, length in enumerate(lengths):
        row = [x[i : i + 1] for x in (q, k[:, :length], v[:, :length])]
        cut = attention.dense_attention(*row, implementation="cudnn")
        assert relative_error(whole[i : i + 1], cut) <= 5e-3


def test_bfloat16_stays_close_to_float32(tiny, relative_error):
    model = tiny(embed_dim=128, num_heads=2, vit_num_heads=2, enable_track=False)
    images = np.random.default_rng(0).integers(0, 256, (5, 70, 98, 3), np.uint8)
    run = jax.jit(vggt_jax.reconstruct, static_argnames=("attention", "compute_dtype"))
    exact = run(model, images, compute_dtype=jnp.float32)
    # Half of the error is that of bfloat16 itself, with attention in plain JAX.
    plain = run(
        model, images, attention=vggt_jax.Dense(implementation="xla"), compute_dtype=jnp.bfloat16
    )
    cudnn = run(model, images, compute_dtype=jnp.bfloat16)
    for name in ("camera_from_world", "depth", "world_points", "depth_confidence"):
        expected = getattr(exact, name)
        error = relative_error(getattr(cudnn, name), expected)
        assert error <= 2 * relative_error(getattr(plain, name), expected), name


def test_cudnn_does_not_take_float32():
    q = random_tokens(0, 1, 17, 2, 64)
    with pytest.raises(NotImplementedError, match="bfloat16 or float16"):
        attention.dense_attention(q, q, q, implementation="cudnn")


@pytest.fixture(scope="module")
def trunk_at_full_size():
    """Tokens of six frames that the trunk of VGGT-1B keeps last, and first ones, by settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "scripts")
        from random_model import random_model, released_config

    model = with_dtype(random_model(released_config("vggt")), jnp.bfloat16)
    images = jax.random.randint(jax.random.key(1), (1, 6, 518, 518, 3), 0, 256, jnp.uint8)
    tokens = jax.jit(type(model).encode)(model, images)

    def run(attention, compute_dtype=None):
        trunk = jax.jit(
            lambda model, tokens: model.aggregate(
                tokens, model.layout(images), attention=attention, compute_dtype=compute_dtype
            )
        )(model, tokens)
        return trunk.kept[:, :, -1].astype(jnp.float32), trunk.first_tokens

    return run


def test_keeping_everything_is_dense_at_full_size(trunk_at_full_size, relative_error):
    """`BlockSparse(sparse_ratio=0.0)` in bfloat16 is as near to dense attention as two
    implementations of dense attention are to each other."""
    # Linear layers are XLA's in all of them.
    with tuned.override({"linear.min_tiles_per_multiprocessor": 10**9}):
        dense, other, sparse = map(
            trunk_at_full_size,
            (
                vggt_jax.Dense(implementation="cudnn"),
                vggt_jax.Dense(implementation="xla"),
                vggt_jax.BlockSparse(sparse_ratio=0.0),
            ),
        )
    for found, plain, expected in zip(sparse, other, dense, strict=True):
        assert relative_error(found, expected) <= 1.2 * relative_error(plain, expected)


@pytest.mark.new_jax
def test_kernels_are_as_good_as_plain_jax_at_full_size(
    trunk_at_full_size, relative_error, monkeypatch
):
    """Attention that keeps everything, norms, RoPE and linear layers by kernels: in bfloat16 as
    near to float32 as all of it in plain JAX."""
    from pallas_kernels.linear import mosaic_gpu

    products, run_kernel = [], mosaic_gpu.run
    counted = lambda call, **options: products.append(call.x.shape) or run_kernel(call, **options)
    monkeypatch.setattr(mosaic_gpu, "run", counted)
    # Six frames are too few for it to be chosen.
    with tuned.override({"linear.min_tiles_per_multiprocessor": 0}):
        sparse = trunk_at_full_size(vggt_jax.BlockSparse(sparse_ratio=0.0))
    assert products or not devices.is_hopper()
    plain = trunk_at_full_size(vggt_jax.Dense(implementation="xla"))
    exact = trunk_at_full_size(vggt_jax.Dense(implementation="xla"), jnp.float32)
    for found, other, expected in zip(sparse, plain, exact, strict=True):
        assert relative_error(found, expected) <= 1.1 * relative_error(other, expected)


def norm_rope_arguments(b, p, n, h):
    """Tables as keywords of `norm_rope`, and `x` of two normal numbers' spread."""
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
    cos, sin = rope_tables(np.stack(np.divmod(np.arange(p), 37), axis=-1), h)
    parameters = {"scale": 1 + 0.1 * draw(1, h), "offset": draw(2, h), "bias": draw(3, n, h)}
    return 2 * draw(0, b, p, n, h), {"cos": cos, "sin": sin, **parameters, "eps": 1e-5}


def test_norm_rope_is_as_good_in_the_kernel_as_without(relative_error):
    x, keywords = norm_rope_arguments(3, 1374, 16, 64)
    exact = norm_rope(x, **keywords, implementation="xla")
    narrow = x.astype(jnp.bfloat16)
    plain = norm_rope(narrow, **keywords, implementation="xla")
    kernel = norm_rope(narrow, **keywords, implementation="triton")
    assert kernel.dtype == jnp.bfloat16
    assert relative_error(kernel, exact) <= 2 * relative_error(plain, exact)


def test_norm_rope_of_more_than_2_to_the_31_numbers():
    """The last frame, whose offsets need 64 bits, is as good as alone."""
    x, keywords = norm_rope_arguments(2, 1374, 16, 64)
    frames = x.astype(jnp.bfloat16)

    @jax.jit
    def run(frames):
        is_last = jnp.arange(1600)[:, None, None, None] == 1599
        x = jnp.where(is_last, frames[1], frames[0])
        out = norm_rope(x, **keywords, implementation="triton")
        same = jax.vmap(lambda frame: jnp.all(frame == out[0]))(out)
        return out[0], out[-1], jnp.sum(same)

    first, last, num_same = run(frames)
    assert num_same == 1599
    expected = norm_rope(frames, **keywords, implementation="triton")
    np.testing.assert_array_equal(np.stack([first, last]), expected)


def test_arrays_reach_the_host_through_pinned_memory():
    x = jnp.arange(12.0).reshape(3, 4)
    sent = sent_to_host(x)
    assert sent.sharding.memory_kind == "pinned_host"
    found = on_host(sent)
    assert not found.flags.owndata
    np.testing.assert_array_equal(found, np.asarray(x))
