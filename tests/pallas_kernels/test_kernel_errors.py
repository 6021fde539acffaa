"""What is refused, and in which words: the same for all implementations."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    BlockMap,
    MosaicGpuConfig,
    TritonConfig,
    block_sparse_attention,
    mosaic_gpu_call,
    select_blocks,
)

pytestmark = pytest.mark.usefixtures("unchecked")

ATTENTION = {
    "mosaic_gpu": {"implementation": "mosaic_gpu", "interpret": True},
    "triton": {"implementation": "triton", "interpret": True},
    "xla": {"implementation": "xla"},
    "reference": {"implementation": "reference"},
}
SELECTION = {name: ATTENTION[name] for name in ("triton", "xla")}
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="needs a CPU")


# Both by NumPy: nothing is compiled for arguments that are refused.


def zeros(*shape, dtype=jnp.float32):
    return jnp.asarray(np.zeros(shape, dtype))


def keep_all(n, t, kv, *, block_q, block_k):
    mask = np.ones((n, -(-t // block_q), -(-kv // block_k)), bool)
    return BlockMap.from_dense_mask(mask, block_q=block_q, block_k=block_k)


Q, K = zeros(67, 2, 32), zeros(83, 2, 32)
MAP = keep_all(2, 67, 83, block_q=32, block_k=16)


def attend(*, q=Q, k=K, v=None, block_map=MAP, **options):
    return block_sparse_attention(q, k, k if v is None else v, block_map, **options)


ATTENTION_ERRORS = {
    "batch": (
        {"q": zeros(3, 67, 2, 32)},
        "q must be [t n h], k and v [kv n h] with the same heads, not (3, 67, 2, 32), (83, 2, 32) "
        "and (83, 2, 32); use jax.vmap for a batch",
    ),
    "heads": (
        {"k": zeros(83, 1, 32)},
        "with the same heads, not (67, 2, 32), (83, 1, 32) and (83, 1, 32)",
    ),
    "values": ({"v": zeros(82, 2, 32)}, "not (67, 2, 32), (83, 2, 32) and (82, 2, 32)"),
    "no queries": (
        {"q": zeros(0, 2, 32)},
        "no tokens to attend: q is (0, 2, 32), k is (83, 2, 32)",
    ),
    "no keys": ({"k": zeros(0, 2, 32)}, "no tokens to attend: q is (67, 2, 32), k is (0, 2, 32)"),
    "mixed types": (
        {"k": zeros(83, 2, 32, dtype=jnp.bfloat16)},
        "q, k and v must all be float32, bfloat16 or float16, not float32, bfloat16, bfloat16",
    ),
    "integers": (
        {"q": zeros(67, 2, 32, dtype=int), "k": zeros(83, 2, 32, dtype=int)},
        "q, k and v must all be float32, bfloat16 or float16, not int32, int32, int32",
    ),
    "map of other queries": (
        {"block_map": keep_all(2, 97, 83, block_q=32, block_k=16)},
        "block_map is for (2, 4, 6) heads, query blocks and key blocks, but q (67, 2, 32) and k "
        "(83, 2, 32) have (2, 3, 6) with block_map.block_q=32, block_map.block_k=16",
    ),
    "map of other keys": (
        {"block_map": keep_all(2, 67, 97, block_q=32, block_k=16)},
        "block_map is for (2, 3, 7) heads",
    ),
    "map of other heads": (
        {"block_map": keep_all(1, 67, 83, block_q=32, block_k=16)},
        "block_map is for (1, 3, 6) heads",
    ),
    "batch of maps": (
        {"block_map": jax.tree.map(lambda x: x[None], MAP)},
        "block_map is for (1, 2, 3, 6) heads",
    ),
    "lengths of other blocks": (
        {"kv_lengths": np.full(7, 16)},
        "kv_lengths must be one number or one for each of 6 key blocks, not of shape (7,)",
    ),
    "scale of zero": ({"scale": 0}, "scale=0.0 must be a positive number"),
    "negative scale": ({"scale": -0.5}, "scale=-0.5 must be a positive number"),
    "no scale": ({"scale": float("nan")}, "scale=nan must be a positive number"),
}


def assert_wrong_everywhere(call, arguments, implementations, message):
    """A ValueError with this message, and the same words from every implementation."""
    texts = []
    for options in implementations.values():
        with pytest.raises(ValueError) as caught:
            call(**arguments, **options)
        texts.append(str(caught.value))
    assert message in texts[0]
    assert texts == texts[:1] * len(texts)


@pytest.mark.parametrize("case", ATTENTION_ERRORS)
def test_wrong_arguments_of_attention(case):
    arguments, message = ATTENTION_ERRORS[case]
    assert_wrong_everywhere(attend, arguments, ATTENTION, message)


def test_unknown_implementation_of_attention():
    message = (
        "implementation='cuda' is unknown; use 'mosaic_gpu', 'triton', 'xla', 'reference' or None"
    )
    with pytest.raises(ValueError, match=message):
        attend(implementation="cuda")


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize(
    "config", [TritonConfig(), MosaicGpuConfig()], ids=["triton", "mosaic_gpu"]
)
def test_config_for_what_has_no_settings(implementation, config):
    message = (
        f"{implementation=} has no settings; leave out {config=}, or use 'mosaic_gpu' or 'triton'"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        attend(implementation=implementation, config=config)


@pytest.mark.parametrize(
    ("implementation", "kind", "config"),
    [
        ("triton", "TritonConfig", MosaicGpuConfig()),
        ("mosaic_gpu", "MosaicGpuConfig", TritonConfig()),
        ("mosaic_gpu", "MosaicGpuConfig", {"query_tiles": 2}),
    ],
)
def test_config_of_another_kernel(implementation, kind, config):
    message = f"{implementation=} takes a {kind}, not {config=}"
    with pytest.raises(ValueError, match=re.escape(message)):
        attend(config=config, **ATTENTION[implementation])


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_interpreting_what_is_no_kernel(implementation):
    message = (
        f"{implementation=} is no kernel; leave out interpret=True, or use 'mosaic_gpu' or 'triton'"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        attend(implementation=implementation, interpret=True)


def test_tile_that_does_not_divide_a_block():
    message = "config.tile_q=64 does not divide block_map.block_q=32"
    with pytest.raises(ValueError, match=message):
        attend(config=TritonConfig(tile_q=64), **ATTENTION["triton"])


def assert_can(arguments, implementation):
    """It becomes a program; values for odd sizes are tested with those of others."""
    q = arguments["q"]
    block_map = arguments["block_map"]
    out = jax.eval_shape(
        lambda q, k: attend(q=q, k=k, block_map=block_map, implementation=implementation),
        q,
        arguments["k"],
    )
    assert (out.shape, out.dtype) == (q.shape, q.dtype)


@pytest.mark.parametrize(
    ("h", "block_q", "block_k", "message"),
    [
        (48, 32, 16, r"triton: head_dim=48 is not supported \(32, 64, 128\)"),
        (
            32,
            48,
            16,
            "block_q=48 and block_map.block_k=16 must be powers of two, from 16 and 16 on",
        ),
        (32, 32, 8, "block_q=32 and block_map.block_k=8 must be powers of two, from 16 and 16 on"),
    ],
)
def test_what_triton_cannot_do_and_xla_can(h, block_q, block_k, message):
    q, k = zeros(67, 2, h), zeros(83, 2, h)
    arguments = {
        "q": q,
        "k": k,
        "block_map": keep_all(2, 67, 83, block_q=block_q, block_k=block_k),
    }
    with pytest.raises(NotImplementedError, match=f"{message}; use implementation='xla' or None"):
        attend(**arguments, **ATTENTION["triton"])
    for implementation in ("xla", None):
        assert_can(arguments, implementation)


@pytest.fixture
def new_jax(monkeypatch):
    """What is refused before anything is traced needs no JAX that could do it."""
    monkeypatch.setattr(mosaic_gpu_call, "is_supported", lambda: True)


BLOCKS = "must be powers of two, from 64 and 16 on"


@pytest.mark.parametrize(
    ("dtype", "h", "block_q", "block_k", "message"),
    [
        (jnp.float32, 64, 128, 64, r"float32 is not supported \(bfloat16, float16\)"),
        (jnp.bfloat16, 32, 128, 64, r"head_dim=32 is not supported \(64, 128\)"),
        (jnp.float16, 64, 32, 64, f"block_map.block_q=32 and block_map.block_k=64 {BLOCKS}"),
        (jnp.bfloat16, 64, 192, 64, f"block_map.block_q=192 and block_map.block_k=64 {BLOCKS}"),
        (jnp.bfloat16, 64, 128, 8, f"block_map.block_q=128 and block_map.block_k=8 {BLOCKS}"),
        (jnp.bfloat16, 64, 128, 96, f"block_map.block_q=128 and block_map.block_k=96 {BLOCKS}"),
    ],
)
def test_what_mosaic_gpu_cannot_do_and_xla_can(new_jax, dtype, h, block_q, block_k, message):
    q, k = zeros(67, 2, h, dtype=dtype), zeros(83, 2, h, dtype=dtype)
    arguments = {
        "q": q,
        "k": k,
        "block_map": keep_all(2, 67, 83, block_q=block_q, block_k=block_k),
    }
    message = f"^mosaic_gpu: {message}; use implementation='xla' or None$"
    with pytest.raises(NotImplementedError, match=message):
        attend(**arguments, **ATTENTION["mosaic_gpu"])
    assert_can(arguments, "xla")


def test_lists_that_are_too_long_for_kernels(new_jax):
    x = zeros(128, 1, 64, dtype=jnp.bfloat16)
    block_map = BlockMap(
        indices=jnp.zeros((1, 1, 2**16 + 1), jnp.int32),
        counts=jnp.ones((1, 1), jnp.int32),
        num_kv_blocks=2,
        block_q=128,
        block_k=64,
    )
    for name in ("mosaic_gpu", "triton"):
        message = (
            f"{name}: block_map.capacity=65537 is above 65536; use implementation='xla' or None"
        )
        with pytest.raises(NotImplementedError, match=message):
            attend(q=x, k=x, block_map=block_map, **ATTENTION[name])


def test_mosaic_gpu_on_an_old_jax(monkeypatch):
    monkeypatch.setattr(mosaic_gpu_call, "is_supported", lambda: False)
    message = f"mosaic_gpu: jax.__version__='{jax.__version__}' is older than 0.11; use"
    for options in ({}, {"interpret": True}):
        with pytest.raises(NotImplementedError, match=re.escape(message)):
            attend(implementation="mosaic_gpu", **options)


@pytest.mark.parametrize("capability", ["8.0", "10.0", "12.0"])
def test_mosaic_gpu_on_another_gpu(new_jax, pretend_device, capability):
    pretend_device("gpu", capability)
    message = r"mosaic_gpu: .* is no NVIDIA GPU of the Hopper generation \(H100, H200\); use"
    for options in ({"implementation": "mosaic_gpu"}, {"config": MosaicGpuConfig()}):
        with pytest.raises(NotImplementedError, match=message):
            attend(**options)


@on_cpu
def test_mosaic_gpu_on_a_cpu(new_jax):
    where = r"jax.default_backend\(\)='cpu', compute capability None"
    message = f"mosaic_gpu: {where}, is no NVIDIA GPU of the Hopper generation"
    with pytest.raises(NotImplementedError, match=message):
        attend(implementation="mosaic_gpu")


@on_cpu
def test_triton_on_a_cpu():
    message = r"jax.default_backend\(\)='cpu' is no NVIDIA GPU from Ampere on; use implementation="
    with pytest.raises(NotImplementedError, match=f"triton: {message}'xla' or None"):
        attend(implementation="triton")
    with pytest.raises(NotImplementedError, match=f"triton: {message}'xla' or None"):
        select_blocks(Q, K, sparse_ratio=0.5, implementation="triton")


SELECTION_ERRORS = {
    "batch": (
        {"q": zeros(3, 67, 2, 32)},
        "q must be [t n h] and k [kv n h] with the same heads, not (3, 67, 2, 32) and "
        "(83, 2, 32); use jax.vmap for a batch",
    ),
    "heads": ({"k": zeros(83, 1, 32)}, "not (67, 2, 32) and (83, 1, 32)"),
    "head dims": ({"k": zeros(83, 2, 16)}, "not (67, 2, 32) and (83, 2, 16)"),
    "no queries": ({"q": zeros(0, 2, 32)}, "not (0, 2, 32) and (83, 2, 32)"),
    "no keys": ({"k": zeros(0, 2, 32)}, "not (67, 2, 32) and (0, 2, 32)"),
    "block_q": ({"block_q": 0}, "block_q=0 must be at least 1"),
    "block_k": ({"block_k": -16}, "block_k=-16 must be at least 1"),
    "pool mode": ({"pool_mode": "mean"}, "pool_mode='mean' is unknown; use 'avg' or 'max'"),
    "nothing": (
        {"sparse_ratio": None},
        "nothing says how many blocks to keep; give sparse_ratio or cdf_threshold",
    ),
    "ratio above one": ({"sparse_ratio": 1.5}, "sparse_ratio=1.5 must be in [0, 1]"),
    "ratio of NaN": ({"sparse_ratio": float("nan")}, "sparse_ratio=nan must be in [0, 1]"),
    "a negative ratio among others": (
        {"sparse_ratio": np.array([0.5, -0.5])},
        "sparse_ratio=[ 0.5 -0.5] must be in [0, 1]",
    ),
    "threshold below zero": ({"cdf_threshold": -0.1}, "cdf_threshold=-0.1 must be in [0, 1]"),
    "ratios of other heads": (
        {"sparse_ratio": np.full(3, 0.5)},
        "sparse_ratio must be one number or one for each of the 2 heads, not of shape (3,)",
    ),
    "thresholds of other heads": (
        {"cdf_threshold": np.full((2, 1), 0.5)},
        "cdf_threshold must be one number or one for each of the 2 heads, not of shape (2, 1)",
    ),
    "sinks alone": (
        {"num_sink_blocks": 6},
        "num_sink_blocks=6 must leave some of the 6 key blocks",
    ),
    "negative sinks": ({"num_sink_blocks": -1}, "num_sink_blocks=-1 must leave some of the 6"),
    "capacity": ({"capacity": 0}, "capacity=0 must be above num_sink_blocks=0"),
    "capacity for sinks alone": (
        {"num_sink_blocks": 2, "capacity": 2},
        "capacity=2 must be above num_sink_blocks=2",
    ),
    "lengths of other blocks": ({"kv_lengths": np.full(7, 16)}, "kv_lengths must be one number"),
    "lengths of queries": ({"q_length": np.full(3, 32)}, "q_length must be one number"),
    "scale": ({"scale": float("nan")}, "scale=nan must be"),
}


@pytest.mark.parametrize("case", SELECTION_ERRORS)
def test_wrong_arguments_of_selection(case):
    arguments, message = SELECTION_ERRORS[case]
    arguments = {"q": Q, "k": K, "sparse_ratio": 0.5, "block_q": 32, "block_k": 16} | arguments
    assert_wrong_everywhere(select_blocks, arguments, SELECTION, message)


def test_unknown_implementation_of_selection():
    message = "implementation='reference' is unknown; use 'triton', 'xla' or None"
    with pytest.raises(ValueError, match=message):
        select_blocks(Q, K, sparse_ratio=0.5, implementation="reference")


def test_too_many_blocks_for_triton():
    k = zeros(2**16 + 1, 1, 1)
    options = {"sparse_ratio": 0.99999, "block_k": 1, **SELECTION["triton"]}
    message = "triton: num_kv_blocks=65537 is above 65536; use implementation='xla' or None"
    with pytest.raises(NotImplementedError, match=message):
        select_blocks(zeros(1, 1, 1), k, **options)
