"""Dense attention: the function with its two implementations, and the layer around it."""

import dataclasses
import functools
import itertools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

import pallas_kernels
from pallas_kernels import devices
from pallas_kernels.rope import apply_rope
from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.linear import Linear, apply_linear
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision

Implementation = Literal["cudnn", "xla"]

# cuDNN's forward kernel on an H100 loses a tenth of its rate when the number of keys is no multiple
# of its tile, and 6 % when keys and values of a head outgrow the L2 cache; cutting the keys pays once
# attention dwarfs the merge (docs/performance.md has the measurements).
_CUDNN_KEY_TILE = 128
_MAX_KEYS_IN_PART = 544 * _CUDNN_KEY_TILE
_MIN_KEYS_TO_CUT = 8192

# Scores of one chunk of queries in `xla`, in bytes.
MAX_SCORE_BYTES = 256 * 2**20


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
    """Every token attends to every token.

    `implementation`: "cudnn" (NVIDIA GPUs, bfloat16 or float16), "xla" (any device, bounded
    memory), or None to choose by device and type. A name means that one or an error.
    """

    implementation: Implementation | None = None

    def __post_init__(self):
        if self.implementation not in (None, "cudnn", "xla"):
            raise ValueError(f"{self.implementation=} is unknown; use 'cudnn', 'xla' or None")

    @property
    def norm_rope(self) -> Literal["xla"] | None:
        """The implementation of `norm_rope` before it: plain XLA where attention is to be that."""
        return "xla" if self.implementation == "xla" else None


def dense_attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b kv n h"],
    v: Float[Array, "b kv n h"],
    *,
    kv_lengths: Int[Array, " b"] | None = None,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
    implementation: Implementation | None = None,
) -> Float[Array, "b t n h"]:
    """Softmax attention with scores scaled by `1 / sqrt(h)`, softmax and sums in float32.

    Args:
        kv_lengths: how many of the leading keys of each batch row count; None for all.
        precision: of float32 products; bfloat16 and float16 products accumulate in float32.
        implementation: see `Dense`.

    Raises:
        NotImplementedError: the implementation named cannot run these arrays on this device.
    """
    cudnn_fits = (
        devices.is_ampere_or_later()
        and q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[-1] <= 128
        and q.shape[-1] % 8 == 0
    )
    if implementation == "cudnn" and not cudnn_fits:
        raise NotImplementedError(
            f"cudnn attention needs an NVIDIA GPU from Ampere on, bfloat16 or float16 and a head dim that is a "
            f"multiple of 8 up to 128, not {jax.default_backend()=}, {q.dtype.name}, "
            f"head_dim={q.shape[-1]}; use implementation='xla' or None"
        )
    if implementation == "cudnn" or (implementation is None and cudnn_fits):
        if kv_lengths is None and k.shape[1] >= _MIN_KEYS_TO_CUT:
            return _cudnn_in_parts(q, k, v)
        return _cudnn(q, k, v, key_value_seq_lengths=kv_lengths)
    b, _, n, _ = q.shape
    bytes_per_query = 4 * b * n * k.shape[1]
    return map_chunks(
        lambda queries: _attend(queries, k, v, kv_lengths, precision),
        q,
        axis=1,
        max_chunk=MAX_SCORE_BYTES // bytes_per_query,
    )


_cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


@jax.custom_vjp
def _cudnn_in_parts(q, k, v):
    """cuDNN attention over parts of the keys, merged by their log-sum-exps.

    All parts are whole tiles, except for what remains at the end.
    """
    out, lse = None, None
    for start, stop in itertools.pairwise(_cut_keys(k.shape[1])):
        part, part_lse = _cudnn_with_lse(q, k[:, start:stop], v[:, start:stop])
        if out is None:
            out, lse = part, part_lse
            continue
        weight = jax.nn.sigmoid(part_lse - lse)[..., None]  # [b, t, n, 1], float32
        out = out.astype(jnp.float32)
        out += weight * (part.astype(jnp.float32) - out)
        lse = jnp.logaddexp(lse, part_lse)
    return out.astype(q.dtype)


