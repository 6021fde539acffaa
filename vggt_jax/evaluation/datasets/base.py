"""What a data set is made of: frames, sequences of them, scans, and what could not be read.

One convention for all data sets, whatever they store:

- cameras are `camera_from_world` in OpenCV's axes (x right, y down, z forward);
- intrinsics are in pixels of the image as it is stored, and the centre of pixel i lies at i + 0.5:
  0.5 is added to principal points of data sets that count from pixel centres;
- depth is along the viewing axis, in the sequence's unit, 0 where there is none.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vggt_jax.errors import InputError, printable

Unit = Literal["metre", "millimetre", "arbitrary"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """A photograph and what is known of it. Files are read when they are asked for.

    Attributes:
        name: as the data set calls it, unique in its sequence.
        index: its place in the order in which published lists of frames count, from 0. Places of
            frames that were left out stay empty.
        image: the file that holds the photograph.
        intrinsics: in pixels of the image as stored (of what `load_image` returns), pixel centres
            at i + 0.5; None where the data set has none.
        camera_from_world: OpenCV axes; None where the data set has none or it was lost.
        depth_intrinsics: those of the depth map, where its pixels are not the image's; None for
            `intrinsics`. See `depth_camera`.
        registered: whether depth and image show the same at the same share of width and height, so
            that either can be resized to the other. Untrue of 7-Scenes' raw depth alone.
        read_image, read_depth, read_mask: what `load_image`, `load_depth` and `load_mask` call.
        rays: of a lens that distorts, where the rays of pixel centres meet the plane z = 1 of the
            camera; `intrinsics` are then without the distortion. None, but where distorted images
            were asked for (ETH3D).
    """

    name: str
    index: int
    image: Path
    intrinsics: Float[np.ndarray, "3 3"] | None
    camera_from_world: Float[np.ndarray, "3 4"] | None
    read_image: Callable[[], UInt8[np.ndarray, "height width 3"]]
    read_depth: Callable[[], Float[np.ndarray, "depth_height depth_width"]] | None = None
    read_mask: Callable[[], Bool[np.ndarray, "height width"]] | None = None
    depth_intrinsics: Float[np.ndarray, "3 3"] | None = None
    registered: bool = True
    rays: Callable[[], Float[np.ndarray, "height width 2"]] | None = None

    @property
    def has_depth(self) -> bool:
        """Whether `load_depth` returns a map."""
        return self.read_depth is not None

    @property
    def depth_camera(self) -> Float[np.ndarray, "3 3"] | None:
        """Intrinsics in pixels of the depth map, pixel centres at i + 0.5."""
        return self.intrinsics if self.depth_intrinsics is None else self.depth_intrinsics

    def load_image(self) -> UInt8[np.ndarray, "height width 3"]:
        """The photograph, RGB.

        Raises:
            InputError: the file is missing or damaged.
        """
        return self.read_image()

    def load_depth(self) -> Float[np.ndarray, "depth_height depth_width"] | None:
        """Depth along the viewing axis, float32, in the sequence's unit, 0 where there is none.

        Returns:
            None where the data set has no depth for this frame. The map may be of another size than
            the image; its intrinsics are `depth_camera`.

        Raises:
            InputError: the file is missing or damaged.
        """
        return None if self.read_depth is None else self.read_depth()

    def load_mask(self) -> Bool[np.ndarray, "height width"] | None:
        """True where a pixel counts, by the data set's own mask; None where it has no masks.

        What is meant is said in the module of the data set: the object (CO3D, DTU), or what is
        not left out of an evaluation (ETH3D).

        Raises:
            InputError: the file is missing or damaged.
        """
        return None if self.read_mask is None else self.read_mask()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CropVolume:
    """A prism that clouds are cut to, as Tanks & Temples has it, in coordinates of the scan.

    Attributes:
        axis: 0, 1 or 2, the axis along which the prism stands.
        low, high: its ends along that axis.
        polygon: its corners in the two other axes, in the order x, y, z.
    """

    axis: int
    low: float
    high: float
    polygon: Float[np.ndarray, "corner 2"]

    def contains(self, points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
        """Which points lie inside, by the even-odd rule."""
        points = np.asarray(points, np.float64)
        along = points[:, self.axis]
        x, y = np.delete(points, self.axis, axis=1).T
        inside = np.zeros(len(points), bool)
        for (x0, y0), (x1, y1) in zip(self.polygon, np.roll(self.polygon, -1, 0), strict=True):
            if y0 == y1:
                continue
            crosses = (y0 > y) != (y1 > y)
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        return inside & (along >= self.low) & (along <= self.high)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ObservedVolume:
    """Where DTU's scanner saw, as a grid of cubes, and the plane of the table.

    Attributes:
        mask: the cubes that were seen.
        low: the corner at which cube (0, 0, 0) is centred, in the unit of the scan.
        resolution: the side of a cube.
        plane: points x with `plane @ (x, 1) > 0` lie above the table; None where it is not known.
    """

    mask: Bool[np.ndarray, "x y z"]
    low: Float[np.ndarray, "3"]
    resolution: float
    plane: Float[np.ndarray, "4"] | None = None

    def contains(self, points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
        """Which points lie in a cube that was seen."""
        cube = np.round((np.asarray(points, np.float64) - self.low) / self.resolution)
        inside = np.all((cube >= 0) & (cube < self.mask.shape), axis=1)
        found = np.zeros(len(cube), bool)
        found[inside] = self.mask[tuple(cube[inside].astype(np.int64).T)]
        return found

    def above_table(self, points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
        """Which points lie above the plane; all where there is none."""
        if self.plane is None:
            return np.ones(len(points), bool)
        return np.asarray(points, np.float64) @ self.plane[:3] + self.plane[3] > 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What a scanner or a finished mesh says of the surface.

    Attributes:
        points: in the coordinates and the unit of the scan.
        normals: None where the file has none.
        scan_from_world: a similarity from the world of the cameras (Tanks & Temples).
        crop: what clouds are cut to (Tanks & Temples).
        observed: where the scanner saw (DTU).
    """

    points: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"] | None = None
    scan_from_world: Float[np.ndarray, "4 4"] = dataclasses.field(default_factory=lambda: np.eye(4))
    crop: CropVolume | None = None
    observed: ObservedVolume | None = None


