"""The arguments of a linear layer as backends take them."""

import dataclasses

import jax
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearCall:
    """See `linear`."""

    x: Float[Array, "*b i"]
    kernel: Float[Array, "i o"]
    bias: Float[Array, " o"] | None
    activation: str | None = dataclasses.field(metadata={"static": True})
    precision: jax.lax.Precision | None = dataclasses.field(metadata={"static": True})
