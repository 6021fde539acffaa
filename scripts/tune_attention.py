"""Finds the fastest settings of a kernel, for a table of `pallas_kernels/tuned`.

    python scripts/tune_attention.py --implementation mosaic_gpu --out tuning.jsonl

For each type and head dim: compiles every plausible setting, times it on random block lists and
checks it against float64. The fastest are timed again in turn, and with tokens that end inside a
block. One JSON line per setting; settings that a device has no room for say so. Prints the lines
for the table. float16 runs as bfloat16 does and shares its entry.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import statistics
import sys

from attention_cases import (
    Reference,
    compile_all,
    explain,
    failures,
    measure_jax,
    random_lists,
    random_tokens,
)

# Threads of a warp; a thread has at most 255 registers of 4 bytes (CUDA C++ programming guide,
# table of technical specifications per compute capability).
_WARP = 32
_MAX_REGISTERS = 255
# Rows that a warp takes of a matrix product on tensor cores.
_ROWS_PER_WARP = 16
# Settings that are timed again.
_FINALISTS = 4
_TAIL = 37


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--implementation", choices=["mosaic_gpu", "triton"], default="triton")
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float16", "float32"],
                        default=["bfloat16", "float32"])  # fmt: skip
    parser.add_argument("--head-dims", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--block-q", type=int, default=128)
    parser.add_argument("--block-k", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--tokens-float32", type=int, default=8_192, help="instead, for float32")
    parser.add_argument("--keep", type=float, default=0.25, help="share of the blocks")
    parser.add_argument("--repeats", type=int, default=5, help="of the fastest settings")
    parser.add_argument("--interpret", action="store_true", help="in Pallas's interpreter: no "
                        "timing to go by, but a trial of this script without a GPU")  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, help="file to append JSON lines to")
    args = parser.parse_args()

    import jax

    device = jax.devices()[0].device_kind
    entries = []
    for dtype in args.dtypes:
        for head_dim in args.head_dims:
            lines = tune(args, dtype, head_dim)
            for line in lines:
                line = {"device": device, "jax": jax.__version__, **line}
                print(json.dumps(line), flush=True)
                if args.out is not None:
                    args.out.parent.mkdir(parents=True, exist_ok=True)
                    with args.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
            entries += summarize(lines, dtype, head_dim)
    print(f"\nFor blocks of {args.block_q} queries and {args.block_k} keys:\n")
    print(f'device_kind = "{device}"\n')
    small = args.implementation == "mosaic_gpu" and args.block_q < 128
    print(f"[attention.{args.implementation}{'_tiles_of_64' if small else ''}]")
    # float16 and bfloat16 have one entry: the first.
    for (itemsize, head_dim), config in sorted(dict(reversed(entries)).items()):
        print(f"{itemsize}.{head_dim} = {{ {show(config)} }}")


def plausible_configs(implementation: str, itemsize: int, head_dim: int, block_q: int) -> list:
    """Settings that a device could have room for."""
    if implementation == "triton":
        return plausible_triton_configs(itemsize, head_dim, block_q)
    from pallas_kernels import MosaicGpuConfig

    configs = []
    for query_tiles, stages in itertools.product(range(1, 5), range(2, 9)):
        with contextlib.suppress(ValueError):  # There is no room for it.
            config = MosaicGpuConfig(
                tile_q=min(block_q, 128), query_tiles=query_tiles, stages=stages
            )
            config.check_head_dim(head_dim)
            configs.append(config)
    return configs


def plausible_triton_configs(itemsize: int, head_dim: int, block_q: int) -> list:
    """Settings whose accumulators fit into registers, and whose warps have rows of queries."""
    from pallas_kernels import TritonConfig

    # Products of float32 numbers do not run on tensor cores, and take long to compile when large.
    small = itemsize == 4
    configs = []
    for tile_q in (32, 64) if small else (64, 128):
        # The smallest tiles only where the rows are long.
        for tile_k in ((16, 32, 64) if small else (32, 64, 128))[head_dim < 128 :]:
            for num_warps in (4, 8):
                # Scores and outputs.
                registers = tile_q * (tile_k + head_dim) / (_WARP * num_warps)
                if block_q % tile_q or registers > 0.9 * _MAX_REGISTERS:
                    continue
                if not small and num_warps * _ROWS_PER_WARP > tile_q:
                    continue
                if small and tile_q * tile_k * head_dim > 64 * 64 * 64:
                    continue
                configs += [
                    TritonConfig(
                        tile_q=tile_q, tile_k=tile_k, num_warps=num_warps, num_stages=num_stages
                    )
                    for num_stages in ((1, 2) if small else (2, 3, 4))
                ]
    return configs


def tune(args, dtype: str, head_dim: int) -> list[dict]:
    """One line for each setting, the fastest first, then those that failed."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels import block_sparse_attention

    tokens = args.tokens_float32 if dtype == "float32" else args.tokens
    make_lists = lambda length: random_lists(
        args.keep, tokens=length, heads=args.heads, block_q=args.block_q, block_k=args.block_k
    )
    q, k, v = (
        jnp.asarray(random_tokens(i, tokens, args.heads, head_dim)).astype(dtype) for i in range(3)
    )
    lists, cut = make_lists(tokens), tokens - _TAIL
    whole = (q, k, v, lists.to_block_map(), None)
    ending = (q[:cut], k[:cut], v[:cut], make_lists(cut).to_block_map(), jnp.int32(cut))
    reference = Reference(q, k, v)
    # Bounds the root mean square error over that of the result: weights and outputs are rounded.
    allowed = max(1e-5, 2 * float(jnp.finfo(dtype).eps))

    def attend_with(config):
        return lambda q, k, v, block_map, kv_lengths: block_sparse_attention(
            q,
            k,
            v,
            block_map,
            kv_lengths=kv_lengths,
            implementation=args.implementation,
            config=config,
            interpret=args.interpret,
        )

    configs = plausible_configs(args.implementation, q.dtype.itemsize, head_dim, args.block_q)
    if not configs:
        sys.exit(f"no setting fits {args.block_q=}, {head_dim=}, {dtype=}")
    programs = compile_all([(attend_with(config), whole) for config in configs])
    good, bad = [], []
    for config, program in zip(configs, programs, strict=True):
        line = {
            "dtype": dtype, "heads": args.heads, "head_dim": head_dim, "block_q": args.block_q,
            "block_k": args.block_k, "tokens": tokens, "keep": args.keep,
            "implementation": args.implementation, "config": dataclasses.asdict(config),
        }  # fmt: skip
        out = first_run(program, whole)
        if isinstance(out, Exception):
            bad.append({**line, "failed": explain(out)})
            continue
        errors = reference.errors(out, lists)
        if not errors.get("relative_error", math.inf) <= allowed:
            bad.append({**line, **errors, "failed": f"wrong by more than {allowed:.1e}"})
            continue
        timing = measure_jax(program, whole, 3, max_s=0.3, warm_up_ms=50)
        good.append(({**line, **timing, **errors}, config, program))
    good.sort(key=lambda item: item[0]["ms"])

    finalists = good[:_FINALISTS]
    with_tail = compile_all([(attend_with(config), ending) for _, config, _ in finalists])
    times = [[] for _ in finalists]
    for _ in range(3):
        for (_, _, program), of_one in zip(finalists, times, strict=True):
            of_one.append(
                measure_jax(program, whole, args.repeats, max_s=0.5, warm_up_ms=100)["ms"]
            )
    for (line, _, _), of_one, program in zip(finalists, times, with_tail, strict=True):
        line["ms"] = statistics.median(of_one)
        out = first_run(program, ending)
        if isinstance(out, Exception):
            line["failed"] = f"with tokens that end inside a block: {explain(out)}"
        else:
            line["tail_ms"] = measure_jax(program, ending, args.repeats, max_s=0.5, warm_up_ms=100)[
                "ms"
            ]
    jax.clear_caches()

    lines = [line for line, _, _ in good]
    for line in lines:
        operations = 4 * head_dim * lists.token_pairs()
        line["tflops"] = round(operations / line["ms"] / 1e9, 1)
    lines.sort(key=lambda line: ("failed" in line, "tail_ms" not in line, line["ms"]))
    return lines + bad


