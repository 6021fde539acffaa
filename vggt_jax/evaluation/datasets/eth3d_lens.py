"""ETH3D's lens, COLMAP's THIN_PRISM_FISHEYE, and pictures without its distortion."""

import dataclasses

import numpy as np
from jaxtyping import Float

_ROWS = 256  # Of a picture at once: those of 24 million pixels would fill the memory.


@dataclasses.dataclass(frozen=True, eq=False)
class Lens:
    """A camera that distorts; pixel centres at i + 0.5.

    Attributes:
        intrinsics: without the distortion.
        size: height and width.
        params: k1 k2 p1 p2 k3 k4 sx1 sy1, of COLMAP's model. Empty for a pinhole.
    """

    intrinsics: Float[np.ndarray, "3 3"]
    size: tuple[int, int]
    params: Float[np.ndarray, " n"]

    def distort(self, rays: Float[np.ndarray, "*p 2"]) -> Float[np.ndarray, "*p 2"]:
        """Where rays, given by x / z and y / z, fall on the plane at distance 1 behind the lens.

        The formulas are those of COLMAP's `sensor/models.h`, ThinPrismFisheyeCameraModel.
        """
        if not len(self.params):
            return rays
        k1, k2, p1, p2, k3, k4, sx1, sy1 = self.params
        length = np.linalg.norm(rays, axis=-1, keepdims=True)
        uv = rays * np.where(length > 1e-9, np.arctan(length) / np.maximum(length, 1e-9), 1.0)
        u, v = uv[..., 0], uv[..., 1]
        r2 = u * u + v * v
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
        x = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u) + sx1 * r2
        y = v * radial + 2 * p2 * u * v + p1 * (r2 + 2 * v * v) + sy1 * r2
        return np.stack([x, y], axis=-1)

    def pixels(self, rays: Float[np.ndarray, "*p 2"]) -> Float[np.ndarray, "*p 2"]:
        """The pixels, in continuous coordinates, that rays fall on."""
        focal, centre = np.diag(self.intrinsics)[:2], self.intrinsics[:2, 2]
        return self.distort(rays) * focal + centre

    def undistort(self, wanted: Float[np.ndarray, "*p 2"]) -> Float[np.ndarray, "*p 2"]:
        """The rays that fall on points of the plane behind the lens, by Newton's method."""
        rays, step = wanted, 1e-6
        for _ in range(20 if len(self.params) else 0):
            here = self.distort(rays)
            x, y = np.moveaxis(here - wanted, -1, 0)
            if max(np.abs(x).max(initial=0), np.abs(y).max(initial=0)) < 1e-12:
                break
            a, c = np.moveaxis((self.distort(rays + np.array([step, 0])) - here) / step, -1, 0)
            b, d = np.moveaxis((self.distort(rays + np.array([0, step])) - here) / step, -1, 0)
            rays = rays - np.stack([d * x - b * y, a * y - c * x], -1) / (a * d - b * c)[..., None]
        return rays

    def rays(self) -> Float[np.ndarray, "height width 2"]:
        """The rays of all pixels."""
        height, width = self.size
        parts = [
            self.undistort(pixel_rays(self.intrinsics, (min(_ROWS, height - start), width), start))
            for start in range(0, height, _ROWS)
        ]
        return np.concatenate(parts)


def pixel_rays(
    intrinsics: Float[np.ndarray, "3 3"], size: tuple[int, int], first: int = 0
) -> Float[np.ndarray, "height width 2"]:
    """Where rays of pixel centres of a pinhole camera meet the plane z = 1, from row `first` on."""
    x, y = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(first, first + size[0]) + 0.5)
    (fx, _, cx), (_, fy, cy), _ = intrinsics
    return np.stack([(x - cx) / fx, (y - cy) / fy], axis=-1)


def undistorted(
    picture: np.ndarray,
    lens: Lens,
    intrinsics: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
    *,
    nearest: bool,
) -> np.ndarray:
    """A picture as a pinhole camera would have taken it; 0 outside of what the lens saw.

    Args:
        picture: [height width ...], of the lens's size.
        intrinsics, size: of the pinhole camera.
        nearest: takes the nearest pixel, as depth and masks need; else mixes four.
    """
    out = np.zeros((*size, *picture.shape[2:]), picture.dtype)
    height, width = picture.shape[:2]
    for start in range(0, size[0], _ROWS):
        rows = (min(_ROWS, size[0] - start), size[1])
        x, y = np.moveaxis(lens.pixels(pixel_rays(intrinsics, rows, start)), -1, 0)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        x, y = np.where(inside, x, 0), np.where(inside, y, 0)
        part = out[start : start + rows[0]]
        if nearest:
            part[inside] = picture[y.astype(np.int64), x.astype(np.int64)][inside]
            continue
        left, top = np.floor(x - 0.5).astype(np.int64), np.floor(y - 0.5).astype(np.int64)
        across, down = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
        columns = np.clip([left, left + 1], 0, width - 1)
        lines = np.clip([top, top + 1], 0, height - 1)
        upper = (
            picture[lines[0], columns[0]] * (1 - across) + picture[lines[0], columns[1]] * across
        )
        lower = (
            picture[lines[1], columns[0]] * (1 - across) + picture[lines[1], columns[1]] * across
        )
        mixed = np.round(upper * (1 - down) + lower * down).astype(picture.dtype)
        part[inside] = mixed[inside]
    return out


def like_pi3(picture: np.ndarray, lens: Lens, *, depth: bool) -> np.ndarray:
    """A picture as π³'s preparation of ETH3D undistorts it: not exact, and so comparable with it.

    It takes four of the eight numbers, k1 to k4, and counts pixel centres at whole numbers; size
    and intrinsics are kept. Depth is carried from each pixel to the nearest of the result, where
    what comes last wins, not what is near (yyfz/Pi3 97ce97b, datasets/preprocess/prepare_eth3d.py).
    """
    four = lens.params.copy()
    four[[2, 3, 6, 7]] = 0
    # Pixel centres at whole numbers: everything half a pixel further.
    moved = lens.intrinsics.copy()
    moved[:2, 2] += 0.5
    simple = Lens(moved, lens.size, four)
    if not depth:
        return undistorted(picture, simple, moved, lens.size, nearest=False)
    (fx, _, cx), (_, fy, cy), _ = lens.intrinsics
    height, width = lens.size
    out = np.zeros_like(picture)
    for start in range(0, height, _ROWS):
        part = picture[start : start + _ROWS]
        known = part > 0
        behind = pixel_rays(moved, part.shape, start)[known]
        x, y = np.moveaxis(simple.undistort(behind), -1, 0)
        columns, rows = np.round(x * fx + cx).astype(int), np.round(y * fy + cy).astype(int)
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        out[rows[inside], columns[inside]] = part[known][inside]
    return out
