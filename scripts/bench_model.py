"""Times a model with random weights and tells where time and memory go.

    python scripts/bench_model.py --out docs/benchmarks/model_h100.jsonl
    python scripts/bench_model.py --model pi3 --parts model --frames 50 100 200 --sparse-ratio 0.75

One JSON line per case: device, versions, shapes, median and spread of the repeats, peak memory.
Every case runs in a process of its own, so that its peak is its own. Parts:

- `attention`: dense attention of one layer by cuDNN and by the project's own kernel, on random
  tokens.
- `aggregator`: encoder and trunk (48 blocks, of π³ 36).
- `model`: the aggregator and all heads but that for tracks. Compiled in one process and timed in
  the next, because compiling tries out kernels in memory of its own.
- `infer`: the model as `infer` runs it, from frames on the host to results there; maps of many
  frames leave the device in pieces.
- `first_call`: what a user waits for at the first call of the model, with a cold and a warm cache
  of compiled programs.
- `official`: the aggregator of the official package, where `vggt` can be imported, or the whole
  model of the official π³, where `pi3` can: PyTorch, bfloat16 autocast. Its attention is
  scaled_dot_product_attention as PyTorch chooses (which is FlashAttention-2), by cuDNN, or by
  FlashAttention-4, where `flash_attn.cute` can be imported (--official-attention).
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from unittest import mock

FRAMES = {
    "attention": [50, 100, 200],
    "aggregator": [10, 50, 100, 200],
    "model": [200],
    "infer": [200],
    "first_call": [10],
    "official": [10, 50, 100, 200],
}


def main():
    from vggt_jax.models.registry import families

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=families(), default="vggt")
    parser.add_argument("--parts", nargs="+", choices=FRAMES, default=list(FRAMES)[:-1])
    parser.add_argument("--frames", type=int, nargs="+", help="instead of each part's own")
    parser.add_argument("--size", type=int, nargs=2, default=[518, 518], help="height width")
    parser.add_argument("--sparse-ratio", type=float, nargs="+", metavar="RATIO",
                        help="also leave out these shares of the blocks")  # fmt: skip
    parser.add_argument("--num-keys", type=int, nargs="+", metavar="KEYS",
                        help="also attend to samples of so many patches")  # fmt: skip
    parser.add_argument("--sample-special-queries", action="store_true",
                        help="let special tokens see the samples alone")  # fmt: skip
    parser.add_argument("--official-attention", nargs="+", default=["default"],
                        choices=["default", "cudnn", "flash4"])  # fmt: skip
    parser.add_argument("--no-dense", action="store_true", help="only what is not dense")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", type=int, nargs="*", default=[], metavar="FRAMES",
                        help="numbers of frames of which to sum kernel times by kind")  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, help="file to append JSON lines to")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # JSON: the child process's one case
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(**json.loads(args.case))))
        return
    for part in args.parts:
        attentions = [{}]
        if part in ("aggregator", "model", "infer", "first_call"):
            others = [{"sparse_ratio": ratio} for ratio in args.sparse_ratio or []]
            special = {"sample_special_queries": True} if args.sample_special_queries else {}
            others += [{"num_keys": number, **special} for number in args.num_keys or []]
            attentions = others if args.no_dense and others else [{}, *others]
        if part == "official":
            attentions = args.official_attention
        for frames, attention in itertools.product(args.frames or FRAMES[part], attentions):
            case = {"part": part, "frames": frames, "size": args.size, "repeats": args.repeats}
            if part != "attention":
                case["model"] = args.model
            if attention:
                case["attention"] = attention
            with tempfile.TemporaryDirectory() as cache:
                env = {"JAX_COMPILATION_CACHE_DIR": cache}
                if part == "first_call":
                    for state in ("cold", "warm"):
                        report(run_child({**case, "cache": state}, env), args.out)
                    continue
                profile = frames in args.profile and part in ("aggregator", "model", "infer")
                if part in ("model", "infer"):
                    run_child({**case, "compile_only": True}, env)
                report(run_child({**case, "profile": True} if profile else case, env), args.out)


def run_child(case: dict, env: dict) -> dict:
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    result = subprocess.run(
        command, env=os.environ | env, stdout=subprocess.PIPE, text=True, check=False
    )
    if result.returncode:
        return {**case, "error": f"exit code {result.returncode}"}
    return json.loads(result.stdout.splitlines()[-1])


def report(line: dict, out: pathlib.Path | None):
    print(json.dumps(line), flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")


def run_case(part: str, **case) -> dict:
    run = {
        "attention": run_attention,
        "aggregator": run_ours,
        "model": run_ours,
        "infer": run_infer,
        "first_call": run_first_call,
        "official": run_official,
    }[part]
    model = {"model": case["model"]} if "model" in case else {}
    return {"part": part, **model, **run(part=part, **case)}


def make_inputs(model: str, frames: int, size: list[int]):
    """A random model whose product kernels are stored in bfloat16, and random images."""
    import jax
    import jax.numpy as jnp
    from random_model import random_model, released_config

    from vggt_jax.models.loading import with_dtype

    model = with_dtype(random_model(released_config(model)), jnp.bfloat16)
    images = jax.random.randint(jax.random.key(1), (1, frames, *size, 3), 0, 256, jnp.uint8)
    return jax.block_until_ready((model, images))


def aggregate(model, images, **options):
    patch_tokens = model.encode(images)
    return model.aggregate(patch_tokens, model.layout(images), **options)


def whole(model, images, **options):
    return model(images, **options)


def run_attention(part, frames, size, repeats):
    """Milliseconds and TFLOP/s of one layer, over all and within frames, by implementation."""
    import jax
    import jax.numpy as jnp

    from vggt_jax.layers.attention import Dense, dense_attention, dense_obstacles, padded_tokens

    tokens = size[0] // 14 * (size[1] // 14) + 5
    padded = padded_tokens(tokens, Dense(), head_dim=64, dtype=jnp.bfloat16)
    result = {**describe_jax(), "frames": frames, "tokens_per_frame": tokens}
    usable = dense_obstacles(head_dim=64, dtype=jnp.bfloat16)
    names = [name for name in ("cudnn", "mosaic_gpu") if usable[name] is None]
    for where, scenes, length, own_length in (
        ("over_frames", 1, frames * tokens, frames * tokens),
        ("within_frames", frames, tokens, padded),
    ):
        operations = 4 * scenes * length**2 * 16 * 64
        result[where] = {}
        # Timed twice in turn, since the rate of long runs falls as the GPU warms up.
        for name in names * 2:
            shape = (scenes, own_length if name == "mosaic_gpu" else length, 16, 64)
            keys = jax.random.split(jax.random.key(0), 3)
            qkv = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
            kv_lengths = None if shape[1] == length else jnp.full(scenes, length)
            attend = jax.jit(functools.partial(dense_attention, implementation=name))
            call = functools.partial(attend, *qkv, kv_lengths=kv_lengths)
            ms = time_series(call, repeats)
            rate = {"ms": round(ms, 4), "tflops": round(operations / ms / 1e9)}
            result[where].setdefault(name, []).append(rate)
    return result


def time_series(call, repeats: int) -> float:
    """Milliseconds of a call that may be too short to time alone: the median of several series."""
    import jax

    jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    calls = min(200, max(1, round(0.3 / (time.perf_counter() - start))))
    series = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)
        series.append(1e3 * (time.perf_counter() - start) / calls)
    return statistics.median(series)


def run_ours(
    part,
    model,
    frames,
    size,
    repeats,
    profile=False,
    compile_only=False,
    attention=None,
):
    import jax

    model, images = make_inputs(model, frames, size)
    settings, attention = attention or {}, attention_of(attention)
    fn = {"aggregator": aggregate, "model": whole}[part]
    fn = jax.jit(functools.partial(fn, attention=attention))
    start = time.perf_counter()
    compiled = fn.lower(model, images).compile()
    compile_s = time.perf_counter() - start
    if compile_only:
        return {"compile_s": compile_s}
    call = lambda: jax.block_until_ready(compiled(model, images))
    timing = time_calls(call, repeats)
    analysis = compiled.memory_analysis()
    result = {
        **describe_jax(),
        "frames": frames,
        "size": size,
        "dtype": "bfloat16",
        "sparse_ratio": None,
        **settings,
        "compile_s": round(compile_s, 1),
        **timing,
        "peak_gib": gib(jax.devices()[0].memory_stats()["peak_bytes_in_use"]),
        "weights_gib": gib(sum(x.nbytes for x in jax.tree.leaves(model))),
        "temporaries_gib": gib(analysis.temp_size_in_bytes),
        "outputs_gib": gib(analysis.output_size_in_bytes),
        "estimate_gib": estimate_gib(model, frames, size, attention) if part == "model" else None,
    }
    if profile:
        result["kernel_ms"] = profile_kernels(call)
    return result


def run_infer(
    part, model, frames, size, repeats, profile=False, compile_only=False, attention=None
):
    """Seconds and peak of a scene from the host to the host."""
    import jax
    import numpy as np

    from vggt_jax.pipeline.inputs import read
    from vggt_jax.pipeline.options import Options
    from vggt_jax.pipeline.plan import plan_scene
    from vggt_jax.pipeline.run import program_for, scene_arguments

    model, images = make_inputs(model, frames, size)
    settings, attention = attention or {}, attention_of(attention)
    options = Options(model=model, attention=attention, pad_frames=False, memory_check=False)
    scene = read(np.asarray(images[0]), model, options)
    del images
    plan = plan_scene(scene, model, options)
    arguments = scene_arguments(scene, plan)
    start = time.perf_counter()
    program = program_for(model, arguments, plan, options, compile_now=True)
    compile_s = time.perf_counter() - start
    if compile_only:
        return {"compile_s": compile_s}
    call = lambda: program(model, **arguments)
    timing = time_calls(call, repeats)
    result = {
        **describe_jax(),
        "frames": frames,
        "size": size,
        "dtype": "bfloat16",
        "sparse_ratio": None,
        **settings,
        "streamed": plan.streamed,
        "compile_s": round(compile_s, 1),
        **timing,
        "peak_gib": gib(jax.devices()[0].memory_stats()["peak_bytes_in_use"]),
        "limit_gib": gib(jax.devices()[0].memory_stats()["bytes_limit"]),
        "estimate_gib": estimate_gib(model, frames, size, attention, streamed=plan.streamed),
    }
    if profile:
        result["kernel_ms"] = profile_kernels(call)
    return result


def attention_of(settings: dict | None):
    """Dense, or by a sample or block-sparse as the settings have it."""
    import vggt_jax

    if not settings:
        return vggt_jax.Dense()
    kind = vggt_jax.Sampled if "num_keys" in settings else vggt_jax.BlockSparse
    return kind(**settings)


def estimate_gib(model, frames, size, attention, *, streamed=False):
    from vggt_jax.pipeline.memory import check_memory

    check = check_memory(model, (frames, *size, 3), attention=attention, streamed=streamed)
    return gib(check.needed.total)


def run_first_call(part, model, frames, size, repeats, cache, attention=None):
    """What a user waits for at the first call, compilation included; then once more."""
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    model, images = make_inputs(model, frames, size)
    settings, attention = attention or {}, attention_of(attention)
    fn = jax.jit(functools.partial(whole, attention=attention))
    times = []
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(fn(model, images))
        times.append(time.perf_counter() - start)
    return {
        **describe_jax(),
        "frames": frames,
        "size": size,
        "sparse_ratio": None,
        **settings,
        "compile_cache": cache,
        "first_call_s": round(times[0], 2),
        "second_call_s": round(times[1], 3),
    }


def official_attention(name: str):
    """A context in which PyTorch's attention is of this kind."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if name == "default":
        return contextlib.nullcontext()
    if name == "cudnn":
        return sdpa_kernel(SDPBackend.CUDNN_ATTENTION)
    from flash_attn.cute import flash_attn_func

    def attend(query, key, value, dropout_p=0.0):
        # The official layers call it with [b heads tokens channels]; products are in bfloat16.
        turned = (x.transpose(1, 2).to(torch.bfloat16) for x in (query, key, value))
        result = flash_attn_func(*turned)
        result = result[0] if isinstance(result, tuple) else result
        return result.transpose(1, 2)

    return mock.patch("torch.nn.functional.scaled_dot_product_attention", attend)


