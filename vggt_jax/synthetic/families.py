"""Families of scenes: ranges that scenes are drawn from, and which split has which families."""

import dataclasses
from typing import Literal

Range = tuple[float, float]
Split = Literal["train", "validation", "test", "wide-train", "wide-validation", "wide-test"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Ranges of one kind of scene; metres and degrees.

    Attributes:
        room: side of the floor.
        ceiling: height of the room.
        is_open: share of scenes without walls and ceiling, under a sky.
        pedestal: half the side of the block in the middle, on which things stand; 0 for none.
        objects: how many solids of each shape there are, as a share of the most.
        object_size: half the extent of things.
        spread: distance of things from the middle.
        raised: share of things that stand on another one or hang, the others stand on the floor.
        tilted: share of things in an arbitrary pose.
        hung: share of boxes that hang on walls, flat.
        distance: of cameras from the middle.
        eye: height of cameras.
        target: height of what they look at.
        arc: what the cameras go around the middle, in all.
        walk: share of scenes through which the camera walks on a line instead.
        field_of_view: horizontal, of a landscape picture; of the longer side in general.
    """

    room: Range = (5.0, 9.0)
    ceiling: Range = (2.4, 4.0)
    is_open: float = 0.0
    pedestal: Range = (0.0, 0.0)
    objects: Range = (0.4, 1.0)
    object_size: Range = (0.12, 0.55)
    spread: Range = (0.3, 2.4)
    raised: float = 0.3
    tilted: float = 0.15
    hung: float = 0.25
    distance: Range = (1.6, 3.6)
    eye: Range = (0.8, 2.0)
    target: Range = (0.3, 1.1)
    arc: Range = (25.0, 150.0)
    walk: float = 0.3
    field_of_view: Range = (48.0, 82.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WideFamily(Family):
    """Ranges of a scene of the wide world, whose cameras move as people hold and carry them.

    `arc`, `walk`, `eye` and `distance` of the paths are read as `paths` says.

    Attributes:
        paths: how often each of `wide_cameras.PATHS` is taken, in any unit.
        narrow: the second side of the floor, as a share of the first.
        reach: how far cameras move or turn in all, in widths of a picture, for 8 frames; evenly by
            its logarithm.
        down: how far above the horizon a drone's cameras look down, in degrees.
        off_centre: of the principal point from the middle, as a share of the longer side; the
            standard deviation.
        rows: share of scenes with a grid of equal boxes.
        thin: share of things that are boards or poles.
        plain: share of surfaces of one colour.
        pictured: share of surfaces with a picture, where there are pictures.
        tile: side of a picture on a surface, in metres.
        lamps: strength of each lamp after the first, which alone casts shadows.
    """

    field_of_view: Range = (20.0, 76.0)
    paths: tuple[float, ...] = (3.0, 1.0, 2.0, 2.0, 1.5, 2.0, 0.0)
    narrow: Range = (0.6, 1.0)
    reach: Range = (0.15, 5.0)
    down: Range = (35.0, 90.0)
    off_centre: Range = (0.0, 0.04)
    rows: float = 0.4
    thin: float = 0.25
    plain: float = 0.25
    pictured: float = 0.75
    tile: Range = (0.3, 3.0)
    lamps: Range = (0.0, 0.7)


FAMILIES = {
    "room": Family(),
    "tabletop": Family(
        pedestal=(0.4, 0.9),
        object_size=(0.06, 0.25),
        spread=(0.05, 0.8),
        raised=0.75,
        hung=0.5,
        distance=(1.1, 2.2),
        eye=(1.0, 2.0),
        target=(0.6, 0.9),
        arc=(30.0, 180.0),
        walk=0.1,
    ),
    "yard": Family(
        room=(12.0, 20.0),
        ceiling=(6.0, 9.0),
        is_open=1.0,
        objects=(0.6, 1.0),
        object_size=(0.2, 0.9),
        spread=(0.3, 4.0),
        hung=0.0,
        distance=(2.5, 5.5),
        eye=(0.8, 2.6),
        arc=(25.0, 140.0),
    ),
    "hall": Family(
        room=(8.0, 13.0),
        ceiling=(3.0, 5.0),
        objects=(0.7, 1.0),
        object_size=(0.15, 0.8),
        spread=(0.5, 3.5),
        distance=(2.2, 4.5),
        walk=0.6,
        arc=(20.0, 110.0),
    ),
    # Only in the test split: a crowded cellar with stacks, and an arcade of large things.
    "cellar": Family(
        room=(4.5, 7.0),
        ceiling=(2.1, 2.6),
        objects=(0.8, 1.0),
        object_size=(0.15, 0.45),
        spread=(0.2, 1.9),
        raised=0.6,
        hung=0.15,
        distance=(1.4, 2.8),
        eye=(0.9, 1.7),
        arc=(30.0, 140.0),
        walk=0.35,
    ),
    "arcade": Family(
        room=(9.0, 12.0),
        ceiling=(4.0, 6.0),
        is_open=0.5,
        objects=(0.5, 0.8),
        object_size=(0.3, 0.8),
        spread=(0.8, 3.2),
        raised=0.2,
        hung=0.1,
        distance=(2.4, 4.2),
        eye=(1.0, 2.4),
        arc=(30.0, 120.0),
        walk=0.4,
    ),
}
"""All families by name."""

WIDE_FAMILIES = {
    "home": WideFamily(room=(3.5, 7.0), object_size=(0.08, 0.6), spread=(0.2, 2.6)),
    "desk": WideFamily(
        room=(3.0, 6.0),
        pedestal=(0.4, 0.9),
        object_size=(0.04, 0.22),
        spread=(0.05, 0.8),
        raised=0.8,
        distance=(0.7, 1.8),
        eye=(0.9, 1.8),
        target=(0.6, 0.9),
        tile=(0.1, 1.5),
        paths=(5.0, 1.0, 0.5, 1.0, 0.3, 2.5, 0.0),
    ),
    "corridor": WideFamily(
        room=(8.0, 18.0),
        narrow=(0.16, 0.4),
        object_size=(0.1, 0.5),
        spread=(0.5, 6.0),
        hung=0.5,
        distance=(1.5, 5.0),
        paths=(0.5, 2.0, 4.0, 1.5, 1.0, 1.0, 0.0),
    ),
    "garden": WideFamily(
        room=(14.0, 30.0),
        ceiling=(8.0, 14.0),
        is_open=1.0,
        object_size=(0.15, 1.2),
        spread=(0.3, 6.0),
        hung=0.0,
        distance=(2.0, 7.0),
        eye=(0.7, 2.4),
        tile=(0.5, 6.0),
        paths=(3.0, 1.0, 2.0, 2.0, 1.0, 2.0, 0.5),
    ),
    "facade": WideFamily(
        room=(16.0, 36.0),
        ceiling=(10.0, 16.0),
        is_open=1.0,
        pedestal=(2.0, 5.0),
        object_size=(0.3, 1.6),
        spread=(2.0, 8.0),
        raised=0.6,
        hung=0.0,
        distance=(5.0, 14.0),
        eye=(1.2, 2.2),
        target=(1.0, 4.0),
        rows=0.9,
        tile=(0.8, 8.0),
        paths=(1.5, 1.0, 1.0, 4.0, 0.5, 2.0, 0.5),
    ),
    "aerial": WideFamily(
        room=(60.0, 110.0),
        ceiling=(40.0, 60.0),
        is_open=1.0,
        object_size=(0.8, 5.0),
        spread=(2.0, 28.0),
        raised=0.1,
        hung=0.0,
        distance=(10.0, 26.0),
        eye=(12.0, 34.0),
        target=(0.0, 2.0),
        tile=(2.0, 30.0),
        paths=(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 6.0),
    ),
    # Only in the test split.
    "workshop": WideFamily(
        room=(5.0, 9.0),
        object_size=(0.06, 0.5),
        spread=(0.2, 3.0),
        raised=0.5,
        thin=0.5,
        distance=(1.2, 3.2),
    ),
    "square": WideFamily(
        room=(20.0, 40.0),
        ceiling=(10.0, 16.0),
        is_open=0.8,
        object_size=(0.3, 1.5),
        spread=(1.0, 10.0),
        hung=0.1,
        distance=(4.0, 10.0),
        eye=(1.0, 3.0),
        rows=0.7,
        tile=(0.8, 8.0),
        paths=(2.0, 1.0, 2.0, 2.0, 1.0, 2.0, 1.0),
    ),
}
"""Families of the wide world by name."""

SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("room", "tabletop", "yard", "hall"),
    "validation": ("room", "tabletop", "yard", "hall"),
    "test": ("cellar", "arcade"),
    "wide-train": ("home", "desk", "corridor", "garden", "facade", "aerial"),
    "wide-validation": ("home", "desk", "corridor", "garden", "facade", "aerial"),
    "wide-test": ("workshop", "square"),
}
"""Families of each split. Splits never share a scene: their random keys are kept apart too."""
