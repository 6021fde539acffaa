"""Files that tell of photographs by their names: cameras, and maps of depth.

Read are results of this project (a folder of them, or its `cameras.json`), COLMAP models (binary or
text, or a folder above), `transforms.json` of nerfstudio (or its folder), and `.npz` files with
arrays in the order of the photographs.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vggt_jax.errors import InputError
from vggt_jax.export.colmap import import_pycolmap
from vggt_jax.export.nerfstudio import OPENCV_FROM_OPENGL
from vggt_jax.files import RESULTS, read_json
from vggt_jax.images.files import checked_file, shortened
from vggt_jax.images.frames import FrameTransform
from vggt_jax.images.opening import opened, reading
from vggt_jax.pipeline.colmap_models import find_model, is_part, model_files, read_model
from vggt_jax.scene.calibration import intrinsics_by_name, pinhole
from vggt_jax.scene.npz import Predictions, read_array
from vggt_jax.scene.results import load_reconstruction

_CAMERAS, _TRANSFORMS = "cameras.json", "transforms.json"
# Depth in PNG files of nerfstudio is in these units, in metres.
_PNG_DEPTH_UNIT = 1e-3
FORMS = (
    "a folder of results or its cameras.json, a COLMAP model, a transforms.json of nerfstudio, or "
    "an .npz file of arrays"
)
_LONGEST_SIDE = 10**6  # Pixels of the image that a camera is of.
_PINHOLE_TOLERANCE = 1e-6  # On the plane z = 1.
# What values of another type or size raise where they are used.
_WRONG = (
    KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError,
    np.linalg.LinAlgError,
)  # fmt: skip
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
    """The scene of a file, by what it is.

    Raises:
        InputError: it cannot be read, is damaged, or is none of these files.
    """
    kind, path = _kind_of(path)
    if kind == "results":
        return _results(path)
    if kind == "arrays":
        return _arrays(path)
    if kind == "colmap":
        return _colmap(path)
    document = _json(path)
    poses = [isinstance(x, dict) and "transform_matrix" in x for x in document["frames"]]
    if any(poses) and "conventions" not in document:
        return _nerfstudio(path, document)
    return _cameras_json(path, document)


def files_of(path: Path) -> list[Path]:
    """The files from which `read_known` would take what it says, as far as they are there."""
    try:
        kind, path = _kind_of(path)
        if kind == "colmap":
            return model_files(path)
        if kind != "json":
            return [path]
        frames = _json(path)["frames"]
    except InputError:
        return [path]
    depth = [x.get("depth_file_path") for x in frames if isinstance(x, dict)]
    return [path, *(path.parent / name for name in depth if isinstance(name, str))]


def _kind_of(path: Path) -> tuple[str, Path]:
    """Which of the forms a file or folder has, and where the file or the model is."""
    if not path.is_dir():
        checked_file(path)
        if path.suffix == ".npz":
            return "results" if path.name == RESULTS else "arrays", path
        if path.suffix == ".json":
            return "json", path
        if is_part(path):
            return "colmap", path.parent
        raise InputError(f"{path}: is no file that tells cameras; give {FORMS}")
    if (path / RESULTS).is_file():
        return "results", path / RESULTS
    for name in (_CAMERAS, _TRANSFORMS):
        if (path / name).is_file():
            return "json", path / name
    if (model := find_model(path)) is not None:
        return "colmap", model
    raise InputError(f"{path}: holds nothing that tells cameras; give {FORMS}")


def _json(path: Path) -> dict[str, Any]:
    document = read_json(path, "file of cameras in JSON")
    if not isinstance(document, dict) or not isinstance(document.get("frames"), list):
        raise InputError(f"{path}: has no list `frames`; give {FORMS}")
    return document


@contextlib.contextmanager
def _must_be(path: Path, like: str) -> Iterator[None]:
    """Turns what values of another type or size raise into an InputError."""
    try:
        with np.errstate(all="ignore"):
            yield
    except InputError:
        raise
    except _WRONG as error:
        raise InputError(
            f"{path}: must be like {like} ({type(error).__name__}: {error})"
        ) from error


def _once(photographs: dict[str, Known], name: Any, path: Path) -> str:
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: {name!r:.60} is no name of a photograph")
    if name in photographs:
        raise InputError(f"{path}: names the photograph {name} twice")
    return name


def _cameras_json(path: Path, document: dict[str, Any]) -> KnownScene:
    """`cameras.json` as this project writes it; what is null is unknown."""
    photographs: dict[str, Known] = {}
    like = "cameras.json: `frames`, each with `name`, `intrinsics_original` (3x3) and "
    with _must_be(path, like + "`camera_from_world` (3x4)"):
        with_intrinsics = [
            frame for frame in document["frames"] if _is_matrix(frame.get("intrinsics_original"))
        ]
        matrices = intrinsics_by_name(path, {**document, "frames": with_intrinsics})
        for frame in document["frames"]:
            name, pose = _once(photographs, frame["name"], path), frame.get("camera_from_world")
            photographs[name] = Known(
                intrinsics=matrices.get(name),
                camera_from_world=_square(pose) if _is_matrix(pose) else None,
            )
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
    model, photographs = read_model(folder), {}
    with _must_be(folder, "a COLMAP model: images with cameras that look forward"):
        for image in model.images.values():
            camera = model.cameras[image.camera_id]
            try:
                name = image.name
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{folder}: the name of a photograph is no UTF-8 ({error.object!r:.60}), by "
                    "which none is found; rename it and export the model again"
                ) from error
            intrinsics = np.array(camera.calibration_matrix(), np.float64)
            if not intrinsics.diagonal().min() > 0:
                raise ValueError(f"{name} has a focal length that is not positive")
            photographs[_once(photographs, name, folder)] = Known(
                intrinsics=intrinsics,
                size=(camera.height, camera.width),
                rays=_undistorting(camera) if _distorts(camera) else None,
                camera_from_world=(
                    _square(image.cam_from_world().matrix()) if image.has_pose else None
                ),
            )
    return KnownScene(photographs=photographs)


def _distorts(camera) -> bool:
    """Whether a camera of COLMAP differs from the pinhole of its focal lengths."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (camera.width, camera.height)
    (focal_x, _, x), (_, focal_y, y), _ = np.array(camera.calibration_matrix(), np.float64)
    pinhole_rays = (corners - (x, y)) / (focal_x, focal_y)
    rays = _undistorting(camera)(corners.astype(np.float64))
    return not np.allclose(rays, pinhole_rays, rtol=0, atol=_PINHOLE_TOLERANCE, equal_nan=True)


