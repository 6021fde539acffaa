"""The arguments of `norm_rope` as backends take them."""

import dataclasses

import jax
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class NormRopeCall:
    """See `norm_rope`; the tables are float32 and without a gradient."""

    x: Float[Array, "*b p n h"]
    cos: Float[Array, "p h"]
    sin: Float[Array, "p h"]
    bias: Float[Array, "n h"]
    scale: Float[Array, " h"]
    offset: Float[Array, " h"]
    eps: float = dataclasses.field(metadata={"static": True})
