"""Many random numbers of one scene from one call of the generator, which compiles slowly."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Draws:
    """Hands out numbers of one block of uniform ones, each once.

    Args:
        key: of `jax.random`.
        count: size of the block.
    """

    def __init__(self, key: Array, count: int):
        self._numbers = jax.random.uniform(key, (count,), jnp.float32)
        self._used = 0

    def uniform(self, *shape: int, low: Array | float = 0.0, high: Array | float = 1.0) -> Array:
        """Numbers in [low, high).

        Raises:
            ValueError: the block is used up.
        """
        begin, self._used = self._used, self._used + math.prod(shape)
        if self._used > len(self._numbers):
            raise ValueError(f"{self._used} numbers were asked for, of {len(self._numbers)}")
        return low + (high - low) * self._numbers[begin : self._used].reshape(shape)

    def within(self, limits: Float[Array, "2"], *shape: int) -> Array:
        """Numbers between two limits."""
        return self.uniform(*shape, low=limits[0], high=limits[1])

    def chance(self, probability: Array | float, *shape: int) -> Array:
        """True with a probability."""
        return self.uniform(*shape) < probability

    def integers(self, *shape: int, below: int) -> Array:
        """Integers from 0."""
        # The product may round up to `below` itself.
        return jnp.minimum((self.uniform(*shape) * below).astype(jnp.int32), below - 1)

    def normal(self, *shape: int) -> Array:
        """Normal numbers of deviation 1."""
        return jax.scipy.special.ndtri(self.uniform(*shape, low=1e-6, high=1 - 1e-6))
