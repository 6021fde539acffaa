"""How well a model finds the cameras of photographs with known poses.

    python scripts/evaluate_photographs.py SCENES
    python scripts/evaluate_photographs.py SCENES --model MODEL --size 224 --steps 1 2 4 6

SCENES is a folder of scenes, each with `transforms.json` of nerfstudio and the photographs that it
names (camera_from_world and, if known, intrinsics). Frames are in the order of their names. For
every step, each window of so many frames that many apart is a scene of its own: a window begins at
every frame, so that no lucky one decides. Prints the mean over the windows of each scene with its
standard error (of windows that share frames, which makes it too small), and the mean over the
scenes of these means with the standard error over scenes. A scene with too few frames for a step is
left out of that step. Depth is not judged.

`--shape square` cuts the middle square out of each photograph, `own` keeps about its shape, with at
most as many pixels (mode "area" of `vggt_jax.load_images`).
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

import vggt_jax
from vggt_jax.errors import InputError
from vggt_jax.evaluation import accuracy_at, auc_at, pair_errors
from vggt_jax.images.resizing import size_within_budget
from vggt_jax.pipeline.prior_formats import read_known

METRICS = ("auc_30", "auc_10", "auc_5", "auc_3", "rra_5", "rta_5")


def read_scene(folder: pathlib.Path, shape: str, size: int, patch_size: int) -> tuple:
    """Frames and poses of a scene with `transforms.json`.

    Args:
        shape: "square" for the middle square, "own" for the shape of the photograph.
        size: side of a square of so many pixels, a multiple of `patch_size`.

    Returns:
        Images uint8 [s height width 3], and camera_from_world float32 [s 3 4], in the order of the
        names of the files.

    Raises:
        InputError: a photograph is missing, or those of a scene come to different shapes.
    """
    known = read_known(folder / "transforms.json").photographs
    images, poses = [], []
    for name in sorted(known):
        path = folder / name
        try:
            with Image.open(path) as image:
                images.append(to_shape(ImageOps.exif_transpose(image), shape, size, patch_size))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        poses.append(known[name].camera_from_world[:3])
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{folder}: holds photographs of several shapes; use --shape square")
    return np.stack(images), np.stack(poses).astype(np.float32)


def to_shape(image: Image.Image, shape: str, size: int, patch_size: int) -> np.ndarray:
    """A photograph as a frame, uint8 [height width 3], cut in the middle to whole patches."""
    width, height = size, size
    if shape == "own":
        shown = (image.height, image.width)
        height, width = size_within_budget(shown, size**2, patch_size, "a photograph")
    fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
    return np.asarray(fitted)


def windows(num_frames: int, num: int, step: int) -> Iterator[np.ndarray]:
    """The frames of each window of `num` frames that are `step` apart, one from every first
    frame."""
    for first in range(num_frames - (num - 1) * step):
        yield first + step * np.arange(num)


def pose_metrics(found: jax.Array, truth: jax.Array) -> dict[str, jax.Array]:
    """METRICS in [0, 1], [b] each, from camera_from_world [b s 3 4] found and true."""
    errors = pair_errors(found, truth)
    result = {}
    for name in METRICS:
        kind, degrees = name.split("_")
        of = {"rra": errors.rotation, "rta": errors.translation}.get(kind)
        result[name] = auc_at(errors, int(degrees)) if of is None else accuracy_at(of, int(degrees))
    return result


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean, and its standard error; NaN for a single value."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return float(np.mean(values)), float(error)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", type=pathlib.Path, help="folder of folders with transforms.json")
    parser.add_argument("--model", help="as load_model takes it; the small model without it")
    parser.add_argument(
        "--size", type=int, help="side of squares; by default that of the model's own"
    )
    parser.add_argument("--shape", choices=["square", "own"], default="square")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 6])
    parser.add_argument("--batch-size", type=int, default=4, help="windows at a time")
    parser.add_argument("--out", type=pathlib.Path, help="file of JSON lines, one for each window")
    args = parser.parse_args()
    try:
        measure(args)
    except InputError as error:
        print(f"evaluate_photographs: error: {error}", file=sys.stderr)
        sys.exit(2)


def measure(args) -> None:
    """Runs the model on every window, and prints the table."""
    folders = sorted(path.parent for path in args.scenes.glob("*/transforms.json"))
    if not folders:
        raise InputError(f"{args.scenes}: no folder in it has a transforms.json")
    model = vggt_jax.load_model(args.model)
    patch_size = model.config.patch_size
    size = args.size or model.config.img_size

    @jax.jit
    def metrics_of(model, images, truth):
        images = images.astype(jnp.float32) / 255
        return pose_metrics(vggt_jax.reconstruct(model, images).camera_from_world, truth)

    means: dict[int, list[dict[str, float]]] = {step: [] for step in args.steps}
    lines = []
    print(f"| scene | frames | step | windows | {' | '.join(METRICS)} |")
    print("|" + "---|" * (4 + len(METRICS)))
    for folder in folders:
        images, poses = read_scene(folder, args.shape, size, patch_size)
        for step in args.steps:
            places = list(windows(len(images), args.frames, step))
            found: list[dict[str, float]] = []
            for first in range(0, len(places), args.batch_size):
                batch = places[first : first + args.batch_size]
                # The last batch is filled up, so that all are of one program.
                filled = np.stack(batch + batch[-1:] * (args.batch_size - len(batch)))
                values = jax.device_get(metrics_of(model, images[filled], poses[filled]))
                found += [
                    {name: float(x[i]) for name, x in values.items()} for i in range(len(batch))
                ]
            for place, values in zip(places, found, strict=True):
                line = {"scene": folder.name, "step": step, "first": int(place[0])}
                lines.append(line | values)
            if found:
                of = {name: [values[name] for values in found] for name in METRICS}
                means[step].append({name: float(np.mean(x)) for name, x in of.items()})
                print_row(folder.name, len(images), step, len(found), of)
    for step, of_scenes in means.items():
        if of_scenes:
            of = {name: [values[name] for values in of_scenes] for name in METRICS}
            print_row("**mean over scenes**", "", step, len(of_scenes), of)
    if args.out is not None:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def print_row(name: str, num_frames, step: int, count: int, values: dict[str, list[float]]) -> None:
    """A line of the table: `count` is of windows, in the line of the mean of scenes."""
    cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in map(mean_and_error, values.values())]
    print(f"| {name} | {num_frames} | {step} | {count} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
