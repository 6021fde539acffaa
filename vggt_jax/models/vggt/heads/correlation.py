"""Reading feature maps around points: what a tracker sees of a frame.

Tracking iterates, and feeds positions through sines of up to 1000 radians a pixel, so that the
last bit of a position is visible in the result. Positions therefore take the very roundings of the
official code (`grid_sample` of scaled coordinates, official file: heads/track_modules/utils.py).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_NEVER_BINDS = np.float32(1e30)


def build_pyramid(features: Float[Array, "b s h w c"], levels: int) -> list[Array]:
    """The maps, then their averages over 2x2, 4x4, ... pixels; odd last rows and columns drop."""
    pyramid = [features]
    for _ in range(levels - 1):
        b, s, height, width, c = pyramid[-1].shape
        x = pyramid[-1][:, :, : height // 2 * 2, : width // 2 * 2]
        x = x.reshape(b, s, height // 2, 2, width // 2, 2, c)
        pyramid.append(x.mean(axis=(3, 5)))
    return pyramid


def rounded(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x`, rounded to float32 before anything follows.

    Compilers fuse a product into the addition after it, at higher precision; a limit in between
    that never binds keeps them from it. (An optimization barrier does not, on a CPU.)
    """
    return jnp.clip(x, -_NEVER_BINDS, _NEVER_BINDS)


def grid_position(position: Float[Array, "..."], size: int) -> Float[Array, "..."]:
    """A position in pixels after `grid_sample`'s way to [-1, 1] and back."""
    normalized = rounded(rounded(position * np.float32(2 / max(size - 1, 1))) - 1)
    return rounded((normalized + 1) * np.float32((size - 1) / 2))


def sample_border(position: Float[Array, " m"], size: int):
    """Lower and upper neighbour of each position on an axis, and the upper one's weight `[m, 1]`.

    Positions outside take the nearest border.
    """
    position = jnp.clip(grid_position(position, size), 0, size - 1)
    low = jnp.floor(position).astype(jnp.int32)
    return low, jnp.minimum(low + 1, size - 1), (position - low.astype(jnp.float32))[:, None]


def sample_features(
    features: Float[Array, "h w c"], points: Float[Array, "m 2"]
) -> Float[Array, "m c"]:
    """Bilinear samples at `(x, y)` in pixels; points outside take the nearest border."""
    height, width, _ = features.shape
    x0, x1, wx = sample_border(points[:, 0], width)
    y0, y1, wy = sample_border(points[:, 1], height)
    top = lerp(features[y0, x0], features[y0, x1], wx)
    return lerp(top, lerp(features[y1, x0], features[y1, x1], wx), wy)


def sample_correlation(
    levels: tuple[Array, ...],
    points: Float[Array, "m 2"],
    targets: Float[Array, "m c"],
    *,
    radius: int,
) -> Float[Array, "m w"]:
    """Correlates targets with the features around points, on every level of a frame's pyramid.

    The window holds the `(2 radius + 1)**2` positions at whole offsets from the point, x outermost
    (the official code builds its offsets as (y, x) and adds them to (x, y)); outside the map the
    correlation is zero (official file: heads/track_modules/blocks.py, CorrBlock). Sampling is
    linear, so that this correlates features at whole positions and then interpolates, without the
    volume of every point against every pixel.
    """
    samples = []
    for level, features in enumerate(levels):
        height, width, channels = features.shape
        x, weight_x, inside_x = _window(points[:, 0] / 2**level, radius, width)
        y, weight_y, inside_y = _window(points[:, 1] / 2**level, radius, height)
        window = features[y[:, None, :], x[:, :, None]]  # [m, x, y, c]
        products = jnp.sum(window * targets[:, None, None, :], axis=-1) / np.float32(channels**0.5)
        products = jnp.where(inside_x[:, :, None] & inside_y[:, None, :], products, 0)
        along_x = lerp(products[:, :-1], products[:, 1:], weight_x[:, :, None])
        both = lerp(along_x[:, :, :-1], along_x[:, :, 1:], weight_y[:, None, :])
        samples.append(both.reshape(len(points), -1))
    return jnp.concatenate(samples, axis=-1)


def lerp(low, high, weight):
    """`low` at weight 0, `high` at weight 1."""
    return (1 - weight) * low + weight * high


def _window(centre: Float[Array, " m"], radius: int, size: int):
    """A window along one axis: `2 radius + 2` whole positions, which of them lie inside, and for
    each of the `2 radius + 1` samples between two neighbours the weight of the upper one."""
    offsets = np.arange(-radius, radius + 1, dtype=np.float32)
    positions = grid_position(centre[:, None] + offsets[None], size)
    if size == 1:
        # `grid_sample` maps every coordinate to the one pixel there is.
        zeros = jnp.zeros((len(centre), 2 * radius + 2), jnp.int32)
        return zeros, jnp.zeros_like(positions), zeros == 0
    low = jnp.floor(positions[:, :1]).astype(jnp.int32)
    whole = low + np.arange(2 * radius + 2, dtype=np.int32)[None]
    inside = (whole >= 0) & (whole < size)
    return jnp.clip(whole, 0, size - 1), positions - whole[:, :-1].astype(jnp.float32), inside
