"""Where the arrays of a scene lie: on one device, or divided over several."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vggt_jax.errors import InputError
from vggt_jax.layers.shards import Device, mesh_of
from vggt_jax.models.base import SceneModel

Devices: TypeAlias = int | Sequence[Device] | None
"""How many of those that JAX sees, the devices, or None for the default one."""


def chosen_devices(devices: Devices, *, here: bool = False) -> list[Device] | None:
    """The devices that are meant; None for the default device alone.

    Args:
        here: count those of this process, of several (`jax.distributed`), and not all that JAX
            sees.

    Raises:
        InputError: there are not so many, or one stands twice.
    """
    if devices is None:
        return None
    if isinstance(devices, int | np.integer):
        found = jax.local_devices() if here else jax.devices()
        if not 1 <= devices <= len(found):
            raise InputError(f"devices={devices} must be in [1, {len(found)}], those that JAX sees")
        return None if devices == 1 else found[:devices]
    if not devices or len(set(devices)) != len(devices):
        raise InputError(f"devices={list(devices)} must be one or more, each of them once")
    return list(devices)


def mesh_of_devices(devices: Devices) -> Mesh | None:
    """The mesh that divides the frames of a scene; None for the default device alone.

    Raises:
        InputError: there are not so many, or one stands twice.
    """
    chosen = chosen_devices(devices)
    return None if chosen is None else mesh_of(chosen)


def placed(
    mesh: Mesh | None, model: SceneModel, arguments: dict[str, Any]
) -> tuple[SceneModel, dict[str, Any]]:
    """A model and the arguments of `reconstruct` for one scene, on the devices.

    Nothing is copied that is there already.

    Args:
        mesh: see `mesh_of_devices`; the model is copied to each of its devices.
    """
    if mesh is None:
        return model, jax.device_put(arguments)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: _put(x, everywhere), model), {
        name: jax.tree.map(lambda leaf, name=name: _put(leaf, _sharding(mesh, name, leaf)), x)
        for name, x in arguments.items()
    }


def to_be_placed(
    mesh: Mesh | None, model: SceneModel, arguments: dict[str, Any]
) -> tuple[SceneModel, dict[str, Any]]:
    """What `placed` gives, as shapes, for programs to be compiled before anything is copied."""
    if mesh is None:
        return model, arguments
    shape = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: shape(x, everywhere), model), {
        name: jax.tree.map(lambda x, name=name: shape(x, _sharding(mesh, name, x)), value)
        for name, value in arguments.items()
    }


def on_all(mesh: Mesh | None, x: Any) -> jax.Array:
    """A value on the devices of a mesh, the same on each; on the default device without."""
    if mesh is None:
        return jax.device_put(x)
    return _put(x, NamedSharding(mesh, PartitionSpec()))


def sent_to_host(x: Any) -> Any:
    """An array on its way to the host, for `on_host`; from a GPU to pinned memory.

    Any number of threads can copy it from there. Where JAX is asked for a NumPy array it goes
    through such memory, too, but a single thread then copies it to memory that is new each time:
    2.6 times slower for the maps of two H200. NumPy arrays are what they are, and arrays that lie
    on devices of several processes, for `fetched`.
    """
    if not isinstance(x, jax.Array) or not x.is_fully_addressable:
        return x
    if any(device.platform != "gpu" for device in x.sharding.device_set):
        x.copy_to_host_async()
        return x
    return jax.device_put(x, x.sharding.with_memory_kind("pinned_host"))


def fetched(tree: Any) -> Any:
    """Arrays of a tree as NumPy arrays, whole ones in each of several processes (`jax.distributed`)
    whose devices have parts of them. Then all have to call this at the same point."""

    def fetch(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return jax.device_get(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(fetch, tree)


def rows_by_device(x: jax.Array, num_devices: int) -> list[Any]:
    """The rows of an array that so many devices have evenly, by device in their order, for
    `on_host`; without a copy of all where this process has all of the devices."""
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    if len(shards) != num_devices:
        return np.split(fetched(x), num_devices)
    return [shard.data for shard in shards]


def on_host(x: jax.Array | np.ndarray) -> np.ndarray:
    """An array as NumPy has it, waited for; one of `sent_to_host` of one device is not copied."""
    if isinstance(x, np.ndarray):
        return x
    is_pinned = x.sharding.memory_kind == "pinned_host"
    # NumPy takes neither bfloat16 by DLPack nor what lies on several devices.
    if is_pinned and len(x.sharding.device_set) == 1 and x.dtype != jnp.bfloat16:
        return np.from_dlpack(x.block_until_ready())  # pyright: ignore[reportArgumentType]
    return np.asarray(x)


def _put(x, sharding):
    """`jax.device_put`, also where another process has some of the devices, and the same values."""
    is_there = isinstance(x, jax.Array) and x.committed and x.sharding == sharding
    if sharding.is_fully_addressable or is_there:
        return jax.device_put(x, sharding)
    values = np.asarray(x)
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])


def _sharding(mesh, name, x):
    """Of one array of an argument: images and what is known of frames are divided."""
    axes = mesh.axis_names if name in ("images", "priors") and np.ndim(x) else ()
    return NamedSharding(mesh, PartitionSpec(*axes))
