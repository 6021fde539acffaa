"""Camera parameters as JSON."""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vggt_jax.files import replacing
from vggt_jax.images.frames import FrameTransform
from vggt_jax.scene.provenance import Provenance
from vggt_jax.scene.reconstruction import LengthUnit

CONVENTIONS = {
    "axes": "OpenCV: x right, y down, z forward",
    "camera_from_world": "3x4 matrix [R | t]: camera_point = R * world_point + t",
    "intrinsics": (
        "3x3 matrix in pixels, for continuous image coordinates: the image spans [0, width] x "
        "[0, height] and the centre of the pixel with index i lies at i + 0.5"
    ),
    "pixel_centre": (
        "where the ray of the first pixel meets the image that intrinsics describe: 0.5, its "
        "centre, or 0, its corner (VGGT); to project points onto the centres of their pixels, add "
        "0.5 minus this to the principal point of intrinsics_model, or that divided by scale to "
        "intrinsics_original"
    ),
    "model_from_original": (
        "continuous image coordinates: x_model = x_original * scale[0] + offset[0], "
        "y_model = y_original * scale[1] + offset[1]"
    ),
    "length_unit": (
        "of positions: metres, as the model predicts them; given, that of a length that was known; "
        "or arbitrary, one for the whole scene"
    ),
    "null": "a value that is not finite, or was not predicted",
}


def write_cameras(
    path: str | os.PathLike,
    *,
    names: Sequence[str],
    transforms: Sequence[FrameTransform],
    camera_from_world: Float[np.ndarray, "s 3 4"],
    intrinsics: Float[np.ndarray, "s 3 3"] | None,
    pixel_centre: float,
    length_unit: LengthUnit = "arbitrary",
    provenance: Provenance = Provenance(),  # noqa: B008
) -> None:
    """Writes poses and intrinsics of all frames, with the conventions they follow.

    The file is strict JSON: values that are not finite become null. Every frame holds its name, the
    sizes of the original image and of the model frame, `camera_from_world`, the intrinsics in model
    and in original pixels, and the transform between the two.

    Args:
      path: the file; its folder is made if it is missing.
      names: one per frame.
      transforms: one per frame.
      camera_from_world: [s 3 4].
      intrinsics: [s 3 3] in model pixels, or None where a model predicts none.
      pixel_centre: of the intrinsics, see `Reconstruction.pixel_centre`.
      length_unit: of the positions, see `Reconstruction.length_unit`.
      provenance: what made the scene.

    Raises:
      InputError: the file cannot be written.
      ValueError: the arguments speak of different numbers of frames.
    """
    frame_count = len(names)
    expected = {
        "camera_from_world": (camera_from_world, (3, 4)),
        "intrinsics": (intrinsics, (3, 3)),
    }
    for name, (array, matrix_shape) in expected.items():
        if array is not None and array.shape != (frame_count, *matrix_shape):
            raise ValueError(f"{name}.shape={array.shape} must be {(frame_count, *matrix_shape)}")
    frames = [
        {
            "name": name,
            "original_size": _size(transform.original_size),
            "model_size": _size(transform.model_size),
            "camera_from_world": _numbers(camera_from_world[i]),
            "intrinsics_original": (
                None if intrinsics is None
                else _numbers(transform.intrinsics_to_original(intrinsics[i]))
            ),
            "intrinsics_model": None if intrinsics is None else _numbers(intrinsics[i]),
            "model_from_original": {
                "scale": [transform.scale_x, transform.scale_y],
                "offset": [transform.offset_x, transform.offset_y],
            },
        }
        for i, (name, transform) in enumerate(zip(names, transforms, strict=True))
    ]  # fmt: skip
    document = {
        "conventions": CONVENTIONS,
        "pixel_centre": pixel_centre,
        "length_unit": length_unit,
        **({"provenance": provenance.to_dict()} if provenance else {}),
        "frames": frames,
    }
    text = json.dumps(document, indent=2, allow_nan=False)
    with replacing(path) as file:
        file.write(text.encode() + b"\n")


def _size(size: tuple[int, int]) -> dict[str, int]:
    height, width = size
    return {"height": height, "width": width}


def _numbers(array: np.ndarray | np.generic) -> Any:
    """Nested lists of the shortest decimals that give the same float32, null where not finite."""
    if array.ndim == 0:
        return float(str(np.float32(array))) if math.isfinite(array) else None
    return [_numbers(part) for part in array]
