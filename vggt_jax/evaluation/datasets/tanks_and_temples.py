"""Tanks and Temples: 21 scenes, with poses by COLMAP and, of seven, a laser scan.

`SCENE_COLMAP_SfM.log` has for image i, whose name is i + 1, a line of three numbers and the four of
its world_from_camera, in OpenCV's axes. A second number of -1 and a pose of the identity say that
an image was not registered. There are no intrinsics, unless a COLMAP model is there instead.
"""

import functools
import json
from pathlib import Path

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.base import (
    About,
    CropVolume,
    DataSet,
    Layout,
    Problems,
    Scan,
    Sequence,
)
from vggt_jax.evaluation.datasets.colmap_model import has_model, read_model
from vggt_jax.evaluation.datasets.reading import (
    NO_IMAGE,
    NO_POSE,
    by_stem,
    first_file,
    first_folder,
    image_frame,
    naming,
    number_of,
    read_matrix,
    read_ply,
    read_rows,
    rigid,
    subfolders,
    usable_size,
)

# The groups of the benchmark.
GROUPS = {
    "training": "Barn Caterpillar Church Courthouse Ignatius Meetingroom Truck".split(),
    "intermediate": "Family Francis Horse Lighthouse M60 Panther Playground Train".split(),
    "advanced": "Auditorium Ballroom Courtroom Museum Palace Temple".split(),
}
# tau of the official F-score, in metres.
THRESHOLDS = {
    "Barn": 0.01, "Caterpillar": 0.005, "Church": 0.025, "Courthouse": 0.025, "Ignatius": 0.003,
    "Meetingroom": 0.01, "Truck": 0.005,
}  # fmt: skip
_LOG = "_COLMAP_SfM.log"
UNREGISTERED = "image was not registered"
NOT_IN_MODEL = "pose has no image"


def _places(root: Path) -> list[Path]:
    """Folders that scenes may lie in."""
    inner = ("image_sets", "images", "keyframes", *GROUPS)
    found = [root, *(root / name for name in inner)]
    found += [root / "keyframes" / group for group in GROUPS]
    found += [root / group / "image_sets" for group in GROUPS]
    return [place for place in found if place.is_dir()]


def _scenes(root: Path) -> dict[str, Path]:
    """Folders of images by scene."""
    found: dict[str, Path] = {}
    for place in _places(root):
        for folder in [place, *subfolders(place)]:
            name = folder.name or folder.resolve().name
            if folder in _places(root)[1:]:
                continue
            images = first_folder(*(f for f in (folder, folder / "images") if by_stem(f)))
            if images is not None:
                found.setdefault(name, images)
    return dict(sorted(found.items()))


def _log(root: Path, scene: str, images: Path) -> Path | None:
    """The file of poses of a scene: beside the scene's folder, or in it."""
    folder = images.parent if images.name.lower() == "images" else images
    near = [
        root,
        root.parent,
        root / scene,
        folder,
        folder.parent,
        folder.parent.parent,
        *_logs(root),
    ]
    return first_file(*(place / (scene + _LOG) for place in near if place.is_dir()))


def _logs(root: Path) -> list[Path]:
    return [root / name for name in ("logs", "poses", *GROUPS)]


def _model(root: Path, scene: str) -> Path | None:
    """A COLMAP model of a scene: beside its images, or in a folder of all results."""
    bases = [root / "colmap_results", root / "colmap_raw", root]
    names = [scene, *(f"{group}__{scene}" for group in GROUPS)]
    for base in bases:
        for name in names:
            for part in ("0", "sparse/0", "sparse", "."):
                folder = base / name / part
                if folder.is_dir() and has_model(folder):
                    return folder
    return None


def _is_here(root: Path) -> bool:
    return any(_log(root, s, f) or _model(root, s) for s, f in _scenes(root).items())


class TanksAndTemples(DataSet):
    """Frames are ordered by the number of the image; `index` is that number less one.

    `Sequence.category` is the group, and `facts` hold "threshold", of the official F-score.
    """

    name = "tanks"
    about = About(
        title="Tanks and Temples",
        licence="CC BY-NC-SA 3.0, by its page",
        source="https://www.tanksandtemples.org/download/",
        paper="Knapitsch et al., Tanks and Temples, SIGGRAPH 2017",
    )
    unit = "arbitrary"
    scenes = tuple(name for names in GROUPS.values() for name in names)
    layouts = (
        Layout(
            "original",
            "SCENE/000001.jpg, SCENE/images or image_sets/SCENE, with SCENE_COLMAP_SfM.log in the "
            "scene's folder or beside it, or colmap_results/GROUP__SCENE/0/images.bin",
            _is_here,
        ),
    )

    def sequences(self) -> list[str]:
        return list(self._listed)

    @functools.cached_property
    def _listed(self) -> dict[str, Path]:
        found = {}
        for scene, images in _scenes(self.root).items():
            if _log(self.root, scene, images) or _model(self.root, scene):
                found[scene] = images
            else:
                self.problems.add("scene has no poses", scene)
        return found

    def _load(self, name: str, problems: Problems) -> Sequence:
        images = self._listed[name]
        log = _log(self.root, name, images)
        if log is not None:
            frames = _frames_of_log(log, by_stem(images), name, problems)
        else:
            frames = _frames_of_model(_model(self.root, name), images, name, problems)
        scan = self._scan_file(name, images)
        facts = {"threshold": THRESHOLDS[name]} if name in THRESHOLDS else {}
        return Sequence(
            dataset=self.name,
            name=name,
            frames=tuple(frames),
            unit=self.unit,
            category=next((group for group, names in GROUPS.items() if name in names), None),
            read_points=None if scan is None else functools.partial(_read_scan, scan),
            problems=problems,
            facts=facts,
        )

    def _scan_file(self, name: str, images: Path) -> Path | None:
        folders = [self.root, self.root / name, images, images.parent]
        return first_file(*(folder / f"{name}.ply" for folder in folders if folder.is_dir()))


