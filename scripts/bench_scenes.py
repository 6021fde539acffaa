"""Times `reconstruct_scenes` on a folder of photographs, beside one `infer` after another.

    python scripts/bench_scenes.py --writers 1 2 4 --out docs/benchmarks/scenes_h100.jsonl

The photographs are JPEG files with the spectrum of noise, drawn here; the model is VGGT-1B or π³
with random weights. One JSON line for each way to run the same scenes, all programs compiled
before:

- `one_by_one`: `infer`, then writing, scene after scene.
- `reconstruct_scenes` with each `--batch-size` and each number of `--writers`.

`device_s` is what the programs of a batch size take by themselves, on frames that are on the device
already; `busy` is its share of the time that it took from photographs to files.
"""

import argparse
import collections
import functools
import itertools
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
from bench_model import attention_of, describe_jax, report
from PIL import Image
from random_model import random_model, released_config

import vggt_jax
from vggt_jax.models.loading import with_dtype
from vggt_jax.models.registry import families
from vggt_jax.pipeline import many_scenes
from vggt_jax.pipeline.inputs import read_frames
from vggt_jax.pipeline.options import Options
from vggt_jax.scene.results import write_reconstruction

_PHOTOGRAPHS = 8  # distinct ones; the scenes have links to them


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=families(), default="vggt")
    parser.add_argument("--config", help="JSON configuration instead of the released one")
    parser.add_argument("--scenes", type=int, default=32, help="how many")
    parser.add_argument(
        "--frames",
        type=int,
        nargs="+",
        default=[12, 24],
        help="numbers of frames that the scenes take in turn, up to 32",
    )
    parser.add_argument("--photograph", type=int, nargs=2, default=[1600, 1200],
                        metavar=("WIDTH", "HEIGHT"), help="of the files")  # fmt: skip
    parser.add_argument("--sparse-ratio", type=float, help="leave out this share of the blocks")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1])
    parser.add_argument("--readers", type=int, default=2, help="scenes read at a time")
    parser.add_argument("--writers", type=int, nargs="+", default=[2],
                        help="scenes written at a time")  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, help="file to append JSON lines to")
    args = parser.parse_args()

    config = released_config(args.model)
    if args.config:
        config = type(config).from_json(args.config)
    model = with_dtype(random_model(config), jax.numpy.bfloat16)
    attention = attention_of(args.sparse_ratio)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        scenes = make_scenes(folder / "scenes", args.scenes, args.frames, args.photograph)
        common = {
            **describe_jax(),
            "model": args.model,
            "scenes": args.scenes,
            "frames": args.frames,
            "photograph": args.photograph,
            "sparse_ratio": args.sparse_ratio,
            "readers": args.readers,
        }
        one = {"way": "one_by_one", "batch_size": 1}
        ways = [(one, functools.partial(one_by_one, model=model, attention=attention))]
        for batch_size, writers in itertools.product(args.batch_size, args.writers):
            way = {"way": "reconstruct_scenes", "batch_size": batch_size, "writers": writers}
            run = functools.partial(
                vggt_jax.reconstruct_scenes,
                model=model,
                attention=attention,
                batch_size=batch_size,
                num_readers=args.readers,
                num_writers=writers,
                progress=False,
            )
            ways.append((way, run))
        alone = functools.cache(lambda size: time_alone(model, attention, scenes, size))
        for i, (way, run) in enumerate(ways):
            # One scene of each number of frames compiles all programs.
            some = {name: scenes[name] for name in list(scenes)[: len(args.frames)]}
            run(some, folder / f"compile{i}")
            start = time.perf_counter()
            run(scenes, folder / f"out{i}")
            seconds = time.perf_counter() - start
            written = list((folder / f"out{i}").glob("*/predictions.npz"))
            if len(written) != args.scenes:
                raise RuntimeError(f"{way}: {len(written)} of {args.scenes} scenes were written")
            device_s = alone(way["batch_size"])
            num_frames = sum(len(paths) for paths in scenes.values())
            line = {
                **common,
                **way,
                "seconds": round(seconds, 2),
                "frames_per_s": round(num_frames / seconds, 1),
                "device_s": round(device_s, 2),
                "busy": round(device_s / seconds, 2),
                "written_gib": round(sum(path.stat().st_size for path in written) / 2**30, 2),
            }
            report(line, args.out)


def make_scenes(folder, num_scenes, frames, photograph) -> dict[str, list[pathlib.Path]]:
    """Photographs of each scene by its name."""
    rng = np.random.default_rng(0)
    width, height = photograph
    drawn = folder / "drawn"
    drawn.mkdir(parents=True)
    for i in range(_PHOTOGRAPHS):
        # Noise on every scale, as photographs have it: files of about a byte for three pixels.
        coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
        image = np.asarray(coarse.resize((width, height)), np.float32)
        image += rng.normal(0, 12, image.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(drawn / f"{i}.jpg", quality=90)
    scenes = {}
    for i in range(num_scenes):
        name = f"scene{i:03d}"
        (folder / name).mkdir()
        scenes[name] = []
        for j in range(frames[i % len(frames)]):
            path = folder / name / f"{j:03d}.jpg"
            path.hardlink_to(drawn / f"{(i + j) % _PHOTOGRAPHS}.jpg")
            scenes[name].append(path)
    return scenes


def one_by_one(scenes, out, *, model, attention):
    for name, paths in scenes.items():
        recon = vggt_jax.infer(paths, model=model, attention=attention)
        write_reconstruction(out / name, recon)


def time_alone(model, attention, scenes, batch_size) -> float:
    """Seconds that the programs take for these scenes in batches, without reading and writing."""
    total = 0.0
    counts = collections.Counter(len(paths) for paths in scenes.values())
    for num_frames, num_scenes in counts.items():
        some = next(paths for paths in scenes.values() if len(paths) == num_frames)
        frames = read_frames(some, model, Options()).images
        images = jax.device_put(np.stack([frames] * batch_size))
        # The very program of `reconstruct_scenes`, so that it is not compiled again.
        run = functools.partial(
            many_scenes._reconstruct,
            model,
            images,
            None,
            None,
            attention=attention,
            compute_dtype=None,
        )
        times = []
        for _ in range(4):
            start = time.perf_counter()
            jax.block_until_ready(run())
            times.append(time.perf_counter() - start)
        total += statistics.median(times[1:]) * -(-num_scenes // batch_size)
    return total


if __name__ == "__main__":
    main()
