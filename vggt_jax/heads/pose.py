"""The camera head of π³: tokens of a frame to where its camera stands."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax import geometry
from vggt_jax.heads.residual_unit import ResidualUnit
from vggt_jax.layers.linear import Linear
from vggt_jax.layers.precision import Precision

_NUM_UNITS = 2  # official file: pi3/models/layers/camera_head.py
_SMALLEST_LENGTH = 1e-12  # torch.nn.functional.normalize


class PoseHead(nnx.Module):
    """Decoded patch tokens to poses (official file: pi3/models/layers/camera_head.py)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.res_conv = nnx.List([ResidualUnit(dim, rngs=rngs) for _ in range(_NUM_UNITS)])
        self.mlp_1, self.mlp_2 = (Linear(dim, dim, rngs=rngs) for _ in range(2))
        self.fc_t = Linear(dim, 3, rngs=rngs)
        self.fc_rot = Linear(dim, 9, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "*b p c"], precision: Precision
    ) -> Float[Array, "*b 4 4"]:
        """World_from_camera of every frame, from the tokens of its patches; float32."""
        x = tokens
        for unit in self.res_conv:
            x = unit(x, precision)
        x = jnp.mean(x, axis=-2)
        for linear in (self.mlp_1, self.mlp_2):
            x = jax.nn.relu(linear(x, precision))
        rows = self.fc_rot(x, precision).reshape(*x.shape[:-1], 3, 3)
        squared = jnp.sum(rows * rows, axis=-1, keepdims=True)
        rotation = geometry.nearest_rotation(
            rows / jnp.sqrt(jnp.maximum(squared, _SMALLEST_LENGTH**2))
        )
        translation = self.fc_t(x, precision)[..., None]
        pose = jnp.concatenate([rotation, translation], axis=-1)
        last = jnp.broadcast_to(np.array([0, 0, 0, 1], np.float32), (*pose.shape[:-2], 1, 4))
        return jnp.concatenate([pose, last], axis=-2)
