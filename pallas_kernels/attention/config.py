"""Tile sizes of the kernels, and the tables of what was measured to be fastest."""

import dataclasses

import jax.numpy as jnp

from pallas_kernels import devices

# Bytes of shared memory that a block of threads can have on Hopper (CUDA C++ programming guide,
# table of technical specifications per compute capability).
MAX_SHARED_MEMORY = 227 * 1024

# Key blocks that a row may list (`key_lists.list_keys`).
MAX_CAPACITY = 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class TritonConfig:
    """How the Triton kernel cuts its work.

    Attributes:
        tile_q: queries of one program; divides the map's `block_q`.
        tile_k: keys of one step: several kept blocks, or a part of one.
        num_warps: warps of a program.
        num_stages: steps whose keys and values are in flight or in use.
    """

    tile_q: int = 128
    tile_k: int = 128
    num_warps: int = 4
    num_stages: int = 3

    def __post_init__(self):
        for name in ("tile_q", "tile_k"):
            if (size := getattr(self, name)) < 16 or size & (size - 1):
                raise ValueError(f"{name}={size} must be a power of two from 16 on")
        if self.num_warps not in (1, 2, 4, 8, 16):
            raise ValueError(f"{self.num_warps=} must be 1, 2, 4, 8 or 16")
        if self.num_stages < 1:
            raise ValueError(f"{self.num_stages=} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MosaicGpuConfig:
    """How the Mosaic GPU kernel uses a multiprocessor.

    Attributes:
        streams: tiles of 128 queries that are worked on at a time.
        stages: tiles of 64 keys, and of their values, that each of them has in flight or in use.
    """

    streams: int = 2
    stages: int = 2

    def __post_init__(self):
        if self.streams not in (1, 2):
            raise ValueError(f"{self.streams=} must be 1 or 2")
        if self.stages < 2:
            raise ValueError(f"{self.stages=} must be at least 2")

    def check(self, head_dim: int):
        """Raises ValueError if a multiprocessor has no room for this."""
        if self.streams == 2 and head_dim > 64:
            raise ValueError(f"{self.streams=} needs more registers than there are for {head_dim=}")
        if (needed := self.shared_memory(head_dim)) > MAX_SHARED_MEMORY:
            raise ValueError(
                f"{self} needs {needed} bytes of shared memory for {head_dim=}; there are "
                f"{MAX_SHARED_MEMORY}"
            )

    def shared_memory(self, head_dim: int) -> int:
        """Bytes of shared memory that it takes, for numbers of two bytes."""
        queries_and_results = 2 * 128 * head_dim * 2
        keys_and_values = 2 * 64 * head_dim * 2
        tiles = self.streams * (queries_and_results + self.stages * keys_and_values)
        barriers = self.streams * 8 * (3 + 4 * self.stages)
        # The log-sum-exps of one stream or two take 1 KiB, as arrays are aligned to that, and
        # Mosaic reserves 2 KiB for reductions across warps.
        return tiles + barriers + 3 * 1024


# The fastest settings found by scripts/tune_attention.py, by kind of device; by bytes of a number
# and head dim. For blocks of 128 queries and 64 keys (docs/benchmarks/tuning_h100.jsonl).
_TUNED = {
    "NVIDIA H100 80GB HBM3": {
        (2, 32): TritonConfig(tile_q=64, tile_k=64, num_warps=4, num_stages=3),
        (2, 64): TritonConfig(tile_q=128, tile_k=128, num_warps=4, num_stages=3),
        (2, 128): TritonConfig(tile_q=128, tile_k=64, num_warps=4, num_stages=2),
        (4, 32): TritonConfig(tile_q=64, tile_k=64, num_warps=4, num_stages=2),
        (4, 64): TritonConfig(tile_q=64, tile_k=64, num_warps=4, num_stages=2),
        (4, 128): TritonConfig(tile_q=32, tile_k=32, num_warps=4, num_stages=2),
    },
    "NVIDIA H200": {
        (2, 64): TritonConfig(tile_q=128, tile_k=128, num_warps=4, num_stages=2),
        (2, 128): TritonConfig(tile_q=128, tile_k=64, num_warps=4, num_stages=2),
    },
}


# Likewise (docs/benchmarks/tuning_h100.jsonl, tuning_h200.jsonl).
_TUNED_MOSAIC_GPU = {
    "NVIDIA H100 80GB HBM3": {
        (2, 64): MosaicGpuConfig(streams=2, stages=2),
        (2, 128): MosaicGpuConfig(streams=1, stages=3),
    },
    "NVIDIA H200": {
        (2, 64): MosaicGpuConfig(streams=2, stages=2),
        (2, 128): MosaicGpuConfig(streams=1, stages=2),
    },
}


def choose_mosaic_gpu_config(dtype, head_dim: int, block_q: int, block_k: int) -> MosaicGpuConfig:
    """The tuned settings where there are some for this device, else what should do.

    They do not depend on the blocks, which are arguments as in `choose_triton_config`.
    """
    del block_q, block_k
    tuned = _TUNED_MOSAIC_GPU.get(devices.device_kind(), {})
    # Two streams of head dim 128 would need more registers than there are.
    guess = MosaicGpuConfig(streams=2 if head_dim == 64 else 1, stages=2)
    return tuned.get((jnp.dtype(dtype).itemsize, head_dim), guess)


def choose_triton_config(dtype, head_dim: int, block_q: int, block_k: int) -> TritonConfig:
    """The tuned settings where there are some for this device, else what should do."""
    itemsize = jnp.dtype(dtype).itemsize
    tuned = _TUNED.get(devices.device_kind(), {}).get((itemsize, head_dim))
    config = tuned or _guess(itemsize, head_dim)
    # A tile is no larger than a block of queries. A step takes two blocks of keys at most: with
    # more, there are more scores than registers.
    return dataclasses.replace(
        config, tile_q=min(config.tile_q, block_q), tile_k=min(config.tile_k, 2 * block_k)
    )


def _guess(itemsize, head_dim):
    """Settings that fit any GPU that can run the kernel: scores, outputs and tiles in registers."""
    if itemsize == 4:
        return TritonConfig(
            tile_q=64 if head_dim < 128 else 32, tile_k=32, num_warps=4, num_stages=2
        )
    if head_dim == 128:
        return TritonConfig(tile_q=128, tile_k=64, num_warps=8, num_stages=2)
    return TritonConfig(tile_q=128, tile_k=128, num_warps=4, num_stages=3)
