"""How a protocol brings photographs, depth and intrinsics to the size that a model sees."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

Filter = Literal["lanczos", "bicubic", "bilinear"]
Intrinsics = Literal["exact", "single_factor"]
"""How true depth and intrinsics follow a resize: "exact", each axis by its own factor, and depth of
the pixel in which a centre lies; "single_factor", intrinsics of both axes by the larger factor, and
depth of the pixel at the upper left, as π³'s evaluation does. The aspect of an image changes where
sides become multiples of a patch, and the latter is off by as much (0.9 % for 640x480)."""

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resizing:
    """To a width, and the height of about the same shape; all images take the size of the first.

    Attributes:
        width: in pixels.
        filter: of photographs. Depth takes the nearest pixel.
        multiple: the height is rounded to a multiple of this.
        to_patches: afterwards both sides are cut down to multiples of 14 by a second resize,
            bilinear (π³'s evaluation of relative poses).
        most_rows: a higher image is cut to so many rows in the middle (VGGT's crop); None never.
        exactly: (height, width) to stretch to instead of all this; not what was published.
    """

    width: int = 518
    filter: Filter = "lanczos"
    multiple: int = 14
    to_patches: bool = False
    most_rows: int | None = None
    exactly: tuple[int, int] | None = None

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of photographs of this size before rows are cut."""
        if self.exactly is not None:
            return self.exactly
        return max(self.multiple, self._rounded(height, width)), self.width

    def _rounded(self, height: int, width: int) -> int:
        return round(height * self.width / width / self.multiple) * self.multiple

    def final_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that the model sees."""
        rows, columns = self.size_of(height, width)
        if self.exactly is None and self.to_patches:
            rows, columns = 14 * (rows // 14), 14 * (columns // 14)
        if self.exactly is None and self.most_rows is not None:
            rows = min(rows, self.most_rows)
        return rows, columns

    def images(self, images: list[np.ndarray]) -> UInt8[np.ndarray, "s height width 3"]:
        """Photographs [height width 3] as the model sees them."""
        first = self.size_of(*images[0].shape[:2])
        resized = [_resized(x, first, _FILTERS[self.filter]) for x in images]
        size = self.final_size(*images[0].shape[:2])
        if self.exactly is None and self.to_patches:
            resized = [_resized(x, size, Image.Resampling.BILINEAR) for x in resized]
        return np.stack([x[self._rows(first[0])] for x in resized])

    def depth(
        self,
        depth: Float[np.ndarray, "h w"],
        image_size: tuple[int, int],
        how: Intrinsics = "exact",
    ) -> Float[np.ndarray, "height width"]:
        """A depth map in the pixels that the model sees, each from the nearest.

        Args:
            image_size: of the photographs, by which the new size is decided.
        """
        rows, columns = self.size_of(*image_size)
        if self.exactly is None and self.to_patches:
            rows, columns = self.final_size(*image_size)
        part = 0.5 if how == "exact" else 0.0

        def pick(new: int, old: int) -> np.ndarray:
            return np.minimum(((np.arange(new) + part) * old / new).astype(int), old - 1)

        nearest = depth[pick(rows, depth.shape[0])][:, pick(columns, depth.shape[1])]
        return nearest[self._rows(rows)]

    def intrinsics(
        self,
        intrinsics: Float[np.ndarray, "3 3"],
        size: tuple[int, int],
        image_size: tuple[int, int],
        how: Intrinsics,
    ) -> Float[np.ndarray, "3 3"]:
        """Intrinsics of a map of `size` in the pixels that the model sees.

        Args:
            intrinsics: of the map, its pixel centres at i + 0.5.
            image_size: of the photographs, by which the new size is decided.

        Returns:
            Pixel centres at i + 0.5.
        """
        rows, columns = self.size_of(*image_size)
        if self.exactly is None and self.to_patches:
            rows, columns = self.final_size(*image_size)
        y, x = rows / size[0], columns / size[1]
        if how == "single_factor":
            x = y = max(x, y)
        scaled = np.diag([x, y, 1.0]) @ np.asarray(intrinsics, np.float64)
        scaled[1, 2] -= self._rows(rows).start or 0
        return scaled

    def _rows(self, rows: int) -> slice:
        if self.exactly is not None or self.most_rows is None or rows <= self.most_rows:
            return slice(None)
        first = (rows - self.most_rows) // 2
        return slice(first, first + self.most_rows)


def _resized(image: np.ndarray, size: tuple[int, int], resampling: Image.Resampling):
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), resampling))