def first_run(program, args):
    """What a program gives, or the error of one that needs more than the device has."""
    import jax

    if isinstance(program, Exception):
        return program
    try:
        return jax.block_until_ready(program(*args))
    except failures() as error:
        if any(word in str(error).lower() for word in ("resource", "shared memory", "register")):
            return error
        raise


def summarize(lines: list[dict], dtype: str, head_dim: int) -> list[tuple]:
    """Prints the best settings and what failed; gives the entry of the table."""
    import jax.numpy as jnp

    works = [line for line in lines if "failed" not in line]
    print(f"\n{dtype}, head_dim {head_dim}: {len(works)} of {len(lines)} settings work")
    for line in works[:5]:
        tail = f", with a tail {line['tail_ms']:.3f}" if "tail_ms" in line else ""
        print(f"  {line['ms']:.3f} ms{tail}, {line['tflops']:.0f} TFLOP/s: {show(line['config'])}")
    for line in lines:
        if "failed" in line:
            print(f"  failed: {show(line['config'])}: {line['failed']}")
    if not works:
        return []
    return [((jnp.dtype(dtype).itemsize, head_dim), works[0]["config"])]


def show(config: dict) -> str:
    # Blocks of queries say which tiles the Mosaic GPU kernel has, and which table they are in.
    left_out = () if "num_warps" in config else ("tile_q",)
    return ", ".join(f"{key} = {value}" for key, value in config.items() if key not in left_out)


if __name__ == "__main__":
    main()
