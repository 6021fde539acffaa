"""Packs photographs that COLMAP has posed for `scripts/train.py --photographs`.

    python scripts/pack_photographs.py SCENES --out photographs
    python scripts/pack_photographs.py SCENES --out photographs --side 384 --without garden

SCENES is a folder of scenes, each with `images/` and an undistorted model of COLMAP in `sparse/`
(`colmap image_undistorter`, or `pycolmap.undistort_images`; `scripts/pose_photographs.py` writes
such scenes), and `source.json` with whatever is to be known of it, "repository" and "licence" at
least: a scene without is left out.

Writes OUT/photographs.npz, the only file that training reads, and OUT/sources.csv: what each scene
is, whose, and under which licence, which belongs into the card of a model that learnt from it.

What training takes together are windows of photographs: each next one sees at least some share of
the points of one that is in the window already. The share is drawn for each window, from nearly
none to most, so that there are windows of neighbours and windows that span the scene.
"""

import argparse
import csv
import io
import json
import pathlib
import sys

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from vggt_jax.errors import InputError
from vggt_jax.files import read_json, replacing
from vggt_jax.pipeline.colmap_models import find_model, read_model

_PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE")
_LARGEST_ERROR = 2.0  # pixels of a point's mean reprojection error, in the undistorted photographs
_SHORTEST_TRACK = 3  # photographs that see a point
_NEAREST, _FARTHEST = 0.1, 10.0  # depths that count, in medians of the scene
_SHARES = (0.05, 0.6)  # of points seen together, of windows; evenly between
_COLUMNS = ("scene", "photographs", "points", "repository", "commit", "path", "licence", "holder")


def read_scene(folder: pathlib.Path, side: int, num_points: int, rng: np.random.Generator) -> dict:
    """The photographs of a scene, their cameras and what points each sees.

    Returns:
        `images`, `intrinsics` [n 4], `camera_from_world` [n 3 4], `points` [n p 3] as
        `vggt_jax.training.photographs.Photographs` has them, the median depth as the unit, and
        `together` [n n], the share of the points of the one with fewer that two photographs both
        see.

    Raises:
        InputError: there is no model, a photograph is missing, or lenses distort.
    """
    model_folder = find_model(folder)
    if model_folder is None:
        raise InputError(f"{folder}: holds no model of COLMAP")
    model = read_model(model_folder)
    good = {
        number
        for number, point in model.points3D.items()
        if point.error <= _LARGEST_ERROR and point.track.length() >= _SHORTEST_TRACK
    }
    found = {"images": [], "intrinsics": [], "camera_from_world": [], "points": []}
    seen = []
    posed = [image for image in model.images.values() if image.has_pose]
    for image in sorted(posed, key=lambda image: image.name):
        camera = model.cameras[image.camera_id]
        if camera.model.name not in _PINHOLES:
            raise InputError(f"{folder}: {camera.model.name} cameras; undistort the model first")
        pose = np.array(image.cam_from_world().matrix())
        pixels, world, numbers = [], [], []
        for point in image.points2D:
            if point.has_point3D() and point.point3D_id in good:
                pixels.append(point.xy)
                world.append(model.points3D[point.point3D_id].xyz)
                numbers.append(point.point3D_id)
        if not numbers:
            continue
        depth = np.array(world) @ pose[2, :3] + pose[2, 3]
        try:
            with Image.open(folder / "images" / image.name) as file:
                picture = file.convert("RGB")
        except OSError as error:
            raise InputError(f"{folder}: {image.name} cannot be read ({error})") from error
        shrink = min(side / max(picture.size), 1.0)
        size = tuple(round(shrink * length) for length in picture.size)
        scale = np.array(size) / (camera.width, camera.height)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        (fx, _, cx), (_, fy, cy), _ = np.array(camera.calibration_matrix())
        found["images"].append(picture)
        found["intrinsics"].append([fx * scale[0], fy * scale[1], cx * scale[0], cy * scale[1]])
        found["camera_from_world"].append(pose)
        found["points"].append(np.column_stack([np.array(pixels) * scale, depth]))
        seen.append(set(numbers))
    if len(seen) < 2:
        raise InputError(f"{folder}: fewer than two photographs have a pose and points")
    # The median depth becomes the unit, so that 16 bits hold all points.
    unit = np.median(np.concatenate([points[:, 2] for points in found["points"]]))
    found["camera_from_world"] = [pose / [1, 1, 1, unit] for pose in found["camera_from_world"]]
    found["points"] = np.stack(
        [_of_depths(points / [1, 1, unit], num_points, rng) for points in found["points"]]
    )
    fewer = lambda a, b: max(min(len(a), len(b)), 1)
    found["together"] = np.array([[len(a & b) / fewer(a, b) for b in seen] for a in seen])
    return found


