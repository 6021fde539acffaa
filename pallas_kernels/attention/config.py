"""Settings of the kernels, and which a device gets (`pallas_kernels/tuned`)."""

import dataclasses

import jax.numpy as jnp

from pallas_kernels import tuned
from pallas_kernels.attention.call import AttentionCall

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

    def check(self, call: AttentionCall):
        """Raises ValueError if the tiles do not fit the blocks."""
        if call.block_map.block_q % self.tile_q:
            config, block_map = self, call.block_map
            raise ValueError(f"{config.tile_q=} does not divide {block_map.block_q=}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MosaicGpuConfig:
    """How the Mosaic GPU kernel uses a multiprocessor.

    Attributes:
        tile_q: queries of a tile, or the map's `block_q` if that is smaller.
        query_tiles: query tiles in flight.
        stages: tiles of 64 keys, and of their values, that each of them has in flight or in use.
    """

    tile_q: int = 128
    query_tiles: int = 2
    stages: int = 2

    def __post_init__(self):
        if self.tile_q not in (64, 128):
            raise ValueError(f"{self.tile_q=} must be 64 or 128")
        most = 4 // self.consumers_per_tile
        if not 1 <= self.query_tiles <= most:
            allowed = "1 or 2" if most == 2 else f"from 1 to {most}"
            raise ValueError(f"{self.query_tiles=} must be {allowed} for {self.tile_q=}")
        if self.stages < 2:
            raise ValueError(f"{self.stages=} must be at least 2")

    @property
    def consumers_per_tile(self) -> int:
        """Warp groups that work on a tile of queries, 64 each."""
        return self.tile_q // 64

    @property
    def num_consumers(self) -> int:
        """Warp groups that work on tiles of queries."""
        return self.query_tiles * self.consumers_per_tile

    def check(self, call: AttentionCall):
        """Raises ValueError if a multiprocessor has no room for this."""
        self.check_head_dim(call.q.shape[-1])

    def check_head_dim(self, head_dim: int):
        """Raises ValueError if a multiprocessor has no room for this."""
        if self.num_consumers > 2 and head_dim > 64:
            raise ValueError(
                f"{self.query_tiles=} needs more registers than there are for {head_dim=}"
            )
        if (needed := self.shared_memory(head_dim)) > MAX_SHARED_MEMORY:
            raise ValueError(
                f"{self} needs {needed} bytes of shared memory for {head_dim=}; there are "
                f"{MAX_SHARED_MEMORY}"
            )

    def shared_memory(self, head_dim: int) -> int:
        """Bytes of shared memory that it takes, for numbers of two bytes."""
        return self._shared_memory(head_dim, 1 if self.results_replace_queries(head_dim) else 2)

    def results_replace_queries(self, head_dim: int) -> bool:
        """Whether results lie where the queries were, for there is room for one of both only."""
        return self._shared_memory(head_dim, 2) > MAX_SHARED_MEMORY

    def _shared_memory(self, head_dim: int, queries_and_results: int) -> int:
        rows = queries_and_results * self.tile_q + self.stages * 2 * 64
        barriers = self.query_tiles * 8 * (3 + 4 * self.stages)
        # Mosaic reserves 2 KiB for reductions across warps.
        return self.query_tiles * rows * head_dim * 2 + barriers + 2 * 1024


def choose_mosaic_gpu_config(dtype, head_dim: int, block_q: int = 128) -> MosaicGpuConfig:
    """The tuned settings for this device and blocks of so many queries."""
    itemsize, tile_q = jnp.dtype(dtype).itemsize, min(block_q, 128)
    table = "mosaic_gpu" if tile_q == 128 else f"mosaic_gpu_tiles_of_{tile_q}"
    settings = tuned.value(f"attention.{table}.{itemsize}.{head_dim}")
    return MosaicGpuConfig(tile_q=tile_q, **settings)


def choose_triton_config(dtype, head_dim: int, block_q: int, block_k: int) -> TritonConfig:
    """The tuned settings for this device, cut to the blocks."""
    itemsize = jnp.dtype(dtype).itemsize
    config = TritonConfig(**tuned.value(f"attention.triton.{itemsize}.{head_dim}"))
    # A tile is no larger than a block of queries. A step takes two blocks of keys at most: with
    # more, there are more scores than registers.
    return dataclasses.replace(
        config, tile_q=min(config.tile_q, block_q), tile_k=min(config.tile_k, 2 * block_k)
    )
