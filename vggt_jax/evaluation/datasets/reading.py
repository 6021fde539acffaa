"""What several data sets share: pictures, matrices in text files, poses, PLY files, folders."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.base import Frame, Problems
from vggt_jax.images.opening import opened

PICTURES = (".png", ".jpg", ".jpeg")
# Of how a rotation's product with its transpose may differ from the identity: files have six
# digits, and fusion of depth maps drifts.
_ROTATION_TOLERANCE = 1e-2
LOST_POSE = "pose is not finite"
NO_ROTATION = "pose is no rotation and translation"
NO_IMAGE = "image is missing"
DAMAGED_IMAGE = "image cannot be read"
DAMAGED_DEPTH = "depth cannot be read"
NO_POSE = "pose is missing"
NO_DEPTH = "depth is missing"
NO_MASK = "mask is missing"
DAMAGED_POSE = "pose cannot be read"


@contextlib.contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Turns what reading a file raises into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: is missing; it should be {what}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, IndexError, TypeError, EOFError) as error:
        raise InputError(f"{path}: is no {what} ({type(error).__name__}: {error})") from error


def read_rgb(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """A photograph as it is stored, whatever its EXIF data says of its orientation."""
    with opened(path) as (image, _):
        return np.array(image.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture; its pixels are not decoded."""
    with opened(path) as (image, _):
        return image.height, image.width


def usable_size(path: Path | None, problems: Problems, label: str) -> tuple[int, int] | None:
    """Height and width of a photograph; None, and a problem, if it is missing or damaged."""
    return _size(path, problems, label, missing=NO_IMAGE, damaged=DAMAGED_IMAGE)


def depth_size(path: Path | None, problems: Problems, label: str) -> tuple[int, int] | None:
    """Height and width of a picture of depth; None, and a problem, if it is missing or damaged."""
    return _size(path, problems, label, missing=NO_DEPTH, damaged=DAMAGED_DEPTH)


def _size(
    path: Path | None, problems: Problems, label: str, *, missing: str, damaged: str
) -> tuple[int, int] | None:
    if path is None or not path.is_file():
        problems.add(missing, label)
        return None
    try:
        return image_size(path)
    except InputError:
        problems.add(damaged, label)
        return None


def image_frame(name: str, index: int, image: Path, matrix, pose) -> Frame:
    """A frame of which there are the photograph, and perhaps its camera, alone."""
    return Frame(
        name=name,
        index=index,
        image=image,
        intrinsics=matrix,
        camera_from_world=pose,
        read_image=functools.partial(read_rgb, image),
    )


def read_uint16(path: Path) -> np.ndarray:
    """A picture of 16 bits, one channel.

    Raises:
        InputError: it has 8 bits or colours, so that somebody converted it.
    """
    with opened(path) as (image, _):
        if image.mode not in ("I;16", "I;16B", "I;16L", "I"):
            raise InputError(
                f"{path}: depth must have one channel of 16 bits, and this has Pillow's mode "
                f"{image.mode}; take the file as it was published"
            )
        values = np.array(image)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{path}: has values outside 16 bits")
    return values.astype(np.uint16)


def read_millimetres(path: Path, *, per_unit: float = 1000.0, invalid: tuple[int, ...] = (0,)):
    """Depth [height width], float32, from 16 bits: `value / per_unit`, 0 for `invalid` values."""
    values = read_uint16(path)
    depth = values.astype(np.float32) / np.float32(per_unit)
    depth[np.isin(values, invalid)] = 0
    return depth


def read_grey(path: Path) -> UInt8[np.ndarray, "height width"]:
    """A picture of 8 bits or of one: 1 bit becomes 0 and 255."""
    with opened(path) as (image, _):
        return np.array(image.convert("L") if image.mode != "P" else image)


def read_mask(path: Path, *, above: int = 127) -> Bool[np.ndarray, "height width"]:
    """Where a picture of 8 bits or of one is brighter than `above`."""
    return read_grey(path) > above


