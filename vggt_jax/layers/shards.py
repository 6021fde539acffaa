"""Frames of a scene divided over devices: what those exchange, inside of `jax.shard_map`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

if TYPE_CHECKING:
    from jaxlib._jax import Device
else:
    Device = jax.Device  # which to a type checker is a variable


@dataclasses.dataclass(frozen=True)
class FrameShards:
    """Frames divided evenly and in their order over the devices along an axis of a mesh.

    Attributes:
        axis: its name.
        num: devices along it.
    """

    axis: str
    num: int

    def first(self, num_here: int) -> Int[Array, ""]:
        """The place, among all, of the first of so many things that each device has."""
        return jax.lax.axis_index(self.axis).astype(jnp.int32) * np.int32(num_here)

    def all(self, x: Array, *, axis: int) -> Array:
        """What the devices have, one after the other along an axis of the array."""
        return jax.lax.all_gather(x, self.axis, axis=axis, tiled=True)

    def stacked(self, x: Array) -> Array:
        """What the devices have, along a new first axis."""
        return jax.lax.all_gather(x, self.axis)

    def take(
        self,
        x: Float[Array, "t n h"],
        places: Int[Array, "m #n"],
    ) -> Float[Array, "m n h"]:
        """Some rows of what all devices have, of each head those at its places; on all devices.

        Only these are exchanged: each device gives its own, and zeros for those of others.

        Args:
            x: the rows of this device.
            places: among the rows of all.
        """
        heads = np.arange(x.shape[1], dtype=np.int32)[None]
        here = places - self.first(len(x))
        is_own = (here >= 0) & (here < len(x))
        found = x.at[jnp.where(is_own, here, 0), heads].get(mode="promise_in_bounds")
        return jax.lax.psum(jnp.where(is_own[..., None], found, jnp.zeros((), x.dtype)), self.axis)

    def own(self, x: Array, num_here: int, *, axis: int = 0) -> Array:
        """Of what all have along an axis, the part of this device."""
        return jax.lax.dynamic_slice_in_dim(x, self.first(num_here), num_here, axis)


def of_all(shards: FrameShards | None, x: Array) -> Array:
    """What there is of the frames of all devices [b s ..]; the array itself where one has all."""
    return x if shards is None else shards.all(x, axis=1)


def of_own(shards: FrameShards | None, x: Array, num_here: int) -> Array:
    """Of what there is of all frames [b s ..], the part of this device; all of it where that has
    all.

    Args:
        num_here: frames of this device.
    """
    return x if shards is None else shards.own(x, num_here, axis=1)


def mesh_of(devices: Sequence[Device]) -> jax.sharding.Mesh:
    """The mesh over whose devices the frames of a scene are divided, in this order."""
    return jax.sharding.Mesh(np.asarray(devices), ("frames",))


def map_frames(
    fn: Callable[[PyTree, PyTree, FrameShards], tuple[PyTree, PyTree]],
    mesh: jax.sharding.Mesh,
    whole: PyTree,
    split: PyTree,
) -> tuple[PyTree, PyTree]:
    """Runs a function on every device of a mesh, each with frames of its own.

    Args:
        fn: takes what is whole, the part of this device of what is split, and how it is; returns
            arrays of its frames, and what is the same on all devices.
        mesh: of one axis.
        whole: arrays that every device has.
        split: arrays [b s ...], whose frames are divided evenly.

    Returns:
        The arrays of all frames, divided in the same way, and the other arrays, on all devices.

    Raises:
        ValueError: the mesh has several axes, or its devices do not divide the frames.
    """
    if len(mesh.axis_names) != 1:
        raise ValueError(f"frames are divided along a mesh of one axis, not {mesh.axis_names}")
    shards = FrameShards(mesh.axis_names[0], mesh.size)
    for x in jax.tree.leaves(split):
        if x.shape[1] % shards.num:
            raise ValueError(
                f"{shards.num} devices do not divide {x.shape[1]} frames evenly; pad these, give "
                "num_frames"
            )
    over_frames, everywhere = PartitionSpec(None, shards.axis), PartitionSpec()
    return jax.shard_map(
        lambda whole, split: fn(whole, split, shards),
        mesh=mesh,
        in_specs=(everywhere, over_frames),
        out_specs=(over_frames, everywhere),
        check_vma=False,  # kernels do not say over which axes their results differ
    )(whole, split)
