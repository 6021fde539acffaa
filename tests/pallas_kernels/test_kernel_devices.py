"""What runs where: devices, configurations, and programs for an NVIDIA GPU lowered without one."""

import dataclasses
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import (
    BlockMap,
    MosaicGpuConfig,
    TritonConfig,
    block_sparse_attention,
    devices,
    mosaic_gpu_call,
    select_blocks,
    tuned,
)
from pallas_kernels.attention import api
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


@pytest.mark.parametrize(
    ("backend", "capability", "expected"),
    [
        ("gpu", "9.0", True),
        ("gpu", "8.0", False),
        ("gpu", "9.1", False),
        ("gpu", "10.0", False),
        ("gpu", "12.0", False),
        ("gpu", "gfx90a", False),
        ("cpu", None, False),
    ],
)
def test_hopper(pretend_device, backend, capability, expected):
    pretend_device(backend, capability)
    assert devices.is_hopper() is expected


def test_device_kind(pretend_device):
    pretend_device("gpu", "9.0", H100)
    assert devices.device_kind() == H100
    assert devices.multiprocessors() == 132


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


def test_mosaic_gpu_config_is_checked():
    assert MosaicGpuConfig() == MosaicGpuConfig(query_tiles=2, stages=2)
    for wrong, message in [
        ({"query_tiles": 0}, "query_tiles=0 must be 1 or 2"),
        ({"query_tiles": 3}, "query_tiles=3 must be 1 or 2 for self.tile_q=128"),
        ({"query_tiles": 5, "tile_q": 64}, "query_tiles=5 must be from 1 to 4 for self.tile_q=64"),
        ({"tile_q": 32}, "tile_q=32 must be 64 or 128"),
        ({"stages": 1}, "stages=1 must be at least 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            MosaicGpuConfig(**wrong)
    with pytest.raises(TypeError):
        MosaicGpuConfig(2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        MosaicGpuConfig().stages = 3
    assert hash(MosaicGpuConfig()) == hash(MosaicGpuConfig())


# Counted as JAX 0.11.2 did on an H100, where it said: "kernel exceeds available shared memory:
# smem_bytes=...".
TOO_LARGE = [(128, 2, 7, 64, 264_688), (128, 1, 7, 128, 264_440), (64, 4, 4, 64, 297_568)]


@pytest.mark.parametrize(("tile_q", "query_tiles", "stages", "head_dim", "num_bytes"), TOO_LARGE)
def test_shared_memory_of_a_config(tile_q, query_tiles, stages, head_dim, num_bytes):
    config = MosaicGpuConfig(tile_q=tile_q, query_tiles=query_tiles, stages=stages)
    assert config.shared_memory(head_dim) == num_bytes
    with pytest.raises(ValueError, match=f"needs {num_bytes} bytes of shared memory for head_dim="):
        config.check_head_dim(head_dim)
    # With fewer stages there is room for queries or results, and with fewer still for both.
    fewer = dataclasses.replace(config, stages=stages - 1)
    fewer.check_head_dim(head_dim)
    assert fewer.results_replace_queries(head_dim)
    assert not dataclasses.replace(config, stages=2).results_replace_queries(head_dim)


def test_two_query_tiles_of_large_heads_do_not_fit():
    with pytest.raises(ValueError, match="self.query_tiles=2 needs more registers than there are"):
        MosaicGpuConfig(query_tiles=2, stages=2).check_head_dim(128)


@pytest.mark.parametrize(
    ("num_consumers", "pieces", "expected"),
    [
        (4, 1, (112, 24)),
        (4, 4, (112, 32)),
        (3, 1, (160, 24)),
        (3, 2, (160, 32)),
        (2, 1, (240, 24)),
        (2, 4, (232, 32)),
        (1, 1, None),
        (1, 4, None),
    ],
)
def test_registers_of_warp_groups(num_consumers, pieces, expected):
    """Consumers that ask for more than there are would wait forever on a GPU."""
    from pallas_kernels.attention.mosaic_gpu import registers

    found = registers(num_consumers, pieces)
    assert found == expected
    if found is not None:
        # Of the 65,536 of a multiprocessor, as many as all threads can start with, in steps of 8.
        threads = 128 * (num_consumers + 1)
        start = 65536 // threads // 8 * 8
        assert found[1] < start < found[0] <= 240
        assert num_consumers * found[0] + found[1] <= (num_consumers + 1) * start


@pytest.mark.parametrize("kind", [H100, "a device that nobody tuned for"])
@pytest.mark.parametrize(("head_dim", "query_tiles"), [(64, 2), (128, 1)])
def test_chosen_mosaic_gpu_config(pretend_device, kind, head_dim, query_tiles):
    pretend_device("gpu", "9.0", kind)
    config = configs.choose_mosaic_gpu_config(jnp.bfloat16, head_dim)
    assert isinstance(config, MosaicGpuConfig)
    config.check_head_dim(head_dim)
    if kind != H100:
        assert config.query_tiles == query_tiles


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


def test_tuned_config_is_chosen(pretend_device):
    tuned_values = {
        "attention.triton.2.64": dict(tile_q=64, tile_k=128, num_warps=8, num_stages=4),
        "attention.mosaic_gpu.2.64": dict(query_tiles=1, stages=7),
    }
    pretend_device("gpu", "9.0", H100)
    before = configs.choose_mosaic_gpu_config(jnp.bfloat16, 128)
    with tuned.override(tuned_values):
        expected = TritonConfig(**tuned_values["attention.triton.2.64"])
        assert configs.choose_triton_config(jnp.bfloat16, 64, 128, 64) == expected
        assert configs.choose_triton_config(jnp.float16, 64, 128, 64) == expected
        assert configs.choose_triton_config(jnp.float32, 64, 128, 64) != expected
        assert configs.choose_triton_config(jnp.bfloat16, 32, 128, 64) != expected
        # Small blocks of queries have small tiles.
        smaller = dataclasses.replace(expected, tile_q=32)
        assert configs.choose_triton_config(jnp.bfloat16, 64, 32, 64) == smaller
        expected = MosaicGpuConfig(**tuned_values["attention.mosaic_gpu.2.64"])
        assert configs.choose_mosaic_gpu_config(jnp.bfloat16, 64) == expected
        assert configs.choose_mosaic_gpu_config(jnp.bfloat16, 128) == before


def forget_warnings_given():
    """JAX warns of a deprecated name once a process, and that may have been in another test."""
    for name, module in list(sys.modules.items()):
        lookup = vars(module).get("__getattr__")
        if name.startswith("jax") and hasattr(lookup, "cache_clear"):
            lookup.cache_clear()


def lower_for_h100(function, *args, **options):
    """The program for an NVIDIA GPU, and the warnings on the way."""
    forget_warnings_given()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = jax.jit(lambda *args: function(*args, **options)).trace(*args)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    return program, [str(warning.message) for warning in caught]


def kernels_in(program):
    """Through which backends of Pallas the kernels of a program go."""
    targets = {
        "triton": ("__gpu$xla.gpu.triton", "triton_kernel_call"),
        "mosaic_gpu": ("@mosaic_gpu",),
    }
    return {name for name, texts in targets.items() if any(text in program for text in texts)}


ATTENTION = [
    (jnp.bfloat16, 64, 128, 64, None, "mosaic_gpu", False),
    (jnp.float16, 64, 128, 64, 150, "mosaic_gpu", True),
    (jnp.bfloat16, 128, 128, 256, "blocks", "mosaic_gpu", False),
    (jnp.float32, 128, 32, 16, 150, "triton", False),
    (jnp.float16, 32, 64, 128, "blocks", "triton", True),
]


@pytest.mark.parametrize(
    ("dtype", "h", "block_q", "block_k", "kv_lengths", "best", "is_batch"), ATTENTION
)
def test_attention_becomes_a_kernel_on_a_gpu(
    pretend_h100, dtype, h, block_q, block_k, kv_lengths, best, is_batch
):
    batch = (2,) if is_batch else ()
    q = jax.ShapeDtypeStruct((*batch, 300, 3, h), dtype)
    k = jax.ShapeDtypeStruct((*batch, 517, 3, h), dtype)
    block_map = BlockMap.full(3, 300, 517, block_q=block_q, block_k=block_k)
    if kv_lengths == "blocks":
        kv_lengths = np.full(block_map.num_kv_blocks, 7)

    def attend(q, k, v, block_map):
        return block_sparse_attention(q, k, v, block_map, kv_lengths=kv_lengths)

    if is_batch:
        attend = jax.vmap(attend, in_axes=(0, 0, 0, None))
    with pretend_h100():
        program, caught = lower_for_h100(attend, q, k, k, block_map)
    assert "triton" in kernels_in(program)  # what helps the other, too
    assert ("mosaic_gpu" in kernels_in(program)) == (
        best == "mosaic_gpu" and mosaic_gpu_call.is_supported()
    )
    assert caught == []


def test_selection_becomes_a_kernel_on_a_gpu(pretend_h100):
    q, k = (jax.ShapeDtypeStruct((t, 3, 64), jnp.bfloat16) for t in (300, 517))
    options = {"sparse_ratio": 0.5, "cdf_threshold": 0.9, "num_sink_blocks": 1, "capacity": 5}
    with pretend_h100():
        program, caught = lower_for_h100(select_blocks, q, k, **options)
    assert kernels_in(program) == {"triton"}
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
        lambda q: block_sparse_attention(q, q, q, block_map, implementation="triton"),
        lambda q: select_blocks(q, q, cdf_threshold=0.5).block_map.counts,
    ]
    for function in functions:
        forget_warnings_given()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jax.block_until_ready(transform(function)(q))
        assert caught == []


@pytest.fixture
def chosen(monkeypatch):
    """Which implementation and config would compute some inputs; it does not run."""

    def chosen(dtype=jnp.bfloat16, h=64, block_q=128, block_k=64, **options):
        found = []

        def attend(call, *, chosen):
            found.append((chosen.backend.name, chosen.config))
            return None, None

        monkeypatch.setattr(api, "_attend", attend)
        x = jnp.asarray(np.zeros((256, 1, h), dtype))
        mask = np.ones((1, -(-256 // block_q), -(-256 // block_k)), bool)
        block_map = BlockMap.from_dense_mask(mask, block_q=block_q, block_k=block_k)
        block_sparse_attention(x, x, x, block_map, **options)
        return found[0]

    monkeypatch.setattr(mosaic_gpu_call, "is_supported", lambda: True)
    return chosen


@pytest.mark.parametrize(
    ("backend", "capability", "expected"),
    [
        ("gpu", "9.0", "mosaic_gpu"),
        ("gpu", "8.0", "triton"),
        ("gpu", "10.0", "triton"),
        ("gpu", "12.0", "triton"),
        ("gpu", "7.5", "xla"),
        ("gpu", "gfx942", "xla"),
        ("cpu", None, "xla"),
    ],
)
def test_device_decides_where_nothing_is_named(
    pretend_device, chosen, backend, capability, expected
):
    pretend_device(backend, capability)
    implementation, config = chosen()
    assert implementation == expected
    kinds = {"mosaic_gpu": MosaicGpuConfig, "triton": TritonConfig, "xla": type(None)}
    assert isinstance(config, kinds[expected])


INPUTS = [
    ({}, "mosaic_gpu"),
    ({"dtype": jnp.float16}, "mosaic_gpu"),
    ({"h": 128}, "mosaic_gpu"),
    ({"block_q": 256, "block_k": 128}, "mosaic_gpu"),
    ({"dtype": jnp.float32}, "triton"),
    ({"h": 32}, "triton"),
    ({"block_q": 64, "block_k": 16}, "mosaic_gpu"),
    ({"block_q": 128, "block_k": 32}, "mosaic_gpu"),
    ({"block_q": 32}, "triton"),
    ({"dtype": jnp.float32, "block_q": 32, "block_k": 16}, "triton"),
    ({"h": 48}, "xla"),
    ({"block_q": 96}, "xla"),
    ({"block_q": 192}, "xla"),
    ({"block_k": 96}, "xla"),
    ({"block_k": 8}, "xla"),
]


@pytest.mark.parametrize(("inputs", "expected"), INPUTS, ids=[str(x) for x, _ in INPUTS])
def test_inputs_decide_on_hopper(pretend_device, chosen, monkeypatch, inputs, expected):
    """What a kernel cannot do goes to the next, and what none can to XLA."""
    pretend_device("gpu", "9.0", H100)
    assert chosen(**inputs)[0] == expected
    monkeypatch.setattr(mosaic_gpu_call, "is_supported", lambda: False)
    assert chosen(**inputs)[0] == ("triton" if expected == "mosaic_gpu" else expected)


def test_why_kernels_cannot_be_used(pretend_device, monkeypatch):
    monkeypatch.setattr(mosaic_gpu_call, "is_supported", lambda: True)
    sizes = {"head_dim": 64, "dtype": jnp.float32}
    pretend_device("gpu", "9.0", H100)
    found = pallas_kernels.attention_unsupported_because(**sizes)
    assert found == {
        "mosaic_gpu": "float32 is not supported (bfloat16, float16)",
        "triton": None,
    }
    with pytest.warns(DeprecationWarning, match="now called attention_unsupported_because"):
        assert pallas_kernels.attention_obstacles(**sizes) == found
    pretend_device("cpu")
    found = pallas_kernels.attention_unsupported_because(head_dim=64, dtype=jnp.bfloat16)
    assert list(found) == ["mosaic_gpu", "triton"] and all(
        "is no NVIDIA" in x for x in found.values()
    )


@pytest.mark.parametrize(
    ("version", "expected"),
    [((0, 10, 2), False), ((0, 11, 0), True), ((0, 12, 1), True), ((1, 0, 0), True)],
)
def test_oldest_jax(monkeypatch, version, expected):
    monkeypatch.setattr(jax, "__version_info__", version)
    assert mosaic_gpu_call.is_supported() is expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [(TritonConfig(num_stages=1), "triton"), (MosaicGpuConfig(stages=3), "mosaic_gpu")],
)
def test_config_implies_its_implementation(pretend_device, chosen, config, expected):
    pretend_device("gpu", "9.0", H100)
    assert chosen(config=config) == (expected, config)
    # Also where neither could be compiled.
    pretend_device("cpu")
    assert chosen(config=config, interpret=True) == (expected, config)
    assert chosen(interpret=True)[0] == "triton"
