"""Cameras and points of photographs of one still scene, for `scripts/pack_photographs.py`.

    python scripts/pose_photographs.py PHOTOGRAPHS --out scenes/garden \\
        --source repository=someone/garden licence=CC-BY-4.0

Structure from motion by pycolmap of the photographs that `vggt-jax infer` would find in a folder.
Writes OUT/images, undistorted; OUT/sparse, their model with pinhole cameras; and OUT/source.json,
what --source says and how well the model fits. Nothing is written if too few photographs find their
place or the model is implausible, and the exit status is 1; what speaks against it is printed. Look
at the pictures, too: an object that was turned before a fixed camera, or two places that look
alike, can pass.

Frames of a video: `vggt-jax frames clip.mp4 --out PHOTOGRAPHS` first.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from vggt_jax.errors import InputError
from vggt_jax.export.colmap import import_pycolmap
from vggt_jax.files import Claim
from vggt_jax.images.decoding import ORIENTATION, read_file
from vggt_jax.images.files import find_images

_MATCHED_SIDE = 1000  # pixels of the longer side for features, at most
_EXHAUSTIVE = 60  # photographs up to which all pairs are matched; neighbours beyond
_NEIGHBOURS = 8
# What a model must have to be believed.
_FEWEST, _SHARE = 5, 0.6  # photographs with a place, and their share
_LARGEST_ERROR = 1.2  # pixels, mean of all points
_SHORTEST_TRACK = 2.6  # photographs that see a point, mean
_FOCAL = (0.5, 4.0)  # in longer sides
_SMALLEST_EXTENT = 0.02  # of the cameras' places, in median depths: less is a turn on the spot


def prepare(folder: pathlib.Path, out: pathlib.Path) -> dict[tuple[int, int], list[str]]:
    """Writes photographs upright and small enough, and returns their names by size.

    Raises:
        InputError: one cannot be read, or there are too few.
    """
    names: dict[tuple[int, int], list[str]] = {}
    files = find_images(folder)
    for number, path in enumerate(files):
        image = read_file(path).image
        # What the camera says of its lens is where structure from motion begins.
        with Image.open(path) as file:
            exif = file.getexif()
        exif.pop(ORIENTATION, None)  # It is upright.
        image.thumbnail((_MATCHED_SIDE, _MATCHED_SIDE), Image.Resampling.LANCZOS)
        # Neighbours are those by name; photographs of other formats may share the rest of it.
        name = f"{number:05}_{path.stem}.jpg"
        image.save(out / name, quality=95, subsampling=0, exif=exif)
        names.setdefault(image.size, []).append(name)
    if len(files) < _FEWEST:
        raise InputError(f"{folder}: {len(files)} photographs, fewer than {_FEWEST}")
    return names


def find_model(images: pathlib.Path, names: dict, work: pathlib.Path, threads: int):
    """The largest model of structure from motion, one camera for each size; None without any."""
    pycolmap = import_pycolmap()
    database = work / "database.db"
    reader = pycolmap.ImageReaderOptions(camera_model="SIMPLE_RADIAL")
    features = pycolmap.FeatureExtractionOptions(num_threads=threads, use_gpu=False)
    for of_size in names.values():
        pycolmap.extract_features(
            database,
            images,
            image_names=of_size,
            camera_mode=pycolmap.CameraMode.SINGLE,
            reader_options=reader,
            extraction_options=features,
            device=pycolmap.Device.cpu,
        )
    matching = {
        "matching_options": pycolmap.FeatureMatchingOptions(num_threads=threads, use_gpu=False),
        "device": pycolmap.Device.cpu,
    }
    if sum(map(len, names.values())) <= _EXHAUSTIVE:
        pycolmap.match_exhaustive(database, **matching)
    else:
        near = pycolmap.SequentialPairingOptions(overlap=_NEIGHBOURS, quadratic_overlap=True)
        pycolmap.match_sequential(database, pairing_options=near, **matching)
    options = pycolmap.IncrementalPipelineOptions(num_threads=threads, min_model_size=_FEWEST)
    (work / "models").mkdir()
    found = pycolmap.incremental_mapping(database, images, work / "models", options=options)
    return max(found.values(), key=lambda model: model.num_reg_images(), default=None)


def judged(model, num_given: int) -> tuple[dict, list[str]]:
    """How well a model fits, and what speaks against it."""
    images = [image for image in model.images.values() if image.has_pose]
    cameras = [model.cameras[number] for number in {image.camera_id for image in images}]
    focal = [camera.params[0] / max(camera.width, camera.height) for camera in cameras]
    centres = np.array([image.projection_center() for image in images])
    depths = [
        (image.cam_from_world() * model.points3D[point.point3D_id].xyz)[2]
        for image in images
        for point in image.get_observation_points2D()
    ]
    extent = np.linalg.norm(centres - centres.mean(axis=0), axis=1).max() / np.median(depths)
    figures = {
        "images": len(images),
        "given": num_given,
        "points": len(model.points3D),
        "error_px": round(model.compute_mean_reprojection_error(), 3),
        "track": round(model.compute_mean_track_length(), 2),
        "extent": round(float(extent), 3),
    }
    against = {
        f"only {len(images)} of {num_given} have a place": len(images)
        < max(_FEWEST, _SHARE * num_given),
        f"points miss by {figures['error_px']} pixels": figures["error_px"] > _LARGEST_ERROR,
        f"points are seen by {figures['track']} only": figures["track"] < _SHORTEST_TRACK,
        f"focal lengths of {min(focal):.2f} to {max(focal):.2f} sides": min(focal) < _FOCAL[0]
        or max(focal) > _FOCAL[1],
        "the cameras stand in one place": extent < _SMALLEST_EXTENT,
    }
    return figures, [why for why, is_so in against.items() if is_so]


def write_scene(model, images: pathlib.Path, out: pathlib.Path, side: int, source: dict) -> None:
    """The undistorted scene; whole, or an error and nothing."""
    pycolmap = import_pycolmap()
    out.parent.mkdir(parents=True, exist_ok=True)
    with Claim.of(out.resolve()), tempfile.TemporaryDirectory(dir=out.parent) as made:
        work = pathlib.Path(made)
        (work / "model").mkdir()
        model.write(work / "model")
        options = pycolmap.UndistortCameraOptions()
        options.max_image_size = side
        pycolmap.undistort_images(
            work / "scene", work / "model", images, undistort_options=options, jpeg_quality=92
        )
        scene = work / "whole"
        (scene / "sparse").mkdir(parents=True)
        for name in ("cameras.bin", "images.bin", "points3D.bin"):
            shutil.move(work / "scene" / "sparse" / name, scene / "sparse" / name)
        shutil.move(work / "scene" / "images", scene / "images")
        text = json.dumps(source, indent=1, ensure_ascii=False) + "\n"
        (scene / "source.json").write_text(text, encoding="utf-8")
        scene.rename(out)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the scene")
    parser.add_argument(
        "--source", nargs="*", default=[], metavar="NAME=VALUE", help="what source.json says"
    )
    parser.add_argument("--side", type=int, default=448, help="longer side to keep, in pixels")
    parser.add_argument("--threads", type=int, default=-1, help="-1 for all")
    args = parser.parse_args()
    try:
        if args.out.exists():
            raise InputError(f"{args.out} is there already")
        if wrong := [text for text in args.source if "=" not in text]:
            raise InputError(f"--source {wrong[0]}: must be NAME=VALUE")
        source = dict(text.split("=", 1) for text in args.source)
        with tempfile.TemporaryDirectory() as made:
            work = pathlib.Path(made)
            (work / "images").mkdir()
            names = prepare(args.photographs, work / "images")
            model = find_model(work / "images", names, work, args.threads)
            if model is None:
                raise InputError(f"{args.photographs}: no two photographs fit together")
            figures, against = judged(model, sum(map(len, names.values())))
            print(json.dumps(figures))
            if against:
                raise InputError(f"{args.photographs}: {'; '.join(against)}")
            write_scene(model, work / "images", args.out, args.side, source | figures)
    except InputError as error:
        print(f"pose_photographs: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
