"""Which points of a scene are good enough: one rule for files, pictures and the viewer.

Two thresholds, which may be combined: an absolute one, and the share of the rest that is left out,
the least confident. `docs/conventions.md` has the rule for users.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32

from vggt_jax.errors import InputError
from vggt_jax.images.frames import Frames
from vggt_jax.scene.reconstruction import AnyArray, PointSource, Reconstruction

# Which points make a cloud: the most confident three quarters (official file: vggt/demo_viser.py),
# or, where confidence is a probability, all above this and not at an edge (official file:
# pi3/example.py).
DEFAULT_PERCENTILE = 25.0
SMALLEST_PROBABILITY = 0.1


def confidence_limits(
    confidence_kind: str,
    *,
    confidence_percentile: float | None = None,
    min_confidence: float | None = None,
) -> tuple[float, float]:
    """Both thresholds, with the defaults of the model in place of None.

    Args:
        confidence_kind: `Reconstruction.confidence_kind`.
        confidence_percentile: in [0, 100], of the points that pass everything else. None is 25 for
            VGGT, unless `min_confidence` is given, and 0 for π³.
        min_confidence: what a confidence must exceed. None is 0.1 for π³, whose confidences are
            probabilities, and 0 for VGGT, whose confidences are above 1 and have no scale.

    Returns:
        The percentile and the absolute threshold.

    Raises:
        InputError: a number is out of its range.
    """
    is_probability = confidence_kind == "sigmoid"
    if confidence_percentile is None:
        has_default = not is_probability and min_confidence is None
        confidence_percentile = DEFAULT_PERCENTILE if has_default else 0.0
    if not 0 <= confidence_percentile <= 100:
        raise InputError(f"{confidence_percentile=} must lie between 0 and 100")
    if min_confidence is None:
        min_confidence = SMALLEST_PROBABILITY if is_probability else 0.0
    if not min_confidence >= 0:
        raise InputError(f"{min_confidence=} must be at least 0")
    return confidence_percentile, min_confidence


def usable_pixels(
    recon: Reconstruction,
    source: PointSource,
    *,
    min_confidence: float,
    depth_edges: Bool[AnyArray, "s height width"] | None = None,
) -> Bool[np.ndarray, "s height width"]:
    """Which pixels may give points: all of the rule but the percentile, which is taken over these.

    Left out are padding, masked pixels, confidences that are not finite or not above
    `min_confidence`, and edges; and where points come from depth, depths that are not positive.

    Args:
        recon: one scene, without scene axis.
        source: of the points.
        min_confidence: from `confidence_limits`.
        depth_edges: True on pixels to leave out, such as `Reconstruction.depth_edges`.
    """
    confidence = confidence_of(recon, source)
    usable = allowed_pixels(recon) & np.isfinite(confidence) & (confidence > min_confidence)
    if depth_edges is not None:
        usable &= ~np.asarray(depth_edges)
    if source == "depth":
        depth = np.asarray(recon.depth)
        usable &= np.isfinite(depth) & (depth > 0)
    return usable


def percentile_thresholds(
    confidence: Float[np.ndarray, " m"], percentiles: float | Float[np.ndarray, " k"]
) -> Float[np.ndarray, " k"] | np.floating:
    """The confidences from which on points are kept when so many per cent are left out.

    They are values that occur: an interpolated one could by rounding exceed the largest.

    Args:
        confidence: of all points that passed `usable_pixels`, at least one.
        percentiles: one or several, in [0, 100].
    """
    return np.percentile(confidence, percentiles, method="lower")


def allowed_pixels(recon: Reconstruction) -> Bool[np.ndarray, "s height width"]:
    """False on padding and where a mask says so; without resizing and masks there is neither."""
    images = np.asarray(recon.images)
    if recon.transforms:
        frames = Frames(images=images, names=recon.names, transforms=recon.transforms)
        allowed = frames.valid_mask()
    else:
        allowed = np.ones(images.shape[:3], bool)
    return allowed if recon.mask is None else allowed & np.asarray(recon.mask)


def point_sources(recon: Reconstruction) -> tuple[PointSource, ...]:
    """Where points of a reconstruction can come from, the more accurate first."""
    sources = []
    if recon.depth is not None and recon.camera_from_world is not None:
        sources.append("depth")
    if recon.world_points is not None:
        sources.append("head")
    best = recon.best_points or ("head" if recon.confidence_kind == "sigmoid" else "depth")
    return tuple(sorted(sources, key=lambda source: source != best))


def chosen_source(recon: Reconstruction, points: PointSource | None) -> PointSource:
    """The source that is asked for, or the best that there is.

    Raises:
        InputError: there is no such source.
    """
    possible = point_sources(recon)
    if not possible or points not in (None, *possible):
        raise InputError(
            f"{points=} cannot be had; this reconstruction has points from "
            f"{', '.join(possible) or 'nowhere: use a model with a depth or a point head'}"
        )
    return points or possible[0]


def points_of(
    recon: Reconstruction, source: PointSource
) -> Float32[np.ndarray, "s height width 3"]:
    """The points of all pixels, good or not, from a source that there is."""
    return np.asarray(recon.points_from_depth() if source == "depth" else recon.world_points)


def confidence_of(
    recon: Reconstruction, source: PointSource
) -> Float32[np.ndarray, "s height width"]:
    """The confidence in `points_of`; 1 everywhere where a reconstruction has none."""
    confidence = recon.depth_confidence if source == "depth" else recon.world_points_confidence
    if confidence is None:
        return np.ones(np.shape(recon.images)[:3], np.float32)
    return np.asarray(confidence)