def run_official(part, model, frames, size, repeats, profile=False, attention="default"):
    import torch

    torch.manual_seed(0)
    if model == "pi3":
        from pi3.models.pi3 import Pi3

        model = Pi3()
    else:
        from vggt.models.aggregator import Aggregator

        model = Aggregator(img_size=518)
    model = model.cuda().eval()
    images = torch.rand(1, frames, 3, *size, device="cuda")

    @torch.no_grad()
    @torch.autocast("cuda", dtype=torch.bfloat16)
    def call():
        model(images)
        torch.cuda.synchronize()

    with official_attention(attention):
        timing = time_calls(call, repeats)
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "attention": attention,
        "frames": frames,
        "size": size,
        "dtype": "bfloat16",
        **timing,
        "peak_gib": gib(torch.cuda.max_memory_allocated()),
    }


def time_calls(call, repeats: int) -> dict:
    if repeats > 1:  # A call that is timed once only is a long one.
        call()
    times = []
    while len(times) < repeats and (len(times) < 2 or sum(times) < 20e3):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return {
        "ms": round(statistics.median(times), 1),
        "spread_ms": round(max(times) - min(times), 1),
    }


def profile_kernels(call) -> dict:
    """Milliseconds of one call by kind of kernel, from the profiler's trace."""
    import gzip

    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        path = next(pathlib.Path(folder).rglob("*.trace.json.gz"))
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    gpus = {e["pid"] for e in events if e.get("name") == "process_name" and "GPU" in str(e["args"])}
    streams = {
        (e["pid"], e["tid"])
        for e in events
        if e.get("name") == "thread_name" and e["pid"] in gpus and "Stream" in str(e["args"])
    }
    totals = {}
    for event in events:
        if event.get("ph") != "X" or (event["pid"], event["tid"]) not in streams:
            continue
        kind = kind_of_kernel(event["name"])
        totals[kind] = totals.get(kind, 0) + event["dur"] / 1e3
    return {kind: round(ms, 1) for kind, ms in sorted(totals.items(), key=lambda item: -item[1])}


def kind_of_kernel(name: str) -> str:
    lower = name.lower()
    for kind, marks in (
        ("between devices", ("nccl",)),
        ("matrix product", ("gemm", "nvjet", "cublas", "linear_mosaic")),
        ("attention", ("sdpa", "flash", "fmha", "fprop_sm90_flash", "block_sparse", "mosaic")),
        ("norms and RoPE of queries and keys", ("norm_rope",)),
        ("selection", ("select_blocks", "pool_blocks", "whole_blocks_first")),
        ("elementwise and reductions", ("fusion", "reduce", "softmax")),
        ("convolution", ("conv", "fprop", "implicit", "cutlass", "cudnn")),
        ("copy", ("copy", "memcpy", "memset")),
    ):
        if any(mark in lower for mark in marks):
            return kind
    return "other"


def describe_jax() -> dict:
    import jax

    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


def gib(num_bytes: int) -> float:
    return round(num_bytes / 2**30, 2)


if __name__ == "__main__":
    main()
