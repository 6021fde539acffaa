"""Files that tell of photographs by their names: cameras, and maps of depth.

Read are results of this project (a folder of them, or its `cameras.json`), COLMAP models (binary or
text, or a folder above), `transforms.json` of nerfstudio (or its folder), and `.npz` files with
arrays in the order of the photographs.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.export.colmap import import_pycolmap
from vggt_jax.export.nerfstudio import OPENCV_FROM_OPENGL
from vggt_jax.files import RESULTS
from vggt_jax.images.frames import FrameTransform
from vggt_jax.scene.calibration import intrinsics_by_name, pinhole
from vggt_jax.scene.results import load_reconstruction

_CAMERAS, _TRANSFORMS = "cameras.json", "transforms.json"
# Where COLMAP keeps models in a folder of a scene.
_MODEL_FOLDERS = (".", "sparse/0", "sparse", "colmap/sparse/0", "dense/sparse")
# Depth in PNG files of nerfstudio is in these units, in metres.
_PNG_DEPTH_UNIT = 1e-3
FORMS = (
    "a folder of results or its cameras.json, a COLMAP model, a transforms.json of nerfstudio, or "
    "an .npz file of arrays"
)
# k1, k2, p1, p2, as OpenCV has them; more are not read.
_DISTORTION = ("k1", "k2", "p1", "p2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """What a file tells of a photograph.

    Attributes:
        intrinsics: 3x3, in continuous coordinates of an image of `size`.
        size: (height, width); None for that of the photograph.
        rays: for a camera that distorts, from pixels [m 2] of an image of `size` to x and y [m 2]
            where their rays meet the plane z = 1.
        camera_from_world: 4x4.
        depth: reads the map.
        depth_transform: of the frame that the map is of; None for a map of the whole photograph.
    """

    intrinsics: Float[np.ndarray, "3 3"] | None = None
    size: tuple[int, int] | None = None
    rays: Callable[[np.ndarray], np.ndarray] | None = None
    camera_from_world: Float[np.ndarray, "4 4"] | None = None
    depth: Callable[[], np.ndarray] | None = None
    depth_transform: FrameTransform | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownScene:
    """What a file tells: by the names of photographs, or in their order; whether in metres."""

    photographs: dict[str, Known] | list[Known]
    metric: bool = False


def read_known(path: Path) -> KnownScene:
    """The scene of a file, by what it is."""
    if path.is_file():
        if path.suffix == ".npz":
            return _results(path) if path.name == RESULTS else _arrays(path)
        if path.suffix == ".json":
            document = _json(path)
            if (
                "frames" in document
                and "conventions" not in document
                and any("transform_matrix" in frame for frame in document["frames"])
            ):
                return _nerfstudio(path, document)
            return _cameras_json(path, document)
        if path.stem in ("cameras", "images", "points3D") and path.suffix in (".bin", ".txt"):
            return _colmap(path.parent)
        raise InputError(f"{path}: is no file that tells cameras; give {FORMS}")
    if (path / RESULTS).is_file():
        return _results(path / RESULTS)
    if (path / _CAMERAS).is_file():
        return _cameras_json(path / _CAMERAS, _json(path / _CAMERAS))
    if (path / _TRANSFORMS).is_file():
        return _nerfstudio(path / _TRANSFORMS, _json(path / _TRANSFORMS))
    for folder in _MODEL_FOLDERS:
        if any((path / folder / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return _colmap(path / folder)
    raise InputError(f"{path}: holds nothing that tells cameras; give {FORMS}")


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: is no JSON; give {FORMS}") from error
    if not isinstance(document, dict) or not isinstance(document.get("frames"), list):
        raise InputError(f"{path}: has no list `frames`; give {FORMS}")
    return document


def _cameras_json(path: Path, document: dict[str, Any]) -> KnownScene:
    """`cameras.json` as this project writes it; what is null is unknown."""
    try:
        with_intrinsics = [
            frame for frame in document["frames"] if _is_matrix(frame.get("intrinsics_original"))
        ]
        matrices = intrinsics_by_name(path, {**document, "frames": with_intrinsics})
        photographs = {
            str(frame["name"]): Known(
                intrinsics=matrices.get(str(frame["name"])),
                camera_from_world=(
                    _square(frame["camera_from_world"])
                    if _is_matrix(frame.get("camera_from_world"))
                    else None
                ),
            )
            for frame in document["frames"]
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: must be like cameras.json: `frames`, each with `name`, "
            "`intrinsics_original` (3x3) and `camera_from_world` (3x4)"
        ) from error
    return KnownScene(photographs=photographs, metric=document.get("length_unit") == "metres")


def _is_matrix(rows: Any) -> bool:
    """Whether there is a matrix without null."""
    return rows is not None and all(x is not None for row in rows for x in row)


def _square(rows: Any) -> np.ndarray:
    matrix = np.array(rows, np.float64)
    if matrix.shape not in ((3, 4), (4, 4)):
        raise ValueError(f"a pose of shape {matrix.shape}")
    return np.concatenate([matrix[:3], [[0.0, 0.0, 0.0, 1.0]]])


def _results(path: Path) -> KnownScene:
    """Results of this project: cameras and depth."""
    recon = load_reconstruction(path)
    if not recon.names:
        raise InputError(f"{path}: its frames have no names, by which photographs are found")
    photographs = {}
    for i, name in enumerate(recon.names):
        height, width = recon.images.shape[1:3]
        transform = FrameTransform.identity((height, width))
        if recon.transforms:
            transform = recon.transforms[i]
        intrinsics = None
        if recon.intrinsics is not None and np.isfinite(recon.intrinsics[i]).all():
            matrix = np.array(recon.intrinsics[i], np.float64)
            matrix[:2, 2] += 0.5 - recon.pixel_centre  # to the centres of pixels
            intrinsics = transform.intrinsics_to_original(matrix)
        poses, depth = recon.camera_from_world, recon.depth
        photographs[name] = Known(
            intrinsics=intrinsics,
            camera_from_world=None if poses is None else _square(poses[i]),
            depth=None if depth is None else functools.partial(_usable_depth, recon, i),
            depth_transform=transform,
        )
    return KnownScene(photographs=photographs, metric=recon.length_unit == "metres")


def _usable_depth(recon, i: int) -> np.ndarray:
    """Depth of a frame where it was not masked."""
    depth = np.asarray(recon.depth[i])
    return depth if recon.mask is None else np.where(recon.mask[i], depth, 0)


def _colmap(folder: Path) -> KnownScene:
    """A model of COLMAP: images with poses, and their cameras."""
    pycolmap = import_pycolmap()
    try:
        model = pycolmap.Reconstruction(str(folder))
    except Exception as error:  # pycolmap raises what its C++ does
        raise InputError(f"{folder}: cannot be read as a COLMAP model ({error})") from error
    photographs = {}
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        pose = None
        if image.has_pose:
            pose = _square(image.cam_from_world().matrix())
        photographs[image.name] = Known(
            intrinsics=np.array(camera.calibration_matrix(), np.float64),
            size=(camera.height, camera.width),
            rays=_undistorting(camera) if _distorts(camera) else None,
            camera_from_world=pose,
        )
    return KnownScene(photographs=photographs)


def _distorts(camera) -> bool:
    """Whether a camera of COLMAP differs from the pinhole of its focal lengths."""
    params = np.array(camera.params, np.float64)
    used = {*camera.focal_length_idxs(), *camera.principal_point_idxs()}
    return any(value != 0 for i, value in enumerate(params) if i not in used)


def _undistorting(camera) -> Callable[[np.ndarray], np.ndarray]:
    """From pixels [m 2] to where their rays meet the plane z = 1."""

    def rays(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(camera.cam_from_img(pixels), np.float64).reshape(-1, 2)

    return rays


def _nerfstudio(path: Path, document: dict[str, Any]) -> KnownScene:
    """`transforms.json`: what a frame does not say of its camera, the file says of all."""
    photographs = {}
    try:
        for frame in document["frames"]:
            both = document | frame
            world_from_camera = np.array(frame["transform_matrix"], np.float64)
            world_from_camera = _square(world_from_camera) @ OPENCV_FROM_OPENGL
            depth = frame.get("depth_file_path")
            intrinsics, size = _nerfstudio_intrinsics(both)
            photographs[str(PurePosixPath(frame["file_path"]))] = Known(
                intrinsics=intrinsics,
                size=size,
                rays=_nerfstudio_rays(both, intrinsics, path),
                camera_from_world=np.linalg.inv(world_from_camera),
                depth=None
                if depth is None
                else functools.partial(_read_depth, path.parent / depth),
            )
    except (KeyError, TypeError, ValueError, np.linalg.LinAlgError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: must be like nerfstudio's transforms.json: `frames`, each with `file_path` "
            f"and `transform_matrix`, and focal lengths ({type(error).__name__}: {error})"
        ) from error
    return KnownScene(photographs=photographs)


def _nerfstudio_intrinsics(frame: dict[str, Any]):
    """Intrinsics, and (height, width) of the images that they are of; None where it lacks them."""
    size = (int(frame["h"]), int(frame["w"])) if "h" in frame and "w" in frame else None
    if "fl_x" in frame:
        focal_x = float(frame["fl_x"])
        focal_y = float(frame.get("fl_y", focal_x))
    elif "camera_angle_x" in frame and size is not None:
        focal_x = focal_y = 0.5 * size[1] / math.tan(0.5 * float(frame["camera_angle_x"]))
        if "camera_angle_y" in frame:
            focal_y = 0.5 * size[0] / math.tan(0.5 * float(frame["camera_angle_y"]))
    else:
        return None, size
    if "cx" in frame and "cy" in frame:
        centre = (float(frame["cx"]), float(frame["cy"]))
    elif size is not None:
        centre = (size[1] / 2, size[0] / 2)
    else:
        return None, size
    return pinhole((focal_x, focal_y), centre), size


def _nerfstudio_rays(frame: dict[str, Any], intrinsics, path: Path):
    """The rays of a camera that distorts; None for one that does not."""
    model = str(frame.get("camera_model", "OPENCV"))
    values = [float(frame.get(name, 0.0)) for name in _DISTORTION]
    beyond = any(float(frame.get(name, 0.0)) for name in ("k3", "k4"))
    if intrinsics is None or (model in _PINHOLES and not any(values) and not beyond):
        return None
    if model not in _PINHOLES and model not in _FISHEYES:
        raise InputError(
            f"{path}: camera_model {model!r} has no rays here; use "
            f"{', '.join((*_PINHOLES, *_FISHEYES))}, or leave intrinsics out"
        )
    focal = [intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]]
    if model in _FISHEYES:
        name, params = "OPENCV_FISHEYE", [float(frame.get(f"k{i}", 0.0)) for i in (1, 2, 3, 4)]
    elif beyond:
        extra = [float(frame.get(f"k{i}", 0.0)) for i in (3, 4)]
        name, params = "FULL_OPENCV", [*values, *extra, 0.0, 0.0]
    else:
        name, params = "OPENCV", values
    # The size does not matter for rays.
    camera = import_pycolmap().Camera(model=name, width=1, height=1, params=[*focal, *params])
    return _undistorting(camera)


_PINHOLES = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV")
_FISHEYES = ("OPENCV_FISHEYE",)


def _read_depth(path: Path) -> np.ndarray:
    """A map of depth: an .npy file as it is, a picture of 16 bits in thousandths."""
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        with Image.open(path) as image:
            values = np.asarray(image)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a map of depth ({error})") from error
    if values.dtype.kind not in "iu":
        return values
    return values.astype(np.float32) * np.float32(_PNG_DEPTH_UNIT)


def _arrays(path: Path) -> KnownScene:
    """`.npz` with `intrinsics` [s 3 3] in pixels of the photographs, `camera_from_world` [s 3 4] or
    [s 4 4], or `poses` [s 4 4] (world_from_camera, as for the official Pi3X), and `depth` or
    `depths` [s height width]."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    depth = arrays.get("depth", arrays.get("depths"))
    poses = arrays.get("camera_from_world")
    if poses is None and "poses" in arrays:
        poses = np.linalg.inv(arrays["poses"].astype(np.float64))
    given = [x for x in (arrays.get("intrinsics"), poses, depth) if x is not None]
    if not given or len({len(x) for x in given}) > 1:
        raise InputError(
            f"{path}: must hold intrinsics, camera_from_world (or poses, world_from_camera) or "
            "depth, one for each photograph"
        )
    photographs = [
        Known(
            intrinsics=arrays["intrinsics"][i] if "intrinsics" in arrays else None,
            camera_from_world=None if poses is None else _square(poses[i]),
            depth=None if depth is None else functools.partial(depth.__getitem__, i),
        )
        for i in range(len(given[0]))
    ]
    return KnownScene(photographs=photographs, metric=bool(arrays.get("metric", False)))
