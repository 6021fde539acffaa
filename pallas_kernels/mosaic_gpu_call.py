"""Kernels on Pallas's Mosaic GPU backend: one place for what depends on the version of JAX.

The backend calls its own interface unstable. The kernels of this package use the part of it that is
the same in JAX 0.11 and 0.12; what is not, and the check of the version, is here.
"""

import os

import jax

from pallas_kernels import devices
from pallas_kernels.blocks import count_blocks

# Older releases name or lower some of what the kernels use differently.
OLDEST_JAX = (0, 11)


# Rows of an array come in groups of so many in shared memory, and its number of rows is a multiple.
_ROWS = 8


def is_supported() -> bool:
    """Whether this JAX is new enough for the kernels."""
    return jax.__version_info__[:2] >= OLDEST_JAX


def unsupported_because(*, interpret: bool = False) -> str | None:
    """Why no kernel can run on the default device, or in the simulator; None if kernels can."""
    if not is_supported():
        return f"{jax.__version__=} is older than {'.'.join(map(str, OLDEST_JAX))}"
    if not interpret and not devices.is_hopper():
        where = f"{jax.default_backend()=}, compute capability {devices.compute_capability()},"
        return f"{where} is no NVIDIA GPU of the Hopper generation (H100, H200)"
    return None


def align(num_rows: int) -> int:
    """The next number of rows (tokens) that kernels take as it is; they pad others, by a copy."""
    return count_blocks(num_rows, _ROWS) * _ROWS


def smem_tiles(number: int, rows: int, columns: int, dtype):
    """Tiles in shared memory, in rows of at most 128 bytes, rotated as `wgmma` and TMA want them.

    Args:
        columns: of 16 bits each; 16, 32 or a multiple of 64.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    width = min(columns, 64)
    # To pyright they are abstract classes in JAX 0.12: they lack a method of their base.
    tiling = plgpu.TilingTransform((_ROWS, width))  # pyright: ignore[reportAbstractUsage]
    swizzle = plgpu.SwizzleTransform(2 * width)  # pyright: ignore[reportAbstractUsage]
    return plgpu.SMEM((number, rows, columns), dtype, transforms=(tiling, swizzle))


def mosaic_gpu_call(kernel, *, num_blocks, num_warpgroups, scratch, out_type, interpret, name):
    """The kernel as a function of arrays.

    Args:
        kernel: takes references to inputs, outputs, and what `scratch` asks for. It runs in each
            warp group; `lax.axis_index("block")` and `lax.axis_index("warpgroup")` tell which.
        num_blocks: thread blocks, which run on different multiprocessors or after each other.
        num_warpgroups: groups of four warps in a block.
        scratch: shared memory and barriers of a block.
        out_type: shapes and types of the outputs.
        interpret: simulate it on any device, and report data races as errors.
        name: of the kernel, in profiles.

    Raises:
        NotImplementedError: the simulator has not threads enough.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    kernel.__name__ = name
    options = {}
    if interpret:
        # Simulation looks for races with vector clocks, and fails if it finds one.
        params = plgpu.InterpretGPUParams  # pyright: ignore[reportAttributeAccessIssue]  JAX 0.10
        options["interpret"] = params(detect_races=True)
        _check_pool(num_blocks * num_warpgroups)
    return plgpu.kernel(
        kernel,
        out_type=out_type,
        scratch_types=scratch,
        grid=(num_blocks,),
        grid_names=("block",),
        num_threads=num_warpgroups,
        thread_name="warpgroup",
        # 2**x in one instruction, instead of the four that subnormal results would take.
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **options,
    )


def _check_pool(needed):
    """Simulated warp groups wait for each other in the pool of threads of JAX's CPU backend. If it
    has fewer threads than there are warp groups, they may wait forever."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = int(os.environ.get("NPROC") or cores or 1)
    if threads < needed:
        raise NotImplementedError(
            f"the simulator needs {needed} threads in JAX's pool, which has {threads}; set the "
            f"environment variable NPROC={needed} or more before JAX starts"
        )
