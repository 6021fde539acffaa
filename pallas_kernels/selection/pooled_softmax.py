"""The softmax that blocks are chosen by, where it is asked for as a whole."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_LOWEST = float(jnp.finfo(jnp.float32).min)
_HIGHEST = float(jnp.finfo(jnp.float32).max)


def pooled_softmax(
    scores: Float[Array, "*rows kb"], takes_part: Bool[Array, " kb"]
) -> tuple[Float[Array, "*rows kb"], Float[Array, "*rows"]]:
    """Probabilities of the blocks of each row, and their entropy in nats.

    Scores that are no numbers are treated as `row.keep_blocks` does. Without any block that takes
    part all is zero.
    """
    scores = jnp.where(scores != scores, _LOWEST, jnp.clip(scores, _LOWEST, _HIGHEST))
    top = jnp.max(jnp.where(takes_part, scores, _LOWEST), axis=-1, keepdims=True)
    # Half of each, since the difference of the largest numbers is infinite.
    below = 2 * jnp.maximum(0.5 * scores - 0.5 * top, 0.5 * _LOWEST)
    masses = jnp.where(takes_part, jnp.exp(below), 0.0)
    total = jnp.maximum(jnp.sum(masses, axis=-1), 1e-37)
    # What has no mass weighs nothing.
    mean = jnp.sum(jnp.where(masses > 0, masses * below, 0.0), axis=-1) / total
    entropy = jnp.maximum(jnp.log(total) - mean, 0.0)
    return masses / total[..., None], jnp.where(jnp.any(takes_part), entropy, 0.0)