def _cudnn_with_lse(q, k, v):
    """cuDNN attention `[b t n h]` and its log-sum-exps `[b t n]`, float32.

    `jax.nn.dot_product_attention(return_residual=True)` would round them to the type of `q`. In
    bfloat16 they are then off by up to 0.03, and so are the weights of the merge. So this calls
    the function beneath, which is not public; tests hold its signature for every supported JAX.
    """
    from jax._src.cudnn.fused_attention_stablehlo import dot_product_attention

    out, lse = dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, return_residual=True)
    return out, lse.transpose(0, 2, 1)


def _cut_keys(num_keys: int) -> list[int]:
    """Where parts of the keys begin and end."""
    tiles = num_keys // _CUDNN_KEY_TILE
    num_parts = -(-tiles * _CUDNN_KEY_TILE // _MAX_KEYS_IN_PART)
    cuts = [_CUDNN_KEY_TILE * (tiles * i // num_parts) for i in range(num_parts + 1)]
    return cuts if cuts[-1] == num_keys else [*cuts, num_keys]


def _parts_forward(q, k, v):
    return _cudnn_in_parts(q, k, v), (q, k, v)


def _parts_backward(residuals, gradient):
    # The log-sum-exps carry no gradient of their own, so the whole attention is differentiated.
    return jax.vjp(_cudnn, *residuals)[1](gradient)


_cudnn_in_parts.defvjp(_parts_forward, _parts_backward)


def _attend(q, k, v, kv_lengths, precision):
    scores = jnp.einsum(
        "btnh,bknh->bntk", q, k, precision=precision, preferred_element_type=jnp.float32
    )
    scores *= q.shape[-1] ** -0.5
    if kv_lengths is not None:
        valid = jnp.arange(k.shape[1]) < kv_lengths[:, None]
        scores = jnp.where(valid[:, None, None, :], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum(
        "bntk,bknh->btnh", weights, v, precision=precision, preferred_element_type=jnp.float32
    ).astype(v.dtype)


class Rope(NamedTuple):
    """Tables of `rope_tables` for the tokens of a frame."""

    cos: Float[Array, "p h"]
    sin: Float[Array, "p h"]


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
        norm_rope: Literal["xla"] | None = None,
    ) -> tuple[Float[Array, "*b p n h"], Float[Array, "*b p n h"], Float[Array, "*b p n h"]]:
        """Queries and keys, normalised and turned in float32, and values; all in the compute type.

        `norm_rope`: which implementation of `pallas_kernels.norm_rope` does that, if both is to be done;
        None to choose by device and type.
        """
        heads = (*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)
        # Three products, because parts of one would be copied out of it.
        kernels = jnp.split(self.qkv.kernel[...], 3, axis=-1)
        biases = jnp.split(self.qkv.bias[...], 3)
        turns_normalised = self.q_norm is not None and rope is not None
        xs = (x, x, x)
        if turns_normalised and precision.compute_dtype.itemsize == 2:
            # XLA would join those of few tokens again, because they multiply the same array.
            x = x.astype(precision.compute_dtype)
            xs = jax.lax.optimization_barrier((x, x, x))
        product = lambda i, bias: apply_linear(xs[i], kernels[i], bias, precision).reshape(heads)
        v = product(2, biases[2])
        if turns_normalised:
            # Products come without their bias, which joins here before they are rounded again.
            q, k = (
                pallas_kernels.norm_rope(
                    product(i, None),
                    *rope,
                    bias=biases[i],
                    scale=norm.scale[...],
                    offset=norm.bias[...],
                    eps=norm.eps,
                    implementation=norm_rope,
                )
                for i, norm in enumerate((self.q_norm, self.k_norm))
            )
            return q, k, v
        q, k = product(0, biases[0]), product(1, biases[1])
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        return q.astype(v.dtype), k.astype(v.dtype), v

    def output(
        self, attended: Float[Array, "*b n h"], precision: Precision
    ) -> Float[Array, "*b c"]:
        """Joins the heads and projects them."""
        return self.proj(attended.reshape(*attended.shape[:-2], -1), precision)
