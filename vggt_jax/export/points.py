"""The points of a scene that are good enough to export."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from vggt_jax.errors import InputError
from vggt_jax.scene.confidence import (
    PointSource,
    chosen_source,
    confidence_limits,
    confidence_of,
    percentile_thresholds,
    points_of,
    usable_pixels,
)
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.stretches import stretches


def confident_pixels(
    recon: Reconstruction,
    source: PointSource,
    *,
    confidence_percentile: float | None = None,
    min_confidence: float | None = None,
) -> tuple[Bool[np.ndarray, "s height width"], float]:
    """The rule of `scene/confidence.py` for exports, which leave out the edges that a model marks.

    Args:
      recon: the scene.
      source: of the points.
      confidence_percentile, min_confidence: see `confidence.confidence_limits`.

    Returns:
      Pixels that pass all but the percentile, and the percentile.

    Raises:
      InputError: a number is out of its range, or nothing is left.
    """
    percentile, smallest = confidence_limits(
        recon.confidence_kind,
        confidence_percentile=confidence_percentile,
        min_confidence=min_confidence,
    )
    usable = usable_pixels(recon, source, min_confidence=smallest, depth_edges=recon.depth_edges)
    if not usable.any():
        raise InputError(
            f"no pixel has a confidence above {smallest:g}"
            f"{'' if recon.depth_edges is None else ' away from the edges of depth'}; lower "
            f"min_confidence (the largest confidence is {np.max(confidence_of(recon, source)):g})"
        )
    return usable, percentile


def scene_points(
    recon: Reconstruction,
    *,
    points: PointSource | None = None,
    confidence_percentile: float | None = None,
    min_confidence: float | None = None,
    max_points: int | None = 2_000_000,
) -> tuple[Float32[np.ndarray, "m 3"], UInt8[np.ndarray, "m 3"]]:
    """The point cloud of a scene with its colours.

    Of a scene that is a map of a file, percentiles are taken over stretches of frames.

    Args:
      recon: the scene.
      points: from depth and cameras, or from the model's point head. None is what is better
        (`Reconstruction.best_points`): depth for VGGT, the head for others; or what there is.
      confidence_percentile, min_confidence: see `confidence.confidence_limits`.
      max_points: at most so many, the same ones each time; None for all.

    Returns:
      points [m 3] in world coordinates (OpenCV) and colors [m 3].

    Raises:
      InputError: an argument is out of its range, or the model has no such points.
    """
    source = chosen_source(recon, points)
    found, why = [], None
    for part in stretches(recon):
        try:
            mask, percentile = confident_pixels(
                part,
                source,
                confidence_percentile=confidence_percentile,
                min_confidence=min_confidence,
            )
        except InputError as error:  # Only if it is so in all stretches.
            why = error
            continue
        found.append(
            select_points(
                points_of(part, source),
                confidence_of(part, source),
                np.asarray(part.images),
                confidence_percentile=percentile,
                mask=mask,
                max_points=share_of(max_points, part, recon),
            )
        )
    if not found:
        assert why is not None
        raise why
    return joined_points(found)


def share_of(max_points: int | None, part: Reconstruction, whole: Reconstruction) -> int | None:
    """How many points of a part of the frames there may be, at least one."""
    if max_points is None:
        return None
    return max(1, max_points * len(part.images) // len(whole.images))


def joined_points(
    found: Sequence[tuple[Float32[np.ndarray, "_ 3"], UInt8[np.ndarray, "_ 3"]]],
) -> tuple[Float32[np.ndarray, "m 3"], UInt8[np.ndarray, "m 3"]]:
    """Points and colours of stretches of a scene, as of one."""
    points, colors = zip(*found, strict=True)
    return np.concatenate(points), np.concatenate(colors)


def select_points(
    world_points: Float[np.ndarray, "s height width 3"],
    confidence: Float[np.ndarray, "s height width"],
    images: UInt8[np.ndarray, "s height width 3"] | Float[np.ndarray, "s height width 3"],
    *,
    confidence_percentile: float = 25.0,
    mask: Bool[np.ndarray, "s height width"] | None = None,
    max_points: int | None = 2_000_000,
    seed: int = 0,
) -> tuple[Float32[np.ndarray, "m 3"], UInt8[np.ndarray, "m 3"]]:
    """The confident points of a scene with their colours.

    Points that are not finite, or whose confidence is not, are left out first; the percentile is
    taken over the rest, and points at or above it are kept, as in the official `demo_viser.py`,
    from which the default of 25 comes.

    Args:
      world_points: [s height width 3].
      confidence: [s height width], on any scale.
      images: [s height width 3], uint8, or float in [0, 1].
      confidence_percentile: from 0 (keep all) to 100 (keep the most confident alone).
      mask: [s height width], True where a pixel may be used; None allows all.
      max_points: at most so many, drawn without replacement from all that qualify; None for all.
      seed: of that draw; the same seed draws the same points.

    Returns:
      points [m 3] float32 and colors [m 3] uint8, in the order of frames and pixels. m can be 0.

    Raises:
      InputError: the percentile or max_points is out of its range.
      ValueError: shapes do not fit together.
    """
    if not 0 <= confidence_percentile <= 100:
        raise InputError(f"{confidence_percentile=} must lie between 0 and 100")
    if max_points is not None and max_points < 1:
        raise InputError(f"{max_points=} must be at least 1, or None for all points")
    if mask is None:
        mask = np.ones(confidence.shape, bool)
    if not (
        world_points.shape == images.shape == (*confidence.shape, 3)
        and mask.shape == confidence.shape
    ):
        raise ValueError(
            f"{world_points.shape=}, {images.shape=}, {confidence.shape=} and {mask.shape=} must "
            "be [s height width 3], the same, [s height width] and the same"
        )
    usable = mask & np.isfinite(confidence) & np.isfinite(world_points).all(axis=-1)
    if usable.any():
        usable &= confidence >= percentile_thresholds(confidence[usable], confidence_percentile)
    chosen = np.flatnonzero(usable)
    if max_points is not None and len(chosen) > max_points:
        generator = np.random.default_rng(seed)
        chosen = np.sort(generator.choice(chosen, max_points, replace=False, shuffle=False))
    points = world_points.reshape(-1, 3)[chosen].astype(np.float32)
    colors = images.reshape(-1, 3)[chosen]
    if colors.dtype != np.uint8:
        colors = np.round(colors * 255).astype(np.uint8)
    return points, colors