def source_of(folder: pathlib.Path) -> dict:
    """What a scene's `source.json` says.

    Raises:
        InputError: there is none, or it does not say whose the photographs are.
    """
    source = read_json(folder / "source.json", "source of a scene")
    if not isinstance(source, dict):
        raise InputError(f"{folder / 'source.json'}: holds no fields by name")
    if missing := [name for name in ("repository", "licence") if not source.get(name)]:
        raise InputError(f"{folder / 'source.json'}: does not say the {' and the '.join(missing)}")
    return source


def _of_depths(points, count: int, rng: np.random.Generator) -> np.ndarray:
    """At most `count` random points of a plausible depth, filled up with zeros."""
    points = points[(points[:, 2] > _NEAREST) & (points[:, 2] < _FARTHEST)]
    points = points[rng.permutation(len(points))[:count]]
    return np.pad(points, ((0, count - len(points)), (0, 0)))


def window(together: np.ndarray, length: int, rng: np.random.Generator) -> list[int]:
    """A row of distinct photographs, each of which sees enough of an earlier one.

    Args:
        together: [n n], shares of points.
    """
    share = rng.uniform(*_SHARES)
    chosen = [int(rng.integers(len(together)))]
    while len(chosen) < min(length, len(together)):
        left = np.setdiff1d(np.arange(len(together)), chosen)
        best = together[np.ix_(left, chosen)].max(axis=1)
        enough = left[best >= share]
        chosen.append(int(rng.choice(enough) if len(enough) else left[best.argmax()]))
    return chosen


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--without", nargs="*", default=[], help="scenes to leave out")
    parser.add_argument("--side", type=int, default=400, help="longer side, at most, in pixels")
    parser.add_argument("--quality", type=int, default=80, help="of WebP")
    parser.add_argument("--points", type=int, default=768, help="of a photograph, at most")
    parser.add_argument("--windows", type=int, default=400, help="of a scene, at most")
    parser.add_argument("--length", type=int, default=24, help="photographs of a window, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    if not args.scenes.is_dir():
        sys.exit(f"{args.scenes}: no folder")
    folders = sorted(path for path in args.scenes.iterdir() if path.is_dir())
    if unknown := set(args.without) - {folder.name for folder in folders}:
        sys.exit(f"--without {', '.join(sorted(unknown))}: no such scene in {args.scenes}")

    arrays = {"size": [], "intrinsics": [], "camera_from_world": [], "points": []}
    encoded, ends, windows, rows, failed = [], [], [], [], 0
    for folder in folders:
        if folder.name in args.without:
            continue
        try:
            source = source_of(folder)
            scene = read_scene(folder, args.side, args.points, rng)
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
            failed += 1
            continue
        first = len(ends)
        for picture in scene["images"]:
            buffer = io.BytesIO()
            picture.save(buffer, "WEBP", quality=args.quality, method=6)
            encoded.append(np.frombuffer(buffer.getvalue(), np.uint8))
            ends.append(len(encoded[-1]))
            arrays["size"].append(picture.size[::-1])
        for name in ("intrinsics", "camera_from_world", "points"):
            arrays[name].append(scene[name])
        count = len(scene["images"])
        # A scene of few photographs has few windows, and would be learnt by heart.
        for _ in range(min(args.windows, 20 * count)):
            row = [first + i for i in window(scene["together"], args.length, rng)]
            windows.append(np.resize(row, args.length))
        row = {"scene": folder.name, "photographs": count} | source
        row["points"] = int((scene["points"][..., 2] > 0).sum())
        rows.append({name: row.get(name, "") for name in _COLUMNS})
        print(json.dumps(rows[-1]), flush=True)
    if not rows:
        sys.exit(f"no scene in {args.scenes} can be used")

    of_all = {
        name: np.concatenate(arrays[name]).astype(dtype)
        for name, dtype in (
            ("intrinsics", np.float32),
            ("camera_from_world", np.float32),
            ("points", np.float16),
        )
    }
    path = args.out / "photographs.npz"
    with replacing(path) as file:
        np.savez_compressed(
            file,
            encoded=np.concatenate(encoded),
            ends=np.cumsum(ends),
            size=np.array(arrays["size"], np.int32),
            windows=np.array(windows, np.int32),
            **of_all,
        )
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, _COLUMNS)
    table.writeheader()
    table.writerows(rows)
    with replacing(args.out / "sources.csv") as file:
        file.write(text.getvalue().encode())
    print(
        f"{len(ends)} photographs of {len(rows)} scenes, {len(windows)} windows, "
        f"{path.stat().st_size / 2**20:.1f} MiB, in {args.out}"
        + (f"; {failed} scenes left out" if failed else "")
    )


if __name__ == "__main__":
    main()
