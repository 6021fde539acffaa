"""NRGBD: nine rendered rooms of Neural RGB-D Surface Reconstruction, with exact depth and poses.

`poses.txt` holds four rows a frame, world_from_camera in OpenGL's axes; rows of nan or of
infinities are lost poses. `trainval_poses.txt`, beside it, is in another frame of reference and not
read. Numbers in names have no leading zeros.
"""

import functools
from pathlib import Path
from typing import Literal

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.base import About, DataSet, Frame, Layout, Problems, Sequence
from vggt_jax.evaluation.datasets.reading import (
    NO_DEPTH,
    NO_POSE,
    by_stem,
    first_file,
    folders_that,
    naming,
    numbered,
    pinhole,
    read_millimetres,
    read_rgb,
    read_rows,
    read_text,
    rigid,
    usable_size,
)

SCENES = (
    "breakfast_room complete_kitchen green_room grey_white_room kitchen morning_apartment "
    "staircase thin_geometry whiteroom"
).split()
DEPTH_FOLDERS = ("depth", "depth_with_noise", "depth_filtered")
_OPENCV_FROM_OPENGL = np.array([1.0, -1.0, -1.0, 1.0])  # Factors of columns.


def _is_scene(folder: Path) -> bool:
    return first_file(folder / "poses.txt") is not None and (folder / "images").is_dir()


class NRGBD(DataSet):
    """Sequences are scenes; `Frame.index` is the number in the name.

    Args of `open`, beside the folder:
        depth: which folder of depth: "depth", exact; "depth_with_noise"; "depth_filtered".
    """

    name = "nrgbd"
    about = About(
        title="Neural RGB-D Surface Reconstruction",
        licence="by scene, CC BY or CC0",
        source="https://github.com/dazinovic/neural-rgbd-surface-reconstruction",
        paper="Azinovic et al., Neural RGB-D Surface Reconstruction, CVPR 2022",
    )
    unit = "metre"
    scenes = tuple(SCENES)
    layouts = (
        Layout(
            "original",
            "SCENE/poses.txt and focal.txt with images/img0.png and depth/depth0.png",
            lambda root: bool(folders_that(root, _is_scene, 2)),
        ),
    )

    def __init__(
        self,
        root: Path,
        layout: str,
        *,
        depth: Literal["depth", "depth_with_noise", "depth_filtered"] = "depth",
    ):
        super().__init__(root, layout)
        if depth not in DEPTH_FOLDERS:
            raise InputError(f"depth={depth!r} must be one of {', '.join(DEPTH_FOLDERS)}")
        self._depth = depth

    def sequences(self) -> list[str]:
        return list(self._scenes)

    @functools.cached_property
    def _scenes(self) -> dict[str, Path]:
        return {
            folder.name or folder.resolve().name: folder
            for folder in folders_that(self.root, _is_scene, 2)
        }

    def _load(self, name: str, problems: Problems) -> Sequence:
        folder = self._scenes[name]
        focal = _focal(folder)
        poses = read_stacked_poses(folder / "poses.txt")
        images = numbered(by_stem(folder / "images"))
        depths = numbered(by_stem(folder / self._depth))
        frames = []
        for number in sorted({*images, *depths, *range(len(poses))}):
            label = f"{name}/{number}"
            size = usable_size(images.get(number), problems, label)
            if size is None:
                continue
            pose = None
            if number >= len(poses):
                problems.add(NO_POSE, label)
            else:
                pose = rigid(poses[number] * _OPENCV_FROM_OPENGL, problems, label, inverse=True)
            if number not in depths:
                problems.add(NO_DEPTH, label)
            image = images[number]
            height, width = size
            frames.append(
                Frame(
                    name=image.stem,
                    index=number,
                    image=image,
                    intrinsics=pinhole(focal, focal, width / 2, height / 2),
                    camera_from_world=pose,
                    read_image=functools.partial(read_rgb, image),
                    read_depth=functools.partial(read_millimetres, depths[number])
                    if number in depths
                    else None,
                )
            )
        return Sequence(
            dataset=self.name,
            name=name,
            frames=tuple(frames),
            unit=self.unit,
            problems=problems,
        )


def read_stacked_poses(path: Path) -> np.ndarray:
    """Poses [number 4 4] of a file of four rows each; rows that say "nan" are kept as such.

    Raises:
        InputError: the file is missing, or its rows are no poses.
    """
    rows = read_rows(path, "list of poses")
    with naming(path, "list of poses, four rows of four numbers each"):
        return np.array([[float(x) for x in row] for row in rows], np.float64).reshape(-1, 4, 4)


def _focal(folder: Path) -> float:
    path = first_file(folder / "focal.txt") or folder / "focal.txt"
    text = read_text(path, "focal length")
    with naming(path, "focal length"):
        return float(text.split()[0])
