"""Depth of the photographs as nerfstudio reads it."""

import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float32

from vggt_jax.errors import InputError
from vggt_jax.export.cameras import Cameras
from vggt_jax.export.format import DEPTHS as FOLDER
from vggt_jax.export.points import confident_pixels
from vggt_jax.files import replacing
from vggt_jax.images.frames import FrameTransform
from vggt_jax.scene.confidence import confidence_of, percentile_thresholds
from vggt_jax.scene.reconstruction import Reconstruction

# nerfstudio multiplies by 0.001 (`depth_unit_scale_factor`) whatever the file, so that values are
# thousandths of the scene's unit.
_PER_UNIT = 1000.0


def write_depth_maps(
    folder: Path,
    recon: Reconstruction,
    cameras: Cameras,
    *,
    factors: Sequence[int] = (),
    confidence_percentile: float | None = None,
    min_confidence: float | None = None,
) -> tuple[str, ...]:
    """Writes `depths/NAME.npy`: float32, thousandths of the scene's unit, 0 where not known.

    A map has the shape of its photograph and about the size of the model's frame; nerfstudio
    enlarges it.

    Args:
      folder: of the export.
      recon: the scene.
      cameras: with the names of the photographs.
      factors: by which smaller photographs lie beside it; nerfstudio then looks into `depths_2` and
        so on.
      confidence_percentile, min_confidence: depth of less counts as not known.

    Returns:
      The paths of the maps in the folder.

    Raises:
      InputError: there is no depth, or a file cannot be written.
    """
    if recon.depth is None:
        raise InputError("depth_maps needs a model with a depth head; leave it out")
    depth = np.asarray(recon.depth, np.float32)
    usable, percentile = confident_pixels(
        recon,
        "depth",
        confidence_percentile=confidence_percentile,
        min_confidence=min_confidence,
    )
    confidence = confidence_of(recon, "depth")
    usable &= confidence >= percentile_thresholds(confidence[usable], percentile)
    paths = []
    for i, name in enumerate(cameras.names):
        known = np.where(usable[i] & np.isfinite(depth[i]), depth[i], 0)
        data = io.BytesIO()
        np.save(data, _PER_UNIT * of_photograph(known, cameras.transforms[i]))
        path = f"{FOLDER}/{name}.npy"
        with replacing(folder / path) as file:
            file.write(data.getvalue())
        for factor in factors:
            with replacing(folder / f"{FOLDER}_{factor}" / PurePosixPath(path).name) as file:
                file.write(data.getvalue())
        paths.append(path)
    return tuple(paths)


def of_photograph(
    depth: Float32[np.ndarray, "model_height model_width"], transform: FrameTransform
) -> Float32[np.ndarray, "height width"]:
    """A frame's depth as a map of all of its photograph, 0 where that was cropped away."""
    original_height, original_width = transform.original_size
    height = max(1, round(original_height * transform.scale_y))
    width = max(1, round(original_width * transform.scale_x))
    top, left = -round(transform.offset_y), -round(transform.offset_x)
    result = np.zeros((height, width), np.float32)
    rows = slice(*np.clip(np.add(transform.content_rows, top), 0, height))
    columns = slice(*np.clip(np.add(transform.content_columns, left), 0, width))
    result[rows, columns] = depth[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
    return result
