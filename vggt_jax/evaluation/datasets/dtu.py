"""DTU: objects on a table before a robot's camera, with a structured-light scan, in millimetres.

Camera files, as MVSNet writes them, have the words "extrinsic", a 4x4 camera_from_world,
"intrinsic", a 3x3 matrix, and two to four numbers on the range of depth. Three layouts are in use:
MVSNet's for tests (with depth rendered from a mesh and masks, as Spann3R added them), MVSNet's for
training (smaller images and depth in PFM files, views numbered from 1 in names), and one of 64
views. In all of them depth may also be that of `Depths_raw`. Masks are those of the object.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Literal

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
from vggt_jax.evaluation.datasets.dtu_maps import (
    depth_intrinsics,
    field,
    intrinsics_for,
    map_size,
    read_depth,
)
from vggt_jax.evaluation.datasets.reading import (
    DAMAGED_DEPTH,
    NO_DEPTH,
    NO_MASK,
    NO_POSE,
    by_stem,
    first_file,
    first_folder,
    naming,
    natural,
    number_of,
    numbered,
    read_mask,
    read_ply,
    read_rgb,
    read_text,
    rigid,
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
OTHER_SIZE = "intrinsics are for another size of the images, and scaled"
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
        depth: "stored", that of the scan or of `Depths`, and `Depths_raw` where there is neither;
            "raw", `Depths_raw`. Either is brought to what the image shows.
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

    def __init__(
        self,
        root: Path,
        layout: str,
        *,
        light: int = 3,
        depth: Literal["stored", "raw"] = "stored",
        scans: str | Path | None = None,
    ):
        super().__init__(root, layout)
        if light not in range(7):
            raise InputError(f"{light=} must be one of 0 to 6")
        if depth not in ("stored", "raw"):
            raise InputError(f'{depth=} must be "stored" or "raw"')
        self._light, self._depth = light, depth
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
        read = self._training_frames if self.layout == "training" else self._other_frames
        frames = read(folder, name, problems)
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
        files = _Files(images, cameras, *self._released_depth(name))
        return _frames(files, name, problems, needs_depth=True)

    def _other_frames(self, folder: Path, name: str, problems: Problems) -> list[Frame]:
        """Of tests and of 64 views: all but the cameras lies in the scan's folder."""
        images = first_folder(folder / "images", folder / "image") or folder
        masks = first_folder(folder / "binary_masks", folder / "masks", folder / "mask")
        cameras = folder / "cams" if self.layout == "mvsnet" else self.root / "Cameras"
        own = numbered(by_stem(folder / "depths", (".npy", ".pfm")))
        needs_depth = (folder / "depths").is_dir() and self._depth == "stored"
        depths, seen = (own, {}) if needs_depth else self._released_depth(name)
        files = _Files(
            images=numbered(by_stem(images)),
            cameras=_cameras(cameras),
            depths=depths,
            seen=seen,
            masks=None if masks is None else numbered(by_stem(masks)),
            cameras_are_own=self.layout == "mvsnet",
        )
        return _frames(files, name, problems, needs_depth=needs_depth or bool(depths))

    def _released_depth(self, name: str) -> tuple[dict[int, Path], dict[int, Path]]:
        """MVSNet's depth of a scan by view, and the pictures of where it counts."""
        parts = ("Depths", "Depths_raw") if self._depth == "stored" else ("Depths_raw",)
        folders = [self.root / part / (name + end) for part in parts for end in ("_train", "")]
        base = first_folder(*folders)
        if base is None:
            return {}, {}
        maps = {k: x for k, x in by_stem(base, (".pfm",)).items() if k.startswith("depth_map_")}
        seen = {k: x for k, x in by_stem(base).items() if k.startswith("depth_visual_")}
        return numbered(maps), numbered(seen)


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


@dataclasses.dataclass(frozen=True)
class _Files:
    """Files of a scan by view.

    Attributes:
        seen: pictures of where depth counts.
        masks: None where there is no folder of them.
        cameras_are_own: whether they lie with the scan, and so should be for its images.
    """

    images: dict[int, Path]
    cameras: dict[int, Path]
    depths: dict[int, Path]
    seen: dict[int, Path]
    masks: dict[int, Path] | None = None
    cameras_are_own: bool = False


def _frames(files: _Files, name: str, problems: Problems, *, needs_depth: bool) -> list[Frame]:
    """Views by number; masks are missed only where there is a folder of them."""
    frames = []
    for view in sorted({*files.images, *files.cameras}):
        label = f"{name}/{view}"
        size = usable_size(files.images.get(view), problems, label)
        if size is None:
            continue
        image = files.images[view]
        matrix, pose = _camera(files.cameras.get(view), problems, label)
        if matrix is not None:
            told, matrix = matrix, intrinsics_for(matrix, size)
            if matrix is not told and files.cameras_are_own:
                problems.add(OTHER_SIZE, name)
        depth, mask = files.depths.get(view), (files.masks or {}).get(view)
        if needs_depth and depth is None:
            problems.add(NO_DEPTH, label)
        if files.masks is not None and mask is None:
            problems.add(NO_MASK, label)
        read, depth_matrix = _depth(depth, files.seen.get(view), matrix, size, problems, label)
        frames.append(
            Frame(
                name=image.stem,
                index=view,
                image=image,
                intrinsics=matrix,
                camera_from_world=pose,
                read_image=functools.partial(read_rgb, image),
                read_depth=read,
                read_mask=None if mask is None else functools.partial(read_mask, mask),
                depth_intrinsics=depth_matrix,
            )
        )
    return frames


def _depth(depth, seen, matrix, size: tuple[int, int], problems: Problems, label: str):
    """The reader and the intrinsics of a view's depth; None for those of the image."""
    if depth is None:
        return None, None
    read, depth_matrix = functools.partial(read_depth, depth, seen, None), None
    try:
        stored = map_size(depth)
    except InputError:
        problems.add(DAMAGED_DEPTH, label)
        return read, None
    if (shown := field(stored, size)) != stored:
        read = functools.partial(read_depth, depth, seen, shown)
    if stored != size and matrix is not None:
        depth_matrix = depth_intrinsics(matrix, stored, size)
    return read, depth_matrix


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
