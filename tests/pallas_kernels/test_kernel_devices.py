"""What runs where: devices, configurations, and programs for an NVIDIA GPU lowered without one."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMap, TritonConfig, block_sparse_attention, devices, select_blocks
from pallas_kernels.attention import config as configs

H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("backend", "capability", "expected"),
    [
        ("gpu", "9.0", True),
        ("gpu", "8.0", True),
        ("gpu", "12.0", True),
        ("gpu", "7.5", False),
        ("gpu", "gfx942", False),
        ("cpu", None, False),
        ("tpu", None, False),
    ],
)
def test_ampere_or_later(pretend_device, backend, capability, expected):
    pretend_device(backend, capability)
    assert devices.is_ampere_or_later() is expected


def test_device_kind(pretend_device):
    pretend_device("gpu", "9.0", H100)
    assert devices.device_kind() == H100


def test_config_is_checked():
    assert TritonConfig() == TritonConfig(tile_q=128)
    for wrong, message in [
        ({"tile_q": 48}, "tile_q=48 must be a power of two from 16 on"),
        ({"tile_k": 8}, "tile_k=8 must be a power of two from 16 on"),
        ({"tile_k": 0}, "tile_k=0 must be a power of two from 16 on"),
        ({"num_warps": 3}, "num_warps=3 must be 1, 2, 4, 8 or 16"),
        ({"num_stages": 0}, "num_stages=0 must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            TritonConfig(**wrong)
    with pytest.raises(TypeError):
        TritonConfig(128)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TritonConfig().tile_q = 64
    assert hash(TritonConfig()) == hash(TritonConfig())


GEOMETRIES = [(128, 64), (64, 128), (32, 16), (16, 16), (128, 256), (512, 32)]


@pytest.mark.parametrize("kind", [H100, "a device that nobody tuned for"])
@pytest.mark.parametrize(("block_q", "block_k"), GEOMETRIES)
def test_chosen_config_fits_the_blocks(pretend_device, kind, block_q, block_k):
    pretend_device("gpu", "9.0", kind)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        for head_dim in (32, 64, 128):
            config = configs.choose_triton_config(dtype, head_dim, block_q, block_k)
            assert isinstance(config, TritonConfig)
            assert block_q % config.tile_q == 0
            # A step takes whole blocks, or a part that divides one.
            assert block_k % config.tile_k == 0 or config.tile_k % block_k == 0


def test_tuned_config_is_chosen(pretend_device, monkeypatch):
    tuned = TritonConfig(tile_q=64, tile_k=128, num_warps=8, num_stages=4)
    monkeypatch.setattr(configs, "_TUNED", {H100: {(2, 64): tuned}})
    pretend_device("gpu", "9.0", H100)
    assert configs.choose_triton_config(jnp.bfloat16, 64, 128, 64) == tuned
    assert configs.choose_triton_config(jnp.float16, 64, 128, 64) == tuned
    assert configs.choose_triton_config(jnp.float32, 64, 128, 64) != tuned
    assert configs.choose_triton_config(jnp.bfloat16, 32, 128, 64) != tuned
    # Small blocks of queries have small tiles.
    smaller = dataclasses.replace(tuned, tile_q=32)
    assert configs.choose_triton_config(jnp.bfloat16, 64, 32, 64) == smaller
    pretend_device("gpu", "8.0", "another")
    assert configs.choose_triton_config(jnp.bfloat16, 64, 128, 64) != tuned


def test_table_of_tuned_configs():
    for kind, table in configs._TUNED.items():
        assert isinstance(kind, str)
        for (itemsize, head_dim), config in table.items():
            assert itemsize in (2, 4) and head_dim in (32, 64, 128)
            assert isinstance(config, TritonConfig) and 128 % config.tile_q == 0


def lower_for_h100(function, *args, **options):
    """The program for an NVIDIA GPU, and the warnings on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = jax.jit(lambda *args: function(*args, **options)).trace(*args)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    return program, [str(warning.message) for warning in caught]


ATTENTION = [
    (jnp.bfloat16, 64, 128, 64, None),
    (jnp.float32, 128, 32, 16, 150),
    (jnp.float16, 32, 64, 128, "blocks"),
    (jnp.bfloat16, 128, 128, 256, None),
]


@pytest.mark.parametrize(("dtype", "h", "block_q", "block_k", "kv_lengths"), ATTENTION)
def test_attention_becomes_a_kernel_on_a_gpu(pretend_h100, dtype, h, block_q, block_k, kv_lengths):
    q = jax.ShapeDtypeStruct((300, 3, h), dtype)
    k = jax.ShapeDtypeStruct((517, 3, h), dtype)
    block_map = BlockMap.full(3, 300, 517, block_q=block_q, block_k=block_k)
    if kv_lengths == "blocks":
        kv_lengths = np.full(block_map.num_kv_blocks, 7)
    with pretend_h100():
        program, caught = lower_for_h100(
            block_sparse_attention, q, k, k, block_map, kv_lengths=kv_lengths
        )
    assert program.count("__gpu$xla.gpu.triton") or program.count("triton_kernel_call")
    assert caught == []


def test_selection_becomes_a_kernel_on_a_gpu(pretend_h100):
    q, k = (jax.ShapeDtypeStruct((t, 3, 64), jnp.bfloat16) for t in (300, 517))
    options = {"sparse_ratio": 0.5, "cdf_threshold": 0.9, "num_sink_blocks": 1, "capacity": 5}
    with pretend_h100():
        program, caught = lower_for_h100(select_blocks, q, k, **options)
    assert program.count("__gpu$xla.gpu.triton") or program.count("triton_kernel_call")
    assert caught == []


@pytest.mark.gpu
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_nobody_is_warned_on_a_gpu(transform):
    """Sizes that no other test has, so that programs are compiled here."""
    q = jnp.ones((137, 2, 64), jnp.bfloat16)
    block_map = BlockMap.full(2, 137, 137)
    functions = [
        lambda q: block_sparse_attention(q, q, q, block_map),
        lambda q: block_sparse_attention(q, q, q, block_map, kv_lengths=99),
        lambda q: select_blocks(q, q, cdf_threshold=0.5).block_map.counts,
    ]
    for function in functions:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jax.block_until_ready(transform(function)(q))
        assert caught == []


def test_device_decides_where_nothing_is_named(pretend_h100):
    """On an NVIDIA GPU what the kernel can do goes to it, and the rest to XLA."""

    def is_kernel(h=64, block_q=128, block_k=64):
        x = jax.ShapeDtypeStruct((256, 1, h), jnp.float32)
        block_map = BlockMap.full(1, 256, 256, block_q=block_q, block_k=block_k)
        program = jax.make_jaxpr(lambda *args: block_sparse_attention(*args))(x, x, x, block_map)
        return "triton_kernel[" in str(program)

    assert is_kernel()
    assert not is_kernel(h=48)
    assert not is_kernel(block_q=96)
    assert not is_kernel(block_k=8)
