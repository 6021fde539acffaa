"""What maps of points and rays say of surfaces and cameras: normals, edges, intrinsics."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# From how many pixels on five rays say what a camera is, not a sample of all (official file:
# mapanything/utils/geometry.py, recover_pinhole_intrinsics_from_ray_directions).
_MANY_PIXELS = 1_000_000
_SAMPLES = 50  # along each side
_SMALL = 1e-12  # added to lengths, as in the official normals


def normals_of_points(
    points: Float[Array, "*b h w 3"], mask: Bool[Array, "*b h w"]
) -> tuple[Float[Array, "*b h w 3"], Bool[Array, "*b h w"]]:
    """Normals of the surface through a map of points: the mean over the corners of each pixel.

    A corner lies between two neighbours, one above or below and one beside; both must be in the
    mask, like the pixel itself (official file: mapanything/utils/geometry.py, points_to_normals).

    Args:
        points: [... h w 3], in any coordinates.
        mask: pixels that count.

    Returns:
        [... h w 3], of length 1, 0 where no corner counts; and where one does.
    """
    neighbours = [
        (_shifted(points, *step) - points, _shifted(mask, *step))
        for step in ((-1, 0), (0, -1), (1, 0), (0, 1))
    ]
    total = jnp.zeros(points.shape, points.dtype)
    found = jnp.zeros(mask.shape, bool)
    for (first, has_first), (second, has_second) in zip(
        neighbours, neighbours[1:] + neighbours[:1], strict=True
    ):
        counts = has_first & has_second & mask
        # Where it does not count there may be anything, infinities included.
        first, second = (jnp.where(counts[..., None], x, 0.0) for x in (first, second))
        corner = jnp.cross(first, second)
        total += _unit(corner)
        found |= counts
    return _unit(total), found


def normal_edges(
    normals: Float[Array, "*b h w 3"],
    mask: Bool[Array, "*b h w"],
    *,
    degrees: float = 5.0,
    transposed_mask: bool = False,
) -> Bool[Array, "*b h w"]:
    """Which pixels lie within one pixel of a bend of the surface.

    The official code (mapanything/utils/geometry.py, normals_edge) takes the arc cosine of products
    that rounding puts above 1, and leaves out what becomes NaN. Here there is no such case, as in
    the official code in float64.

    Args:
        normals: [... h w 3], of length 1 or 0.
        mask: where there are normals.
        degrees: what the angle between a normal and one of its eight neighbours must exceed.
        transposed_mask: whether a neighbour counts where there is a normal at the one across the
            diagonal, as in the official code of MapAnything, whose windows of the mask have rows
            and columns exchanged; not so in that of π³.
    """
    smallest_cosine = np.float32(np.cos(np.deg2rad(degrees)))
    height, width = mask.shape[-2:]
    beyond = [(0, 0)] * (mask.ndim - 2) + [(1, 1), (1, 1)]
    padded = jnp.pad(normals, [*beyond, (0, 0)], mode="edge")
    padded_mask = jnp.pad(mask, beyond, mode="edge")
    bends = jnp.zeros(mask.shape, bool)
    for y, x in itertools.product(range(3), repeat=2):
        neighbour = padded[..., y : y + height, x : x + width, :]
        y, x = (x, y) if transposed_mask else (y, x)
        counts = padded_mask[..., y : y + height, x : x + width]
        bends |= counts & (jnp.sum(normals * neighbour, axis=-1) < smallest_cosine)
    nearby = bends
    for y, x in itertools.product((-1, 0, 1), repeat=2):
        nearby |= _shifted(bends, y, x)
    return nearby


def intrinsics_from_rays(rays: Float[Array, "*b h w 3"]) -> Float[Array, "*b 3 3"]:
    """Intrinsics that agree best with maps of rays, principal point included.

    Args:
        rays: [... h w 3], of any length; z is not 0.

    Returns:
        [... 3 3] in pixels, in continuous coordinates: the centre of the first pixel is at 0.5.
        The official code (mapanything/utils/geometry.py,
        recover_pinhole_intrinsics_from_ray_directions) counts from that centre, so that its
        principal point is half a pixel less. Like there, least squares over at most about 50 rows
        and columns, and five rays of frames of more than a million pixels.
    """
    height, width = rays.shape[-3:-1]
    find = _by_five_rays if height * width > _MANY_PIXELS else _by_least_squares
    (focal_x, centre_x), (focal_y, centre_y) = find(rays, height, width)
    zero, one = jnp.zeros_like(focal_x), jnp.ones_like(focal_x)
    rows = (
        (focal_x, zero, centre_x + 0.5),
        (zero, focal_y, centre_y + 0.5),
        (zero, zero, one),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _by_least_squares(rays, height, width):
    steps = [max(1, size // _SAMPLES) for size in (height, width)]
    sample = rays[..., :: steps[0], :: steps[1], :]

    def fit(axis, size, step):
        ratio = sample[..., axis] / sample[..., 2]
        pixel = np.arange(0, size, step, dtype=np.float32)
        # About the means, so that rounding does not grow with the distance from them.
        middle = pixel.mean(dtype=np.float32)
        pixel = pixel - middle
        pixel = pixel[None] if axis == 0 else pixel[:, None]
        pixel = jax.lax.broadcast_to_rank(pixel, ratio.ndim)
        mean = jnp.mean(ratio, axis=(-2, -1), keepdims=True)
        centred = ratio - mean
        total = lambda x: jnp.sum(x, axis=(-2, -1))
        focal = total(centred * pixel) / total(centred * centred)
        return focal, middle - focal * mean[..., 0, 0]

    return fit(0, width, steps[1]), fit(1, height, steps[0])


def _by_five_rays(rays, height, width):
    ratio = lambda row, column, axis: rays[..., row, column, axis] / rays[..., row, column, 2]

    def fit(axis, size, ratio):
        middle = size // 2
        of_middle = ratio(middle)
        sides = [(at, ratio(at)) for at in (size // 4, 3 * size // 4)]
        focal = sum((at - middle) / (of_side - of_middle) for at, of_side in sides) / 2
        return focal, middle - focal * of_middle

    return (
        fit(0, width, lambda column: ratio(height // 2, column, 0)),
        fit(1, height, lambda row: ratio(row, width // 2, 1)),
    )


def _unit(vectors: Array) -> Array:
    squared = jnp.sum(vectors * vectors, axis=-1, keepdims=True)
    # Guarded, so that the root of 0 has a finite gradient.
    length = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
    return vectors / (length + _SMALL)


def _shifted(x: Array, rows: int, columns: int) -> Array:
    """The neighbour so many rows down and columns right of every pixel: zeros beyond the border.

    Maps have two axes, `x` of bool, or three.
    """
    first = x.ndim - (2 if x.dtype == bool else 3)
    for axis, step in ((first, rows), (first + 1, columns)):
        if step:
            size = x.shape[axis]
            kept = jax.lax.slice_in_dim(x, max(step, 0), size + min(step, 0), axis=axis)
            pad = [(0, 0)] * x.ndim
            pad[axis] = (max(-step, 0), max(step, 0))
            x = jnp.pad(kept, pad)
    return x