class Problems:
    """What was left out or is broken, by kind, each thing once however often it is met."""

    def __init__(self):
        self._found: dict[str, dict[str, None]] = {}

    def add(self, kind: str, what: object) -> None:
        """Notes one thing.

        Args:
            kind: the same words for all things of the kind, such as "pose is not finite".
            what: which one: a file, a frame or a sequence.
        """
        self._found.setdefault(kind, {})[str(what)] = None

    def update(self, other: "Problems") -> None:
        """Notes everything that another one holds."""
        for kind, things in other._found.items():
            self._found.setdefault(kind, {}).update(things)

    @property
    def counts(self) -> dict[str, int]:
        """How many things of each kind."""
        return {kind: len(things) for kind, things in self._found.items()}

    def things(self, kind: str) -> tuple[str, ...]:
        """The things of a kind, in the order in which they were found."""
        return tuple(self._found.get(kind, ()))

    def lines(self, most: int = 3) -> list[str]:
        """A line for each kind, with its count and the first `most` things."""
        lines = []
        for kind, things in self._found.items():
            shown = ", ".join(list(things)[:most])
            more = f" and {len(things) - most} more" if len(things) > most else ""
            lines.append(printable(f"{kind}: {len(things)} ({shown}{more})"))
        return lines

    def __bool__(self) -> bool:
        return bool(self._found)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sequence:
    """Frames of one scene.

    Attributes:
        dataset: name of the data set.
        name: as `DataSet.sequences` lists it.
        frames: in the order of their `index`. One whose pose was lost is among them, with
            `camera_from_world` None; one whose image is missing is not.
        unit: of poses, depth and scan.
        category: of the object (CO3D), or the group of scenes (Tanks & Temples).
        split: "train", "test" or whatever the data set calls it.
        read_points: what `points` calls.
        problems: what of this sequence was left out.
        facts: what only some data sets know, by name; the module of the data set says which.
    """

    dataset: str
    name: str
    frames: tuple[Frame, ...]
    unit: Unit
    category: str | None = None
    split: str | None = None
    read_points: Callable[[], Scan | None] | None = None
    problems: Problems = dataclasses.field(default_factory=Problems)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def points(self) -> Scan | None:
        """The scan of the scene; None where there is none.

        Raises:
            InputError: the file is damaged.
        """
        return None if self.read_points is None else self.read_points()


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """Where a data set comes from.

    Attributes:
        title: its name, written out.
        licence: as its page has it, or that it says none.
        source: where to download it.
        paper: what to cite.
    """

    title: str
    licence: str
    source: str
    paper: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way in which a data set lies on the disk.

    Attributes:
        name: such as "original".
        looked_for: what tells it, for the message where nothing is found.
        is_here: whether a folder holds this layout.
    """

    name: str
    looked_for: str
    is_here: Callable[[Path], bool]


NO_CAMERA_MATRIX = "intrinsics are not finite, or of no camera"


def _with_real_cameras(frame: Frame, name: str, problems: Problems) -> Frame:
    """A frame without its intrinsics if they are those of no camera."""
    for matrix in (frame.intrinsics, frame.depth_intrinsics):
        if matrix is None or (np.isfinite(matrix).all() and np.all(np.diagonal(matrix) > 0)):
            continue
        problems.add(NO_CAMERA_MATRIX, f"{name}/{frame.name}")
        return dataclasses.replace(frame, intrinsics=None, depth_intrinsics=None)
    return frame


class DataSet(abc.ABC):
    """A data set on the disk: which sequences it has, and what is in them.

    Attributes:
        name: short, in lower case, as `open_dataset` and the command line take it.
        about: licence and source.
        unit: of all lengths.
        scenes: names of the published sequences, or what they begin with before a slash, that a
            whole download has; empty where they are not listed here.
        layouts: those that are read, the first that fits is taken.
        root: the folder.
        layout: the layout that was found there.
        problems: what was left out so far: of the listing, and of all sequences loaded.
    """

    name: ClassVar[str]
    about: ClassVar[About]
    unit: ClassVar[Unit]
    scenes: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[tuple[Layout, ...]]

    def __init__(self, root: Path, layout: str):
        self.root, self.layout, self.problems = root, layout, Problems()

    @classmethod
    def open(cls, root: str | Path, **options: Any) -> Self:
        """Finds out how the data set lies in a folder.

        Args:
            root: the folder.
            options: those of the data set's class, such as `depth` of 7-Scenes.

        Raises:
            InputError: there is no such folder, or nothing in it that is read.
        """
        root = Path(root)
        if not root.is_dir():
            raise InputError(f"{root}: no such folder; give that of {cls.about.title}")
        for layout in cls.layouts:
            if layout.is_here(root):
                return cls(root, layout.name, **options)
        wanted = "; ".join(f"{layout.looked_for} ({layout.name})" for layout in cls.layouts)
        raise InputError(f"{root}: no {cls.about.title} in a layout that is read: {wanted}")

    @abc.abstractmethod
    def sequences(self) -> list[str]:
        """Names of all sequences, in the order in which published evaluations take them."""

    @abc.abstractmethod
    def _load(self, name: str, problems: Problems) -> Sequence:
        """A sequence that is there."""

    def load(self, name: str) -> Sequence:
        """A sequence, whose images and depth are not read yet.

        What is wrong with single frames goes to `problems`.

        Raises:
            InputError: there is no such sequence, or what all of its frames need is missing.
        """
        if name not in (known := self.sequences()):
            some = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
            raise InputError(f"{self.root}: no sequence {name}; there are {some or 'none'}")
        problems = Problems()
        try:
            sequence = self._load(name, problems)
            frames = tuple(_with_real_cameras(x, name, problems) for x in sequence.frames)
            return dataclasses.replace(sequence, frames=frames)
        finally:
            self.problems.update(problems)

    def check_more(self, sequence: Sequence, problems: Problems) -> None:
        """What `check` asks of this data set beside what it asks of all; notes it in `problems`."""
        del sequence, problems

    def check(
        self, names: Iterable[str] | None = None, *, max_pairs: int = 4
    ) -> "list[SequenceCheck]":
        """Whether the data is complete and its truth agrees with itself.

        All images of a sequence are opened, but only those decoded whose depth is compared with
        that of the next frame; see `check_sequence`.

        Args:
            names: of sequences; None for all.
            max_pairs: how many pairs of frames of a sequence are compared.
        """
        from vggt_jax.evaluation.datasets.checking import check_sequence

        return [
            check_sequence(self, name, max_pairs=max_pairs)
            for name in (self.sequences() if names is None else names)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceCheck:
    """What `DataSet.check` found in a sequence.

    Attributes:
        name: of the sequence.
        num_frames: how many were read.
        num_depth: how many of them have depth.
        num_compared: pixels of which two frames know the depth.
        disagreement: the median of the relative difference between both depths; NaN where there is
            nothing to compare.
        agreeing: the share of these pixels with a difference below 2 %; others are occluded or
            wrong.
        problems: by kind, with counts.
        lines: the same for people, a line a kind.
    """

    name: str
    num_frames: int
    num_depth: int
    num_compared: int
    disagreement: float
    agreeing: float
    problems: dict[str, int]
    lines: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing or broken."""
        return not self.problems

    @property
    def consistent(self) -> bool:
        """Whether depth and cameras of different frames agree, or there is no depth."""
        return self.num_compared == 0 or (self.disagreement < 0.02 and self.agreeing > 0.5)
