"""Block-sparse attention for NVIDIA GPUs from Ampere on, in a Pallas kernel through Triton."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.attention.call import AttentionCall, blocks_unsupported_because
from pallas_kernels.attention.config import MAX_CAPACITY, TritonConfig, choose_triton_config
from pallas_kernels.attention.key_lists import list_keys
from pallas_kernels.attention.online_softmax import FLAG, Launch, redo


def unsupported_because(call: AttentionCall) -> str | None:
    if call.q.shape[-1] not in (32, 64, 128):
        return f"head_dim={call.q.shape[-1]} is not supported (32, 64, 128)"
    return blocks_unsupported_because(
        call.block_map, smallest_q=16, smallest_k=16, max_capacity=MAX_CAPACITY
    )


def configure(call: AttentionCall) -> TritonConfig:
    return choose_triton_config(
        call.q.dtype, call.q.shape[-1], call.block_map.block_q, call.block_map.block_k
    )


def run(call: AttentionCall, *, config: TritonConfig, interpret: bool):
    more = {"key_bias": call.key_bias, "key_mask": call.key_mask, "interpret": interpret}
    return attention(*call.for_kernels, config, **more)


def attention(
    q,
    k,
    v,
    block_map,
    kv_tokens,
    scale,
    config: TritonConfig,
    *,
    key_bias=None,
    key_mask=None,
    interpret=False,
):
    """The output [t n h] in q's type and the log-sum-exp [t n].

    `kv_tokens`: how many tokens of each key block count, or None where all blocks are whole.
    """
    lists = list_keys(block_map, kv_tokens, interpret=interpret)
    launch = Launch(q, k, v, lists, block_map, scale, key_bias, key_mask, config, interpret)
    if q.dtype == jnp.float32:  # Its products dwarf what a faster softmax would save.
        out, lse = launch(
            functools.partial(launch.attend, any_scores=True), name="block_sparse_attention"
        )
        return out, lse.T

    flags = jax.ShapeDtypeStruct((launch.num_programs,), jnp.int32)
    out, lse, failed = launch(
        functools.partial(launch.attend, any_scores=False),
        out_specs=[FLAG],
        out_shape=[flags],
        name="block_sparse_attention",
    )
    more = {"key_bias": key_bias, "key_mask": key_mask, "config": config, "interpret": interpret}
    out, lse = redo(q, k, v, lists, block_map, scale, failed, out, lse, **more)
    return out, lse.T
