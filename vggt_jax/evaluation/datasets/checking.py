"""Whether a data set is whole, and whether its truth agrees with itself."""

import itertools
import math

import numpy as np
from jaxtyping import Float

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.base import DataSet, Frame, SequenceCheck
from vggt_jax.evaluation.datasets.eth3d_lens import pixel_rays
from vggt_jax.evaluation.datasets.reading import PICTURES, image_size

_MOST_PIXELS = 50_000  # Of a depth map, on a regular grid.
_CLOSE = 0.02
_FARTHEST = 0.25  # Of the width and height.
OFF_CENTRE = "principal point is far from the middle, as with intrinsics of another size"


def unproject(frame: Frame, depth: Float[np.ndarray, "height width"]) -> np.ndarray:
    """World points [n 3] of the pixels that have a depth, row by row, in float64.

    Args:
        frame: has a pose and intrinsics.
        depth: as `frame.load_depth` returns it.
    """
    rays, pose = _rays(frame, depth.shape), _pose(frame)
    known = depth > 0
    z = depth[known].astype(np.float64)
    camera = np.concatenate([rays[known], np.ones((len(z), 1))], axis=1) * z[:, None]
    return (camera - pose[:3, 3]) @ pose[:3, :3]


def _rays(frame: Frame, size: tuple[int, int]) -> np.ndarray:
    if frame.rays is not None:
        return frame.rays()
    if frame.depth_camera is None:
        raise InputError(f"{frame.name}: has no intrinsics")
    return pixel_rays(frame.depth_camera, size)


def _pose(frame: Frame) -> np.ndarray:
    """The pose 4x4, with the inverse of its rotation equal to its transpose."""
    if frame.camera_from_world is None:
        raise InputError(f"{frame.name}: has no pose")
    pose = np.eye(4)
    left, _, right = np.linalg.svd(frame.camera_from_world[:, :3])
    pose[:3, :3], pose[:3, 3] = left @ right, frame.camera_from_world[:, 3]
    return pose


def disagreement(first: Frame, second: Frame) -> Float[np.ndarray, " n"]:
    """Relative differences of depth where two frames see the same.

    Pixels of the first are unprojected and projected into the second, whose depth at the nearest
    pixel is compared with theirs. What is occluded there differs, too.
    """
    depth, other = first.load_depth(), second.load_depth()
    if depth is None or other is None or second.depth_camera is None or second.rays is not None:
        return np.zeros(0)
    stride = math.ceil(math.sqrt(depth.size / _MOST_PIXELS))
    thinned = np.zeros_like(depth)
    thinned[::stride, ::stride] = depth[::stride, ::stride]
    pose = _pose(second)
    camera = unproject(first, thinned) @ pose[:3, :3].T + pose[:3, 3]
    camera = camera[camera[:, 2] > 0]
    pixels = camera @ second.depth_camera.T
    x, y = np.floor(pixels[:, :2] / pixels[:, 2:]).T
    inside = (x >= 0) & (x < other.shape[1]) & (y >= 0) & (y < other.shape[0])
    seen = other[y[inside].astype(np.int64), x[inside].astype(np.int64)]
    expected = camera[inside, 2]
    return np.abs(seen / expected - 1)[seen > 0]


def check_sequence(dataset: DataSet, name: str, *, max_pairs: int = 4) -> SequenceCheck:
    """Whether a sequence is whole, and whether depth of neighbouring frames agrees.

    Args:
        dataset: the data set.
        name: of the sequence.
        max_pairs: how many pairs are compared, evenly spread.
    """
    try:
        sequence = dataset.load(name)
    except InputError as error:
        return _check(name, 0, 0, np.zeros(0), {"sequence cannot be read": 1}, (str(error),))
    problems = sequence.problems
    for frame in sequence.frames:
        if frame.intrinsics is not None and frame.image.suffix.lower() in PICTURES:
            height, width = image_size(frame.image)
            share = frame.intrinsics[:2, 2] / (width, height)
            if np.abs(share - 0.5).max() > _FARTHEST:
                problems.add(OFF_CENTRE, f"{name}/{frame.name}")
    with_depth = [
        frame
        for frame in sequence.frames
        if frame.has_depth
        and frame.camera_from_world is not None
        and frame.depth_camera is not None
    ]
    pairs = list(itertools.pairwise(with_depth))
    chosen = (
        sorted({*np.linspace(0, len(pairs) - 1, max_pairs).round().astype(int)}) if pairs else []
    )
    found = []
    for i in chosen:
        try:
            pairs[i][0].load_image()
            found.append(disagreement(*pairs[i]))
        except InputError as error:
            problems.add("image or depth cannot be read", error)
    try:
        dataset.check_more(sequence, problems)
    except InputError as error:
        problems.add("depth cannot be read", error)
    differences = np.concatenate([np.zeros(0), *found])
    num_depth = sum(frame.has_depth for frame in sequence.frames)
    lines = tuple(problems.lines())
    dataset.problems.update(problems)
    return _check(name, len(sequence.frames), num_depth, differences, problems.counts, lines)


def _check(name, num_frames, num_depth, differences, problems, lines) -> SequenceCheck:
    has_any = len(differences) > 0
    return SequenceCheck(
        name=name,
        num_frames=num_frames,
        num_depth=num_depth,
        num_compared=len(differences),
        disagreement=float(np.median(differences)) if has_any else math.nan,
        agreeing=float(np.mean(differences < _CLOSE)) if has_any else math.nan,
        problems=problems,
        lines=lines,
    )
