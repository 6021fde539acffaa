"""Measures a long walk in windows: memory, and drift against its length, with and without closure.

    python scripts/bench_windows.py --frames 10000 --out docs/benchmarks/windows.jsonl
    python scripts/bench_windows.py --plot docs/benchmarks/windows.jsonl docs/images/windows.png

Renders the walk of `walk_world.py` (unless it is there), reconstructs it in windows with the small
model, or another, and compares cameras with the true ones. One JSON line says how much memory the
process had taken at the most after so many frames, and when the scene was whole; then one line for
each number of frames and each way: the absolute error of positions (ATE) after the best similarity,
in metres and as a share of the way, as if the walk had ended there.

Windows stay in `--folder`, so that a run that was killed goes on where it was.
"""

import argparse
import json
import pathlib
import resource
import time

import figures
import jax
import numpy as np
from walk_world import STEP, Hall, write_walk

import vggt_jax
from vggt_jax.evaluation import trajectory_errors
from vggt_jax.images.parts import ImageParts
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.windows.graph import chained, optimised
from vggt_jax.pipeline.windows.joining import Join
from vggt_jax.pipeline.windows.run import WindowNews, infer_in_windows, world_parts
from vggt_jax.pipeline.windows.spans import spans_of
from vggt_jax.pipeline.windows.store import WindowStore

PREFIXES = (100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 4000, 5000, 7000, 10000)


def peak_mib() -> float:
    """The most memory that this process has had, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def run(args, model, paths) -> dict:
    """Reconstructs the walk, but for windows that are there, and says what memory it took."""
    options = Options(
        model=model, window=args.window, overlap=args.overlap, loop_closure=args.close,
        window_folder=args.folder,
    )  # fmt: skip
    log = args.folder.with_suffix(".memory.json")
    # Of windows that an earlier run did it says what that took.
    peaks = {int(n): x for n, x in json.loads(log.read_text()).items()} if log.exists() else {}
    step, start = args.window - args.overlap, time.time()

    def note(news: WindowNews):
        if news.doing == "windows" and news.done:
            frames = min(args.window + (news.done - 1) * step, args.frames)
            peaks[frames] = max(peaks.get(frames, 0.0), peak_mib())
            log.write_text(json.dumps(peaks))
        print(f"{news.doing} {news.done}/{news.total} {peak_mib()} MiB", flush=True)

    recon = infer_in_windows(ImageParts(paths), model, options, news=note)
    return {
        "of": "memory", "frames": args.frames, "closure": args.close,
        "peak_mib_after_frames": {
            n: max(x for frames, x in peaks.items() if frames <= n)
            for n in PREFIXES if n <= args.frames and n >= args.window
        },
        "peak_mib": peak_mib(), "seconds": round(time.time() - start),
        "results_gib": round(sum(x.nbytes for x in vars(recon).values()
                                 if isinstance(x, np.ndarray)) / 2**30, 2),
    }  # fmt: skip


def drift(args, true: np.ndarray) -> list[dict]:
    """Errors of the walk as if it had ended after some of its frames."""
    store = WindowStore.opened(args.folder)
    spans = spans_of(args.frames, args.window, args.overlap)
    noted = [store.noted(k) for k in range(len(spans))]
    cameras = [store.array(k, "camera_from_world") for k in range(len(spans))]
    closures = {
        pair: Join.from_dict(found).similarity
        for pair, found in store.closures().items() if found is not None
    }  # fmt: skip
    lines = []
    for frames in [n for n in PREFIXES if n <= args.frames]:
        # Windows up to the first that gives the last of these frames.
        count = next(k for k, span in enumerate(spans) if span.last >= frames) + 1
        joins = [Join.from_dict(one["join"]).similarity for one in noted[1:count]]
        depths = np.array([one["depth"] for one in noted[:count]])
        here = {pair: x for pair, x in closures.items() if max(pair) < count}
        ways = {"windows": chained(joins)}
        if here:
            ways["windows and closures"] = optimised(joins, here, depths)
        for way, at in ways.items():
            parts = world_parts(store, spans[:count], at)
            pairs = zip(parts, cameras[:count], strict=True)
            found = [part.cameras(x[part.frames]) for part, x in pairs]
            found = np.concatenate(found)[:frames]
            error = trajectory_errors(np.float32(found), np.float32(true[:frames]))
            length = STEP * (frames - 1)
            lines.append({
                "of": "drift", "way": way, "frames": frames, "metres": round(length, 2),
                "closures": len(here) if at is not ways["windows"] else 0,
                "ate_m": round(float(error.ate), 3),
                "ate_percent": round(100 * float(error.ate) / length, 2),
                "rpe_degrees": round(float(error.rpe_rotation), 3),
            })  # fmt: skip
    return lines


def plot(source: pathlib.Path, out: pathlib.Path):
    """Draws drift against the length of the walk."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in source.read_text().splitlines()]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    groups: dict[tuple, list[dict]] = {}
    for line in lines:
        if line["of"] == "drift":
            groups.setdefault((line["model"], line["hall"], line["way"]), []).append(line)
    for (model, hall, way), rows in groups.items():
        style = "o-" if way == "windows" else "x--"
        label = f"{model}, hall of {hall:g} m, {way}"
        for axis, name in zip(axes, ("ate_m", "ate_percent"), strict=True):
            axis.plot([r["metres"] for r in rows], [r[name] for r in rows], style, label=label)
    for axis, name in zip(axes, ("ATE, metres", "ATE, % of the way"), strict=True):
        axis.set(xlabel="length of the walk, metres", ylabel=name, xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=6)
    figures.save(figure, out, dpi=130)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--overlap", type=int, default=8)
    parser.add_argument("--hall", type=float, default=30.0, help="side of the hall in metres")
    parser.add_argument("--size", type=int, help="side of pictures in pixels; the model's own")
    parser.add_argument("--model", help="as vggt-jax takes it; by default the small one")
    parser.add_argument("--close", action="store_true", help="close loops, too")
    parser.add_argument("--walk", type=pathlib.Path, default=pathlib.Path("walk"),
                        help="folder of the pictures, rendered if they are not there")  # fmt: skip
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("walk.windows"))
    parser.add_argument("--out", type=pathlib.Path, help="file to append JSON lines to")
    parser.add_argument("--plot", type=pathlib.Path, nargs=2, metavar=("JSONL", "PNG"))
    args = parser.parse_args()
    if args.plot:
        plot(*args.plot)
        return
    model = vggt_jax.load_model(args.model)
    args.size = args.size or model.config.img_size
    hall = Hall.of_side(args.hall)
    write_walk(hall, args.frames, args.size, args.walk)
    paths = [args.walk / f"{i:06d}.png" for i in range(args.frames)]
    lines = [run(args, model, paths), *drift(args, hall.cameras(np.arange(args.frames)))]
    named = {
        "model": "small" if args.model is None else pathlib.Path(args.model).stem,
        "hall": args.hall, "size": args.size, "window": args.window, "overlap": args.overlap,
        "device": jax.devices()[0].device_kind, "jax": jax.__version__,
    }  # fmt: skip
    for line in lines:
        text = json.dumps(line | named)
        print(text, flush=True)
        if args.out:
            with open(args.out, "a") as file:
                file.write(text + "\n")


if __name__ == "__main__":
    main()
