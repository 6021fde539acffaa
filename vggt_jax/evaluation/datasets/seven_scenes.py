"""7-Scenes: seven rooms by a Kinect, with depth and the poses of KinectFusion.

Colour and depth cameras are 2.6 cm apart and have other focal lengths, and there is one pose for
both. Two kinds of depth are in use:

- `depth.png` as published, of the depth camera (focal length 585). 0 and 65535 are no depth.
- `depth.proj.png`, made of it by preprocessing that others took over: moved to the colour camera
  (focal length 525), truncated to millimetres. Where a release was made without leaving 65535 out
  first, these values wrapped around into near points, which nothing in the file tells.

Poses are used unchanged for either, as published evaluations do, so that one of both is off by up
to those 2.6 cm.
"""

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
    Problems,
    Scan,
    Sequence,
)
from vggt_jax.evaluation.datasets.reading import (
    by_stem,
    depth_size,
    first_file,
    folders_that,
    from_whole_numbers,
    number_of,
    numbered,
    pinhole,
    read_millimetres,
    read_ply,
    read_pose,
    read_rgb,
    read_text,
    read_uint16,
    scaled,
    subfolders,
    usable_size,
)

SCENES = "chess fire heads office pumpkin redkitchen stairs".split()
TEST_SEQUENCES = {
    "chess": (3, 5), "fire": (3, 4), "heads": (1,), "office": (2, 6, 7, 9), "pumpkin": (1, 7),
    "redkitchen": (3, 4, 6, 12, 14), "stairs": (1, 4),
}  # fmt: skip
INVALID = (0, 65535)
WRAPPED = 'projected depth has near points made of 65535; depth="remade" makes it anew'
# Of pictures of 640 x 480. The depth camera's has pixel centres at i + 0.5, that of the colour
# camera at i.
_SIZE = (480, 640)
DEPTH_INTRINSICS = pinhole(585, 585, 320, 240)
COLOUR_INTRINSICS = from_whole_numbers(pinhole(525, 525, 320, 240))
# Points of the depth camera in coordinates of the colour camera, in metres: a Kinect's calibration,
# with which `depth.proj.png` was made (nianticlabs/simplerecon fe2d5c2,
# data_scripts/7scenes_preprocessing.py).
COLOUR_FROM_DEPTH = np.array(
    [
        [9.9996518012567637e-01, 2.6765126468950343e-03, -7.9041012313000904e-03,
        -2.5558943178152542e-02], [-2.7409311281316700e-03, 9.9996302803027592e-01,
        -8.1504520778013286e-03, 1.0109636268061706e-04], [7.8819942130445332e-03,
        8.1718328771890631e-03, 9.9993554558014031e-01, 2.0318321729487039e-03], [0, 0, 0, 1],
    ]
)  # fmt: skip


def _is_sequence(folder: Path) -> bool:
    return bool(re.fullmatch(r"seq-?\d+", folder.name.lower())) and bool(
        by_stem(folder, cut=".color")
    )


def _scene_folders(root: Path) -> list[Path]:
    return folders_that(root, lambda f: any(_is_sequence(s) for s in subfolders(f)), 2)


