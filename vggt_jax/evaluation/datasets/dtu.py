"""DTU: objects on a table before a robot's camera, with a structured-light scan, in millimetres.

Camera files, as MVSNet writes them, have the words "extrinsic", a 4x4 camera_from_world,
"intrinsic", a 3x3 matrix, and two to four numbers on the range of depth. Three layouts are in use:
MVSNet's for tests (with depth rendered from a mesh and masks, as Spann3R added them), MVSNet's for
training (smaller images and depth in PFM files, views numbered from 1 in names), and one of 64
views. Masks are those of the object.
"""

import functools
import re
from pathlib import Path

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.base import (
    About,
    DataSet,
    Frame,
    Layout,
    ObservedVolume,
    Problems,
    Scan,
    Sequence,
)
from vggt_jax.evaluation.datasets.reading import (
    DAMAGED_DEPTH,
    NO_DEPTH,
    NO_MASK,
    NO_POSE,
    by_stem,
    finite_depth,
    first_file,
    first_folder,
    naming,
    natural,
    number_of,
    numbered,
    read_grey,
    read_mask,
    read_ply,
    read_rgb,
    read_text,
    rigid,
    scaled,
    subfolders,
    usable_size,
)

TEST_SCANS = (
    1,
    4,
    9,
    10,
    11,
    12,
    13,
    15,
    23,
    24,
    29,
    32,
    33,
    34,
    48,
    49,
    62,
    75,
    77,
    110,
    114,
    118,
)
NO_CAMERA = "camera cannot be read"
# Views of 1600 x 1200 become those of training by a half and a cut in the middle (MVSNet, README).
_TRAINING_SIZE, _FULL_SIZE = (512, 640), (1200, 1600)
_RECTIFIED = re.compile(r"rect_(\d+)_(\d)_r5000", re.IGNORECASE)


def _is_test_scan(folder: Path) -> bool:
    return (folder / "cams").is_dir() and first_folder(
        folder / "images", folder / "image"
    ) is not None


def _scan_number(name: str) -> int:
    number = number_of(name)
    return -1 if number is None else number


class DTU(DataSet):
    """Sequences are called "scan1"; `Frame.index` is the view, from 0.

    `Sequence.points` has the structured-light scan where `Points/stl` is in the root, with what was
    observed where `ObsMask` is.

    Args of `open`, beside the folder:
        light: of the training layout, which of the lights 0 to 6.
        scans: where `Points` and `SampleSet` are, if not in the root.
    """

    name = "dtu"
    about = About(
        title="DTU MVS",
        licence="none is stated",
        source="https://roboimagedata.compute.dtu.dk/?page_id=36",
        paper="Jensen et al., Large Scale Multi-view Stereopsis Evaluation, CVPR 2014",
    )
    unit = "millimetre"
    layouts = (
        Layout(
            "mvsnet",
            "SCAN/images/00000000.jpg and SCAN/cams/00000000_cam.txt",
            lambda root: bool(_find(root, _is_test_scan)),
        ),
        Layout(
            "training",
            "Rectified/SCAN_train/rect_001_3_r5000.png and Cameras/train/00000000_cam.txt",
            lambda root: (root / "Rectified").is_dir() and (root / "Cameras").is_dir(),
        ),
        Layout(
            "views64",
            "scans/SCAN/image/00000000.png and Cameras/00000000_cam.txt",
            lambda root: (root / "Cameras").is_dir() and bool(_find(root / "scans", _has_images)),
        ),
    )

    def __init__(self, root: Path, layout: str, *, light: int = 3, scans: str | Path | None = None):
        super().__init__(root, layout)
        if light not in range(7):
            raise InputError(f"{light=} must be one of 0 to 6")
        self._light = light
        self._scans = root if scans is None else Path(scans)

    def sequences(self) -> list[str]:
        return list(self._folders)

    @functools.cached_property
    def _folders(self) -> dict[str, Path]:
        if self.layout == "mvsnet":
            found = _find(self.root, _is_test_scan)
        elif self.layout == "training":
            found = subfolders(self.root / "Rectified")
        else:
            found = _find(self.root / "scans", _has_images)
        named = {(f.name or f.resolve().name).removesuffix("_train"): f for f in found}
        return {name: named[name] for name in sorted(named, key=natural)}

    def _load(self, name: str, problems: Problems) -> Sequence:
        folder = self._folders[name]
        if self.layout == "mvsnet":
            frames = _test_frames(folder, name, problems)
        elif self.layout == "training":
            frames = self._training_frames(folder, name, problems)
        else:
            frames = _frames(
                by_stem(folder / "image"), _cameras(self.root / "Cameras"), name, problems
            )
        number = _scan_number(name)
        stl = first_file(
            *(
                place / f"stl{number:03d}_total.ply"
                for place in (self._scans / "Points" / "stl", self._scans / "stl")
                if place.is_dir()
            )
        )
        return Sequence(
            dataset=self.name,
            name=name,
            frames=tuple(frames),
            unit=self.unit,
            split="test" if number in TEST_SCANS else None,
            read_points=None
            if stl is None
            else functools.partial(_read_scan, stl, self._scans, number),
            problems=problems,
        )

    def _training_frames(self, folder: Path, name: str, problems: Problems) -> list[Frame]:
        images = {}
        for stem, path in by_stem(folder).items():
            found = _RECTIFIED.fullmatch(stem)
            if found and int(found[2]) == self._light:
                images[int(found[1]) - 1] = path
        if not images:
            raise InputError(f"{folder}: has no rect_001_{self._light}_r5000.png of this light")
        small = self.root / "Cameras" / "train"
        cameras = _cameras(small if small.is_dir() else self.root / "Cameras")
        base = first_folder(
            *(self.root / "Depths" / f"{name}{ending}" for ending in ("_train", ""))
        )
        depths = {} if base is None else by_stem(base, (".pfm",))
        masks = {} if base is None else by_stem(base)
        frames = []
        for view in sorted({*images, *cameras}):
            label = f"{name}/{view}"
            size = usable_size(images.get(view), problems, label)
            if size is None:
                continue
            matrix, pose = _camera(cameras.get(view), problems, label)
            depth, mask = depths.get(f"depth_map_{view:04d}"), masks.get(f"depth_visual_{view:04d}")
            if depth is None:
                problems.add(NO_DEPTH, label)
            depth_matrix = None
            if matrix is not None:
                matrix, depth_matrix = _of_training(matrix, size, small.is_dir())
            frames.append(
                Frame(
                    name=images[view].stem,
                    index=view,
                    image=images[view],
                    intrinsics=matrix,
                    camera_from_world=pose,
                    read_image=functools.partial(read_rgb, images[view]),
                    read_depth=functools.partial(_pfm_depth, depth, mask) if depth else None,
                    depth_intrinsics=depth_matrix,
                )
            )
        return frames


