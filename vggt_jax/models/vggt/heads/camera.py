"""The camera head: refines a pose encoding of every frame in a few iterations."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vggt_jax.layers.attention import dense_attention
from vggt_jax.layers.block import Block, stack_modules
from vggt_jax.layers.linear import Linear
from vggt_jax.layers.mlp import Mlp
from vggt_jax.layers.norm import LayerNorm, normalize
from vggt_jax.layers.precision import Precision

POSE_ENCODING_DIM = 9  # translation 3, quaternion 4, field of view 2
_ADALN_EPS = 1e-6  # official file: vggt/heads/camera_head.py, adaln_norm


class CameraHead(nnx.Module):
    """Camera tokens of all frames to their pose encodings (official: vggt/heads/camera_head.py)."""

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        num_iterations: int,
        rngs: nnx.Rngs,
    ):
        self.num_iterations = num_iterations
        self.token_norm = LayerNorm(dim)
        make = lambda rngs: Block(
            dim, num_heads, mlp_ratio, norm_eps=1e-5, layer_scale=0.01, rngs=rngs
        )
        self.trunk = stack_modules(make, depth, rngs)
        self.trunk_norm = LayerNorm(dim)
        self.empty_pose_tokens = nnx.Param(jnp.zeros(POSE_ENCODING_DIM, jnp.float32))
        self.embed_pose = Linear(POSE_ENCODING_DIM, dim, rngs=rngs)
        self.modulation = Linear(dim, 3 * dim, rngs=rngs)
        self.pose_branch = Mlp(dim, dim // 2, POSE_ENCODING_DIM, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "b s c"],
        precision: Precision,
        num_frames: Int[Array, " b"] | None = None,
    ) -> Float[Array, "i b s 9"]:
        """Pose encodings after each iteration; the last is the prediction.

        An encoding is translation, quaternion (x, y, z, w; not normalised) and field of view
        (vertical, horizontal; not negative).
        """
        tokens = self.token_norm(tokens)
        normalized = normalize(tokens, eps=_ADALN_EPS)

        def iterate(carry, _):
            encoding, condition = carry
            shift, scale, gate = jnp.split(
                self.modulation(jax.nn.silu(self.embed_pose(condition, precision)), precision),
                3,
                axis=-1,
            )
            x = gate * (normalized * (1 + scale) + shift) + tokens
            x = self._run_trunk(x, num_frames, precision)
            encoding = encoding + self.pose_branch(self.trunk_norm(x), precision)
            return (encoding, jax.lax.stop_gradient(encoding)), encoding

        shape = (*tokens.shape[:2], POSE_ENCODING_DIM)
        empty = jnp.broadcast_to(self.empty_pose_tokens[...], shape)
        start = (jnp.zeros(shape, jnp.float32), empty)
        _, encodings = jax.lax.scan(iterate, start, length=self.num_iterations)
        return jnp.concatenate([encodings[..., :7], jax.nn.relu(encodings[..., 7:])], axis=-1)

    def _run_trunk(self, x, num_frames, precision):
        def layer(x, block: Block):
            q, k, v = block.before(x, None, precision)
            attended = dense_attention(
                q, k, v, kv_lengths=num_frames, precision=precision.matmul, implementation="xla"
            )
            return block.after(x, attended, precision), None

        return jax.lax.scan(layer, x, self.trunk)[0]
