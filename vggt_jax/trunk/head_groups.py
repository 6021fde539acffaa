"""Attention over the frames of several devices, some heads at a time."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from pallas_kernels import tuned
from vggt_jax.layers.attention import Rope
from vggt_jax.layers.block import Block
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import (
    AttentionStats,
    HeadGroup,
    SceneAttention,
    SceneTokens,
)
from vggt_jax.layers.shards import FrameShards

Attended: TypeAlias = tuple[Array, Array | None, AttentionStats]
"""What `SceneAttention.attend` returns."""


def heads_at_a_time(num_heads: int, *, own_bytes: int) -> int:
    """How many heads attend at a time, so that not all keys and values are gathered at once: as few
    as keep a device busy.

    Args:
        own_bytes: what keys and values of all heads take, of the frames of a device.
    """
    enough = tuned.value("devices.bytes_of_group")
    divisors = [heads for heads in range(1, num_heads) if num_heads % heads == 0]
    return next((x for x in divisors if x * own_bytes >= num_heads * enough), num_heads)


def attention_on_devices(
    value: SceneAttention,
    attend: Callable[..., Attended],
    *,
    rope: Rope | None,
    shards: FrameShards,
    num_tokens: int,
    precision: Precision,
    implementation: Literal["xla"] | None,
) -> Callable[[Block, Array, Int[Array, ""], SceneTokens | None], Attended]:
    """How the frames of several devices attend to each other in a layer, from a block and its
    normalised stream [b s p c] on.

    Args:
        value: the same in all layers.
        attend: its method, with all arguments that are the same in all layers.
        rope: tables of the tokens of a frame.
        num_tokens: of a frame that count.
        implementation: of projections.
    """

    def run(block: Block, x, layer, scene) -> Attended:
        def project(x, first: Any = None, num_heads: int | None = None):
            return block.attn.project(
                x, rope, precision, implementation=implementation, first=first, num_heads=num_heads
            )

        if not value.gathers_keys:
            return attend(*project(x), layer=layer, scene=scene)
        dtype, num_heads = precision.compute_dtype, block.attn.num_heads
        b, s, _, c = x.shape
        return attend_by_groups(
            x.astype(dtype) if dtype.itemsize == 2 else x,
            scene,
            project,
            lambda *arrays, heads: attend(*arrays[:3], layer=layer, scene=arrays[3], heads=heads),
            shards=shards,
            num_heads=num_heads,
            heads=heads_at_a_time(num_heads, own_bytes=2 * dtype.itemsize * b * s * num_tokens * c),
            num_tokens=num_tokens,
        )

    return run


def attend_by_groups(
    x: PyTree,
    scene: SceneTokens | None,
    project: Callable[[PyTree, Int[Array, ""], int], Sequence[Array]],
    attend: Callable[..., Attended],
    *,
    shards: FrameShards,
    num_heads: int,
    heads: int,
    num_tokens: int,
) -> tuple[Float[Array, "b s p n h"], Float[Array, "b e n h"] | None, AttentionStats]:
    """What all heads attend to: one group of them after the other, while the keys and values of the
    next one are gathered.

    Args:
        x: arrays that queries, keys and values are made of, of the frames of this device.
        scene: tokens of scenes as a whole.
        project: makes those of so many heads, from one on.
        attend: takes queries of this device, keys and values of all, tokens of the scene, and
            `heads`, which ones these are.
        num_heads: of all groups.
        heads: in a group.
        num_tokens: of a frame that count; others are not exchanged.
    """
    num_groups = num_heads // heads

    def projected(x, first):
        q, k, v = project(x, first, heads)
        return q, k[:, :, :num_tokens], v[:, :, :num_tokens]

    gather = lambda k, v: (shards.all(k, axis=1), shards.all(v, axis=1))
    if num_groups == 1:
        q, k, v = projected(x, jnp.int32(0))
        return attend(q, *gather(k, v), scene, heads=None)

    def of_group(y, first):
        return jax.tree.map(lambda z: jax.lax.dynamic_slice_in_dim(z, first, heads, axis=-2), y)

    def group(carry, first):
        x, out, q, k, v = carry
        # Behind the last group comes the first once more, whose results nobody reads.
        following = (first + np.int32(heads)) % np.int32(num_heads)
        next_q, next_k, next_v = projected(x, following)
        # Attention waits for the products, so that the exchange starts before it, and not for that.
        q, next_k, next_v = jax.lax.optimization_barrier((q, next_k, next_v))
        next_k, next_v = gather(next_k, next_v)
        which = HeadGroup(first, num_heads)
        attended, of_scene, stats = attend(q, k, v, of_group(scene, first), heads=which)
        # Nor does a group begin before the one before it is done with its keys.
        x, attended = jax.lax.optimization_barrier((x, attended))
        zero = np.int32(0)
        out = jax.lax.dynamic_update_slice(out, attended, (zero, zero, zero, first, zero))
        return (x, out, next_q, next_k, next_v), (of_scene, stats)

    q, k, v = projected(x, jnp.int32(0))
    out = jnp.zeros((*q.shape[:3], num_heads, q.shape[-1]), q.dtype)
    (_, out, *_), (of_scene, stats) = jax.lax.scan(
        group,
        (x, out, q, *gather(k, v)),
        heads * jnp.arange(num_groups, dtype=jnp.int32),
        unroll=2 - num_groups % 2,  # By two, no keys are copied from one place to another.
    )
    # [groups b .. heads h] and [groups b heads]
    join = lambda y, axis: jnp.moveaxis(y, 0, axis).reshape(
        *y.shape[1 : axis + 1], -1, *y.shape[axis + 2 :]
    )
    return (
        out,
        None if of_scene is None else join(of_scene, 2),
        jax.tree.map(lambda y: join(y, 1), stats),
    )
