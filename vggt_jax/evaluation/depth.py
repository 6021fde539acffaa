"""How well depth is found."""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vggt_jax.evaluation import alignment as align

DepthAlignment = Literal["none", "median", "scale", "scale_and_shift"]
Extent = Literal["scene", "frame"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthMetrics:
    """Means over all valid pixels of a scene; NaN where there are none.

    Attributes:
        abs_rel: the mean of `|prediction - truth| / truth`; infinite where a valid pixel's
            prediction is not finite.
        delta1, delta2, delta3: the share of the pixels whose ratio to the truth, or its inverse, is
            below 1.25, 1.25^2 and 1.25^3, in [0, 1]. Predictions that are not positive never are.
        num_pixels: how many pixels are valid.
    """

    abs_rel: Float[Array, "*batch"]
    delta1: Float[Array, "*batch"]
    delta2: Float[Array, "*batch"]
    delta3: Float[Array, "*batch"]
    num_pixels: Int[Array, "*batch"]


def align_depth(
    depth: Float[Array, "*batch s height width"],
    truth: Float[Array, "*batch s height width"],
    valid: Bool[Array, "*batch s height width"] | None = None,
    *,
    alignment: DepthAlignment = "median",
    per: Extent = "scene",
) -> Float[Array, "*batch s height width"]:
    """The prediction in the scale of the truth.

    Args:
        depth, truth: along the viewing axis.
        valid: which pixels count; None for those of positive, finite truth, which is asked in any
            case. Predictions that are not finite take no part in the alignment.
        alignment: "none"; "median", the ratio of the medians; "scale", the factor of least squares;
            "scale_and_shift", factor and summand of least squares.
        per: "scene", one alignment for all frames, as fits a reconstruction; "frame", one for each,
            as is usual for single images.

    Raises:
        ValueError: shapes differ, or a name is unknown.
    """
    valid = _checked_valid(depth, truth, valid)
    for name, value, known in (("alignment", alignment, DepthAlignment), ("per", per, Extent)):
        if value not in get_args(known):
            raise ValueError(f"{name}={value!r} is unknown; use one of {get_args(known)}")
    if alignment == "none":
        return depth
    num_axes = 3 if per == "scene" else 2
    flat = lambda x: x.reshape(*x.shape[:-num_axes], -1)
    pixels = (flat(depth), flat(truth), flat(valid & jnp.isfinite(depth)))
    shift = jnp.float32(0)
    if alignment == "median":
        scale = align.median_scale(*pixels)
    elif alignment == "scale":
        scale = align.least_squares_scale(*pixels)
    else:
        scale, shift = align.least_squares_scale_and_shift(*pixels)
        shift = shift.reshape(*shift.shape, *[1] * num_axes)
    return depth * scale.reshape(*scale.shape, *[1] * num_axes) + shift


def depth_metrics(
    depth: Float[Array, "*batch s height width"],
    truth: Float[Array, "*batch s height width"],
    valid: Bool[Array, "*batch s height width"] | None = None,
    *,
    alignment: DepthAlignment = "median",
    per: Extent = "scene",
) -> DepthMetrics:
    """Compares depth after an alignment; the arguments are those of `align_depth`.

    Every valid pixel of a scene weighs the same, however they are spread over the frames. Where
    nothing valid is finite, so that there is no alignment, the prediction counts as a failure.
    """
    valid = _checked_valid(depth, truth, valid)
    aligned = align_depth(depth, truth, valid, alignment=alignment, per=per)
    is_finite = jnp.isfinite(aligned)
    safe_truth = jnp.where(valid, truth, 1.0)
    safe = jnp.where(is_finite, aligned, 0.0)
    relative = jnp.where(is_finite, jnp.abs(safe - safe_truth) / safe_truth, jnp.inf)
    positive = is_finite & (safe > 0)
    safe = jnp.where(positive, safe, 1.0)
    ratio = jnp.where(positive, jnp.maximum(safe / safe_truth, safe_truth / safe), jnp.inf)
    num_pixels = jnp.sum(valid, axis=(-3, -2, -1), dtype=jnp.int32)

    def mean(x):
        # Row by row, then over rows and frames: float32 sums of millions of pixels stay exact
        # enough.
        rows = jnp.sum(jnp.where(valid, x, 0.0), axis=-1, dtype=jnp.float32)
        return jnp.sum(jnp.sum(rows, axis=-1), axis=-1) / num_pixels.astype(jnp.float32)

    within = [mean((ratio < 1.25**k).astype(jnp.float32)) for k in (1, 2, 3)]
    return DepthMetrics(
        abs_rel=mean(relative),
        delta1=within[0],
        delta2=within[1],
        delta3=within[2],
        num_pixels=num_pixels,
    )


def _checked_valid(depth, truth, valid):
    if (
        depth.ndim < 3
        or truth.shape != depth.shape
        or (valid is not None and valid.shape != depth.shape)
    ):
        shapes = [depth.shape, truth.shape] + ([] if valid is None else [valid.shape])
        raise ValueError(f"depth, truth and valid must be [... s height width] alike, not {shapes}")
    known = jnp.isfinite(truth) & (truth > 0)
    return known if valid is None else known & valid
