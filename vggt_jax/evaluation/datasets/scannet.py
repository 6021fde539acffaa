"""ScanNet (v2): rooms by a depth sensor on a tablet.

Read are the `.sens` files of the release, what its two exporters write, and the folders of 90
frames of MonST3R, CUT3R and π³. Poses are world_from_camera; lost ones are -inf. Colour and depth
are aligned, so that the extrinsics between both, which files hold, are not applied. Intrinsics of
the files count from pixel centres. `facts` hold "axis_alignment" of `SCENE.txt`, which poses do not
contain.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path

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
    NO_POSE,
    by_stem,
    depth_size,
    first_file,
    folders_that,
    from_whole_numbers,
    natural,
    numbered,
    pinhole,
    read_matrix,
    read_millimetres,
    read_ply,
    read_pose,
    read_rgb,
    read_rows,
    read_text,
    rigid,
    scaled,
    usable_size,
)
from vggt_jax.evaluation.datasets.scannet_sens import SensFile

NO_INTRINSICS = "intrinsics are missing"
OTHER_SIZE = "intrinsics of colour are for another size; those of depth are taken"
# The size that the intrinsics of depth are for.
_DEPTH_SIZE = (480, 640)
_PROCESSED = re.compile(r"(color|depth)_(\d+)")


def _sens(folder: Path) -> Path | None:
    return next(iter(by_stem(folder, (".sens",)).values()), None)


def _is_exported(folder: Path) -> bool:
    return (folder / "color").is_dir() and (folder / "pose").is_dir()


def _is_cpp(folder: Path) -> bool:
    return bool(by_stem(folder, cut=".color"))


def _processed(folder: Path) -> int | None:
    """The number in color_90, the largest there is."""
    numbers = [
        int(found[2])
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (found := _PROCESSED.fullmatch(path.name)) and found[1] == "color" and path.is_dir()
    ]
    return max(numbers, default=None)


_KINDS: dict[str, Callable[[Path], bool]] = {
    "exported": _is_exported,
    "cpp": _is_cpp,
    "processed": lambda folder: _processed(folder) is not None,
    "sens": lambda folder: _sens(folder) is not None,
}


def _kind(folder: Path, first: str | None = None) -> str | None:
    """How a scene lies in a folder, of several ways that which is asked for or comes first."""
    order = [first, *_KINDS] if first else [*_KINDS]
    return next((kind for kind in order if _KINDS[kind](folder)), None)


def _is_here(kind: str) -> Callable[[Path], bool]:
    return lambda root: bool(folders_that(root, _KINDS[kind], 2))


class ScanNet(DataSet):
    """Sequences are scenes; `Frame.index` is the number of the frame in the video or the folder.

    A folder may hold scenes in several layouts; each is read in its own. A frame whose pose was
    lost stays, with `camera_from_world` None.

    Args of `open`, beside the folder:
        prefer: of scenes that lie there in several ways, which one: "exported", "cpp", "processed"
            or "sens".
    """

    name = "scannet"
    about = About(
        title="ScanNet v2",
        licence="ScanNet Terms of Use, to be signed",
        source="http://www.scan-net.org/",
        paper="Dai et al., ScanNet, CVPR 2017",
    )
    unit = "metre"
    scenes = tuple(f"scene{number:04d}_00" for number in range(707, 807))  # Of the test split.
    layouts = (
        Layout(
            "exported",
            "SCENE/color/0.jpg, depth/0.png, pose/0.txt and intrinsic/",
            _is_here("exported"),
        ),
        Layout(
            "cpp",
            "SCENE/frame-000000.color.jpg, .depth.pgm, .pose.txt and _info.txt",
            _is_here("cpp"),
        ),
        Layout(
            "processed",
            "SCENE/color_90/frame_0000.jpg, depth_90/ and pose_90.txt",
            _is_here("processed"),
        ),
        Layout("sens", "SCENE/SCENE.sens", _is_here("sens")),
    )

    def __init__(self, root: Path, layout: str, *, prefer: str | None = None):
        super().__init__(root, layout)
        if prefer is not None and prefer not in _KINDS:
            raise InputError(f"{prefer=} must be one of {', '.join(_KINDS)}")
        self._prefer = prefer

    def sequences(self) -> list[str]:
        return list(self._scenes)

    @functools.cached_property
    def _scenes(self) -> dict[str, tuple[str, Path]]:
        """Kind and folder by scene."""
        found = {}
        for folder in folders_that(self.root, lambda f: _kind(f) is not None, 2):
            kind = _kind(folder, self._prefer)
            if kind is not None:
                name = folder.name or folder.resolve().name
                found[name] = (kind, folder)
        return {name: found[name] for name in sorted(found, key=natural)}

    def _load(self, name: str, problems: Problems) -> Sequence:
        kind, folder = self._scenes[name]
        read = {"exported": _exported, "cpp": _cpp, "processed": _of_folders, "sens": _of_sens}[
            kind
        ]
        mesh = first_file(folder / f"{name}_vh_clean_2.ply", self.root / f"{name}_vh_clean_2.ply")
        return Sequence(
            dataset=self.name,
            name=name,
            frames=tuple(read(folder, name, problems)),
            unit=self.unit,
            read_points=None if mesh is None else functools.partial(_scan, mesh),
            problems=problems,
            facts=_facts(folder, name),
        )


def _scan(path: Path) -> Scan:
    points, normals = read_ply(path)
    return Scan(points=points, normals=normals)


def _scene_lines(folder: Path, name: str) -> dict[str, list[str]]:
    """Words by key of `SCENE.txt` and `_info.txt`; test scenes have no axisAlignment."""
    found: dict[str, list[str]] = {}
    for path in (first_file(folder / f"{name}.txt"), first_file(folder / "_info.txt")):
        if path is not None:
            for line in read_text(path, "description of a scene").split("\n"):
                key, _, value = line.partition("=")
                found[key.strip()] = value.split()
    return found


def _facts(folder: Path, name: str) -> dict[str, np.ndarray]:
    words = _scene_lines(folder, name).get("axisAlignment", [])
    if len(words) != 16:
        return {}
    return {"axis_alignment": np.array([float(x) for x in words]).reshape(4, 4)}


def _intrinsics(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Those of "color" and "depth" that are there, with pixel centres at i + 0.5."""
    found: dict[str, np.ndarray] = {}
    lines = _scene_lines(folder, name)
    for kind in ("color", "depth"):
        base = folder / "intrinsic"
        path = first_file(*(f / f"intrinsic_{kind}.txt" for f in (base, folder) if f.is_dir()))
        words = lines.get(f"m_calibration{kind.capitalize()}Intrinsic", [])
        single = [lines.get(f"{x}_{kind}", [""])[0] for x in ("fx", "fy", "mx", "my")]
        if path is not None:
            found[kind] = from_whole_numbers(read_matrix(path, (4, 4), (3, 3), what="intrinsics"))
        elif len(words) == 16:
            found[kind] = from_whole_numbers(np.array([float(x) for x in words]).reshape(4, 4))
        elif all(single):
            found[kind] = from_whole_numbers(pinhole(*(float(x) for x in single)))
    return found