def _of_training(matrix: np.ndarray, size: tuple[int, int], is_small: bool):
    """Intrinsics of an image of training and of its depth, which is a quarter as large."""
    if is_small:
        return scaled(matrix, 4, 4), matrix
    half = scaled(matrix, 0.5, 0.5)
    half[0, 2] -= (_FULL_SIZE[1] / 2 - _TRAINING_SIZE[1]) / 2
    half[1, 2] -= (_FULL_SIZE[0] / 2 - _TRAINING_SIZE[0]) / 2
    half = scaled(half, size[1] / _TRAINING_SIZE[1], size[0] / _TRAINING_SIZE[0])
    return half, scaled(half, 0.25, 0.25)


def _find(root: Path, is_one) -> list[Path]:
    """Scans in a folder, or the folder itself."""
    if is_one(root):
        return [root]
    return [f for f in subfolders(root) if is_one(f)] if root.is_dir() else []


def _has_images(folder: Path) -> bool:
    return bool(by_stem(folder / "image"))


def _cameras(folder: Path) -> dict[int, Path]:
    """Camera files by view."""
    return numbered(by_stem(folder, (".txt",), cut="_cam"))


def read_camera(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics [3 3] and the pose as stored [4 4] of a camera file of MVSNet.

    Raises:
        InputError: words are missing, or no numbers.
    """
    words = read_text(path, "camera file").split()
    with naming(path, 'camera file with "extrinsic", 4x4, "intrinsic", 3x3 and a range of depth'):
        lower = [word.lower() for word in words]
        start, middle = lower.index("extrinsic") + 1, lower.index("intrinsic") + 1
        pose = np.array([float(x) for x in words[start : start + 16]]).reshape(4, 4)
        matrix = np.array([float(x) for x in words[middle : middle + 9]]).reshape(3, 3)
    return matrix, pose


def _camera(path: Path | None, problems: Problems, label: str):
    if path is None:
        problems.add(NO_POSE, label)
        return None, None
    try:
        matrix, pose = read_camera(path)
    except InputError:
        problems.add(NO_CAMERA, path)
        return None, None
    return matrix, rigid(pose, problems, label, inverse=False)


def _test_frames(folder: Path, name: str, problems: Problems) -> list[Frame]:
    images = first_folder(folder / "images", folder / "image") or folder
    masks = first_folder(folder / "binary_masks", folder / "masks", folder / "mask")
    depths = by_stem(folder / "depths", (".npy", ".pfm"))
    return _frames(
        by_stem(images),
        _cameras(folder / "cams"),
        name,
        problems,
        depths=depths if (folder / "depths").is_dir() else None,
        masks=None if masks is None else by_stem(masks),
    )


def _frames(images, cameras, name: str, problems: Problems, *, depths=None, masks=None):
    """Views by number; depth and masks are missed only where there are folders of them."""
    by_number = numbered(images)
    depth_of, mask_of = numbered(depths or {}), numbered(masks or {})
    frames = []
    for view in sorted({*by_number, *cameras}):
        label = f"{name}/{view}"
        size = usable_size(by_number.get(view), problems, label)
        if size is None:
            continue
        matrix, pose = _camera(cameras.get(view), problems, label)
        depth, mask = depth_of.get(view), mask_of.get(view)
        if depths is not None and depth is None:
            problems.add(NO_DEPTH, label)
        if masks is not None and mask is None:
            problems.add(NO_MASK, label)
        image, depth_matrix = by_number[view], None
        if depth is not None and depth.suffix.lower() == ".npy" and matrix is not None:
            depth_matrix = _of_array(depth, matrix, size, problems, label)
        frames.append(
            Frame(
                name=image.stem,
                index=view,
                image=image,
                intrinsics=matrix,
                camera_from_world=pose,
                read_image=functools.partial(read_rgb, image),
                read_depth=None if depth is None else functools.partial(_read_depth, depth),
                read_mask=None if mask is None else functools.partial(read_mask, mask),
                depth_intrinsics=depth_matrix,
            )
        )
    return frames


def _of_array(
    path: Path, matrix: np.ndarray, size: tuple[int, int], problems: Problems, label: str
):
    """Intrinsics of depth in an array; None if it is of the size of the image, or damaged."""
    try:
        with naming(path, "array of depth"):
            height, width = (n for n in np.load(path, mmap_mode="r").shape if n != 1)
    except InputError:
        problems.add(DAMAGED_DEPTH, label)
        return None
    if (height, width) == size:
        return None
    return scaled(matrix, width / size[1], height / size[0])


def _read_depth(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".pfm":
        return _pfm_depth(path, None)
    with naming(path, "array of depth"):
        depth = np.load(path, allow_pickle=False)
        if depth.ndim == 3 and 1 in depth.shape:
            depth = depth.squeeze()
        if depth.ndim != 2:
            raise ValueError(f"an array of shape {depth.shape}")
        return finite_depth(depth)


def _pfm_depth(path: Path, mask: Path | None) -> np.ndarray:
    depth = finite_depth(read_pfm(path))
    if mask is not None:
        seen = read_grey(mask) > 10  # As MVSNet's training takes it.
        if seen.shape != depth.shape:
            raise InputError(f"{mask}: is of another size than {path}")
        depth = np.where(seen, depth, np.float32(0))
    return depth


def read_pfm(path: Path) -> np.ndarray:
    """A PFM picture of one channel [height width], the top row first, float32.

    Its scale's sign tells the order of bytes (negative: little-endian); rows are stored from below.

    Raises:
        InputError: it has colours, or is truncated.
    """
    with naming(path, "PFM file of one channel"):
        data = path.read_bytes()
        found = re.match(rb"(P[Ff])\s+(\d+)\s+(\d+)\s+([-+.\deE]+)[ \t]*\r?\n", data)
        if found is None or found[1] != b"Pf":
            raise ValueError("its header is not that of one channel")
        width, height = int(found[2]), int(found[3])
        order = "<" if float(found[4]) < 0 else ">"
        values = np.frombuffer(data, f"{order}f4", width * height, found.end())
    return values.reshape(height, width)[::-1].astype(np.float32)


def _read_scan(path: Path, root: Path, number: int) -> Scan:
    points, normals = read_ply(path)
    folders = [root / part / "ObsMask" for part in ("SampleSet/MVS Data", "SampleSet/mvs_data", "")]
    folder = first_folder(*folders, root / "SampleSet" / "MVS_Data" / "ObsMask")
    observed = None if folder is None else _observed(folder, number)
    return Scan(points=points, normals=normals, observed=observed)


def _observed(folder: Path, number: int) -> ObservedVolume | None:
    from scipy.io import loadmat

    mask = first_file(folder / f"ObsMask{number}_10.mat")
    if mask is None:
        return None
    with naming(mask, "mask of what was observed, with ObsMask, BB and Res"):
        found = loadmat(mask)
        volume = np.asarray(found["ObsMask"]) > 0
        low, resolution = np.asarray(found["BB"], np.float64)[0], float(np.ravel(found["Res"])[0])
    plane = first_file(folder / f"Plane{number}.mat")
    values = None
    if plane is not None:
        with naming(plane, "plane, with P"):
            values = np.asarray(loadmat(plane)["P"], np.float64).reshape(4)
    return ObservedVolume(mask=volume, low=low, resolution=resolution, plane=values)
