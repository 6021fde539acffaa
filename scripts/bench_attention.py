"""Times block-sparse attention and the selection of blocks beside what else there is.

    python scripts/bench_attention.py --out docs/benchmarks/attention_h100.jsonl

One JSON line per case, and a table at the end. Rates count the arithmetic that is really needed:
4 * head_dim operations for each kept pair of a query and a key. Inputs are normal random numbers,
the same for all; errors are those of a sample of query blocks against float64. `relative_error` is
the root mean square of the error over that of the result. `beyond_inputs_gib` counts results and
temporaries. Parts:

- `dense`: cuDNN through jax.nn.dot_product_attention.
- `sparse`: block_sparse_attention, each implementation, keeping some of the blocks by random lists
  that differ by head and query block; also lists of uneven lengths, and tokens that end inside a
  block.
- `sample`: dense_attention to keys sampled for each head, their scores raised, keys and values
  gathered first; the time of the gathers alone beside it.
- `select`: select_blocks alone, on inputs whose blocks share components; and its memory with very
  many tokens.
- `torch`: where PyTorch with CUDA can be imported: scaled_dot_product_attention by flash attention
  and by cuDNN, compiled flex_attention with the same lists and with lists of blocks of 128 keys,
  which suit it better; FlashAttention-4 where flash_attn.cute can be imported.

JAX and PyTorch run in processes of their own.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import subprocess
import sys
import time

import numpy as np
from attention_cases import (
    Reference,
    compile_all,
    explain,
    gib,
    measure,
    measure_jax,
    random_lists,
    random_tokens,
)

PARTS = ("dense", "sparse", "sample", "select", "torch")
# The extra cases: at this share of the blocks, and so many tokens less than whole blocks.
EXTRA_KEEP = 0.25
TAIL = 37
SELECTIONS = {
    "ratio 0.75": {"sparse_ratio": 0.75},
    "threshold 0.9": {"cdf_threshold": 0.9},
    "ratio 0.75, threshold 0.9": {"sparse_ratio": 0.75, "cdf_threshold": 0.9},
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tokens", type=int, nargs="+", default=[68_608, 274_432])
    parser.add_argument("--large-tokens", type=int, default=1_374_000,
                        help="of the case that shows selection's memory; 0 for none")  # fmt: skip
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--block-q", type=int, default=128)
    parser.add_argument("--block-k", type=int, default=64)
    parser.add_argument("--keep", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.1],
                        help="shares of the blocks")  # fmt: skip
    parser.add_argument("--num-keys", type=int, nargs="+", default=[5_120, 10_240],
                        help="of a sample")  # fmt: skip
    parser.add_argument("--implementations", nargs="+", metavar="NAME",
                        help="of block_sparse_attention; by default the kernels that the device "
                        "has, or xla where it has none")  # fmt: skip
    parser.add_argument("--interpret", action="store_true", help="kernels in Pallas's interpreter")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, help="file to append JSON lines to")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # JSON: what a child process runs
    args = parser.parse_args()
    if args.child:
        run_child(argparse.Namespace(**json.loads(args.child)))
        return
    if min(args.tokens) <= TAIL:
        parser.error(f"--tokens must be above {TAIL}, which one case leaves out, not {args.tokens}")
    options = {k: v for k, v in vars(args).items() if k not in ("out", "child")}
    attention = [part for part in PARTS[:2] if part in args.parts]
    children = [{"parts": attention, "tokens": [t]} for t in args.tokens if attention]
    children += [
        {"parts": [part], "tokens": args.tokens} for part in PARTS[2:] if part in args.parts
    ]
    if "torch" in args.parts:
        children.append({"parts": ["FlashAttention-4"], "tokens": args.tokens})
    lines = []
    for child in children:
        for line in lines_of_child({**options, **child}):
            print(json.dumps(line), flush=True)
            lines.append(line)
            if args.out is not None:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                with args.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")

    from report_attention import tables

    print("\n" + tables(lines))
    if any("error" in line for line in lines):
        sys.exit("some cases failed")


def lines_of_child(child: dict):
    """The lines that a process prints while it runs `child`, and one more if it dies."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--child", json.dumps(child)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
            else:
                print(line, end="", file=sys.stderr)
    if process.returncode:
        part, tokens = "+".join(child["parts"]), child["tokens"]
        yield {"part": part, "tokens": tokens, "error": f"exit code {process.returncode}"}
    print(f"{child['parts']}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


def run_child(options: argparse.Namespace):
    if options.parts == ["torch"]:
        run_torch(options)
    elif options.parts == ["FlashAttention-4"]:
        run_flash_attention_4(options)
    elif options.parts == ["select"]:
        run_select(options)
    elif options.parts == ["sample"]:
        run_sample(options)
    else:
        run_attention(options)


def emit(line: dict):
    print(json.dumps(line), flush=True)


def shape_of(options, tokens: int) -> dict:
    return {
        "tokens": tokens,
        "heads": options.heads,
        "head_dim": options.head_dim,
        "dtype": options.dtype,
    }


def inputs_of(options, tokens: int):
    """Random queries, keys and values, one after another, [t n h] in float32."""
    return (random_tokens(i, tokens, options.heads, options.head_dim) for i in range(3))


def rate(lists, head_dim: int, ms: float) -> dict:
    return {"tflops": round(4 * head_dim * lists.token_pairs() / ms / 1e9, 1)}


# --------------------------------------------------------------------------- dense and sparse


def run_attention(options):
    import jax
    import jax.numpy as jnp

    (tokens,) = options.tokens
    shape = {**describe_jax(), **shape_of(options, tokens)}
    make_lists = lambda share, tokens=tokens, uneven=False: random_lists(
        share,
        tokens=tokens,
        heads=options.heads,
        block_q=options.block_q,
        block_k=options.block_k,
        uneven=uneven,
    )
    q, k, v = (
        jax.block_until_ready(jnp.asarray(x).astype(options.dtype))
        for x in inputs_of(options, tokens)
    )

    # Each case: what describes it, its lists, the function and its arguments.
    cases = []
    if "dense" in options.parts:
        line = {"part": "dense", "name": "cuDNN (JAX)", **shape, "keep": 1.0}
        if jax.default_backend() != "gpu" or options.dtype == "float32":
            where = f"{options.dtype} on {jax.default_backend()}"
            emit({**line, "left_out": f"cuDNN has no attention for {where}"})
        else:
            cases.append((line, make_lists(1.0), attend_cudnn, (q, k, v)))
    if "sparse" in options.parts:
        cut = tokens - TAIL
        qkv, cut_qkv = (q, k, v), (q[:cut], k[:cut], v[:cut])
        uneven = {"keep": EXTRA_KEEP, "lists": "uneven"}
        tail = {"keep": EXTRA_KEEP, "tail": TAIL, "tokens": cut}
        settings = [({"keep": share}, make_lists(share), qkv, None) for share in options.keep]
        settings.append((uneven, make_lists(EXTRA_KEEP, uneven=True), qkv, None))
        settings.append((tail, make_lists(EXTRA_KEEP, cut), cut_qkv, jnp.int32(cut)))
        names = options.implementations or kernels_here(q, settings[0][1], options.interpret)
        for name in names:
            attend = attend_sparsely(name, options.interpret)
            blocks = {"block_q": options.block_q, "block_k": options.block_k}
            config = describe_config(name, q.dtype, options.head_dim, *blocks.values())
            for setting, lists, qkv, kv_lengths in settings:
                line = {"part": "sparse", "name": name, **shape, **blocks, **setting}
                args = (*qkv, lists.to_block_map(), kv_lengths)
                cases.append(({**line, "config": config}, lists, attend, args))

    start = time.perf_counter()
    compiled = compile_all([(attend, args) for _, _, attend, args in cases])
    print(f"compiled in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    references = {}
    for (line, lists, _, args), program in zip(cases, compiled, strict=True):
        if lists.tokens not in references:
            references[lists.tokens] = Reference(*args[:3])
        emit(line | run_compiled(program, args, lists, references[lists.tokens], options))


def run_compiled(program, args, lists, reference, options) -> dict:
    import jax

    if isinstance(program, Exception):
        return {"error": explain(program)}
    try:
        out = jax.block_until_ready(program(*args))
        same = bool((out == program(*args)).all())
        timing = measure_jax(program, args, options.repeats)
    except jax.errors.JaxRuntimeError as error:
        return {"error": explain(error)}
    return {
        **timing,
        **rate(lists, options.head_dim, timing["ms"]),
        **memory_of(program),
        **reference.errors(out, lists),
        "same_bits_twice": same,
    }


def attend_cudnn(q, k, v):
    import jax

    out = jax.nn.dot_product_attention(q[None], k[None], v[None], implementation="cudnn")
    return out[0]


def attend_sparsely(implementation, interpret):
    from pallas_kernels import block_sparse_attention

    def attend(q, k, v, block_map, kv_lengths):
        return block_sparse_attention(
            q, k, v, block_map, kv_lengths=kv_lengths, implementation=implementation,
            interpret=interpret,
        )  # fmt: skip

    return attend


def kernels_here(q, lists, interpret) -> list[str]:
    """The kernels that accept this here; those that do not are named in lines of their own.

    XLA, which runs anywhere, only where there is no kernel: it is much slower.
    """
    import jax

    from pallas_kernels.attention.api import OPERATION

    found = []
    for name in (backend.name for backend in OPERATION.backends if backend.is_kernel):
        try:
            jax.eval_shape(attend_sparsely(name, interpret), q, q, q, lists.to_block_map(), None)
            found.append(name)
        except NotImplementedError as error:
            emit({"part": "sparse", "name": name, **describe_jax(), "left_out": str(error)})
    return found or ["xla"]


def describe_config(implementation, dtype, head_dim, *blocks) -> dict | None:
    """The settings that an implementation chooses by itself, if it has a choice."""
    from pallas_kernels.attention import config

    if implementation == "mosaic_gpu":
        return dataclasses.asdict(config.choose_mosaic_gpu_config(dtype, head_dim, blocks[0]))
    if implementation == "triton":
        return dataclasses.asdict(config.choose_triton_config(dtype, head_dim, *blocks))
    return None


def describe_jax() -> dict:
    import jax

    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


def memory_of(program) -> dict:
    analysis = program.memory_analysis()
    used = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    return {"beyond_inputs_gib": gib(used)}


# --------------------------------------------------------------------------- sample


def run_sample(options):
    import jax
    import jax.numpy as jnp

    from vggt_jax.layers.attention import dense_attention, dense_obstacles

    obstacles = dense_obstacles(head_dim=options.head_dim, dtype=options.dtype)
    kernels = [name for name in ("mosaic_gpu", "triton") if obstacles[name] is None]
    names = options.implementations or kernels or ["xla"]
    heads = np.arange(options.heads)

    def gather(x, tokens):
        return x.at[tokens, heads].get(mode="promise_in_bounds")

    def attend(name, has_bias):
        def run(q, k, v, tokens, bias):
            keys, values = gather(k, tokens)[None], gather(v, tokens)[None]
            key_bias = bias[None] if has_bias else None
            out = dense_attention(q[None], keys, values, key_bias=key_bias, implementation=name)
            return out[0]

        return run

    for tokens in options.tokens:
        q, k, v = (
            jax.block_until_ready(jnp.asarray(x).astype(options.dtype))
            for x in inputs_of(options, tokens)
        )
        for num_keys in options.num_keys:
            rng = np.random.default_rng(0)
            sample = [np.sort(rng.permutation(tokens)[:num_keys]) for _ in heads]
            sample = jnp.asarray(np.stack(sample, axis=1), jnp.int32)
            # A tenth of them are not raised, as special tokens.
            raised = np.arange(num_keys) >= num_keys // 10 // 64 * 64
            bias = np.where(raised, math.log(tokens / num_keys), 0.0) * np.ones((options.heads, 1))
            args = (q, k, v, sample, jnp.asarray(bias, jnp.float32))
            line = {"part": "sample", **describe_jax(), **shape_of(options, tokens)}
            line["keys"] = num_keys
            both = lambda q, k, v, tokens, bias: (gather(k, tokens), gather(v, tokens))
            cases = [({"name": "gathers"}, both)]
            for name in names:
                cases += [
                    ({"name": name, "bias": has_bias}, attend(name, has_bias))
                    for has_bias in (False, True)
                ]
            compiled = compile_all([(run, args) for _, run in cases])
            for (about, _), program in zip(cases, compiled, strict=True):
                emit(line | about | run_sampled(program, args, about, options))


def run_sampled(program, args, about, options) -> dict:
    """Time and rate of one case, and the error of some queries of one head."""
    import jax

    if isinstance(program, Exception):
        return {"error": explain(program)}
    out = jax.block_until_ready(program(*args))
    timing = measure_jax(program, args, options.repeats)
    if about["name"] == "gathers":
        return timing
    q, k, v, sample, bias = args
    operations = 4 * q.size * sample.shape[0]
    head, rows = options.heads // 2, slice(0, 256)
    to_numpy = lambda x: np.asarray(x[:, head]).astype(np.float64)
    scores = to_numpy(q[rows]) @ to_numpy(k)[sample[:, head]].T / math.sqrt(options.head_dim)
    scores += np.asarray(bias[head]) * about["bias"]
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    exact = weights @ to_numpy(v)[sample[:, head]] / weights.sum(axis=1, keepdims=True)
    error = np.linalg.norm(to_numpy(out[rows]) - exact) / np.linalg.norm(exact)
    return {
        **timing,
        "tflops": round(operations / timing["ms"] / 1e9, 1),
        **memory_of(program),
        "relative_error": float(f"{error:.3g}"),
        "same_bits_twice": bool((out == program(*args)).all()),
    }


# --------------------------------------------------------------------------- selection


def run_select(options):
    # The large case comes first: the measured peak is that of the process.
    if options.large_tokens:
        settings = [("ratio 0.9", {"sparse_ratio": 0.9}, "avg")]
        select_at(options.large_tokens, settings, options, measure_peak=True)
    settings = [(*item, mode) for mode in ("avg", "max") for item in SELECTIONS.items()]
    for tokens in options.tokens:
        select_at(tokens, settings, options, measure_peak=False)


def select_at(tokens, settings, options, measure_peak):
    import jax

    from pallas_kernels import select_blocks

    shape = shape_of(options, tokens)
    blocks = {"block_q": options.block_q, "block_k": options.block_k}
    args = [
        jax.block_until_ready(structured_tokens(seed, block, **shape))
        for seed, block in enumerate(blocks.values())
    ]

    def selector(rule, mode):
        return lambda q, k: select_blocks(
            q, k, pool_mode=mode, interpret=options.interpret, **blocks, **rule
        )

    compiled = compile_all([(selector(rule, mode), args) for _, rule, mode in settings])
    for (name, _, mode), program in zip(settings, compiled, strict=True):
        line = {"part": "select", "name": name, "pool_mode": mode}
        line |= {**describe_jax(), **shape, **blocks}
        if isinstance(program, Exception):
            emit({**line, "error": explain(program)})
            continue
        try:
            emit(line | run_selection(program, args, options.repeats, measure_peak))
        except jax.errors.JaxRuntimeError as error:
            emit({**line, "error": explain(error)})


def run_selection(program, args, repeats, measure_peak) -> dict:
    import jax

    device = jax.devices()[0]
    # Peaks are those of the process: making the inputs must have taken less than what is measured.
    before = device.memory_stats() if measure_peak else None  # None on devices that do not count
    selection = jax.block_until_ready(program(*args))
    result = memory_of(program)
    if before:
        peak = device.memory_stats()["peak_bytes_in_use"] - before["bytes_in_use"]
        result["peak_beyond_inputs_gib"] = gib(peak)
        result["earlier_peak_gib"] = gib(before["peak_bytes_in_use"] - before["bytes_in_use"])
    result["inputs_gib"] = gib(sum(x.nbytes for x in args))
    result["density"] = round(float(np.mean(selection.density)), 4)
    result["covered"] = round(float(np.mean(selection.retained_mass)), 4)
    del selection
    return {**measure_jax(program, args, repeats), **result}


def structured_tokens(seed, block, *, tokens, heads, head_dim, dtype):
    """Random tokens [t n h] that share a component within each block, so that blocks differ.

    Made some at a time and in place, so that hardly any memory is needed beside the result.
    """
    import jax
    import jax.numpy as jnp

    chunk = min(tokens, 64 * block)

    @jax.jit
    def make(key):
        # The same components for queries and keys.
        components = jax.random.normal(jax.random.key(7), (heads, 32, head_dim))

        def fill(i, out):
            noise_key, which_key, strength_key = jax.random.split(jax.random.fold_in(key, i), 3)
            blocks = -(-chunk // block)
            which = jax.random.randint(which_key, (blocks, heads), 0, 32)
            strength = jax.random.uniform(strength_key, (blocks, heads, 1), maxval=1.5)
            shared = strength * components[jnp.arange(heads), which]
            noise = jax.random.normal(noise_key, (chunk, heads, head_dim))
            new = noise + jnp.repeat(shared, block, axis=0)[:chunk]
            # The last chunk starts early enough to be whole.
            start = jnp.minimum(i * chunk, tokens - chunk)
            return jax.lax.dynamic_update_slice(out, new.astype(out.dtype), (start, 0, 0))

        empty = jnp.zeros((tokens, heads, head_dim), dtype)
        return jax.lax.fori_loop(0, -(-tokens // chunk), fill, empty)

    return make(jax.random.key(seed))


# --------------------------------------------------------------------------- PyTorch


def run_torch(options):
    try:
        import torch
    except ModuleNotFoundError:
        emit({"part": "torch", "left_out": "PyTorch is not installed"})
        return
    if not torch.cuda.is_available():
        emit({"part": "torch", "torch": torch.__version__, "left_out": "PyTorch finds no GPU"})
        return
    for tokens in options.tokens:
        q, k, v = torch_inputs(options, tokens)
        make_lists = functools.partial(random_lists, tokens=tokens, heads=options.heads)
        run = torch_runner(q, k, v, options)
        for name, attend in scaled_dot_product_attention(q, k, v).items():
            run({"name": name, "keep": 1.0}, attend, make_lists(1.0, block_q=128, block_k=128))
        for blocks in dict.fromkeys([(options.block_q, options.block_k), (128, 128)]):
            torch.compiler.reset()  # one program at a time, so that none counts as recompiled
            sizes = dict(zip(("block_q", "block_k"), blocks, strict=True))
            for share in options.keep:
                lists = make_lists(share, **sizes)
                line = {"name": f"flex {blocks[0]}x{blocks[1]}", "keep": share, **sizes}
                line["kernel_options"] = flex_options(lists)
                # What does not compile for one share does not for the others either.
                if not run(line, flex(q, k, v, lists), lists):
                    break


def run_flash_attention_4(options):
    """In a process of its own, for it comes with a compiler of its own."""
    name = "FlashAttention-4"
    try:
        from flash_attn.cute import flash_attn_func
    except ImportError as error:
        emit({"part": "torch", "name": name, "left_out": f"flash_attn.cute: {error}"})
        return
    for tokens in options.tokens:
        q, k, v = torch_inputs(options, tokens)
        queries, keys, values = (x.transpose(1, 2).contiguous() for x in (q, k, v))

        def attend(queries=queries, keys=keys, values=values):
            out = flash_attn_func(queries, keys, values)
            # Some versions add the log-sum-exp.
            return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

        lists = random_lists(1.0, tokens=tokens, heads=options.heads, block_q=128, block_k=128)
        torch_runner(q, k, v, options)({"name": name, "keep": 1.0}, attend, lists)


def torch_inputs(options, tokens) -> list:
    """Queries, keys and values [1 n t h]."""
    import torch

    dtype = getattr(torch, options.dtype)
    return [
        torch.from_numpy(x).to("cuda").to(dtype).transpose(0, 1).contiguous()[None]
        for x in inputs_of(options, tokens)
    ]


def torch_runner(q, k, v, options):
    """A function that runs a case and prints its line; it says whether that went well."""
    import torch

    reference = torch_reference(q, k, v)
    common = {"part": "torch", "device": torch.cuda.get_device_name(), "torch": torch.__version__}
    common |= shape_of(options, q.shape[2])

    def run(line, attend, lists) -> bool:
        line = {**common, **line}
        try:
            out, result = run_on_gpu(attend, options.repeats)
        # PyTorch's errors of compilation, of memory, and of backends that refuse.
        except RuntimeError as error:
            emit({**line, "error": explain(error)})
            return False
        result |= rate(lists, options.head_dim, result["ms"])
        emit(line | result | reference.errors(out[0].transpose(0, 1), lists))
        return True

    return run


def torch_reference(q, k, v) -> Reference:
    return Reference(*(x[0].transpose(0, 1) for x in (q, k, v)), lambda x: x.double().cpu().numpy())


def run_on_gpu(attend, repeats) -> tuple:
    """What a call gives, and its time and the memory that it takes."""
    import torch

    attend()  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = attend()
    torch.cuda.synchronize()
    used = torch.cuda.max_memory_allocated() - before

    def time_many(calls):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            attend()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return out, {**measure(time_many, repeats), "beyond_inputs_gib": gib(used)}


def scaled_dot_product_attention(q, k, v) -> dict:
    """Calls by name of the backend."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def by(backend):
        def attend():
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v)

        return attend

    return {
        "SDPA flash": by(SDPBackend.FLASH_ATTENTION),
        "SDPA cuDNN": by(SDPBackend.CUDNN_ATTENTION),
    }


def flex(q, k, v, lists):
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    mask = flex_mask(lists, q.device)
    # With fullgraph, what cannot be compiled is an error and does not run uncompiled.
    attend = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    options = flex_options(lists)
    return lambda: attend(q, k, v, block_mask=mask, kernel_options=options)


def flex_options(lists) -> dict:
    """Tiles that divide blocks smaller than the tiles that it chooses by itself."""
    sizes = {"BLOCK_M": lists.block_q, "BLOCK_N": lists.block_k}
    return {name: size for name, size in sizes.items() if size < 128}


def flex_mask(lists, device):
    """The lists as flex_attention takes them.

    All kept blocks are full ones, which need no mask. Rows have room for all blocks, so that one
    compiled program serves every share of them.
    """
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    table = np.zeros((len(lists.table), lists.num_kv_blocks), np.int32)
    table[:, : lists.table.shape[1]] = lists.table
    picks = torch.from_numpy(lists.picks).to(device)
    indices = torch.from_numpy(table).to(device)[picks][None]
    counts = torch.from_numpy(lists.counts.astype(np.int32)).to(device)[picks][None]
    return BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        torch.zeros_like(indices),
        counts,
        indices,
        BLOCK_SIZE=(lists.block_q, lists.block_k),
        seq_lengths=(lists.tokens, lists.tokens),
    )


if __name__ == "__main__":
    main()
