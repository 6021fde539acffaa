"""Times one scene on one and on several GPUs, and says what each of them needed; and many scenes.

    python scripts/bench_scale.py --out docs/benchmarks/scale_h200.jsonl
    python scripts/bench_scale.py --frames 200 --ways dense --devices 1 2 --profile
    python scripts/bench_scale.py --frames --scenes 48 --devices 1 2

VGGT-1B with random weights in bfloat16, frames of 518x518, from the host to the host as `infer`
runs it. One JSON line for each number of frames, way to attend and number of devices: the median of
some calls in milliseconds and their spread, the peak of each device so far, and what XLA says the
program of the scene needs on a device. Then one line for each that ran on several numbers of
devices: how many times faster it was than on the fewest, beside what `docs/scale.md` expects of the
exchange between devices.

With `--scenes`, so many folders of JPEG files, of 8, 16 and 24 frames in turn, go through
`reconstruct_scenes`, from files to files: once to compile, and once more, which is timed.

Each number of devices has a process of its own, in which ways to attend follow one another from the
one that needs least memory to that which needs most, so that each peak is its own.
"""

import argparse
import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

WAYS = {
    "sampled": {"num_keys": 10_240},
    "tenth": {"sparse_ratio": 0.9},
    "blocks": {"sparse_ratio": 0.75},
    "dense": {},
}
LONG_MS = 20_000  # calls that take longer are timed the first time
LAYERS, CHANNELS, NUM_SPECIAL = 24, 1024, 5
SIZE = (518, 518)
SCENE_FRAMES = (8, 16, 24)
TOKENS = (SIZE[0] // 14) * (SIZE[1] // 14) + NUM_SPECIAL


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="*", default=[200, 400],
                        help="of the scenes that are divided; none for none")  # fmt: skip
    parser.add_argument("--scenes", type=int, default=0,
                        help="how many scenes are shared out")  # fmt: skip
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["sampled", "blocks", "dense"])
    parser.add_argument("--link", action="store_true",
                        help="also measure what devices get of each other")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--head-groups", type=int,
                        help="groups of heads, whose keys and values are gathered one after the "
                        "other; tuned without")  # fmt: skip
    parser.add_argument("--profile", action="store_true",
                        help="also sum kernel times by kind, of all devices together")  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, help="file to append JSON lines to")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.head_groups is not None and args.head_groups < 1:
        parser.error(f"--head-groups {args.head_groups}: at least one")
    if args.child and args.link:
        print(json.dumps(measure_link(args.devices[0])), flush=True)
        return
    if args.child and args.scenes:
        print(json.dumps(run_scenes(args.scenes, args.devices[0])), flush=True)
        return
    if args.child:
        for frames in sorted(args.frames):
            for way in (name for name in WAYS if name in args.ways):
                with head_groups(args.head_groups, frames // args.devices[0]):
                    line = run_case(frames, way, args.devices[0], args.repeats, args.profile)
                print(json.dumps(line | {"head_groups": args.head_groups}), flush=True)
        return
    if args.link:
        for devices in (number for number in args.devices if number > 1):
            for line in run_child(args, devices, "--frames", "--link"):
                write(line, args.out)
    lines = []
    for frames in args.frames:
        for devices in args.devices:
            more = ["--frames", str(frames), "--ways", *args.ways]
            for line in run_child(args, devices, *more):
                lines.append(line)
                write(line, args.out)
    for devices in args.devices if args.scenes else ():
        for line in run_child(args, devices, "--scenes", str(args.scenes)):
            lines.append(line)
            write(line, args.out)
    for line in speedups(lines):
        write(line, args.out)


def write(line: dict, out: pathlib.Path | None):
    print(json.dumps(line), flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")


def run_child(args, devices: int, *more: str):
    """The lines of a process for one number of devices, as they come."""
    command = [sys.executable, __file__, "--child", *more]
    command += ["--devices", str(devices), "--repeats", str(args.repeats)]
    command += ["--profile"] if args.profile else []
    if args.head_groups is not None:
        command += ["--head-groups", str(args.head_groups)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if child.returncode:
        yield {"devices": devices, "error": f"exit code {child.returncode}: {' '.join(more)}"}


def head_groups(number: int | None, frames: int):
    """So many groups of heads where a device has so many frames; the tuned number for None."""
    from pallas_kernels import tuned

    if number is None:
        return contextlib.nullcontext()
    return tuned.override({"devices.bytes_of_group": 2 * 2 * CHANNELS * frames * TOKENS // number})


def run_case(frames: int, way: str, devices: int, repeats: int, profile: bool) -> dict:
    import jax
    import numpy as np
    from bench_model import attention_of, describe_jax, gib, profile_kernels, time_calls

    from vggt_jax.pipeline.inputs import read
    from vggt_jax.pipeline.options import Options
    from vggt_jax.pipeline.placing import placed
    from vggt_jax.pipeline.plan import plan_scene
    from vggt_jax.pipeline.run import program_for, scene_arguments

    model = released_model()
    images = np.random.default_rng(1).integers(0, 256, (frames, *SIZE, 3), np.uint8)
    options = Options(
        model=model,
        attention=attention_of(WAYS[way]),
        devices=devices,
        pad_frames=False,
        memory_check=False,
    )
    scene = read(images, model, options)
    plan = plan_scene(scene, model, options)
    arguments = scene_arguments(scene, plan)
    model = (
        jax.device_put(model, jax.devices()[0]) if devices == 1 else placed(plan.mesh, model, {})[0]
    )
    start = time.perf_counter()
    program = program_for(model, arguments, plan, options, compile_now=True)
    compile_s = time.perf_counter() - start
    call = lambda: program(model, **arguments)
    start = time.perf_counter()
    call()
    first = 1e3 * (time.perf_counter() - start)
    timing = {"ms": round(first, 1), "calls": 1}
    if first < LONG_MS:
        timing = time_calls(call, repeats)
    of_scene = program.scene.memory_analysis() if plan.streamed else None
    peaks = [device.memory_stats()["peak_bytes_in_use"] for device in jax.devices()[:devices]]
    line = {
        **describe_jax(),
        "frames": frames,
        "way": way,
        "devices": devices,
        **WAYS[way],
        "streamed": plan.streamed,
        "compile_s": round(compile_s, 1),
        **timing,
        "peak_gib": [gib(peak) for peak in peaks],
        "estimate_gib": gib(plan.memory.needed.total),
        "temporaries_gib": gib(of_scene.temp_size_in_bytes) if of_scene else None,
    }
    if profile:
        line["kernel_ms"] = profile_kernels(call)
    return line


def measure_link(devices: int) -> dict:
    """GB/s that a device gets of the others where all gather 128 MiB of each."""
    import functools

    import jax
    import jax.numpy as jnp
    from bench_model import describe_jax, time_calls
    from jax.sharding import NamedSharding, PartitionSpec

    from vggt_jax.layers.shards import mesh_of

    mesh, each = mesh_of(jax.devices()[:devices]), 2**26
    split = PartitionSpec("frames")

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=split, out_specs=PartitionSpec(), check_vma=False
    )
    def gather(x):
        return jax.lax.all_gather(x, "frames", tiled=True)

    x = jax.device_put(jnp.ones(devices * each, jnp.bfloat16), NamedSharding(mesh, split))
    ms = time_calls(lambda: jax.block_until_ready(gather(x)), 20)["ms"]
    rate = (devices - 1) * 2 * each / (1e6 * ms)
    return {**describe_jax(), "part": "link", "devices": devices, "ms": ms, "gb_s": round(rate, 1)}


def run_scenes(number: int, devices: int) -> dict:
    """Many scenes from files to files, with programs that are compiled already."""
    import jax
    from bench_model import describe_jax

    import vggt_jax

    model = jax.device_put(released_model(), jax.devices()[0])
    with tempfile.TemporaryDirectory() as folder:
        scenes = pathlib.Path(folder, "scenes")
        write_scenes(scenes, number)
        for out in ("to compile", "timed"):
            start = time.perf_counter()
            report = vggt_jax.reconstruct_scenes(
                scenes, pathlib.Path(folder, out), model=model, devices=devices, progress=False
            )
            seconds = time.perf_counter() - start
            assert len(report.written) == number, report
            shutil.rmtree(pathlib.Path(folder, out))
    frames = sum(SCENE_FRAMES[i % len(SCENE_FRAMES)] for i in range(number))
    return {
        **describe_jax(),
        "scenes": number,
        "scene_frames": SCENE_FRAMES,
        "devices": devices,
        "seconds": round(seconds, 2),
        "frames_per_second": round(frames / seconds, 1),
    }


def write_scenes(folder: pathlib.Path, number: int):
    """Folders of smooth pictures, which JPEG files hold as photographs."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(number):
        scene = folder / f"{i:03d}"
        scene.mkdir(parents=True)
        for frame in range(SCENE_FRAMES[i % len(SCENE_FRAMES)]):
            small = Image.fromarray(rng.integers(0, 256, (37, 37, 3), np.uint8))
            small.resize(SIZE, Image.Resampling.BICUBIC).save(scene / f"{frame:03d}.jpg")


def released_model():
    """VGGT-1B with random weights, those of products in bfloat16: made once in a process, by the
    host, because the peaks of devices would be those of making it."""
    import jax
    import jax.numpy as jnp
    from random_model import random_model, released_config

    from vggt_jax.models.loading import with_dtype

    if not hasattr(released_model, "made"):
        with jax.default_device(jax.devices("cpu")[0]):
            model = with_dtype(random_model(released_config("vggt")), jnp.bfloat16)
        released_model.made = jax.block_until_ready(model)
    return released_model.made


def exchanged_bytes(way: str, frames: int, devices: int) -> float:
    """What a device gets from others in all layers, by count: bfloat16, results in float32."""
    from vggt_jax import Sampled

    others = (devices - 1) / devices
    if way == "sampled":
        special = frames * NUM_SPECIAL
        keys = 2 * 2 * CHANNELS * (special + WAYS["sampled"]["num_keys"])
        if Sampled().samples_special_queries(frames):
            return LAYERS * 2 * others * keys
        # A sum over devices takes twice that share of it in a ring.
        queries, results = 2 * CHANNELS * special, 4 * CHANNELS * special
        return LAYERS * (2 * others * keys + others * queries + (devices - 1) * results)
    return LAYERS * others * 2 * 2 * CHANNELS * frames * TOKENS


def speedups(lines: list[dict]) -> list[dict]:
    """How many times faster several devices are than the fewest, for each scene and way."""
    found, measured = [], [line for line in lines if "ms" in line]
    shared = sorted((x for x in lines if "seconds" in x), key=lambda x: x["devices"])
    for line in shared[1:]:
        times = round(shared[0]["seconds"] / line["seconds"], 3)
        numbers = {"devices": line["devices"], "than": shared[0]["devices"], "times": times}
        found.append({"scenes": line["scenes"], **numbers})
    for line in measured:
        alike = [x for x in measured if (x["frames"], x["way"]) == (line["frames"], line["way"])]
        fewest = min(alike, key=lambda x: x["devices"])
        if line["devices"] == fewest["devices"]:
            continue
        found.append(
            {
                "frames": line["frames"],
                "way": line["way"],
                "devices": line["devices"],
                "than": fewest["devices"],
                "times": round(fewest["ms"] / line["ms"], 3),
                "share_of_peak": round(max(line["peak_gib"]) / max(fewest["peak_gib"]), 3),
                "exchanged_gb": round(
                    exchanged_bytes(line["way"], line["frames"], line["devices"]) / 1e9, 2
                ),
            }
        )
    return found


if __name__ == "__main__":
    main()
