"""The similarity between two sets of points of which some are wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vggt_jax.evaluation.alignment import Similarity, umeyama

_STEPS_L1, _STEPS_BISQUARE = 12, 18
# Tukey's constant for 95 % efficiency with normal errors, and what makes a median of absolute
# errors a deviation (Huber, "Robust Statistics", 1981).
_BISQUARE, _DEVIATION = 4.685, 1.4826
_SMALLEST = 1e-6  # Errors below are roundings.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustSimilarity:
    """A similarity, and how well pairs agree with it.

    Attributes:
        similarity: from the source to the target.
        error: the median error of a pair, in units of its length.
        inliers: the share of the weight that is on pairs which count.
    """

    similarity: Similarity
    error: Float[Array, ""]
    inliers: Float[Array, ""]


def robust_similarity(
    source: Float[Array, "m 3"],
    target: Float[Array, "m 3"],
    weights: Float[Array, " m"],
    lengths: Float[Array, " m"],
    *,
    with_scale: bool = True,
) -> RobustSimilarity:
    """The similarity on which most pairs agree; nearly half of the weight may be on wrong ones.

    Least squares again and again, with weights by the errors of the last time: first those that
    make it a sum of distances, which takes it near, then Tukey's bisquare, with which wrong pairs
    do not count at all.

    The scale is the ratio of the sizes of both, without wrong pairs, as in Horn's symmetric
    solution ("Closed-form solution of absolute orientation using unit quaternions", JOSA A 1987).
    Least squares take errors of the source for size, and their scale is too small by these.

    Args:
        source, target: pairs of points.
        weights: not negative; pairs of weight 0 do not count, and may hold anything.
        lengths: errors are in units of these, such as the distance from the camera; positive.
        with_scale: as `umeyama` has it.

    Returns:
        The similarity; everything is NaN where no pair counts.
    """
    valid = (weights > 0) & jnp.isfinite(source).all(-1) & jnp.isfinite(target).all(-1)
    valid &= jnp.isfinite(lengths) & (lengths > 0)
    known = lambda x: jnp.where(valid if x.ndim == 1 else valid[:, None], x, 0.0)
    source, target, weights = map(known, (source, target, weights))
    lengths = jnp.where(valid, lengths, 1.0)

    fit = lambda weights: umeyama(source, target, weights=weights, with_scale=with_scale)

    def errors(similarity):
        return jnp.linalg.norm(similarity.apply(source) - target, axis=-1) / lengths

    def by_distance(_, similarity):
        return fit(weights / jnp.maximum(errors(similarity), _SMALLEST) / lengths**2)

    def bisquare(_, similarity):
        trusted = weights * trust(errors(similarity)) / lengths**2
        found = fit(trusted)
        return _with_ratio_of_sizes(found, source, target, trusted) if with_scale else found

    def trust(error):
        limit = _BISQUARE * _DEVIATION * jnp.maximum(_median(error, weights), _SMALLEST)
        return jnp.maximum(1 - (error / limit) ** 2, 0.0) ** 2

    found = jax.lax.fori_loop(
        np.int32(0), np.int32(_STEPS_L1), by_distance, fit(weights / lengths**2)
    )
    found = jax.lax.fori_loop(np.int32(0), np.int32(_STEPS_BISQUARE), bisquare, found)
    error = errors(found)
    total = jnp.sum(weights)
    counted = jnp.sum(weights * (trust(error) > 0))
    return RobustSimilarity(
        similarity=found,
        error=jnp.where(total > 0, _median(error, weights), jnp.nan),
        inliers=jnp.where(total > 0, counted / jnp.where(total > 0, total, 1.0), jnp.nan),
    )


def _with_ratio_of_sizes(
    found: Similarity, source: Array, target: Array, weights: Array
) -> Similarity:
    """The similarity with the scale that makes both sets of points equally large."""
    total = jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)
    mean = lambda x: jnp.sum(weights[:, None] * x, axis=0) / total
    centres = mean(source), mean(target)
    sizes = (
        jnp.sum(weights[:, None] * (x - centre) ** 2)
        for x, centre in zip((source, target), centres, strict=True)
    )
    size_source, size_target = sizes
    is_spread = (size_source > 0) & (size_target > 0)
    ratio = jnp.sqrt(size_target / jnp.where(is_spread, size_source, 1.0))
    scale = jnp.where(is_spread & (found.scale > 0), ratio, found.scale)
    return Similarity(
        scale=scale,
        rotation=found.rotation,
        translation=centres[1] - scale * (found.rotation @ centres[0]),
    )


def _median(x: Float[Array, " m"], weights: Float[Array, " m"]) -> Float[Array, ""]:
    """The smallest number that half of the weight does not exceed."""
    order = jnp.argsort(x)
    summed = jnp.cumsum(weights[order])
    place = jnp.sum(summed < 0.5 * summed[-1], dtype=jnp.int32)
    return x[order][jnp.minimum(place, len(x) - 1)]