class SevenScenes(DataSet):
    """Sequences are called "SCENE/seq-01"; the order is that of scenes and numbers.

    Args of `open`, beside the folder:
        split: "test" or "train": by TestSplit.txt and TrainSplit.txt, or by the published numbers
            where these are missing; "all" takes both.
        depth: "stored": `depth.proj.png` where a sequence has any, else `depth.png`;
            "projected": `depth.proj.png`, and where that is missing it is made from `depth.png`;
            "remade": made from `depth.png`, without what wraps;
            "raw": `depth.png`. Only projected depth is registered to the image
            (`Frame.registered`), which evaluations of points by pixel need.
        legacy_wrap: with "remade", makes depth as the preprocessing did that wraps 65535 into near
            points, to compare with releases that were made so.
    """

    name = "7scenes"
    about = About(
        title="7-Scenes",
        licence="Microsoft Research licence (MSR-LA), non-commercial",
        source="https://www.microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes/",
        paper="Shotton et al., Scene Coordinate Regression Forests, CVPR 2013",
    )
    unit = "metre"
    scenes = tuple(SCENES)
    layouts = (
        Layout(
            "original",
            "SCENE/seq-01/frame-000000.color.png with .depth.png or .depth.proj.png and .pose.txt",
            lambda root: bool(_scene_folders(root)),
        ),
    )

    def __init__(
        self,
        root: Path,
        layout: str,
        *,
        split: Literal["test", "train", "all"] = "test",
        depth: Literal["stored", "projected", "remade", "raw"] = "stored",
        legacy_wrap: bool = False,
    ):
        super().__init__(root, layout)
        if split not in ("test", "train", "all"):
            raise InputError(f'split={split!r} must be "test", "train" or "all"')
        if depth not in ("stored", "projected", "remade", "raw"):
            raise InputError(f'depth={depth!r} must be "stored", "projected", "remade" or "raw"')
        if legacy_wrap and depth != "remade":
            raise InputError('legacy_wrap needs depth="remade"')
        self._split, self._depth, self._wrap = split, depth, legacy_wrap

    def sequences(self) -> list[str]:
        return list(self._listed)

    @functools.cached_property
    def _listed(self) -> dict[str, tuple[str | None, Path]]:
        """Split and folder of sequences."""
        found = {}
        for scene in _scene_folders(self.root):
            name = scene.name or scene.resolve().name
            splits = self._splits(scene, name)
            there = numbered({f.name: f for f in subfolders(scene) if _is_sequence(f)})
            for number in sorted(there):
                split = splits.get(number)
                if self._split in ("all", split):
                    found[f"{name}/{there[number].name}"] = (split, there[number])
                elif split is None:
                    self.problems.add("sequence is in no split", f"{name}/{there[number].name}")
            for number, split in splits.items():
                if number not in there and self._split in ("all", split):
                    self.problems.add("sequence is missing", f"{name}/seq-{number:02d}")
        return found

    def _splits(self, scene: Path, name: str) -> dict[int, str]:
        found: dict[int, str] = {}
        for split, file in (("test", "TestSplit.txt"), ("train", "TrainSplit.txt")):
            path = first_file(scene / file)
            if path is not None:
                for line in read_text(path, "list of sequences").split("\n"):
                    if (number := number_of(line)) is not None:
                        found.setdefault(number, split)
        if not found and name in TEST_SEQUENCES:
            self.problems.add("TestSplit.txt is missing, the published numbers are taken", name)
            numbers = [number_of(f.name) for f in subfolders(scene) if _is_sequence(f)]
            test = TEST_SEQUENCES[name]
            found = {n: "test" if n in test else "train" for n in numbers if n is not None}
        elif not found:
            self.problems.add("there is no TestSplit.txt, all sequences are taken", name)
            numbers = numbered({f.name: f for f in subfolders(scene) if _is_sequence(f)})
            found = dict.fromkeys(numbers, "train" if self._split == "train" else "test")
        return found

    def _load(self, name: str, problems: Problems) -> Sequence:
        split, folder = self._listed[name]
        images = by_stem(folder, cut=".color")
        projected, raw = by_stem(folder, cut=".depth.proj"), by_stem(folder, cut=".depth")
        poses = by_stem(folder, (".txt",), cut=".pose")
        is_raw = self._depth == "raw" or (self._depth == "stored" and not projected)
        frames = []
        for stem in sorted(
            {*images, *projected, *raw, *poses}, key=lambda s: (number_of(s) or 0, s)
        ):
            label = f"{name}/{stem}"
            size = usable_size(images.get(stem), problems, label)
            if size is None:
                continue
            read_depth, depth_intrinsics = self._depth_of(
                raw.get(stem), projected.get(stem), size, is_raw, problems, label
            )
            frames.append(
                Frame(
                    name=stem,
                    index=number_of(stem) or 0,
                    image=images[stem],
                    intrinsics=_of_size(COLOUR_INTRINSICS, size),
                    camera_from_world=read_pose(poses.get(stem), problems, label, inverse=True),
                    read_image=functools.partial(read_rgb, images[stem]),
                    read_depth=read_depth,
                    depth_intrinsics=depth_intrinsics,
                    registered=not is_raw,
                )
            )
        scene = name.partition("/")[0]
        mesh = first_file(self.root / "meshes" / f"{scene}.ply")
        return Sequence(
            dataset=self.name,
            name=name,
            frames=tuple(frames),
            unit=self.unit,
            split=split,
            read_points=None if mesh is None else functools.partial(_scan, mesh),
            problems=problems,
        )

    def _depth_of(self, raw, projected, size, is_raw: bool, problems: Problems, label: str):
        """The reader and the intrinsics of a frame's depth, or twice None."""
        makes_it = self._depth == "remade" or (self._depth == "projected" and projected is None)
        stored = raw if is_raw or makes_it else projected
        found = depth_size(stored, problems, label)
        if found is None or stored is None:
            return None, None
        if makes_it:
            return functools.partial(project_to_colour, stored, size, self._wrap), None
        matrix = _of_size(DEPTH_INTRINSICS if is_raw else COLOUR_INTRINSICS, found)
        return functools.partial(read_millimetres, stored, invalid=INVALID), matrix

    def check_more(self, sequence: Sequence, problems: Problems) -> None:
        """Whether depth of the colour camera was made with 65535 taken for a depth."""
        folder = self._listed[sequence.name][1]
        projected, raw = by_stem(folder, cut=".depth.proj"), by_stem(folder, cut=".depth")
        for stem in sorted(set(projected) & set(raw))[:2]:
            stored = read_millimetres(projected[stem])
            clean = project_to_colour(raw[stem], stored.shape)
            wrapped = project_to_colour(raw[stem], stored.shape, True)
            is_near = (stored > 0) & (stored < 10)
            if np.any(is_near & (wrapped != clean) & (stored == wrapped)):
                problems.add(WRAPPED, f"{sequence.name}/{stem}")


