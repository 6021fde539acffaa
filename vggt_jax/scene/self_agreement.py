"""Whether what a model predicts of a scene agrees with itself: a sign of how right it is.

Nothing else is needed, no truth and no scale. A model with a head for points says twice where a
camera was: by its camera head, and by the points of the frame, which lie in the world by one head
and before the camera by the depth of another. And what one frame shows lies in the picture of
another, which has a depth there, too. Where photographs give a scene, all of this fits; where they
do not, each is a guess of its own. docs/evaluation.md says how well it tells.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from vggt_jax.scene.confidence import allowed_pixels
from vggt_jax.scene.reconstruction import Reconstruction

_DEGREES = 30  # Of AUC@30, by which cameras are judged.
_TOLERANCE = 0.1  # By which depths may differ, as the logarithm of their ratio.
# How much of a frame and of a scene is looked at, about.
_PIXELS, _FRAMES, _PAIRS = 1024, 200, 1000


def self_agreement(recon: Reconstruction) -> float | None:
    """How far cameras, depth and points that a model predicted of a scene agree with each other.

    The product of `camera_agreement` and `depth_agreement`. It says something only where points
    come from a head of their own, as VGGT's do: those of π³ are moved by its cameras, and agree
    with them always.

    Args:
        recon: one scene, without scene axis. Of many frames and pixels some are looked at.

    Returns:
        In [0, 1]; None where there are fewer than two frames, or no cameras, depth or points. A
        frame whose intrinsics are none agrees with no other.

    Raises:
        ValueError: there are several scenes.
    """
    if np.ndim(recon.images) != 4:
        raise ValueError(f"images of shape {np.shape(recon.images)}: one scene at a time")
    arrays = (recon.camera_from_world, recon.intrinsics, recon.depth, recon.world_points)
    if any(x is None for x in arrays) or len(recon.images) < 2:
        return None
    part = Part(recon)
    return camera_agreement(part) * depth_agreement(part)


class Part:
    """Some frames and pixels of a scene, in float64.

    Attributes:
        cameras, intrinsics: [s 3 4] and [s 3 3].
        depth, usable: all pixels [s height width]: depth, and whether it may be used.
        seen: of the m pixels that are looked at, the points before the camera by depth, [s m 3].
        seen_usable: whether these may be used, [s m].
        points, weights: the same pixels' points in the world, [s m 3], and how far to trust them,
            [s m], 0 where they cannot be used.
    """

    def __init__(self, recon: Reconstruction):
        number = len(recon.images)
        frames = np.unique(np.linspace(0, number - 1, min(number, _FRAMES)).round().astype(int))
        of_frames = lambda x: np.asarray(x)[frames]
        self.cameras = of_frames(recon.camera_from_world).astype(np.float64)
        self.intrinsics = of_frames(recon.intrinsics).astype(np.float64)
        self.depth = of_frames(recon.depth)
        self.usable = of_frames(allowed_pixels(recon)) & np.isfinite(self.depth) & (self.depth > 0)

        height, width = self.depth.shape[1:]
        step = max(1, round((height * width / _PIXELS) ** 0.5))
        rows, columns = (np.arange(step // 2, size, step) for size in (height, width))
        x, y = (at.reshape(-1) for at in np.meshgrid(columns, rows))
        cut = lambda array: np.asarray(array)[np.ix_(frames, rows, columns)].reshape(
            len(frames), len(x), *np.shape(array)[3:]
        )
        pixels = np.stack([x + recon.pixel_centre, y + recon.pixel_centre, np.ones(len(x))], -1)
        sound = np.isfinite(self.intrinsics).all((1, 2))
        sound &= np.abs(np.linalg.det(np.where(sound[:, None, None], self.intrinsics, 0))) > 0
        self.intrinsics[~sound] = np.eye(3)
        self.usable &= sound[:, None, None]
        rays = np.einsum("sij,mj->smi", np.linalg.inv(self.intrinsics), pixels)
        self.seen_usable = self.usable[:, y, x]
        self.seen = np.where(self.seen_usable, self.depth[:, y, x], 1)[..., None] * rays
        self.points = cut(recon.world_points).astype(np.float64)
        weights = np.ones(self.seen_usable.shape)
        if recon.world_points_confidence is not None:
            least = 1.0 if recon.confidence_kind == "one_plus_exp" else 0.0
            weights = cut(recon.world_points_confidence).astype(np.float64) - least
        sound = self.seen_usable & np.isfinite(self.points).all(-1) & np.isfinite(weights)
        self.weights = np.where(sound, np.maximum(weights, 0), 0)
        self.points = np.where(sound[..., None], self.points, 0)


def camera_agreement(part: Part) -> float:
    """How far the cameras agree with those that depth and points have.

    A frame's second camera is the rigid motion that takes its points in the world to those before
    its camera, fitted with the confidences of points as weights. Both sets of cameras are compared
    as predictions are with the truth, by AUC@30 over all pairs of frames.

    Returns:
        In [0, 1]. A frame with no three points that can be used agrees with no other.
    """
    found = zip(part.points, part.seen, part.weights, strict=True)
    worst = _worst_angles(part.cameras, np.stack([_rigid(*of_frame) for of_frame in found]))
    return float(np.mean([np.mean(worst < degrees) for degrees in range(1, _DEGREES + 1)]))


def depth_agreement(part: Part) -> float:
    """The share of the points of one frame in the picture of another that the depth there, too, has
    within 10 %; what other things hide in the other frame counts as well.

    Returns:
        In [0, 1]; 0 where no frame shows what another does.
    """
    number = len(part.cameras)
    pairs = np.argwhere(~np.eye(number, dtype=bool))
    chosen = np.linspace(0, len(pairs) - 1, min(len(pairs), _PAIRS)).round().astype(int)
    inside = agreeing = 0
    for first, second in pairs[np.unique(chosen)]:
        points = part.seen[first][part.seen_usable[first]] - part.cameras[first, :, 3]
        points = points @ part.cameras[first, :, :3]  # in the world
        points = points @ part.cameras[second, :, :3].T + part.cameras[second, :, 3]
        there, ratio = _depth_there(points, part, second)
        inside += there.sum()
        agreeing += (np.abs(np.log(ratio)) < _TOLERANCE).sum()
    return float(agreeing / max(inside, 1))


def _depth_there(
    points: Float[np.ndarray, "m 3"], part: Part, frame: int
) -> tuple[Bool[np.ndarray, " m"], Float[np.ndarray, " k"]]:
    """Which points before a camera lie on pixels of its picture that can be used, and of these
    their depth by the depth that the frame has there."""
    before = points[:, 2] > 0
    on_plane = points @ part.intrinsics[frame].T
    with np.errstate(all="ignore"):
        at = np.where(before[:, None], on_plane[:, :2] / points[:, 2:], -1)
    height, width = part.depth.shape[1:]
    there = (at >= 0).all(-1) & (at[:, 0] < width) & (at[:, 1] < height)
    column, row = np.where(there[:, None], at, 0).astype(np.int64).T
    there &= part.usable[frame, row, column]
    return there, points[there, 2] / part.depth[frame, row[there], column[there]]


def _rigid(
    points: Float[np.ndarray, "m 3"],
    targets: Float[np.ndarray, "m 3"],
    weights: Float[np.ndarray, " m"],
) -> Float[np.ndarray, "3 4"]:
    """The motion `[R | t]` that takes points to their targets with the least squared error; NaN
    where fewer than three have weights."""
    if (weights > 0).sum() < 3:
        return np.full((3, 4), np.nan)
    weights = weights / weights.max()
    weights = (weights / weights.sum())[:, None]
    middle, goal = (weights * points).sum(0), (weights * targets).sum(0)
    left, _, right = np.linalg.svd((weights * (targets - goal)).T @ (points - middle))
    mirrored = np.sign(np.linalg.det(left @ right))
    rotation = left @ np.diag([1.0, 1.0, mirrored]) @ right
    return np.concatenate([rotation, (goal - rotation @ middle)[:, None]], axis=1)


def _worst_angles(
    found: Float[np.ndarray, "s 3 4"], other: Float[np.ndarray, "s 3 4"]
) -> Float[np.ndarray, " pairs"]:
    """Of each pair of frames the larger of both angles, in degrees, by which its relative poses
    differ, as `vggt_jax.evaluation.pair_errors` has them; infinite where a camera is not finite."""
    first, second = np.triu_indices(len(found), k=1)
    is_finite = np.all(np.isfinite(found) & np.isfinite(other), axis=(1, 2))
    both = [np.where(is_finite[:, None, None], x, np.eye(3, 4)) for x in (found, other)]
    (turn, way), (other_turn, other_way) = (_relative(x, first, second) for x in both)
    between = turn @ other_turn.transpose(0, 2, 1)
    skew = [between[:, j, i] - between[:, i, j] for i, j in ((1, 2), (2, 0), (0, 1))]
    cosine = np.trace(between, axis1=1, axis2=2) - 1
    rotation = np.arctan2(np.linalg.norm(skew, axis=0), cosine)
    # A way and its opposite are the same there; none has no direction, and is wrong by 90 degrees.
    across = np.linalg.norm(np.cross(way, other_way), axis=-1)
    along = np.abs(np.sum(way * other_way, axis=-1))
    direction = np.where((across == 0) & (along == 0), np.pi / 2, np.arctan2(across, along))
    worst = np.degrees(np.maximum(rotation, direction))
    return np.where(is_finite[first] & is_finite[second], worst, np.inf)


def _relative(
    cameras: Float[np.ndarray, "s 3 4"], first: Int[np.ndarray, " p"], second: Int[np.ndarray, " p"]
) -> tuple[Float[np.ndarray, "p 3 3"], Float[np.ndarray, "p 3"]]:
    """The turn and the way from the first to the second camera, as the first sees them."""
    turned = cameras[:, :, :3]
    at = -np.einsum("sji,sj->si", turned, cameras[:, :, 3])
    way = np.einsum("pij,pj->pi", turned[first], at[second] - at[first])
    return turned[first] @ turned[second].transpose(0, 2, 1), way