def _of_image(
    known: dict[str, np.ndarray],
    size: tuple[int, int],
    size_of_depth: tuple[int, int],
    problems: Problems,
    name: str,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Intrinsics of image and depth; of the image from those of depth, if its own do not fit.

    Colour that an exporter made smaller has the intrinsics of its first size beside it.
    """
    colour, depth = known.get("color"), known.get("depth")
    across, down = size[1] / size_of_depth[1], size[0] / size_of_depth[0]
    if colour is not None and not _fits(colour, size) and depth is not None:
        problems.add(OTHER_SIZE, name)
        colour = None
    if colour is None and depth is not None:
        colour = scaled(depth, across, down)
    if depth is None and colour is not None:
        depth = scaled(colour, 1 / across, 1 / down)
    return colour, depth


def _fits(matrix: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether the principal point is near the middle of the image."""
    share = matrix[:2, 2] / [size[1], size[0]]
    return bool(np.all(np.abs(share - 0.5) < 0.2))


def _frames(
    folder, name, problems, images, depths, pose_of, *, has_depth: bool, needs_intrinsics=True
) -> list[Frame]:
    """Frames by number, of files by number.

    Args:
        pose_of: the pose of a number, with its problems.
        has_depth: whether depth is missed where there is none.
        needs_intrinsics: whether intrinsics are.
    """
    known, frames = _intrinsics(folder, name), []
    for number in sorted({*images, *depths}):
        label = f"{name}/{number}"
        size = usable_size(images.get(number), problems, label)
        if size is None:
            continue
        depth = depths.get(number)
        found = depth_size(depth, problems, label) if has_depth else None
        if found is None:
            depth = None
        colour_matrix, depth_matrix = _of_image(known, size, found or _DEPTH_SIZE, problems, name)
        if colour_matrix is None and needs_intrinsics:
            problems.add(NO_INTRINSICS, name)
        frames.append(
            Frame(
                name=images[number].stem.removesuffix(".color"),
                index=number,
                image=images[number],
                intrinsics=colour_matrix,
                camera_from_world=pose_of(number, label),
                read_image=functools.partial(read_rgb, images[number]),
                read_depth=None if depth is None else functools.partial(read_millimetres, depth),
                depth_intrinsics=depth_matrix,
            )
        )
    return frames


def _exported(folder: Path, name: str, problems: Problems) -> list[Frame]:
    images, depths = numbered(by_stem(folder / "color")), numbered(by_stem(folder / "depth"))
    poses = numbered(by_stem(folder / "pose", (".txt",)))
    pose_of = lambda number, label: read_pose(poses.get(number), problems, label, inverse=True)
    has_depth = (folder / "depth").is_dir()
    return _frames(folder, name, problems, images, depths, pose_of, has_depth=has_depth)


def _cpp(folder: Path, name: str, problems: Problems) -> list[Frame]:
    images = numbered(by_stem(folder, cut=".color"))
    depths = numbered(by_stem(folder, (".pgm", ".png"), cut=".depth"))
    poses = numbered(by_stem(folder, (".txt",), cut=".pose"))
    pose_of = lambda number, label: read_pose(poses.get(number), problems, label, inverse=True)
    return _frames(folder, name, problems, images, depths, pose_of, has_depth=bool(depths))


def _of_folders(folder: Path, name: str, problems: Problems) -> list[Frame]:
    """color_90, depth_90 and pose_90.txt, whose lines are in the order of the frames."""
    number = _processed(folder)
    images = numbered(by_stem(folder / f"color_{number}"))
    depths = numbered(by_stem(folder / f"depth_{number}"))
    rows = read_rows(folder / f"pose_{number}.txt", "list of poses, sixteen numbers a line")

    def pose_of(i: int, label: str) -> np.ndarray | None:
        if i >= len(rows):
            problems.add(NO_POSE, label)
            return None
        try:
            matrix = np.array([float(x) for x in rows[i]], np.float64).reshape(4, 4)
        except ValueError:
            problems.add("pose cannot be read", label)
            return None
        return rigid(matrix, problems, label, inverse=True)

    has_depth = (folder / f"depth_{number}").is_dir()
    # Those who made these folders left intrinsics out.
    return _frames(
        folder, name, problems, images, depths, pose_of, has_depth=has_depth, needs_intrinsics=False
    )


def _of_sens(folder: Path, name: str, problems: Problems) -> list[Frame]:
    path = _sens(folder)
    if path is None:
        raise InputError(f"{folder}: has no .sens file")
    sens = SensFile.open(path)
    if sens.is_truncated:
        problems.add("file is truncated", path)
    known = {
        "color": from_whole_numbers(sens.colour_intrinsics),
        "depth": from_whole_numbers(sens.depth_intrinsics),
    }
    colour, depth = _of_image(known, sens.colour_size, sens.depth_size, problems, name)
    frames = []
    for i, entry in enumerate(sens.entries):
        frames.append(
            Frame(
                name=str(i),
                index=i,
                image=path,
                intrinsics=colour,
                camera_from_world=rigid(entry.pose, problems, f"{name}/{i}", inverse=True),
                read_image=functools.partial(sens.read_image, i),
                read_depth=functools.partial(sens.read_depth, i),
                depth_intrinsics=depth,
            )
        )
    return frames
