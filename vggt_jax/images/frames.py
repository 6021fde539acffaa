"""Frames as the model takes them, and the way between their pixels and those of the photographs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

WHITE = 255  # What padding is filled with, and what transparency lies on.


@dataclass(frozen=True, kw_only=True)
class FrameTransform:
    """How the pixels of an original image became the pixels of a model frame.

    In continuous image coordinates, where the image spans [0, width] x [0, height] and the centre
    of the pixel with index i lies at i + 0.5,

        x_model = x_original * scale_x + offset_x,    y_model = y_original * scale_y + offset_y.

    Two quantities are converted, each by its own convention:

    - **Pixels** are indices: an integer names a pixel's centre, as in array indexing and in the
      model's tracks. So `x_model + 0.5 = (x_original + 0.5) * scale_x + offset_x`.
    - **Intrinsics** live in continuous coordinates: a principal point in the middle of the image is
      (width / 2, height / 2). The model predicts exactly that, and COLMAP means the same.

    Sizes are (height, width). Arrays may have any leading shape; results are float64.

    Attributes:
      original_size: size of the original after its EXIF rotation.
      model_size: size of the model frame.
      scale_x, scale_y: model pixels per original pixel; they differ slightly, as resized sides are
        rounded to whole patches.
      offset_x, offset_y: model coordinates of the original's top left corner: positive where there
        is padding, negative where the top was cropped.
      content_rows, content_columns: half-open ranges of the model frame that show the photograph;
        what lies outside is padding.
    """

    original_size: tuple[int, int]
    model_size: tuple[int, int]
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float
    content_rows: tuple[int, int]
    content_columns: tuple[int, int]

    @classmethod
    def identity(cls, size: tuple[int, int]) -> "FrameTransform":
        """The transform of an image of `size` (height, width) that is used as it is."""
        height, width = size
        return cls(
            original_size=size,
            model_size=size,
            scale_x=1.0,
            scale_y=1.0,
            offset_x=0.0,
            offset_y=0.0,
            content_rows=(0, height),
            content_columns=(0, width),
        )

    def pixels_to_original(self, pixels_model: Any) -> Float64[np.ndarray, "... 2"]:
        """Original pixel indices of model pixel indices.

        Args:
          pixels_model: [... 2], (x, y); integers are pixel centres, fractions lie between them.

        Returns:
          [... 2] float64. Points on padding fall outside the original.
        """
        pixels_model = np.asarray(pixels_model, np.float64)
        return (pixels_model + 0.5 - self._offset) / self._scale - 0.5

    def pixels_to_model(self, pixels_original: Any) -> Float64[np.ndarray, "... 2"]:
        """Model pixel indices of original pixel indices, the inverse of `pixels_to_original`.

        Args:
          pixels_original: [... 2], (x, y); integers are pixel centres.

        Returns:
          [... 2] float64. Points on a part that was cropped away fall outside the model frame.
        """
        pixels_original = np.asarray(pixels_original, np.float64)
        return (pixels_original + 0.5) * self._scale + self._offset - 0.5

    def intrinsics_to_original(self, intrinsics_model: Any) -> Float64[np.ndarray, "... 3 3"]:
        """Intrinsics for the original image of intrinsics for the model frame.

        Args:
          intrinsics_model: [... 3 3] in model pixels, continuous coordinates. An infinite focal
            length stays infinite.

        Returns:
          [... 3 3] float64 in original pixels, continuous coordinates.
        """
        # Row by row and not as a matrix product, in which an infinite focal length would meet a
        # zero and become NaN.
        xy, last = np.split(np.asarray(intrinsics_model, np.float64), [2], axis=-2)
        xy = (xy - self._offset[:, None] * last) / self._scale[:, None]
        return np.concatenate([xy, last], axis=-2)

    def intrinsics_to_model(self, intrinsics_original: Any) -> Float64[np.ndarray, "... 3 3"]:
        """Intrinsics for the model frame, the inverse of `intrinsics_to_original`.

        Args:
          intrinsics_original: [... 3 3] in original pixels, continuous coordinates.

        Returns:
          [... 3 3] float64 in model pixels, continuous coordinates.
        """
        xy, last = np.split(np.asarray(intrinsics_original, np.float64), [2], axis=-2)
        xy = xy * self._scale[:, None] + self._offset[:, None] * last
        return np.concatenate([xy, last], axis=-2)

    @property
    def _scale(self) -> Float64[np.ndarray, "2"]:
        return np.array([self.scale_x, self.scale_y])

    @property
    def _offset(self) -> Float64[np.ndarray, "2"]:
        return np.array([self.offset_x, self.offset_y])


@dataclass(frozen=True, kw_only=True, eq=False)
class Frames:
    """Frames of one scene as the model takes them.

    Attributes:
      images: [s height width 3] RGB, uint8, or float32 in [0, 1] where float arrays were passed
        through.
      names: one per frame: file names, with as many parent folders as it takes to tell them apart,
        or the number of the frame where it did not come from a path.
      transforms: one per frame, to and from original pixels.
      opaque: False on pixels of the photographs that are more transparent than not, which are
        white in `images`; True on padding. None where all are opaque.
    """

    images: UInt8[np.ndarray, "s height width 3"] | Float32[np.ndarray, "s height width 3"]
    names: tuple[str, ...]
    transforms: tuple[FrameTransform, ...]
    opaque: Bool[np.ndarray, "s height width"] | None = None

    def valid_mask(self) -> Bool[np.ndarray, "s height width"]:
        """True on pixels that show the photograph, False on padding; bool [s height width]."""
        mask = np.zeros(self.images.shape[:3], bool)
        for frame, transform in zip(mask, self.transforms, strict=True):
            frame[slice(*transform.content_rows), slice(*transform.content_columns)] = True
        return mask
