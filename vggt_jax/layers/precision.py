"""In which type matrix products run."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True)
class Precision:
    """Types of matrix products and convolutions; everything else is float32.

    `bfloat16` products accumulate in float32 and return bfloat16, as under PyTorch's autocast.
    `float32` products run at the highest precision, so that they agree with a CPU: the parity mode.
    """

    compute_dtype: jnp.dtype
    matmul: jax.lax.Precision

    @classmethod
    def from_compute_dtype(cls, compute_dtype: DTypeLike | None) -> "Precision":
        """Resolves a user's choice; `None` is bfloat16 on a GPU and float32 elsewhere."""
        if compute_dtype is None:
            compute_dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
        dtype = jnp.dtype(compute_dtype)
        if dtype == jnp.float32:
            return cls(dtype, jax.lax.Precision.HIGHEST)
        if dtype == jnp.bfloat16:
            return cls(dtype, jax.lax.Precision.DEFAULT)
        raise ValueError(f"compute_dtype={dtype.name} is not supported (float32, bfloat16)")

    @property
    def heads(self) -> "Precision":
        """Of the heads: float32 always, on a GPU through TF32 unless in parity mode."""
        return Precision(jnp.dtype(jnp.float32), self.matmul)
