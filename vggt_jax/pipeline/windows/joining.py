"""The similarity between the worlds of two reconstructions that show the same frames."""

import dataclasses

import numpy as np
from jaxtyping import Float

from vggt_jax.errors import InputError
from vggt_jax.evaluation.alignment import Similarity
from vggt_jax.evaluation.robust_alignment import robust_similarity
from vggt_jax.host import with_numpy
from vggt_jax.pipeline.windows.graph import similarity
from vggt_jax.scene.confidence import (
    chosen_source,
    confidence_limits,
    confidence_of,
    percentile_thresholds,
    points_of,
    usable_pixels,
)
from vggt_jax.scene.reconstruction import Reconstruction

_POINTS = 8192  # Pairs of points; always as many, so that one program serves all.
_CAMERAS = 32  # Frames whose cameras are compared, in the same way.
_CAMERA_WEIGHT = 1.0  # Of all cameras together, beside all points.
_MOST_TRUSTED = 4.0  # Times the median confidence above which no point counts for more.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Join:
    """What brings one world into another.

    Attributes:
        scale, rotation, translation: of the map `x -> scale * rotation @ x + translation`.
        error: the median distance of two points that should be one, as a share of their distance
            from the camera.
        inliers: the share of the weight of points on those that agree.
    """

    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    error: float
    inliers: float

    def to_dict(self) -> dict:
        """As JSON can hold it."""
        return {
            "scale": self.scale,
            "rotation": self.rotation.tolist(),
            "translation": self.translation.tolist(),
            "error": self.error,
            "inliers": self.inliers,
        }

    @classmethod
    def from_dict(cls, fields: dict) -> "Join":
        """The inverse of `to_dict`."""
        return cls(
            scale=fields["scale"],
            rotation=np.array(fields["rotation"], np.float64),
            translation=np.array(fields["translation"], np.float64),
            error=fields["error"],
            inliers=fields["inliers"],
        )

    @property
    def similarity(self) -> Similarity:
        """The map, in float64."""
        return similarity(np.float64(self.scale), self.rotation, self.translation)


def join(source: Reconstruction, target: Reconstruction) -> Join:
    """Brings the world of one reconstruction into that of another, by frames that both show.

    Pairs are the points of the same pixel, weighted by the lesser trust in the two, and the
    cameras of the same frame, each as its place and a place before it. Pixels that either would
    leave out of a cloud do not count, and pairs that contradict most others do not either.

    Args:
        source, target: of the same frames in the same order.

    Raises:
        InputError: so little of them agrees that they cannot be joined.
    """
    kind = chosen_source(target, None)
    points_source, points_target = points_of(source, kind), points_of(target, kind)
    trust = np.minimum(_trust(source, kind), _trust(target, kind))
    usable = np.flatnonzero(trust.reshape(-1) > 0)
    if len(usable) < 16:
        raise InputError(
            f"frames {_named(target)}, which two windows share, have no points that both trust; "
            "use a larger overlap, or leave such frames out"
        )
    chosen = usable[np.linspace(0, len(usable) - 1, _POINTS).astype(np.int64)]
    weights = trust.reshape(-1)[chosen]
    # Depths of both sides, alike in both, so that no side's errors choose the weights.
    depths = [depth_of(x).reshape(-1) for x in (source, target)]
    reach_source, reach = (float(np.median(x[usable])) for x in depths)
    lengths = np.sqrt(depths[0][chosen] * (reach / reach_source) * depths[1][chosen])
    in_source, in_target = (x.reshape(-1, 3)[chosen] for x in (points_source, points_target))
    ends_source, ends_target = _ends(source, reach_source), _ends(target, reach)
    of_cameras = np.full(len(ends_target), _CAMERA_WEIGHT * weights.sum() / len(ends_target))
    found = with_numpy(
        robust_similarity,
        np.concatenate([in_source, ends_source]),
        np.concatenate([in_target, ends_target]),
        np.concatenate([weights, of_cameras]),
        np.concatenate([lengths, np.full(len(ends_target), reach)]),
    )
    scale = float(found.similarity.scale)
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(
            f"frames {_named(target)}, which two windows share, look different in both; use a "
            "larger overlap, or leave such frames out"
        )
    return Join(
        scale=scale,
        rotation=np.asarray(found.similarity.rotation, np.float64),
        translation=np.asarray(found.similarity.translation, np.float64),
        error=float(found.error),
        inliers=float(found.inliers),
    )


def _trust(recon: Reconstruction, kind) -> Float[np.ndarray, "s height width"]:
    """Weights of pixels: 0 where no cloud would hold them, and about 1 in the middle."""
    percentile, smallest = confidence_limits(recon.confidence_kind)
    usable = usable_pixels(recon, kind, min_confidence=smallest, depth_edges=recon.depth_edges)
    confidence = confidence_of(recon, kind)
    if not usable.any():
        return np.zeros(confidence.shape)
    usable &= confidence >= percentile_thresholds(confidence[usable], percentile)
    middle = float(np.median(confidence[usable]))
    return np.where(usable, np.minimum(confidence / middle, _MOST_TRUSTED), 0.0)


def depth_of(recon: Reconstruction) -> Float[np.ndarray, "s height width"]:
    """How far points are from their cameras, along the viewing axis."""
    if recon.depth is not None:
        return np.asarray(recon.depth)
    poses = np.asarray(recon.camera_from_world)
    points = np.asarray(recon.world_points)
    return np.einsum("sj,shwj->shw", poses[:, 2, :3], points) + poses[:, 2, 3, None, None]


def _ends(recon: Reconstruction, reach: float) -> np.ndarray:
    """Where cameras are, and a place so far before each; [2 * _CAMERAS 3]."""
    places = np.linspace(0, len(recon.images) - 1, _CAMERAS).round().astype(int)
    pose = np.asarray(recon.camera_from_world, np.float64)[places]
    centre = -np.einsum("sji,sj->si", pose[..., :3], pose[..., 3])
    return np.concatenate([centre, centre + reach * pose[:, 2, :3]])


def _named(recon: Reconstruction) -> str:
    return f"{recon.names[0]} to {recon.names[-1]}" if recon.names else "without names"
