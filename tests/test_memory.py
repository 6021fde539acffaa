"""The estimate of memory, against what the compiler plans."""

import types

import jax.numpy as jnp
import pytest
from model_checks import check_estimate_of_memory

import vggt_jax
from pallas_kernels import tuned
from vggt_jax.pipeline import memory

SPARSE = vggt_jax.BlockSparse(sparse_ratio=0.75, min_tokens=0)


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "attention"),
    [
        pytest.param(19, 140, 112, vggt_jax.Dense(), id="many small frames, dense"),
        pytest.param(6, 196, 252, SPARSE, id="few large frames, sparse", marks=pytest.mark.slow),
    ],
)
def test_estimate_is_near_what_the_compiler_plans(tiny, num_frames, height, width, attention):
    model = tiny(
        embed_dim=192, num_heads=6, dpt_features=32, enable_point=False, enable_track=False
    )
    check_estimate_of_memory(
        model, num_frames=num_frames, height=height, width=width, attention=attention
    )


def test_estimate_grows_with_frames_and_tracks():
    config = vggt_jax.VGGTConfig.vggt_1b()
    make = lambda frames, points, attention=vggt_jax.Dense(), dtype=jnp.bfloat16: (
        memory.estimate_memory(
            config,
            weights=5_000_000_000,
            num_frames=frames,
            height=518,
            width=518,
            num_query_points=points,
            compute_dtype=dtype,
            attention=attention,
        )
    )
    few, many, tracked = make(10, 0), make(200, 0), make(200, 100)
    assert few.total < many.total < tracked.total
    # Without a kernel dense attention has scores in memory, on a GPU as many as these.
    with tuned.override({"dense.max_score_bytes": 2**28}):
        assert make(20, 0, SPARSE, dtype=jnp.float32).trunk < make(20, 0, dtype=jnp.float32).trunk
    wide = make(20, 0, dtype=jnp.float32)
    # Where some layers are dense, or all are for want of tokens, it takes what dense attention
    # takes.
    some = vggt_jax.BlockSparse(sparse_ratio=0.75, layers=(0,))
    assert make(20, 0, some, dtype=jnp.float32) == wide
    few_tokens = vggt_jax.BlockSparse(sparse_ratio=0.75, min_tokens=10**6)
    assert make(20, 0, few_tokens, dtype=jnp.float32) == wide
    assert many.kept_tokens == 2 * 4 * 200 * 1374 * 2 * 1024
    assert many.outputs == 4 * 6 * 200 * 518 * 518
    assert "GiB (weights 4.66" in str(few)


@pytest.mark.parametrize(
    ("capability", "attention", "copies"),
    [
        ("9.0", vggt_jax.Dense(), 3),
        ("9.0", vggt_jax.Dense(implementation="cudnn"), 0),
        ("8.0", vggt_jax.Dense(), 0),
        ("9.0", vggt_jax.BlockSparse(sparse_ratio=0.75), 0),
    ],
)
def test_what_dense_attention_copies(pretend_device, monkeypatch, capability, attention, copies):
    """Queries, keys, values without the padding of frames, where frames are padded for kernels."""
    pretend_device("gpu", capability)
    monkeypatch.setattr("pallas_kernels.mosaic_gpu_call.is_supported", lambda: True)
    # Of an MLP as narrow as this, attention is what takes most.
    config = vggt_jax.VGGTConfig(mlp_ratio=0.5)
    frames = {"num_frames": 50, "height": 518, "width": 518}
    estimate = memory.estimate_memory(
        config, weights=0, **frames, attention=attention, compute_dtype=jnp.bfloat16
    )
    array = 2 * 50 * 1374 * 1024
    assert estimate.trunk == 2 * array + max(5, 4 + copies) * array


def test_some_of_a_gpu_is_left_for_pieces_that_do_not_fit(monkeypatch):
    stats = {"bytes_limit": 1000, "bytes_in_use": 100}
    device = types.SimpleNamespace(platform="gpu", device_kind="a GPU", memory_stats=lambda: stats)
    monkeypatch.setattr(memory.jax, "local_devices", lambda: [device])
    assert memory.available_memory() == 860


def test_available_memory_is_that_of_the_device():
    free = memory.available_memory()
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize("config", [vggt_jax.Pi3XConfig(), vggt_jax.MapAnythingConfig()])
def test_what_is_known_takes_room(config):
    size = {"num_frames": 100, "height": 392, "width": 518, "compute_dtype": jnp.bfloat16}
    make = lambda *known: memory.estimate_memory(config, weights=3, known=known, **size)
    alone, cameras, maps = make(), make("intrinsics", "poses"), make("rays", "depth")
    assert (alone.priors, alone.known) == (0, 0) and "known" not in str(alone)
    assert cameras.priors == 4 * 100 * (9 + 16)
    assert maps.priors == 4 * 100 * 392 * 518 * (3 + 1)
    # Tokens of the encoder in float32 at least, and no less for more.
    tokens = 100 * (392 // 14 * 518 // 14 + config.num_special_tokens)
    assert 4 * tokens * config.encoder_dim < cameras.known < maps.known
    for known in (cameras, maps):
        assert known.total >= alone.total + known.priors and known.outputs == alone.outputs
    assert make("intrinsics", "poses", "depth").known <= make("rays", "poses", "depth").known
