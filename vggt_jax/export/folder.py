"""The folder that a reconstruction is written to, for people and programs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vggt_jax.export.cameras_json import write_cameras
from vggt_jax.export.ply import write_point_cloud
from vggt_jax.export.points import joined_points, select_points, share_of
from vggt_jax.export.scene_pictures import write_scene_pictures
from vggt_jax.files import OVERVIEW, RESULTS
from vggt_jax.scene.confidence import (
    PointSource,
    allowed_pixels,
    confidence_limits,
    confidence_of,
    points_of,
    usable_pixels,
)
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.results import write_reconstruction
from vggt_jax.scene.stretches import stretches

FILES = (
    RESULTS,
    "points.ply",
    "cameras.json",
    OVERVIEW,
    "depth_pictures",
    "track_pictures",
)
"""What `write_scene` may write."""


def write_scene(
    folder: Path,
    result: Reconstruction,
    *,
    say: Callable[[str], object],
    points: PointSource | None,
    confidence_percentile: float | None,
    min_confidence: float | None,
    max_points: int,
) -> int:
    """Writes a scene as files for people and programs: `FILES`.

    Args:
        folder: which exists.
        say: takes warnings.
        points: where the point cloud comes from; None for no cloud.
        confidence_percentile, min_confidence, max_points: of the cloud, see `confidence_limits` and
            `select_points`.

    Returns:
        How many points the cloud has.
    """
    percentile, smallest = confidence_limits(
        result.confidence_kind,
        confidence_percentile=confidence_percentile,
        min_confidence=min_confidence,
    )
    write_reconstruction(folder, result)
    if result.camera_from_world is not None:
        write_cameras(
            folder / "cameras.json",
            names=result.names,
            transforms=result.transforms,
            camera_from_world=np.asarray(result.camera_from_world),
            intrinsics=None if result.intrinsics is None else np.asarray(result.intrinsics),
            pixel_centre=result.pixel_centre,
            length_unit=result.length_unit,
            provenance=result.provenance,
        )
    write_scene_pictures(folder, result)
    if points is None:
        return 0
    usable = lambda part: usable_pixels(
        part, points, min_confidence=smallest, depth_edges=part.depth_edges
    )
    any_usable = any(usable(part).any() for part in stretches(result))
    if min_confidence is not None and not any_usable:
        say(
            f"warning: no point has a confidence above --min-confidence {min_confidence:g}, so "
            "that there is no points.ply"
        )
        return 0
    if not any_usable:
        say(
            f"warning: every point lies at an edge of depth or has a confidence of {smallest:g} or "
            "less, so that the cloud holds them all"
        )
        usable = allowed_pixels
    selected, colors = joined_points(
        [
            select_points(
                points_of(part, points),
                confidence_of(part, points),
                np.asarray(part.images),
                confidence_percentile=percentile,
                mask=usable(part),
                max_points=share_of(max_points, part, result) or 1,
            )
            for part in stretches(result)
        ]
    )
    comment = str(result.provenance)
    write_point_cloud(folder / "points.ply", selected, colors, comment=comment)
    return len(selected)