def _undistorting(camera) -> Callable[[np.ndarray], np.ndarray]:
    """From pixels [m 2] to where their rays meet the plane z = 1."""

    def rays(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(camera.cam_from_img(pixels), np.float64).reshape(-1, 2)

    return rays


def _nerfstudio(path: Path, document: dict[str, Any]) -> KnownScene:
    """`transforms.json`: what a frame does not say of its camera, the file says of all."""
    photographs: dict[str, Known] = {}
    like = "nerfstudio's transforms.json: `frames`, each with `file_path` and `transform_matrix`, "
    with _must_be(path, like + "and focal lengths"):
        for frame in document["frames"]:
            both = document | frame
            world_from_camera = _square(frame["transform_matrix"]) @ OPENCV_FROM_OPENGL
            depth = frame.get("depth_file_path")
            intrinsics, size = _nerfstudio_intrinsics(both)
            photographs[_once(photographs, frame["file_path"], path)] = Known(
                intrinsics=intrinsics,
                size=size,
                rays=_nerfstudio_rays(both, intrinsics, path),
                camera_from_world=np.linalg.inv(world_from_camera),
                depth=None
                if depth is None
                else functools.partial(_read_depth, path.parent / depth),
            )
    return KnownScene(photographs=photographs)


def _nerfstudio_intrinsics(frame: dict[str, Any]):
    """Intrinsics, and (height, width) of the images that they are of; None where it lacks them."""
    size = None
    if "h" in frame and "w" in frame:
        size = int(frame["h"]), int(frame["w"])
        if not 1 <= min(size) <= max(size) <= _LONGEST_SIDE:
            raise ValueError(f"images of {size[1]}x{size[0]} pixels")
    if "fl_x" in frame:
        focal_x = float(frame["fl_x"])
        focal_y = float(frame.get("fl_y", focal_x))
    elif "camera_angle_x" in frame and size is not None:
        focal_x = focal_y = 0.5 * size[1] / math.tan(0.5 * float(frame["camera_angle_x"]))
        if "camera_angle_y" in frame:
            focal_y = 0.5 * size[0] / math.tan(0.5 * float(frame["camera_angle_y"]))
    else:
        return None, size
    if not 0 < min(focal_x, focal_y) <= max(focal_x, focal_y) < math.inf:
        raise ValueError(f"focal lengths of {focal_x:g} and {focal_y:g} pixels")
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
            values = read_array(checked_file(path))
        else:
            with opened(path) as (image, _), reading(str(path)):
                values = np.asarray(image)
    except InputError as error:
        shown = shortened(path)
        why = str(error).removeprefix(f"{shown}: ")
        raise InputError(f"{shown}: cannot be read as a map of depth ({why})") from error
    if values.ndim != 2 or values.dtype.kind not in "iuf" or 0 in values.shape:
        raise InputError(
            f"{path}: is {values.dtype.name} of shape {list(values.shape)}; a map of depth has "
            "numbers of shape [height, width]"
        )
    if path.suffix == ".npy" or values.dtype.kind not in "iu":
        return values
    return values.astype(np.float32) * np.float32(_PNG_DEPTH_UNIT)


# Arrays of an .npz file: axes behind that of the photographs.
_ARRAYS = {
    "intrinsics": [(3, 3)],
    "camera_from_world": [(3, 4), (4, 4)],
    "poses": [(3, 4), (4, 4)],
    "depth": [("height", "width")],
    "depths": [("height", "width")],
}


def _arrays(path: Path) -> KnownScene:
    """`.npz` with `intrinsics` [s 3 3] in pixels of the photographs, `camera_from_world` [s 3 4] or
    [s 4 4], or `poses` [s 4 4] (world_from_camera, as for the official Pi3X), and `depth` or
    `depths` [s height width]."""
    with Predictions(path, otherwise="write it again") as file:
        members = file.members([*_ARRAYS, "metric"])
        for name, member in members.items():
            shapes = [("s", *axes) for axes in _ARRAYS[name]] if name in _ARRAYS else [()]
            if member.dtype.kind not in "iufb" or not any(
                _fits(member.shape, shape) for shape in shapes
            ):
                wanted = " or ".join(f"[{', '.join(map(str, shape))}]" for shape in shapes)
                raise InputError(
                    f"{path}: {name} is {member.dtype.name} of shape {list(member.shape)}, and "
                    f"must be numbers of shape {wanted}"
                )
        arrays = {name: file.read(name) for name in members}
    depth = arrays.get("depth", arrays.get("depths"))
    poses = arrays.get("camera_from_world")
    if poses is not None:
        poses = np.stack([_square(pose) for pose in poses])
    elif "poses" in arrays:
        with _must_be(path, "poses: world_from_camera, which can be inverted"):
            poses = np.linalg.inv(np.stack([_square(pose) for pose in arrays["poses"]]))
    given = [x for x in (arrays.get("intrinsics"), poses, depth) if x is not None]
    if not given or len({len(x) for x in given}) > 1:
        raise InputError(
            f"{path}: must hold intrinsics, camera_from_world (or poses, world_from_camera) or "
            "depth, one for each photograph"
        )
    photographs = [
        Known(
            intrinsics=arrays["intrinsics"][i] if "intrinsics" in arrays else None,
            camera_from_world=None if poses is None else poses[i],
            depth=None if depth is None else functools.partial(depth.__getitem__, i),
        )
        for i in range(len(given[0]))
    ]
    return KnownScene(photographs=photographs, metric=bool(arrays.get("metric", False)))


def _fits(shape: tuple[int, ...], axes: tuple[str | int, ...]) -> bool:
    """Whether lengths are those of axes; axes that are named have any length but 0."""
    return len(shape) == len(axes) and all(
        length > 0 if isinstance(axis, str) else length == axis
        for length, axis in zip(shape, axes, strict=True)
    )
