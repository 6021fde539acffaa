"""The frames of a sequence that a protocol takes, and what is known of them."""

import dataclasses
from collections.abc import Collection, Iterable

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.base import DataSet, Frame, Problems, Sequence
from vggt_jax.evaluation.protocols.base import (
    CloudScore,
    PairScore,
    Prediction,
    Protocol,
    TrajectoryScore,
    Truth,
)
from vggt_jax.evaluation.protocols.frames import EachAlone, Listed
from vggt_jax.evaluation.protocols.poses import apply, inverse, square


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """What a model is given of a sequence, and what it is compared with.

    Attributes:
        names: of the frames, in the order in which the model sees them.
        images: as the model sees them.
        truth: of the same frames.
    """

    names: tuple[str, ...]
    images: UInt8[np.ndarray, "s height width 3"]
    truth: Truth


def listed(protocol: Protocol, dataset: DataSet) -> list[str]:
    """The sequences of a data set that a protocol looks at, in its order."""
    names = [name for name in dataset.sequences() if name not in protocol.left_out]
    places = {category: i for i, category in enumerate(protocol.first)}
    names.sort(key=lambda name: places.get(name.partition("/")[0], len(places)))
    if not protocol.only:
        return names
    return [x for x in names if x in protocol.only or x.partition("/")[0] in protocol.only]


def choose(
    protocol: Protocol,
    dataset: DataSet,
    names: Iterable[str],
    *,
    only: Collection[str] = (),
    limit: int | None = None,
) -> dict[str, tuple[int, ...]]:
    """Which frames of which sequences a protocol takes; those that cannot be read are left out.

    What is left out is noted in `dataset.problems`. Sequences are read as far as the rule needs
    them: for a random draw all, since it depends on those before.

    Args:
        names: of the sequences that the rule knows of, see `listed`.
        only: those of them that are wanted; empty for all. A random draw is as if all were.
        limit: so many sequences are enough, the first ones.
    """
    rule, names = protocol.frames, list(names)
    if not only and limit is None:
        _note_missing(protocol, dataset)
    wanted = set(only or names)
    if isinstance(rule, Listed | EachAlone):
        names = [name for name in names if name in wanted]
    if isinstance(rule, Listed):
        chosen = rule.choose(dict.fromkeys(names, 0))
    elif isinstance(rule, EachAlone):
        chosen = {}
        for name in names:
            if limit is not None and sum(map(bool, chosen.values())) >= limit:
                break
            if (found := _length(protocol, dataset, name)) is not None:
                chosen[name] = rule.of_length(found[0])
    else:
        known = {name: _length(protocol, dataset, name) for name in names}
        lengths = {name: x[0] for name, x in known.items() if x is not None}
        chosen = rule.choose(lengths, {name: x[1] for name, x in known.items() if x is not None})
    chosen = {name: places for name, places in chosen.items() if name in wanted}
    for name, places in chosen.items():
        if not places:
            dataset.problems.add("sequence has too few frames, or is not in the list", name)
    taken = [(name, places) for name, places in chosen.items() if places]
    return dict(taken[:limit])


def _note_missing(protocol: Protocol, dataset: DataSet) -> None:
    """Notes sequences that published numbers are of, and the folder does not hold."""
    if isinstance(rule := protocol.frames, Listed):
        expected, kind = [name for name, _ in rule.places], "sequence of the list is missing"
    else:
        expected, kind = protocol.only or dataset.scenes, "sequence of the protocol is missing"
    names = dataset.sequences()
    there = {*names, *(x.partition("/")[0] for x in names), *(x.rpartition("/")[2] for x in names)}
    for name in expected:
        if name not in there and name not in protocol.left_out:
            dataset.problems.add(kind, name)


def _length(protocol: Protocol, dataset: DataSet, name: str) -> tuple[int, str | None] | None:
    """How many frames of a sequence there are to choose from, and its category."""
    try:
        sequence = dataset.load(name)
    except InputError as error:
        dataset.problems.add("sequence cannot be read", f"{name}: {error}")
        return None
    return max(_candidates(protocol, sequence), default=-1) + 1, sequence.category


def _candidates(protocol: Protocol, sequence: Sequence) -> dict[int, Frame]:
    """Frames by the places in which a protocol counts them."""
    if protocol.drop_lost:
        kept = [frame for frame in sequence.frames if frame.camera_from_world is not None]
        return dict(enumerate(kept))
    return {frame.index: frame for frame in sequence.frames}