def read_log(path: Path) -> list[tuple[int, int, np.ndarray]]:
    """The two numbers and the world_from_camera [4 4] of each entry.

    Raises:
        InputError: the file is truncated or no such file.
    """
    rows = read_rows(path, "trajectory")
    if len(rows) % 5:
        raise InputError(f"{path}: is truncated: {len(rows)} lines, and an entry has five")
    found = []
    with naming(path, "trajectory, three numbers and a 4x4 matrix an entry"):
        for start in range(0, len(rows), 5):
            first, second, *_ = (int(word) for word in rows[start])
            matrix = np.array([[float(x) for x in row] for row in rows[start + 1 : start + 5]])
            if matrix.shape != (4, 4):
                raise ValueError(f"a matrix of shape {matrix.shape}")
            found.append((first, second, matrix))
    return found


def _frames_of_log(log: Path, images: dict[str, Path], name: str, problems: Problems):
    entries = read_log(log)
    numbers = [number_of(stem) for stem in images]
    # Images count from 1, as the benchmark's do, or from 0.
    first = 0 if 0 in numbers else 1
    places = [first for first, _, _ in entries]
    if sorted(places) != list(range(len(entries))):
        places = list(range(len(entries)))
    by_place = dict(zip(places, entries, strict=True))
    frames, used = [], set()
    for (stem, image), number in zip(images.items(), numbers, strict=True):
        place, label, pose = (-1 if number is None else number - first), f"{name}/{stem}", None
        if usable_size(image, problems, label) is None:
            used.add(place)
            continue
        if place not in by_place:
            problems.add(NO_POSE, label)
            if place < 0:
                continue
        else:
            used.add(place)
            _, registered, matrix = by_place[place]
            if registered < 0:
                problems.add(UNREGISTERED, label)
            else:
                pose = rigid(matrix, problems, label, inverse=True)
        frames.append(image_frame(stem, place, image, None, pose))
    for place in sorted(set(by_place) - used):
        problems.add(NOT_IN_MODEL, f"{name}, image {place + first}")
    return sorted(frames, key=lambda frame: frame.index)


def _frames_of_model(folder: Path | None, images: Path, name: str, problems: Problems):
    if folder is None:
        raise InputError(f"{name}: has no poses")
    cameras, entries = read_model(folder)
    there = {path.name.lower(): path for path in by_stem(images).values()}
    frames, used = [], set()
    places = {stem: i for i, stem in enumerate(there)}
    for entry in entries:
        key = Path(entry.name).name.lower()
        if key not in there:
            problems.add(NO_IMAGE, f"{name}/{entry.name}")
            continue
        used.add(key)
        if usable_size(there[key], problems, f"{name}/{entry.name}") is None:
            continue
        pose = rigid(entry.camera_from_world, problems, f"{name}/{entry.name}", inverse=False)
        matrix = cameras[entry.camera].intrinsics
        if np.any(cameras[entry.camera].distortion):
            problems.add("camera distorts, which is not taken into account", name)
        frames.append(image_frame(there[key].stem, places[key], there[key], matrix, pose))
    for key, path in there.items():
        if key not in used:
            problems.add(UNREGISTERED, f"{name}/{path.stem}")
            frames.append(image_frame(path.stem, places[key], path, None, None))
    return sorted(frames, key=lambda frame: frame.index)


def _read_scan(path: Path) -> Scan:
    """The laser scan, with the transform and the crop volume that lie beside it."""
    points, normals = read_ply(path)
    scene = path.stem
    folders = [path.parent, path.parent / scene, path.parent.parent]
    moves = first_file(*(f / f"{scene}_trans.txt" for f in folders if f.is_dir()))
    crop = first_file(*(f / f"{scene}.json" for f in folders if f.is_dir()))
    return Scan(
        points=points,
        normals=normals,
        scan_from_world=np.eye(4)
        if moves is None
        else read_matrix(moves, (4, 4), what="transform"),
        crop=None if crop is None else read_crop(crop),
    )


def read_crop(path: Path) -> CropVolume:
    """Open3D's SelectionPolygonVolume.

    Raises:
        InputError: it is none.
    """
    with naming(path, "SelectionPolygonVolume"):
        document = json.loads(path.read_bytes())
        axis = "XYZ".index(document["orthogonal_axis"].upper())
        corners = np.array(document["bounding_polygon"], np.float64).reshape(-1, 3)
        return CropVolume(
            axis=axis,
            low=float(document["axis_min"]),
            high=float(document["axis_max"]),
            polygon=np.delete(corners, axis, axis=1),
        )
