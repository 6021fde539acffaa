"""Known cameras to tokens, and tokens to cameras."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vggt_jax.layers.attention import dense_attention
from vggt_jax.layers.block import Block, stack_modules
from vggt_jax.layers.linear import Linear
from vggt_jax.layers.mlp import Mlp
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision

_POSE_DIM = 9  # translation 3, quaternion 4, field of view 2
_NORM_EPS = 1e-5


class CameraEncoder(nnx.Module):
    """Known cameras to camera tokens; the cameras of a scene see each other.

    Official file: depth_anything_3/model/cam_enc.py.
    """

    def __init__(self, dim: int, *, depth: int, num_heads: int, mlp_ratio: float, rngs: nnx.Rngs):
        self.pose_branch = Mlp(_POSE_DIM, dim // 2, dim, rngs=rngs)
        self.token_norm = LayerNorm(dim, eps=_NORM_EPS)
        make = lambda rngs: Block(
            dim, num_heads, mlp_ratio, norm_eps=_NORM_EPS, layer_scale=0.01, rngs=rngs
        )
        self.trunk = stack_modules(make, depth, rngs)
        self.trunk_norm = LayerNorm(dim, eps=_NORM_EPS)

    def __call__(
        self,
        pose_enc: Float[Array, "b s 9"],
        num_frames: Int[Array, " b"] | None,
        precision: Precision,
    ) -> Float[Array, "b s c"]:
        """Tokens of cameras as `encoding_from_cameras` gives them."""

        def layer(x, block: Block):
            q, k, v = block.before(x, None, precision, implementation="xla")
            attended = dense_attention(
                q,
                k,
                v,
                kv_lengths=num_frames,
                precision=precision.matmul,
                implementation="xla",
            )
            return block.after(x, attended, precision, implementation="xla"), None

        x = jax.lax.scan(layer, self.embed(pose_enc, precision), self.trunk)[0]
        return self.trunk_norm(x)

    def embed(self, pose_enc: Float[Array, "b s 9"], precision: Precision) -> Float[Array, "b s c"]:
        """Tokens before cameras see each other."""
        return self.token_norm(self.pose_branch(pose_enc, precision, implementation="xla"))


class CameraDecoder(nnx.Module):
    """Camera tokens to encodings of cameras, as `cameras_from_encoding` takes them.

    Official file: depth_anything_3/model/cam_dec.py.
    """

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.mlp_1, self.mlp_2 = (Linear(dim, dim, rngs=rngs) for _ in range(2))
        self.fc_t = Linear(dim, 3, rngs=rngs)
        self.fc_qvec = Linear(dim, 4, rngs=rngs)
        self.fc_fov = Linear(dim, 2, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "b s c"], precision: Precision
    ) -> Float[Array, "b s 9"]:
        """Encodings of all frames, float32."""
        x = tokens
        for linear in (self.mlp_1, self.mlp_2):
            x = jax.nn.relu(linear(x, precision))
        field_of_view = jax.nn.relu(self.fc_fov(x, precision))
        parts = self.fc_t(x, precision), self.fc_qvec(x, precision), field_of_view
        return jnp.concatenate(parts, axis=-1)
