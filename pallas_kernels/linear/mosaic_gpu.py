"""A linear layer with bias and activation for Hopper GPUs, as a Pallas kernel (Mosaic GPU backend).

One block of threads lives on each multiprocessor and computes tiles of the result until all are
done:

- Two warp groups, the *consumers*, compute half of a tile's rows each with the tensor cores
  (`wgmma`, asynchronous), sums in registers.
- A third one, the *producer*, fetches tiles of `x` and of the kernel into shared memory (TMA,
  asynchronous), as far ahead as there is room.

The activation of a tile is computed while the tensor cores work on the next one. A consumer keeps
the finished sums of a tile in registers, rounded to 16 bits, and takes one part of them in every
step of the next: activates it, lays it into shared memory and sends it on its way out.

    tensor cores    | step 0 of tile 1 | step 1 of tile 1 | step 2 of tile 1 | ...
    other units     | part 0 of tile 0 | part 1 of tile 0 | part 2 of tile 0 | ...

Small parts leave the tensor cores less to wait for. docs/kernels.md tells what was tried.

SwiGLU makes one number of two that lie half a row apart. So the columns of the kernel change places
first, a copy of some megabytes: those of a part, and behind them those that they are multiplied by.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import devices, tuned
from pallas_kernels.blocks import count_blocks, next_power_of_2
from pallas_kernels.linear.call import LinearCall
from pallas_kernels.linear.config import STAGES, TILE_K, TILE_M, TILE_N
from pallas_kernels.linear.gelu import gelu_in_few_operations
from pallas_kernels.linear.swiglu import swiglu_in_few_operations
from pallas_kernels.mosaic_gpu_call import align, mosaic_gpu_call, smem_tiles

_ACTIVATIONS = {
    None: lambda y: y,
    "gelu": gelu_in_few_operations,
    "swiglu": swiglu_in_few_operations,
}

# Consumers, and the rows of each.
_CONSUMERS = 2
_ROWS = TILE_M // _CONSUMERS

# Columns of a part of a tile, and how many parts of a consumer may be on their way out at a time.
_COLUMNS = 16
_SLOTS = 2

# Registers of each thread after consumers have taken over what the producer does not need.
_CONSUMER_REGISTERS = 240
_PRODUCER_REGISTERS = 24


def unsupported_because(call: LinearCall) -> str | None:
    if call.x.dtype == jnp.float32:
        return "float32 is not supported (bfloat16, float16)"
    in_dim, out_dim = call.kernel.shape
    if in_dim % (STAGES * TILE_K) or out_dim % TILE_N:
        multiples = f"multiples of {STAGES * TILE_K} and of {TILE_N}"
        return f"a kernel of {in_dim} x {out_dim} is not supported ({multiples})"
    return None


def pays_off(call: LinearCall) -> bool:
    """Whether rows are enough to fill the GPU, and need not be copied."""
    num_rows, out_dim = math.prod(call.x.shape[:-1]), call.kernel.shape[1]
    tiles = count_blocks(num_rows, TILE_M) * (out_dim // TILE_N)
    fewest = tuned.value("linear.min_tiles_per_multiprocessor") * devices.multiprocessors()
    return align(num_rows) == num_rows and tiles >= fewest


def run(call: LinearCall, *, interpret: bool):
    x, kernel, bias = call.x, call.kernel, call.bias
    rows = x.reshape(-1, x.shape[-1])
    bias = jnp.zeros(kernel.shape[1], jnp.float32) if bias is None else bias
    out = linear(rows, kernel, bias.astype(jnp.float32), call.activation, interpret=interpret)
    return out.reshape(*x.shape[:-1], out.shape[-1])


# Traced once for each size, since that takes a second.
@functools.partial(jax.jit, static_argnames=("activation", "interpret"))
def linear(x, kernel, bias, activation, *, interpret=False):
    """`activation(x @ kernel + bias)` of x [m i], kernel [i o] and a float32 bias [o]: [m o], of
    "swiglu" [m o / 2].

    Rows are copied where `m` is no multiple of 8, or less than `TILE_M`.
    """
    if activation == "swiglu":
        kernel, bias = _side_by_side(kernel), _side_by_side(bias)
    run = functools.partial(_run, activation=activation, interpret=interpret)
    return _in_rows(run)(x, kernel, bias)


def _side_by_side(x):
    """Columns in another order: behind every 16 of the gate the 16 values that it multiplies."""
    halves = x.reshape(*x.shape[:-1], 2, -1, _COLUMNS)
    return jnp.swapaxes(halves, -3, -2).reshape(x.shape)


def _in_rows(run):
    """`run`, for which `jax.vmap` over x alone only makes more rows."""
    folded = jax.custom_batching.custom_vmap(run)

    @folded.def_vmap
    def fold(size, are_batched, x, kernel, bias):
        if are_batched == [True, False, False]:
            out = folded(x.reshape(-1, x.shape[-1]), kernel, bias)
            return out.reshape(size, -1, out.shape[-1]), True
        operands = tuple(zip((x, kernel, bias), are_batched, strict=True))
        one = lambda i: folded(*(y[i] if is_batched else y for y, is_batched in operands))
        return jax.lax.map(one, jnp.arange(size)), True

    return folded


def _run(x, kernel, bias, *, activation, interpret):
    num_rows = len(x)
    # What a tile has beyond the rows of the array is read as zero and not written.
    if missing := max(align(num_rows), TILE_M) - num_rows:
        x = jnp.pad(x, ((0, missing), (0, 0)))
    (m, depth), n = x.shape, kernel.shape[1]
    num_blocks = 2 if interpret else devices.multiprocessors()
    inputs_per_output = 2 if activation == "swiglu" else 1
    run = functools.partial(
        _kernel,
        activate=_ACTIVATIONS[activation],
        inputs_per_output=inputs_per_output,
        num_groups=depth // (STAGES * TILE_K),
        num_blocks=num_blocks,
    )
    out = mosaic_gpu_call(
        lambda *refs, **scratch: run(*refs, **scratch),
        num_blocks=num_blocks,
        num_warpgroups=_CONSUMERS + 1,
        scratch={
            "x_smem": smem_tiles(STAGES, TILE_M, TILE_K, x.dtype),
            "kernel_smem": smem_tiles(STAGES, TILE_K, TILE_N, x.dtype),
            "out_smem": smem_tiles(_CONSUMERS * _SLOTS, _ROWS, _COLUMNS, x.dtype),
            "full": plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
            "free": plgpu.Barrier(num_arrivals=_CONSUMERS, num_barriers=STAGES),
        },
        out_type=jax.ShapeDtypeStruct((m, n // inputs_per_output), x.dtype),
        interpret=interpret,
        name="linear",
    )(x, kernel, bias)
    return out[:num_rows]


def _kernel(
    x_ref, kernel_ref, bias_ref, out_ref, *,
    x_smem, kernel_smem, out_smem, full, free, activate, inputs_per_output, num_groups, num_blocks,
):  # fmt: skip
    """A block of threads. `full`: tiles have come. `free`: both consumers are done with them.
    `inputs_per_output`: how many numbers, side by side in parts of a tile, become one result."""
    (m, _), (_, n) = x_ref.shape, kernel_ref.shape
    steps = num_groups * STAGES
    int32 = jnp.int32
    block = lax.axis_index("block")
    warpgroup = lax.axis_index("warpgroup")
    tiles_n = n // TILE_N
    num_parts_of_tile = TILE_N // (inputs_per_output * _COLUMNS)
    num_tiles = count_blocks(m, TILE_M) * tiles_n
    rounds = lax.div(num_tiles - block + num_blocks - 1, int32(num_blocks))

    def place_of_tile(r):
        """First row of the tile of a round, and which it is of its rows. Those run together."""
        tile = block + r * num_blocks
        tile_m = lax.div(tile, int32(tiles_n))
        return tile_m * TILE_M, tile - tile_m * tiles_n

    def produce():
        def fetch_tile(r, _):
            row, tile_n = place_of_tile(r)

            def step(k, _):
                # Loops of a known length count in JAX's default integers.
                k = jnp.asarray(k, int32)
                i = r * steps + k
                slot = lax.rem(i, int32(STAGES))

                @pl.when(i >= STAGES)
                def _():
                    plgpu.barrier_wait(free.at[slot])

                depth = pl.ds(k * TILE_K, TILE_K)
                for source, smem in (
                    (x_ref.at[pl.ds(row, TILE_M), depth], x_smem),
                    (kernel_ref.at[depth, pl.ds(tile_n * TILE_N, TILE_N)], kernel_smem),
                ):
                    plgpu.copy_gmem_to_smem(source, smem.at[slot], full.at[slot])
                return int32(0)

            return lax.fori_loop(0, steps, step, int32(0))

        lax.fori_loop(0, rounds, fetch_tile, int32(0))

        # Shared memory is given back only when nobody uses it any more.
        @pl.when(rounds > 0)
        def _():
            for slot in range(STAGES):
                plgpu.barrier_wait(free.at[slot])

    def consume(consumer):
        rows = pl.ds(consumer * _ROWS, _ROWS)

        def write(sums, part, place, *, exists=True):
            """Activates a part of a tile and sends it on its way out, if it exists."""
            row, tile_n = place
            activated = activate(*(x.astype(jnp.float32) for x in sums)).astype(out_ref.dtype)
            smem = out_smem.at[consumer * _SLOTS + lax.rem(part, int32(_SLOTS))]
            plgpu.wait_smem_to_gmem(_SLOTS - 1, wait_read_only=True)
            smem[...] = activated
            plgpu.commit_smem()
            column = tile_n * (TILE_N // inputs_per_output) + part * _COLUMNS
            target = out_ref.at[pl.ds(row + consumer * _ROWS, _ROWS), pl.ds(column, _COLUMNS)]
            # The rest is done in any case: behind a branch, it would not overlap with other steps.
            pl.when(exists)(lambda: plgpu.copy_smem_to_gmem(smem, target))

        def compute_tile(r, parts_before):
            place_before = place_of_tile(r - 1)

            def multiply(sums):
                def group(g, parts, num_parts):
                    """As many steps as there are slots. Takes the first parts of those given, and
                    puts them last, so that the next group finds others there."""
                    g = jnp.asarray(g, int32)
                    for slot in range(STAGES):
                        plgpu.barrier_wait(full.at[slot])
                        plgpu.wgmma(sums, x_smem.at[slot, rows], kernel_smem.at[slot])
                        plgpu.wgmma_wait(1)
                        # The step before is done, and nobody needs its operands.
                        before = (slot - 1) % STAGES
                        release = lambda before=before: plgpu.barrier_arrive(free.at[before])
                        pl.when(g > 0)(release) if slot == 0 else release()
                        first, last = slot * num_parts // STAGES, (slot + 1) * num_parts // STAGES
                        for i in range(first, last):
                            write(parts[i], g * num_parts + i, place_before, exists=r > 0)
                    return parts[num_parts:] + parts[:num_parts]

                # Parts are written as slowly as the steps of a tile allow.
                of_group = next_power_of_2(count_blocks(num_parts_of_tile, num_groups))
                with_parts = num_parts_of_tile // of_group
                run = functools.partial(group, num_parts=of_group)
                lax.fori_loop(0, with_parts, run, parts_before)
                if with_parts < num_groups:
                    rest = lambda g, _: group(g, (), num_parts=0)
                    lax.fori_loop(with_parts, num_groups, rest, ())
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(free.at[STAGES - 1])
                return sums[...]

            sums = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((_ROWS, TILE_N), jnp.float32))
            _, tile_n = place_of_tile(r)
            found = [columns_of(sums, first, tile_n) for first in range(0, TILE_N, _COLUMNS)]
            return tuple(
                tuple(found[i : i + inputs_per_output])
                for i in range(0, len(found), inputs_per_output)
            )

        def columns_of(sums, first, tile_n):
            """Some columns of a tile, with their bias, rounded."""
            # JAX 0.10, which does not run this, asks for an index.
            bias = plgpu.load(  # pyright: ignore[reportCallIssue]
                bias_ref.at[pl.ds(tile_n * TILE_N + first, _COLUMNS)],
                layout=plgpu.Layout.WGMMA.reduce(0),
                optimized=False,
            )
            sums = sums[:, first : first + _COLUMNS]
            return (sums + lax.broadcast_in_dim(bias, sums.shape, [1])).astype(out_ref.dtype)

        nothing = plgpu.layout_cast(jnp.zeros((_ROWS, _COLUMNS), out_ref.dtype), plgpu.Layout.WGMMA)
        no_parts = ((nothing,) * inputs_per_output,) * num_parts_of_tile
        parts = lax.fori_loop(0, rounds, compute_tile, no_parts)
        last = place_of_tile(rounds - 1)

        def flush(i, parts):
            write(parts[0], i, last)
            return parts[1:] + parts[:1]

        lax.fori_loop(0, jnp.where(rounds > 0, int32(num_parts_of_tile), 0), flush, parts)
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup < _CONSUMERS)
    def _():
        plgpu.set_max_registers(_CONSUMER_REGISTERS, action="increase")
        consume(warpgroup)

    @pl.when(warpgroup == _CONSUMERS)
    def _():
        plgpu.set_max_registers(_PRODUCER_REGISTERS, action="decrease")
        produce()