def _of_size(matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return scaled(matrix, size[1] / _SIZE[1], size[0] / _SIZE[0])


def _scan(path: Path) -> Scan:
    points, normals = read_ply(path)
    return Scan(points=points, normals=normals)


def project_to_colour(path: Path, size: tuple[int, int], legacy_wrap: bool = False) -> np.ndarray:
    """Depth of the colour camera [height width], in metres, from that of the depth camera.

    The nearest of points that fall on a pixel wins; millimetres are truncated, as in the published
    preprocessing.

    Args:
        path: `depth.png`.
        size: of the image.
        legacy_wrap: whether values of 65535 are taken for depth, and wrap.
    """
    values = read_uint16(path)
    depth = (values.astype(np.float32) / np.float32(1000)).astype(np.float64)
    known = (values > 0) & (legacy_wrap | (values < 65535))
    rows, columns = np.nonzero(known)
    (fx, _, cx), (_, fy, cy), _ = _of_size(DEPTH_INTRINSICS, values.shape)
    z = depth[rows, columns]
    points = np.stack([(columns + 0.5 - cx) / fx * z, (rows + 0.5 - cy) / fy * z, z])
    points = COLOUR_FROM_DEPTH[:3, :3] @ points + COLOUR_FROM_DEPTH[:3, 3:]
    (fx, _, cx), (_, fy, cy), _ = _of_size(COLOUR_INTRINSICS, size)
    x = np.floor(points[0] / points[2] * fx + cx).astype(np.int64)
    y = np.floor(points[1] / points[2] * fy + cy).astype(np.int64)
    inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0]) & (points[2] > 0)
    nearest = np.full(size, np.inf, np.float32)
    np.minimum.at(nearest, (y[inside], x[inside]), points[2][inside].astype(np.float32))
    millimetres = np.floor(np.where(np.isfinite(nearest), nearest, 0) * np.float32(1000))
    if legacy_wrap:
        millimetres %= 65536
    return millimetres.astype(np.float32) / np.float32(1000)
