"""Keys for modules of which only shapes and types are wanted."""

import jax
from flax import nnx


class OneKey(nnx.Rngs):
    """Gives out the same key again and again, for `jax.eval_shape` of a constructor.

    A stream of Flax counts its keys in an array. Where that is traced, JAX composes at each key a
    message about where the array came from, which takes longer than all else in a constructor.
    """

    def __init__(self):
        super().__init__()

    def params(self) -> jax.Array:
        return jax.random.key(0)