def read_sample(
    protocol: Protocol,
    sequence: Sequence,
    places: tuple[int, ...],
    problems: Problems | None = None,
) -> Sample:
    """Reads frames and what is known of them.

    Args:
        problems: takes what cannot be compared of a sequence that can be scored without it.

    Raises:
        InputError: a frame is missing or cannot be read, or there is no depth where some is
            compared.
    """
    by_place = _candidates(protocol, sequence)
    if missing := [place for place in places if place not in by_place]:
        raise InputError(
            f"{sequence.name}: frame {missing[0]} is missing, of {len(places)} that the protocol "
            "takes"
        )
    frames = [by_place[place] for place in places]
    images = [frame.load_image() for frame in frames]
    unknown = np.full((3, 4), np.nan)
    cameras = [unknown if x.camera_from_world is None else x.camera_from_world for x in frames]
    truth = Truth(camera_from_world=np.array(cameras, np.float64))
    score = protocol.score
    if isinstance(score, CloudScore) and not score.observed:
        maps = [_points(protocol, x, y.shape[:2]) for x, y in zip(frames, images, strict=True)]
        points, valid = (np.stack(x) for x in zip(*maps, strict=True))
        truth = dataclasses.replace(truth, points=points, valid=valid)
        if not valid.any():
            raise InputError(f"{sequence.name}: no depth is known in the frames chosen")
    if (isinstance(score, CloudScore) and score.observed) or (
        isinstance(score, TrajectoryScore) and score.clouds
    ):
        truth = dataclasses.replace(truth, scan=sequence.points())
        if truth.scan is None and isinstance(score, CloudScore):
            raise InputError(f"{sequence.name}: has no scan, which this protocol compares with")
        if truth.scan is None and problems is not None:
            problems.add("scan is missing, so that points are not compared", sequence.name)
    return Sample(
        names=tuple(frame.name for frame in frames),
        images=protocol.resizing.images(images),
        truth=truth,
    )


def _points(
    protocol: Protocol, frame: Frame, image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """World points [height width 3] of a frame, float64, and where they are known."""
    depth, has_rays = frame.load_depth(), frame.rays is not None or frame.depth_camera is not None
    if depth is None or not has_rays or frame.camera_from_world is None:
        what = "depth" if depth is None else "pose" if has_rays else "intrinsics"
        raise InputError(f"{frame.name}: has no {what}, which this protocol compares with")
    if not frame.registered:
        raise InputError(f"{frame.name}: its depth is not registered to the image")
    if protocol.erode and (mask := frame.load_mask()) is not None:
        depth = np.where(_eroded(mask, depth.shape, protocol.erode), depth, 0)
    x, y = _rays(protocol, frame, depth.shape, image_size)
    depth = protocol.resizing.depth(depth, image_size, protocol.intrinsics).astype(np.float64)
    valid = np.isfinite(depth) & (depth > protocol.shortest_depth)
    if protocol.longest_depth is not None:
        valid &= depth <= protocol.longest_depth
    depth = np.where(valid, depth, 0)
    in_camera = np.stack([x * depth, y * depth, depth], axis=-1)
    world_from_camera = inverse(square(frame.camera_from_world))
    return apply(world_from_camera, in_camera), valid


def _rays(
    protocol: Protocol, frame: Frame, size: tuple[int, int], image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Where the rays of the pixels that the model sees meet the plane z = 1: x and y."""
    resizing, how = protocol.resizing, protocol.intrinsics
    if frame.rays is not None:
        rays = frame.rays()
        x, y = (resizing.depth(rays[..., i], image_size, how) for i in range(2))
        return x, y
    intrinsics = frame.depth_camera
    assert intrinsics is not None
    matrix = resizing.intrinsics(intrinsics, size, image_size, how)
    if protocol.whole_pixels:
        matrix[0, 2] += 0.5 * matrix[0, 0] / intrinsics[0, 0]
        matrix[1, 2] += 0.5 * matrix[1, 1] / intrinsics[1, 1]
    rows, columns = np.indices(resizing.final_size(*image_size)) + 0.5
    return (columns - matrix[0, 2]) / matrix[0, 0], (rows - matrix[1, 2]) / matrix[1, 1]


def _eroded(mask: np.ndarray, shape: tuple[int, int], side: int) -> np.ndarray:
    """A mask in the pixels of a depth map, each from the nearest, less its rim."""
    rows = (np.arange(shape[0]) * mask.shape[0] // shape[0]).astype(int)
    columns = (np.arange(shape[1]) * mask.shape[1] // shape[1]).astype(int)
    window = np.ones((side, side), bool)
    return ndimage.binary_erosion(mask[rows][:, columns], window, border_value=1)


def perfect(protocol: Protocol, truth: Truth) -> Prediction:
    """What a model that knows everything would say: the truth of a sample."""
    points = truth.points
    if points is None and truth.scan is not None:
        world_from_scan = np.linalg.inv(truth.scan.scan_from_world)
        points = apply(world_from_scan, truth.scan.points.astype(np.float64))[None, None]
    del protocol
    return Prediction(camera_from_world=truth.camera_from_world, points=points)


def best_values(protocol: Protocol) -> dict[str, float]:
    """What the main metrics of a protocol are where everything is right."""
    if isinstance(protocol.score, PairScore):
        return {"auc_30": 1.0, "rra_5": 1.0}
    if isinstance(protocol.score, TrajectoryScore):
        return {"ate": 0.0, "rpe_translation": 0.0, "rpe_rotation": 0.0}
    return {"accuracy": 0.0, "completeness": 0.0, "normal_consistency": 1.0}
