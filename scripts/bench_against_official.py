"""Times whole models with random weights beside their official PyTorch code, in a few minutes.

    python scripts/bench_against_official.py --official OFFICIAL --out docs/benchmarks/models.jsonl
    python scripts/bench_against_official.py --models pi3x --frames 100 --no-official
    python scripts/bench_against_official.py --models da3-base da3-large --size 378 504 --told

One JSON line per case as soon as there is one: device, versions, shapes, the median of the repeats,
memory. A model has a process of its own, and so has its official code. All programs of a model are
compiled side by side and then timed one after another, so its memory is what the compiled program
holds: weights, images, results and temporaries. That of PyTorch is the peak of its allocator.
`scripts/bench_model.py` looks at one case more closely.

OFFICIAL is a folder with the packages `pi3` (github.com/yyfz/Pi3), `mapanything` (github.com/
facebookresearch/map-anything), `uniception` (github.com/castacks/UniCeption), `dinov2`
(github.com/facebookresearch/dinov2) and `depth_anything_3` (github.com/ByteDance-Seed/
Depth-Anything-3, which needs `addict` and `omegaconf`), and with `mapanything.json`, the
`model.model_config` that hydra composes of the configs of MapAnything;
`scripts/make_goldens_mapanything.py` shows how. A model whose code is not there is left out, and a
line says so.
"""

import argparse
import concurrent.futures
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time
from unittest import mock

from bench_model import attention_of, describe_jax, gib, report, time_calls

