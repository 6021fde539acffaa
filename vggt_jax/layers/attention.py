"""Dense attention: the function with its implementations, and the layer around it."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

import pallas_kernels
from pallas_kernels import (
    BlockMap,
    attention_unsupported_because,
    block_sparse_attention,
    devices,
    tuned,
)
from pallas_kernels.attention.config import MAX_CAPACITY
from pallas_kernels.blocks import next_power_of_2
from pallas_kernels.mosaic_gpu_call import align
from pallas_kernels.norm_rope import apply_rope
from vggt_jax.layers.few_queries import attend_to_everything
from vggt_jax.layers.linear import Linear, apply_linear
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.plain_attention import plain_attention
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import (
    AttentionStats,
    HeadGroup,
    SceneAttention,
    SceneTokens,
)
from vggt_jax.layers.shards import FrameShards
from vggt_jax.layers.token_order import TokenOrder

Implementation = Literal["mosaic_gpu", "cudnn", "xla", "triton"]

_MAX_KEYS_OF_OWN_KERNEL = 64 * MAX_CAPACITY


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(SceneAttention):
    """Every token attends to every token.

    `implementation`: "mosaic_gpu" (the kernel of `pallas_kernels` for Hopper GPUs, with every block
    kept), "triton" (the same for NVIDIA GPUs from Ampere on), "cudnn" (NVIDIA GPUs from Ampere on,
    for bfloat16 and float16), "xla" (any device, bounded memory), or None to choose by device, type
    and number of keys. A name means that one or an error.
    """

    gathers_keys: ClassVar[bool] = True
    implementation: Implementation | None = None

    def __post_init__(self):
        if self.implementation not in (None, *get_args(Implementation)):
            names = ", ".join(map(repr, get_args(Implementation)))
            raise ValueError(f"{self.implementation=} is unknown; use {names} or None")

    @property
    def around(self) -> Literal["xla"] | None:
        """The implementation of what is around it in a block: plain XLA where attention is."""
        return "xla" if self.implementation == "xla" else None

    @property
    def within_frames(self) -> "Dense":
        return self

    def attend(
        self,
        q,
        k,
        v,
        *,
        num_special,
        grid,
        token_order,
        layer,
        num_frames,
        precision: Precision,
        scene: SceneTokens | None = None,
        shards: FrameShards | None = None,
        heads: HeadGroup | None = None,
    ) -> tuple[Float[Array, "b s p n h"], Float[Array, "b e n h"] | None, AttentionStats]:
        del token_order, layer, shards, heads
        b, s, padded, n, h = q.shape
        p = num_special + grid[0] * grid[1]
        joined = [x[:, :, :p].reshape(b, -1, n, h) for x in (q, k, v)]
        first = 0
        if scene is not None:  # They come first, so that padded frames stay at the end.
            first = scene.q.shape[1]
            pairs = zip(scene, joined, strict=True)
            joined = [jnp.concatenate([x, y], axis=1) for x, y in pairs]
        attended = dense_attention(
            *joined,
            kv_lengths=None if num_frames is None else first + num_frames * p,
            precision=precision.matmul,
            implementation=self.implementation,
        )
        of_scene = None if scene is None else attended[:, :first]
        attended = attended[:, first:].reshape(b, s, p, n, h)
        attended = jnp.pad(attended, ((0, 0), (0, 0), (0, padded - p), (0, 0), (0, 0)))
        return attended, of_scene, AttentionStats.of_dense(b, n)

    def extra_bytes(
        self, *, num_frames, num_special, num_patches, num_heads, head_dim, itemsize, num_devices=1
    ) -> int:
        """Scores in plain JAX; with a kernel, tokens without the padding of frames."""
        p = num_special + num_patches
        if num_devices > 1:
            scores = bytes_of_scores(num_heads, num_frames * p, num_devices * num_frames * p)
            # Queries without the padding, and results before it is added.
            alone = 2 * itemsize * num_frames * p * num_heads * head_dim
            return alone + (scores if itemsize == 4 else 0)
        if itemsize == 4:
            return bytes_of_scores(num_heads, num_frames * p, num_frames * p)
        padded = padded_tokens(p, self, head_dim=head_dim, dtype=jnp.bfloat16)
        return 3 * (padded != p) * itemsize * num_frames * p * num_heads * head_dim


def bytes_of_scores(num_heads: int, num_queries: int, num_keys: int) -> int:
    """What scores and their weights take in plain JAX, in chunks of heads or of queries."""
    return 2 * min(4 * num_heads * num_queries * num_keys, tuned.value("dense.max_score_bytes"))


class NotDense(SceneAttention):
    """What `Sampled` and `BlockSparse` share: few tokens are dense, and scenes are independent."""

    min_tokens: int
    implementation: Literal["mosaic_gpu", "triton", "xla"] | None

    @property
    def within_frames(self) -> Dense:
        """Dense attention, in plain XLA if that is asked for."""
        return Dense(implementation="xla" if self.implementation == "xla" else None)

    def decided(self) -> "NotDense":
        return dataclasses.replace(self, min_tokens=0)  # pyright: ignore[reportArgumentType]

    def attend(
        self,
        q,
        k,
        v,
        *,
        num_special,
        grid,
        token_order,
        layer,
        num_frames,
        precision: Precision,
        scene: SceneTokens | None = None,
        shards: FrameShards | None = None,
        heads: HeadGroup | None = None,
    ):
        def one_scene(q, k, v, num_frames, scene):
            return self.attend_scene(
                q,
                k,
                v,
                num_special=num_special,
                grid=grid,
                token_order=token_order,
                layer=layer,
                num_frames=num_frames,
                precision=precision,
                scene=scene,
                shards=shards,
                heads=heads,
            )

        return jax.vmap(one_scene)(q, k, v, num_frames, scene)

    @abc.abstractmethod
    def attend_scene(
        self,
        q: Float[Array, "s p n h"],
        k: Float[Array, "s p n h"],
        v: Float[Array, "s p n h"],
        *,
        num_special: int,
        grid: tuple[int, int],
        token_order: TokenOrder,
        layer: Int[Array, ""],
        num_frames: Int[Array, ""] | None,
        precision: Precision,
        scene: SceneTokens | None,
        shards: FrameShards | None,
        heads: HeadGroup | None,
    ) -> tuple[Float[Array, "s p n h"], Float[Array, "e n h"] | None, AttentionStats]:
        """`attend` for one scene."""


def dense_attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b kv n h"],
    v: Float[Array, "b kv n h"],
    *,
    kv_lengths: Int[Array, " b"] | None = None,
    key_bias: Float[Array, "b n kv"] | None = None,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
    implementation: Implementation | None = None,
    max_score_bytes: int | None = None,
) -> Float[Array, "b t n h"]:
    """Softmax attention with scores scaled by `1 / sqrt(h)`, softmax and sums in float32.

    Args:
        kv_lengths: how many of the leading keys of each batch row count; None for all.
        key_bias: what is added to the scaled scores of each head and key, float32: finite, or -inf
            to leave a key out; see `pallas_kernels.block_sparse_attention`. cuDNN takes none.
        precision: of float32 products; bfloat16 and float16 products accumulate in float32.
        implementation: see `Dense`.
        max_score_bytes: how many bytes of scores exist at a time in "xla".

    Raises:
        NotImplementedError: the implementation named cannot run these arrays on this device.
    """
    obstacles = dense_obstacles(head_dim=q.shape[-1], dtype=q.dtype)
    if key_bias is not None:
        obstacles["cudnn"] = "cuDNN takes no bias for each key"
    if implementation is None:
        implementation = _choose(obstacles, q, k, has_bias=key_bias is not None)
    elif obstacle := obstacles[implementation]:
        raise NotImplementedError(f"{implementation}: {obstacle}; use implementation='xla' or None")
    if implementation == "cudnn":
        return _cudnn(q, k, v, kv_lengths)
    if implementation == "xla":
        return plain_attention(
            q, k, v, kv_lengths, key_bias, precision, max_score_bytes=max_score_bytes
        )
    if implementation == "mosaic_gpu" and key_bias is None:
        return _mosaic_gpu(q, k, v, kv_lengths)
    return _biased(implementation, q, k, v, kv_lengths, key_bias)


def _choose(obstacles, q, k, *, has_bias: bool) -> Implementation:
    """The fastest implementation that can do this."""
    t, kv = q.shape[1], k.shape[1]
    is_aligned = align(t) == t and align(kv) == kv
    fewest = tuned.value("dense.min_keys_of_own_kernel" if is_aligned else "dense.min_keys_to_pad")
    pays: dict[Implementation, bool] = {
        "mosaic_gpu": fewest <= kv <= _MAX_KEYS_OF_OWN_KERNEL,
        "cudnn": True,
        "triton": has_bias and q.dtype != jnp.float32,
        "xla": True,
    }
    return next(name for name, here in pays.items() if here and obstacles[name] is None)


def padded_tokens(
    num_tokens: int, dense: Dense, *, head_dim: int, dtype: jax.typing.DTypeLike
) -> int:
    """How many tokens those of a frame should be padded to for the fastest attention among them.

    Then 8 divides the rows of matrix products, too; `pallas_kernels.linear` does them only if it
    does.
    """
    if (
        dense.implementation not in (None, "mosaic_gpu")
        or num_tokens < tuned.value("dense.min_keys_of_own_kernel")
        or dense_obstacles(head_dim=head_dim, dtype=dtype)["mosaic_gpu"]
    ):
        return num_tokens
    return align(num_tokens)


def dense_obstacles(
    *, head_dim: int, dtype: jax.typing.DTypeLike
) -> dict[Implementation, str | None]:
    """Why implementations of `dense_attention` cannot be used on the default device.

    Returns:
        By name, in the order in which they are preferred for many keys: the reason, or None where
        it can be used. "xla" always can. "triton" is preferred to it for biased scores of 16-bit
        types.
    """
    on_cudnn = (
        devices.is_ampere_or_later()
        and dtype in (jnp.bfloat16, jnp.float16)
        and head_dim <= 128
        and head_dim % 8 == 0
    )
    why_not_cudnn = (
        f"cuDNN needs an NVIDIA GPU from Ampere on, bfloat16 or float16 and a head dim that is a "
        f"multiple of 8 up to 128, not {jax.default_backend()=}, {jnp.dtype(dtype).name}, "
        f"{head_dim=}"
    )
    own = attention_unsupported_because(head_dim=head_dim, dtype=dtype)
    return {
        "mosaic_gpu": own["mosaic_gpu"],
        "cudnn": None if on_cudnn else why_not_cudnn,
        "xla": None,
        "triton": own["triton"],
    }


def _cudnn(q, k, v, kv_lengths):
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=kv_lengths, implementation="cudnn"
    )


@jax.custom_vjp
def _mosaic_gpu(q, k, v, kv_lengths):
    """Block-sparse attention that keeps every block; under differentiation, cuDNN's."""
    return _keep_every_block("mosaic_gpu", q, k, v, kv_lengths, None)


