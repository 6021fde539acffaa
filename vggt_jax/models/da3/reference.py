"""Which view of a scene the others are seen from, chosen from what the encoder makes of them.

Official file: depth_anything_3/model/reference_view_selector.py.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.blocks import leading

ReferenceView = Literal["saddle_balanced", "saddle_sim_range", "first", "middle"]
"""How the reference view is chosen: the most average one (the official default), the one whose
similarities to others differ most, or by its place."""

# With fewer views it is the first (official file: depth_anything_3/utils/constants.py,
# THRESH_FOR_REF_SELECTION).
_FEWEST_TO_CHOOSE = 3
_EPS = 1e-8


def reference_view(
    tokens: Float[Array, "b s c"],
    num_frames: Int[Array, " b"] | None = None,
    *,
    strategy: ReferenceView = "saddle_balanced",
) -> Int[Array, " b"]:
    """The index of the reference view of each scene.

    Args:
        tokens: a token of each view.
        num_frames: how many leading views of each scene count; None for all.
        strategy: see `ReferenceView`.

    Raises:
        ValueError: the strategy is unknown.
    """
    if strategy not in get_args(ReferenceView):
        names = ", ".join(map(repr, get_args(ReferenceView)))
        raise ValueError(f"reference view {strategy!r} is unknown; use {names}")
    b, s, _ = tokens.shape
    if num_frames is None:
        num_frames = jnp.full(b, s, jnp.int32)
    num_frames = num_frames.astype(jnp.int32)
    counts = leading(num_frames, s)
    if strategy == "first":
        index = jnp.zeros(b, jnp.int32)
    elif strategy == "middle":
        index = num_frames // 2
    elif strategy == "saddle_balanced":
        scores = jnp.where(counts, balance_scores(tokens, counts), jnp.inf)
        index = jax.lax.argmin(scores, 1, jnp.int32)
    else:
        scores = jnp.where(counts, range_scores(tokens, counts), -jnp.inf)
        index = jax.lax.argmax(scores, 1, jnp.int32)
    return jnp.where(num_frames < _FEWEST_TO_CHOOSE, jnp.int32(0), index)


def balance_scores(
    tokens: Float[Array, "b s c"], counts: Bool[Array, "b s"]
) -> Float[Array, "b s"]:
    """How far views are from the middle of all in similarity, size and variance; the least is best.

    Args:
        counts: which views count.
    """
    length, unit = _lengths(tokens)
    num = jnp.sum(counts, axis=1, keepdims=True)
    others = jnp.maximum(num - 1, 1).astype(jnp.float32)
    similarity = jnp.sum(_similarities(unit, counts), axis=2) / others
    # The unbiased variance, but for a constant: what views differ in is not lost beside the mean
    # square, which is the same for all vectors of length 1.
    dim = tokens.shape[2]
    variance = -jnp.square(jnp.mean(unit, axis=2)) * np.float32(dim / (dim - 1))

    def from_middle(metric):
        low = jnp.min(jnp.where(counts, metric, jnp.inf), axis=1, keepdims=True)
        high = jnp.max(jnp.where(counts, metric, -jnp.inf), axis=1, keepdims=True)
        return jnp.abs((metric - low) / (high - low + _EPS) - 0.5)

    return from_middle(similarity) + from_middle(length) + from_middle(variance)


def range_scores(tokens: Float[Array, "b s c"], counts: Bool[Array, "b s"]) -> Float[Array, "b s"]:
    """The spread of each view's similarities, that to itself counted as 0; the largest is best."""
    _, unit = _lengths(tokens)
    similarity, pairs = _similarities(unit, counts), counts[:, None, :]
    largest = jnp.max(jnp.where(pairs, similarity, -jnp.inf), axis=2)
    return largest - jnp.min(jnp.where(pairs, similarity, jnp.inf), axis=2)


def _lengths(tokens):
    tokens = tokens.astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(jnp.square(tokens), axis=2))
    return length, tokens / jnp.maximum(length, jnp.finfo(jnp.float32).tiny)[..., None]


def _similarities(unit, counts):
    """Cosines of the angles between views, less the identity; 0 to views that do not count."""
    highest = jax.lax.Precision.HIGHEST
    cosines = jnp.einsum("bsc,btc->bst", unit, unit, precision=highest)
    cosines -= jnp.eye(unit.shape[1], dtype=jnp.float32)
    return jnp.where(counts[:, None, :], cosines, 0.0)