_LONG_MS = 5000.0  # calls that take longer are timed once, after the first


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["mapanything", "pi3x"])
    parser.add_argument("--frames", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--size", type=int, nargs=2, default=[518, 518], help="height width")
    parser.add_argument("--sparse-ratio", type=float, nargs="*", default=[0.75],
                        help="shares of the blocks to leave out")  # fmt: skip
    parser.add_argument("--num-keys", type=int, nargs="*", default=[10240],
                        help="sampled keys")  # fmt: skip
    parser.add_argument("--memory-of", type=int, nargs="*", default=[1000], metavar="FRAMES",
                        help="tell the memory of so many frames, a tenth of the blocks kept and "
                        "maps streamed to the host, without running them")  # fmt: skip
    parser.add_argument("--told", type=int, nargs="*", default=[100], metavar="FRAMES",
                        help="of which numbers of frames also to tell the model intrinsics, poses "
                        "and depth")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--official", type=pathlib.Path, default=pathlib.Path(".official"))
    parser.add_argument("--no-official", action="store_true", help="only ours")
    parser.add_argument("--config", type=pathlib.Path,
                        help="JSON file with the fields of configurations by model, to try the "
                        "script with small ones")  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, help="file to append JSON lines to")
    parser.add_argument("--child", choices=["ours", "official"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        {"ours": run_ours, "official": run_official}[args.child](args, args.models[0])
        return
    for model in args.models:
        for kind in ("ours",) if args.no_official else ("ours", "official"):
            command = [sys.executable, __file__, *sys.argv[1:], "--models", model, "--child", kind]
            if code := subprocess.run(command, check=False).returncode:
                report({"model": model, "code": kind, "error": f"exit code {code}"}, args.out)


def run_ours(args: argparse.Namespace, name: str):
    import jax
    import jax.numpy as jnp
    from random_model import random_model, released_config

    from vggt_jax.models.loading import with_dtype

    config = released_config(name)
    if args.config:
        config = type(config).from_dict(json.loads(args.config.read_text())[name])
    model = with_dtype(random_model(config), jnp.bfloat16)
    shape = (1, max(args.frames + args.told), *args.size, 3)
    images = jax.random.randint(jax.random.key(1), shape, 0, 256, jnp.uint8)
    jax.block_until_ready((model, images))
    ways = [{}]
    ways += [{"sparse_ratio": ratio} for ratio in args.sparse_ratio]
    ways += [{"num_keys": number} for number in args.num_keys]
    cases = [(frames, way, None) for frames, way in itertools.product(args.frames, ways)]
    cases += [(frames, {}, some_priors(frames, args.size)) for frames in args.told]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        compiling = []
        for frames, way, priors in cases:
            program = jax.jit(functools.partial(whole, attention=attention_of(way)))
            lowered = program.lower(model, images[:, :frames], priors)
            compiling.append(pool.submit(timed, lowered.compile))
        memories = [
            (frames, pool.submit(streamed_memory, model, frames, args.size))
            for frames in args.memory_of
        ]
        compiled = [future.result() for future in compiling]
        memories = [(frames, future.result()) for frames, future in memories]
    common = {"model": name, "code": "ours", **describe_jax(), "size": args.size}
    common["weights_gib"] = gib(sum(x.nbytes for x in jax.tree.leaves(model)))
    for (frames, way, priors), (program, compile_ms) in zip(cases, compiled, strict=True):
        known = () if priors is None else priors.given
        line = {**common, "frames": frames, "attention": way or "dense", "known": known}
        line |= memory_of(program)
        line["estimate_gib"] = estimate_gib(model, frames, args.size, way, known=known)
        line["compile_s"] = round(compile_ms / 1e3, 1)
        given = jax.device_put((images[:, :frames], priors))
        call = lambda program=program, given=given: jax.block_until_ready(program(model, *given))
        try:
            line |= time_case(call, args.repeats)
        except jax.errors.JaxRuntimeError as error:
            line["error"] = str(error)[:200]
        report(line, args.out)
    for frames, memory in memories:
        report({**common, "frames": frames, **memory}, args.out)


def whole(model, images, priors, *, attention):
    known = {} if priors is None else {"priors": priors}
    return model(images, attention=attention, **known)


def some_priors(frames: int, size: list[int]):
    """Cameras a step apart before a wall, of one scene."""
    import numpy as np

    from vggt_jax import Priors

    height, width = size
    intrinsics = np.float32([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]])
    cameras = np.tile(np.eye(4, dtype=np.float32), (1, frames, 1, 1))
    cameras[0, :, 0, 3] = np.arange(frames)
    return Priors(
        intrinsics=np.tile(intrinsics, (1, frames, 1, 1)),
        camera_from_world=cameras,
        depth=np.full((1, frames, height, width), 3.0, np.float32),
    )


def streamed_memory(model, frames: int, size: list[int]) -> dict:
    """What the two programs of a streamed scene hold, a tenth of the blocks kept."""
    import jax
    import jax.numpy as jnp

    from vggt_jax.pipeline.streaming import Stream

    way = {"sparse_ratio": 0.9}
    inputs = {"images": jax.ShapeDtypeStruct((frames, *size, 3), jnp.uint8)}
    stream = Stream.of(model, inputs, attention=attention_of(way), compiled=True)
    held = [memory_of(program)["memory_gib"] for program in (stream.scene, stream.frames)]
    estimate = estimate_gib(model, frames, size, way, streamed=True)
    return {"attention": way, "streamed": True, "memory_gib": max(held), "estimate_gib": estimate}


def memory_of(compiled) -> dict:
    """GiB of arguments, results and temporaries of a program."""
    analysis = compiled.memory_analysis()
    parts = (
        analysis.argument_size_in_bytes,
        analysis.output_size_in_bytes,
        analysis.temp_size_in_bytes,
    )
    return {"memory_gib": gib(sum(parts)), "temporaries_gib": gib(parts[2])}


def estimate_gib(model, frames: int, size: list[int], way: dict, **options):
    from vggt_jax.pipeline.memory import check_memory

    check = check_memory(model, (frames, *size, 3), attention=attention_of(way), **options)
    return gib(check.needed.total)


def run_official(args: argparse.Namespace, name: str):
    sys.path.insert(0, str(args.official.resolve()))
    common = {"model": name, "code": "official", "size": args.size}
    try:
        import torch

        make = {"mapanything": official_mapanything, "pi3x": official_pi3x, "da3": official_da3}
        model, inputs = make[name.partition("-")[0]](args)
    except (ImportError, FileNotFoundError, KeyError) as error:
        report({**common, "error": f"not there: {error!r}"}, args.out)
        return
    if not torch.cuda.is_available():
        report({**common, "error": "needs a GPU"}, args.out)
        return
    model = model.cuda().eval()
    common |= {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for frames in args.frames:
        torch.cuda.reset_peak_memory_stats()
        given = inputs(frames)

        @torch.no_grad()
        @torch.autocast("cuda", dtype=torch.bfloat16)
        def call(given=given):
            model(*given)
            torch.cuda.synchronize()

        line = {**common, "frames": frames, "attention": "dense"}
        try:
            line |= time_case(call, args.repeats)
            line["memory_gib"] = gib(torch.cuda.max_memory_allocated())
        except torch.cuda.OutOfMemoryError as error:
            line["error"] = str(error)[:200]
        report(line, args.out)


def official_pi3x(args: argparse.Namespace):
    """The model, told that nothing is known, and its arguments by the number of frames."""
    import torch
    from pi3.models.pi3x import Pi3X

    model = Pi3X()
    model.disable_multimodal()
    return model, lambda frames: (torch.rand(1, frames, 3, *args.size, device="cuda"),)


def official_da3(args: argparse.Namespace):
    """The model of a size, its cameras from its camera head."""
    import torch
    from depth_anything_3.cfg import create_object, load_config

    name = args.models[0]
    model = create_object(load_config(f"depth_anything_3.configs.{name}"))
    return model, lambda frames: (torch.rand(1, frames, 3, *args.size, device="cuda"),)


def official_mapanything(args: argparse.Namespace):
    """V1.1, whose dense head runs in as large parts as fit, as its `infer` has it."""
    import torch
    from dinov2.layers import MemEffAttention
    from dinov2.layers import NestedTensorBlock as Block
    from dinov2.models.vision_transformer import DinoVisionTransformer
    from mapanything.models.mapanything import model as official

    encoder = functools.partial(
        DinoVisionTransformer, img_size=518, patch_size=14, embed_dim=1536, depth=24, num_heads=24,
        mlp_ratio=4, ffn_layer="swiglufused", init_values=1.0, block_chunks=0,
        block_fn=functools.partial(Block, attn_class=MemEffAttention), interpolate_antialias=False,
        interpolate_offset=0.1,
    )  # fmt: skip
    config = json.loads((args.official / "mapanything.json").read_text())
    with mock.patch.object(torch.hub, "load", lambda *_, **options: encoder()):  # noqa: PT008
        model = official.MapAnything(**config)

    def inputs(frames: int):
        images = torch.rand(frames, 1, 3, *args.size, device="cuda")
        return [{"img": image, "data_norm_type": ["dinov2"]} for image in images], True

    return model, inputs


def time_case(call, repeats: int) -> dict:
    """Milliseconds of a call after the first, once only if that took long."""
    _, first = timed(call)
    return time_calls(call, 1 if first > _LONG_MS else repeats)


def timed(call):
    """What a call returns, and its milliseconds."""
    start = time.perf_counter()
    result = call()
    return result, 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