def _keep_every_block(implementation, q, k, v, kv_lengths, key_bias):
    """The kernels of block-sparse attention."""

    def scene(q, k, v, kv_length, key_bias):
        attend: Callable[..., Any] = functools.partial(
            block_sparse_attention,
            kv_lengths=kv_length,
            key_bias=key_bias,
            implementation=implementation,
        )
        (t, n, _), kv = q.shape, k.shape[0]
        if kv >= tuned.value("dense.keys_per_query_to_cut") * t:
            return attend_to_everything(q, k, v, attend, block_q=128, block_k=64)
        # All queries are one block, so that there is one list of keys for each head.
        block_map = BlockMap.full(n, t, kv, block_q=max(128, next_power_of_2(t)))
        return attend(q, k, v, block_map)

    return jax.vmap(scene)(q, k, v, kv_lengths, key_bias)


def _mosaic_gpu_forward(q, k, v, kv_lengths):
    # What is differentiated is cuDNN's attention altogether, so that nothing is computed twice.
    return jax.vjp(lambda q, k, v: _cudnn(q, k, v, kv_lengths), q, k, v)


def _mosaic_gpu_backward(pull_back, gradient):
    return *pull_back(gradient), None


_mosaic_gpu.defvjp(_mosaic_gpu_forward, _mosaic_gpu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _biased(implementation, q, k, v, kv_lengths, key_bias):
    """A kernel whose gradient is that of plain JAX, because cuDNN takes no bias for each key."""
    return _keep_every_block(implementation, q, k, v, kv_lengths, key_bias)


def _biased_forward(implementation, *arrays):
    return _biased(implementation, *arrays), arrays


def _biased_backward(implementation, arrays, gradient):
    del implementation
    q, k, v, kv_lengths, key_bias = arrays

    def plain(q, k, v, key_bias):
        highest = jax.lax.Precision.HIGHEST
        return plain_attention(q, k, v, kv_lengths, key_bias, highest, wrap=jax.checkpoint)

    of_q, of_k, of_v, of_bias = jax.vjp(plain, q, k, v, key_bias)[1](gradient)
    return of_q, of_k, of_v, None, of_bias


_biased.defvjp(_biased_forward, _biased_backward)


class Rope(NamedTuple):
    """Tables of `rope_tables` for the tokens of a frame."""

    cos: Float[Array | np.ndarray, "p h"]
    sin: Float[Array | np.ndarray, "p h"]


class Attention(nnx.Module):
    """Projections around attention: to queries, keys and values, and back.

    Attention itself lies between `project` and `output`, because only the caller knows which
    tokens see each other (those of a frame, or all of a scene) and by which kernel.
    """

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, rngs=rngs)
        self.q_norm = LayerNorm(dim // num_heads) if qk_norm else None
        self.k_norm = LayerNorm(dim // num_heads) if qk_norm else None
        self.proj = Linear(dim, dim, rngs=rngs)

    def project(
        self,
        x: Float[Array, "*b p c"],
        rope: Rope | None,
        precision: Precision,
        *,
        implementation: Literal["xla"] | None = None,
        first: Int[Array, ""] | None = None,
        num_heads: int | None = None,
    ) -> tuple[Float[Array, "*b p n h"], Float[Array, "*b p n h"], Float[Array, "*b p n h"]]:
        """Queries and keys, normalised and turned in float32, and values; all in the compute type.

        Args:
            first, num_heads: so many heads from there on; None for all.
            implementation: of `pallas_kernels.norm_rope`, where queries and keys are normalised and
                turned, and `pallas_kernels.linear`; None to choose by device, type and size.
        """
        head_dim = x.shape[-1] // self.num_heads
        heads = (*x.shape[:-1], num_heads or self.num_heads, head_dim)
        # Three products, because parts of one would be copied out of it.
        kernels = jnp.split(self.qkv.kernel[...], 3, axis=-1)
        biases = jnp.split(self.qkv.bias[...], 3)
        if first is not None and num_heads is not None:
            start, size = first * np.int32(head_dim), num_heads * head_dim
            take = lambda y: jax.lax.dynamic_slice_in_dim(y, start, size, axis=-1)
            kernels, biases = [*map(take, kernels)], [*map(take, biases)]

        def product(x, i, bias):
            by = "xla" if bias is None else implementation
            return apply_linear(x, kernels[i], bias, precision, implementation=by).reshape(heads)

        if self.q_norm is not None and self.k_norm is not None and rope is not None:
            is_half = precision.compute_dtype.itemsize == 2
            x = x.astype(precision.compute_dtype) if is_half else x
            turned = []
            for i, norm in enumerate((self.q_norm, self.k_norm)):
                # The product comes without its bias, which joins here before it is rounded again.
                y = pallas_kernels.norm_rope(
                    product(x, i, None),
                    *rope,
                    bias=biases[i],
                    scale=norm.scale[...],
                    offset=norm.bias[...],
                    eps=norm.eps,
                    implementation=implementation,
                )
                # The next product waits for this, lest all three be in memory before the first is
                # turned. Nor does XLA join products of few tokens then, because they multiply the
                # same array.
                x, y = jax.lax.optimization_barrier((x, y)) if is_half else (x, y)
                turned.append(y)
            return *turned, product(x, 2, biases[2])
        q, k, v = (product(x, i, bias) for i, bias in enumerate(biases))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        return q.astype(v.dtype), k.astype(v.dtype), v

    def output(
        self,
        attended: Float[Array, "*b p n h"],
        precision: Precision,
    ) -> Float[Array, "*b p c"]:
        """Joins the heads and projects them."""
        return self.proj(attended.reshape(*attended.shape[:-2], -1), precision)