def finite_depth(depth: np.ndarray) -> Float[np.ndarray, "height width"]:
    """Depth as float32, with 0 where it is not finite or not positive."""
    depth = np.asarray(depth, np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def read_text(path: Path, what: str) -> str:
    """A text file, whatever its ends of lines; a byte order mark is left out."""
    with naming(path, what):
        return path.read_bytes().decode("utf-8-sig", errors="replace").replace("\r", "\n")


def read_rows(path: Path, what: str) -> list[list[str]]:
    """The words of all lines that are not empty."""
    return [row.split() for row in read_text(path, what).split("\n") if row.strip()]


def read_matrix(path: Path, *shapes: tuple[int, int], what: str = "matrix") -> np.ndarray:
    """A matrix of one of these shapes, rows by lines; "nan" and "-inf" are numbers.

    Raises:
        InputError: there is none, or of another shape.
    """
    rows = read_rows(path, what)
    with naming(path, what):
        matrix = np.array([[float(word) for word in row] for row in rows], np.float64)
    if matrix.shape not in shapes:
        wanted = " or ".join(f"{a}x{b}" for a, b in shapes)
        raise InputError(f"{path}: is no {what}: it is {matrix.shape}, not {wanted}")
    return matrix


def rigid(
    matrix: Any, problems: Problems, label: str, *, inverse: bool
) -> Float[np.ndarray, "3 4"] | None:
    """A pose that was checked: None, and a problem, if it is not one.

    Args:
        matrix: 3x4 or 4x4.
        inverse: whether it is world_from_camera, which is inverted in float64.
        label: of the frame, for the problem.
    """
    matrix = np.asarray(matrix, np.float64)
    pose = np.eye(4)
    pose[:3] = matrix[:3]
    if not np.isfinite(pose).all():
        problems.add(LOST_POSE, label)
        return None
    rotation = pose[:3, :3]
    off = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if off > _ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        problems.add(NO_ROTATION, label)
        return None
    return (np.linalg.inv(pose) if inverse else pose)[:3]


def read_pose(
    path: Path | None, problems: Problems, label: str, *, inverse: bool
) -> Float[np.ndarray, "3 4"] | None:
    """The pose in a text file; None, and a problem, if there is none."""
    if path is None or not path.is_file():
        problems.add(NO_POSE, label)
        return None
    try:
        matrix = read_matrix(path, (4, 4), (3, 4), what="pose")
    except InputError:
        problems.add(DAMAGED_POSE, path)
        return None
    return rigid(matrix, problems, label, inverse=inverse)


def pinhole(fx: float, fy: float, cx: float, cy: float) -> Float[np.ndarray, "3 3"]:
    """The matrix of a camera."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def from_whole_numbers(matrix: np.ndarray) -> Float[np.ndarray, "3 3"]:
    """Intrinsics with pixel centres at i + 0.5, from some with pixel centres at i."""
    moved = np.array(matrix[:3, :3], np.float64)
    moved[:2, 2] += 0.5
    return moved


def scaled(matrix: np.ndarray, across: float, down: float) -> Float[np.ndarray, "3 3"]:
    """Intrinsics of an image that was resized; pixel centres at i + 0.5."""
    return np.diag([across, down, 1.0]) @ matrix


def natural(name: str | Path) -> tuple:
    """A key that sorts 2 before 10."""
    parts = re.split(r"(\d+)", str(name))
    return tuple((int(part), part) if i % 2 else part for i, part in enumerate(parts))


def number_of(stem: str) -> int | None:
    """The last number in a name; None if there is none."""
    found = re.findall(r"\d+", stem)
    return int(found[-1]) if found else None


def numbered(files: Mapping[str, Path]) -> dict[int, Path]:
    """Files by the last number in their names; those without one, and seconds, are left out."""
    found: dict[int, Path] = {}
    for stem, path in files.items():
        if (number := number_of(stem)) is not None:
            found.setdefault(number, path)
    return found


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, hidden ones aside, by name; none where there is no such folder."""
    with naming(folder, "folder"):
        if not folder.is_dir():
            return []
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def by_stem(folder: Path, endings: tuple[str, ...] = PICTURES, *, cut: str = "") -> dict[str, Path]:
    """Files of a folder by their names without ending, in the order of numbers.

    Args:
        endings: in lower case; they count in any case.
        cut: what stands before the ending, such as ".color"; files without it are left out.
    """
    found: dict[str, Path] = {}
    if not folder.is_dir():
        return found
    with naming(folder, "folder"):
        paths = sorted(folder.iterdir(), key=lambda path: natural(path.name))
    for path in paths:
        lower = path.name.lower()
        for ending in endings:
            whole = cut.lower() + ending
            if lower.endswith(whole) and len(lower) > len(whole) and lower[0] != ".":
                found.setdefault(path.name[: -len(whole)], path)
    return found


def first_file(*paths: Path) -> Path | None:
    """The first of these that is a file, whatever the case of its name."""
    for path in paths:
        if path.is_file():
            return path
        for other in _lower_names(path.parent).get(path.name.lower(), ()):
            if other.is_file():
                return other
    return None


def first_folder(*paths: Path) -> Path | None:
    """The first of these that is a folder."""
    return next((path for path in paths if path.is_dir()), None)


def _lower_names(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            found.setdefault(path.name.lower(), []).append(path)
    return found


def folders_that(root: Path, is_one: Callable[[Path], bool], depth: int = 1) -> list[Path]:
    """The folder itself if it is one, or those below it that are, by name, down to `depth`."""
    if is_one(root):
        return [root]
    if depth == 0:
        return []
    return [found for sub in subfolders(root) for found in folders_that(sub, is_one, depth - 1)]


def relative_name(folder: Path, root: Path) -> str:
    """A folder's path below the root with slashes; its own name if it is the root."""
    return (
        folder.name or folder.resolve().name
        if folder == root
        else str(folder.relative_to(root).as_posix())
    )


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Points [n 3] of a PLY file, and their normals where the file has them."""
    import trimesh

    with naming(path, "PLY file"):
        loaded: Any = trimesh.load(path, process=False)
        points = np.asarray(loaded.vertices, np.float64)
        raw = getattr(loaded, "metadata", {}).get("_ply_raw", {}).get("vertex", {}).get("data")
    normals = None
    names = getattr(getattr(raw, "dtype", None), "names", None) or ()
    if raw is not None and {"nx", "ny", "nz"} <= set(names):
        normals = np.stack([raw[name].reshape(-1) for name in ("nx", "ny", "nz")], axis=1)
        normals = np.asarray(normals, np.float64)
    return points, normals
