"""Bringing a prediction into the coordinates and the scale of the truth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vggt_jax import geometry

_FULL_PRECISION = jax.lax.Precision.HIGHEST
# Points that are closer together than this share of their distance from the origin are one point:
# positions are results of float32 products, and their roundings no shape.
_ROUNDING = 16 * float(jnp.finfo(jnp.float32).eps)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Similarity:
    """The map `x -> scale * rotation @ x + translation`, an element of Sim(3).

    Attributes:
        scale: not negative.
        rotation: proper.
        translation: in units of the target.
    """

    scale: Float[Array, "*batch"]
    rotation: Float[Array, "*batch 3 3"]
    translation: Float[Array, "*batch 3"]

    def apply(self, points: Float[Array, "*batch m 3"]) -> Float[Array, "*batch m 3"]:
        """Points of the source in coordinates of the target."""
        turned = jnp.einsum("...ij,...mj->...mi", self.rotation, points, precision=_FULL_PRECISION)
        return self.scale[..., None, None] * turned + self.translation[..., None, :]

    def apply_to_cameras(
        self, world_from_camera: Float[Array, "*batch s 3 4"]
    ) -> Float[Array, "*batch s 3 4"]:
        """Cameras that stand and look in the target as they do in the source.

        Rotations stay rotations: the scale moves positions only.
        """
        rotations = jnp.einsum(
            "...ij,...sjk->...sik",
            self.rotation,
            world_from_camera[..., :3],
            precision=_FULL_PRECISION,
        )
        positions = self.apply(world_from_camera[..., 3])
        return jnp.concatenate([rotations, positions[..., None]], axis=-1)


def umeyama(
    source: Float[Array, "*batch m 3"],
    target: Float[Array, "*batch m 3"],
    valid: Bool[Array, "*batch m"] | None = None,
    *,
    with_scale: bool = True,
    weights: Float[Array, "*batch m"] | None = None,
) -> Similarity:
    """The similarity that brings points closest to their counterparts, by squared distances.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns"
    (TPAMI 1991), with the rotation from the polar decomposition of the covariance.

    Where the points leave something open, it is defined all the same: on a line (two points) the
    rotation is one of the best; where all sources coincide it is the identity, with a scale of 1;
    where only the targets do, the scale is 0. Points that differ by no more than float32 rounds
    coincide. Without a valid pair everything is NaN.

    Args:
        source, target: pairs of points.
        valid: which pairs count; None for all. Others may hold anything, NaN included.
        with_scale: whether the scale is free; otherwise it is 1 (SE(3)).
        weights: of squared distances, not negative; None for the same of all. A pair of weight 0
            does not count.
    """
    if valid is None:
        valid = jnp.ones(source.shape[:-1], bool)
    if weights is not None:
        valid = valid & (weights > 0)
        weights = jnp.where(valid, weights.astype(jnp.float32), 0.0)
    number = jnp.sum(valid, axis=-1, dtype=jnp.int32)
    total = number.astype(jnp.float32) if weights is None else jnp.sum(weights, axis=-1)
    weighted = lambda points: points if weights is None else weights[..., None] * points

    def centred(points):
        points = jnp.where(valid[..., None], points.astype(jnp.float32), 0.0)
        mean = jnp.sum(weighted(points), axis=-2) / total[..., None]
        return mean, jnp.where(valid[..., None], points - mean[..., None, :], 0.0)

    (source_mean, source), (target_mean, target) = centred(source), centred(target)
    source_size, target_size = _size(source, source_mean), _size(target, target_mean)
    # Sizes of 1: the decomposition is to see no numbers near the ends of float32.
    unit = lambda points, size: points / jnp.where(size > 0, size, 1.0)[..., None, None]
    source, target = unit(source, source_size), unit(target, target_size)
    covariance = jnp.einsum(
        "...mi,...mj->...ij", weighted(target), source, precision=_FULL_PRECISION
    )
    is_spread = source_size > 0
    both = (is_spread & (target_size > 0))[..., None, None]
    rotation = geometry.nearest_rotation(jnp.where(both, covariance, np.eye(3, dtype=np.float32)))
    scale = jnp.ones_like(source_size)
    if with_scale:
        variance = jnp.sum(weighted(source * source), axis=(-2, -1))
        best = jnp.sum(rotation * covariance, axis=(-2, -1)) / jnp.where(is_spread, variance, 1.0)
        best = jnp.maximum(best, 0.0) * target_size / jnp.where(is_spread, source_size, 1.0)
        scale = jnp.where(is_spread, best, 1.0)
    turned = jnp.einsum("...ij,...j->...i", rotation, source_mean, precision=_FULL_PRECISION)
    found = Similarity(
        scale=scale,
        rotation=rotation,
        translation=target_mean - scale[..., None] * turned,
    )
    known = lambda x: jnp.where(jnp.expand_dims(number > 0, range(number.ndim, x.ndim)), x, jnp.nan)
    return jax.tree.map(known, found)


def has_extent(points: Float[Array, "*batch m 3"]) -> Bool[Array, "*batch"]:
    """Whether points are more than one, as `umeyama` tells: by more than float32 rounds."""
    mean = jnp.mean(points, axis=-2)
    return _size(points - mean[..., None, :], mean) > 0


def _size(centred, mean):
    """The largest coordinate, 0 where that is rounding."""
    size = jnp.max(jnp.abs(centred), axis=(-2, -1), initial=0.0)
    return jnp.where(size > _ROUNDING * jnp.max(jnp.abs(mean), axis=-1), size, 0.0)


def median_scale(
    source: Float[Array, "*batch m"],
    target: Float[Array, "*batch m"],
    valid: Bool[Array, "*batch m"],
) -> Float[Array, "*batch"]:
    """The ratio of the medians, `median(target) / median(source)`; NaN without valid numbers."""
    return _median(target, valid) / _median(source, valid)


def _median(x, valid):
    """`jnp.nanmedian` of the valid numbers, without making the others NaN, for `jax_debug_nans`."""
    valid = valid & ~jnp.isnan(x)
    number = jnp.sum(valid, axis=-1, dtype=jnp.int32)[..., None]
    ordered = jnp.sort(jnp.where(valid, x, jnp.inf), axis=-1)
    middle = (jnp.maximum(number - 1, 0) // 2, jnp.minimum(number // 2, x.shape[-1] - 1))
    low, high = (jnp.take_along_axis(ordered, place, axis=-1) for place in middle)
    return jnp.where(number > 0, 0.5 * low + 0.5 * high, jnp.nan)[..., 0]


def least_squares_scale(
    source: Float[Array, "*batch m"],
    target: Float[Array, "*batch m"],
    valid: Bool[Array, "*batch m"],
) -> Float[Array, "*batch"]:
    """The `a` that makes `a * source` closest to the target, by squared differences.

    1 where all sources are 0, NaN without valid numbers.
    """
    source, target = (jnp.where(valid, x, 0.0) for x in (source, target))
    square = jnp.sum(source * source, axis=-1)
    scale = jnp.sum(source * target, axis=-1) / jnp.where(square > 0, square, 1.0)
    scale = jnp.where(square > 0, scale, 1.0)
    return jnp.where(jnp.any(valid, axis=-1), scale, jnp.nan)


def least_squares_scale_and_shift(
    source: Float[Array, "*batch m"],
    target: Float[Array, "*batch m"],
    valid: Bool[Array, "*batch m"],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """The `a` and `b` that make `a * source + b` closest to the target, by squared differences.

    Where all sources are equal, the scale is 1 and the shift alone is fitted; NaN without valid
    numbers.
    """
    number = jnp.sum(valid, axis=-1, dtype=jnp.int32)

    def centred(x):
        mean = jnp.sum(jnp.where(valid, x, 0.0), axis=-1) / number.astype(x.dtype)
        return mean, jnp.where(valid, x - mean[..., None], 0.0)

    (source_mean, source), (target_mean, target) = centred(source), centred(target)
    variance = jnp.sum(source * source, axis=-1)
    scale = jnp.sum(source * target, axis=-1) / jnp.where(variance > 0, variance, 1.0)
    scale = jnp.where(variance > 0, scale, 1.0)
    scale = jnp.where(number > 0, scale, jnp.nan)
    return scale, target_mean - scale * source_mean
