"""RealEstate10K: clips of houses, with cameras by structure from motion and without depth.

A camera file has the address of the video and a line a frame: time in microseconds; fx, fy, cx, cy
as shares of width and height; two zeros; the 3x4 camera_from_world by rows. The frames are
downloaded by whoever needs them, so that they are matched by their times, which downloads miss by
milliseconds. Pairs of numbered images with cameras cannot be told to be right once a download
failed: such clips are refused.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.base import About, DataSet, Frame, Layout, Problems, Sequence
from vggt_jax.evaluation.datasets.reading import (
    by_stem,
    first_folder,
    folders_that,
    image_frame,
    naming,
    pinhole,
    read_rows,
    rigid,
    subfolders,
    usable_size,
)
from vggt_jax.evaluation.datasets.realestate10k_chunks import chunk_folders, clips_of, frames_of
from vggt_jax.files.documents import read_json

_SPLITS = ("train", "test")
_COLUMNS = 19
_CLIP = re.compile("[0-9a-f]{16}")
# Half the time between frames of 30 a second: beyond it another frame is nearer.
_MOST_MICROSECONDS = 16_000
NO_NUMBERS = "line of a camera file cannot be read"
OTHER_TIME = "image matched by the nearest time"


@dataclasses.dataclass(frozen=True)
class _Row:
    time: int
    shares: tuple[float, float, float, float]
    camera_from_world: np.ndarray


def _is_camera_file(path: Path) -> bool:
    """Whether the first lines are those of a camera file."""
    try:
        with path.open("rb") as file:
            start = [file.readline(4096).decode("utf-8", "replace").split() for _ in range(3)]
    except OSError:
        return False
    rows = [words for words in start if words]
    return len(rows) > 1 and len(rows[0]) == 1 and len(rows[1]) == _COLUMNS


def _camera_files(root: Path) -> dict[str, tuple[str | None, Path]]:
    """Camera files by clip, with the split; those called as clips are, whatever is in them."""
    # Beside frames lie lists of those that could be downloaded, which count for want of others.
    inner = [root, root / "RealEstate10K", root / "metadata", root / "frames"]
    own = root.name if root.name in _SPLITS else None
    folders = [(name, base / name) for base in inner for name in _SPLITS]
    found = _in_folders([*folders, *((own, base) for base in inner)])
    return found or _in_folders([(None, folder) for folder in subfolders(root)])


def _in_folders(folders: list[tuple[str | None, Path]]) -> dict[str, tuple[str | None, Path]]:
    found: dict[str, tuple[str | None, Path]] = {}
    for split, folder in folders:
        for stem, path in by_stem(folder, (".txt",)).items():
            if _CLIP.fullmatch(stem) or _is_camera_file(path):
                found.setdefault(stem, (split, path))
    return dict(sorted(found.items()))


def _is_pi3_clip(folder: Path) -> bool:
    return (folder / "annotations.json").is_file()


def _is_cut3r_clip(folder: Path) -> bool:
    return (folder / "rgb").is_dir() and bool(by_stem(folder / "cam", (".npz",)))


class RealEstate10K(DataSet):
    """Sequences are clips, in the order of their names; frames are in that of time."""

    name = "re10k"
    about = About(
        title="RealEstate10K",
        licence="camera files CC BY 4.0; videos under YouTube's terms",
        source="https://google.github.io/realestate10k/",
        paper="Zhou et al., Stereo Magnification, SIGGRAPH 2018",
    )
    unit = "arbitrary"
    layouts = (
        Layout(
            "pi3",
            "CLIP/annotations.json beside CLIP/images",
            lambda root: bool(folders_that(root, _is_pi3_clip, 2)),
        ),
        Layout(
            "cut3r",
            "CLIP/rgb/TIME.png with CLIP/cam/TIME.npz",
            lambda root: bool(folders_that(root, _is_cut3r_clip, 2)),
        ),
        Layout(
            "pixelsplat",
            "test/000000.torch, with index.json or without",
            lambda root: bool(chunk_folders(root)),
        ),
        Layout(
            "original",
            "train/CLIP.txt or test/CLIP.txt, and frames in frames/SPLIT/CLIP/TIME.png",
            lambda root: bool(_camera_files(root)),
        ),
    )

    @functools.cached_property
    def _clips(self) -> dict[str, tuple[str | None, Path]]:
        if self.layout == "original":
            return _camera_files(self.root)
        if self.layout == "pixelsplat":
            return clips_of(self.root, self.problems)
        is_one = _is_pi3_clip if self.layout == "pi3" else _is_cut3r_clip
        return {
            path.name: (path.parent.name if path.parent.name in _SPLITS else None, path)
            for path in folders_that(self.root, is_one, 2)
        }

    @functools.cached_property
    def _listed(self) -> list[str]:
        if self.layout != "original":
            return list(self._clips)
        found = []
        for clip in self._clips:
            if self._frames_folder(clip) is None:
                self.problems.add("clip has no folder of frames", clip)
            else:
                found.append(clip)
        return found

    def sequences(self) -> list[str]:
        return list(self._listed)

    def _frames_folder(self, clip: str) -> Path | None:
        split, file = self._clips[clip]
        # Frames of all clips of a video may lie in one folder, where times tell them apart.
        videos = [name for video in _video(file) for name in (f"{video}/{clip}", video)]
        bases = [self.root, self.root / "RealEstate10K"]
        if self.root.name in (*_SPLITS, "RealEstate10K"):
            bases.append(self.root.parent)
        for base in bases:
            for one in [split] if split else _SPLITS:
                places = [base / "frames" / one, base / one, base / "frames", base / "images", base]
                located = _video_locations(places[0] / "video_loc.txt").get(clip, "")
                names = [clip, *_tails(located), *videos]
                for folder in (place / name for place in places for name in names):
                    inner = first_folder(folder / "images", folder / "rgb", folder)
                    if inner is not None and by_stem(inner):
                        return inner
        return None

    def _load(self, name: str, problems: Problems) -> Sequence:
        read = {
            "original": self._original,
            "pi3": self._pi3,
            "cut3r": self._cut3r,
            "pixelsplat": self._packed,
        }[self.layout]
        return Sequence(
            dataset=self.name,
            name=name,
            frames=tuple(read(name, problems)),
            unit=self.unit,
            split=self._clips[name][0],
            problems=problems,
        )

    def _original(self, name: str, problems: Problems) -> list[Frame]:
        path = self._clips[name][1]
        folder = self._frames_folder(name)
        if folder is None:
            raise InputError(f"{self.root}: no folder of frames of clip {name}")
        rows = _rows(path, problems)
        images = by_stem(folder)
        pairs = _pairs(rows, images, folder, name, problems)
        frames = []
        for i, (row, image) in enumerate(zip(rows, pairs, strict=True)):
            if row is None:
                continue
            label = f"{name}/{row.time}"
            size = usable_size(image, problems, label)
            if image is None or size is None:
                continue
            height, width = size
            fx, fy, cx, cy = row.shares
            matrix = pinhole(fx * width, fy * height, cx * width, cy * height)
            pose = rigid(row.camera_from_world, problems, label, inverse=False)
            frames.append(image_frame(str(row.time), i, image, matrix, pose))
        return frames

    def _pi3(self, name: str, problems: Problems) -> list[Frame]:
        folder = self._clips[name][1]
        path = folder / "annotations.json"
        records = read_json(path, "list of annotations")
        images = by_stem(folder / "images")
        numbers = [int(stem) for stem in images if stem.isdigit()]
        if len(numbers) < len(records) and numbers == list(range(len(numbers))):
            raise InputError(
                f"{path}: {len(records)} cameras, but {len(numbers)} images without a gap: after a "
                "failed download images close ranks and no longer fit; match them by time anew"
            )
        if not isinstance(records, list):
            raise InputError(f"{path}: is no list of annotations")
        frames = []
        for i, record in enumerate(records):
            label = f"{name}/{i}"
            try:
                with naming(path, "list of annotations with filepath, intrinsics and extrinsics"):
                    image = folder.parent / record["filepath"]
                    matrix = np.array(record["intrinsics"], np.float64).reshape(3, 3)
                    pose = rigid(_pose(record["extrinsics"]), problems, label, inverse=False)
            except InputError:
                problems.add("annotation cannot be read", label)
                continue
            image = images.get(image.stem)
            if usable_size(image, problems, label) is None or image is None:
                continue
            frames.append(image_frame(image.stem, i, image, matrix, pose))
        return frames

    def _packed(self, name: str, problems: Problems) -> list[Frame]:
        return frames_of(self._clips[name][1], name, problems)

    def _cut3r(self, name: str, problems: Problems) -> list[Frame]:
        folder = self._clips[name][1]
        images, cameras = by_stem(folder / "rgb"), by_stem(folder / "cam", (".npz",))
        frames = []
        for i, stem in enumerate(sorted({*images, *cameras}, key=_by_time)):
            label = f"{name}/{stem}"
            if usable_size(images.get(stem), problems, label) is None:
                continue
            matrix = pose = None
            if stem not in cameras:
                problems.add("camera is missing", label)
            else:
                try:
                    with naming(cameras[stem], "camera"), np.load(cameras[stem]) as file:
                        matrix = np.array(file["intrinsics"], np.float64).reshape(3, 3)
                        pose = rigid(_pose(file["pose"]), problems, label, inverse=True)
                except InputError:
                    problems.add("camera cannot be read", cameras[stem])
            frames.append(image_frame(stem, i, images[stem], matrix, pose))
        return frames


def _pose(values: Any) -> np.ndarray:
    matrix = np.array(values, np.float64)
    if matrix.shape not in ((3, 4), (4, 4)):
        raise ValueError(f"a pose of shape {matrix.shape}")
    return matrix


def _rows(path: Path, problems: Problems) -> list[_Row | None]:
    """The frames of a camera file, by time; None in the place of a line that cannot be read."""
    rows: list[_Row | None] = []
    for number, words in enumerate(read_rows(path, "camera file")):
        if number == 0 and len(words) == 1:
            continue  # The address of the video.
        try:
            time = int(words[0])
            values = [float(word) for word in words[1:]]
            if len(values) != _COLUMNS - 1:
                raise ValueError(f"{len(words)} columns")
        except ValueError:
            problems.add(NO_NUMBERS, f"{path.name}, line {number + 1}")
            rows.append(None)
            continue
        fx, fy, cx, cy = values[:4]
        rows.append(_Row(time, (fx, fy, cx, cy), np.array(values[6:]).reshape(3, 4)))
    known = sorted((row for row in rows if row is not None), key=lambda row: row.time)
    if not known:
        raise InputError(f"{path}: is no camera file: none of its lines has {_COLUMNS} numbers")
    return [None if row is None else known.pop(0) for row in rows]


def _pairs(
    rows: list[_Row | None], images: dict[str, Path], folder: Path, name: str, problems: Problems
) -> list[Path | None]:
    """The image of each row: by its time, or by its place if images are numbered without gaps."""
    numbers = {int(stem): path for stem, path in images.items() if stem.isdigit()}
    if not numbers:
        raise InputError(f"{folder}: images must be called by their times, as in 158692025.png")
    if max(numbers) < min(row.time for row in rows if row is not None) and len(numbers) < 100_000:
        ordered = [numbers[number] for number in sorted(numbers)]
        if len(ordered) != len(rows):
            raise InputError(
                f"{folder}: {len(ordered)} numbered images and {len(rows)} cameras cannot be "
                "matched; call images by their times"
            )
        return list(ordered)
    times = np.array(sorted(numbers))
    found: list[Path | None] = []
    for row in rows:
        if row is None:
            found.append(None)
            continue
        nearest = int(times[np.argmin(np.abs(times - row.time))])
        off = abs(nearest - row.time)
        if 0 < off <= _MOST_MICROSECONDS:
            problems.add(OTHER_TIME, f"{name}/{row.time}")
        found.append(numbers[nearest] if off <= _MOST_MICROSECONDS else None)
    return found


@functools.lru_cache(maxsize=8)
def _video_locations(path: Path) -> dict[str, str]:
    """Folders by clip, of PoseDiffusion's list, whose lines end in the clip."""
    if not path.is_file():
        return {}
    lines = [words[0] for words in read_rows(path, "list of clips")]
    return {line.rstrip("/").rpartition("/")[2]: line.strip("/") for line in lines}


def _tails(path: str) -> list[str]:
    """A path of somebody else's disk, less more and more of its beginning."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return ["/".join(parts[first:]) for first in range(len(parts))]


def _video(camera_file: Path) -> list[str]:
    """The identifier in the address of the video, in the first line of a camera file."""
    with naming(camera_file, "camera file"), camera_file.open("rb") as file:
        line = file.readline(4096).decode("utf-8", "replace")
    found = re.search(r"(?:[?&]v=|youtu\.be/|/embed/)([\w-]+)", line)
    return [found[1]] if found else []


def _by_time(stem: str) -> tuple[int, str]:
    return (int(stem) if stem.isdigit() else -1, stem)
