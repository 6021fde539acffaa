"""Where the arrays of a scene lie: on one device, or divided over several."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vggt_jax.errors import InputError
from vggt_jax.layers.shards import Device, mesh_of
from vggt_jax.models.base import SceneModel

Devices: TypeAlias = int | Sequence[Device] | None
"""How many of those that JAX sees, the devices, or None for the default one."""


def chosen_devices(devices: Devices) -> list[Device] | None:
    """The devices that are meant; None for the default device alone.

    Raises:
        InputError: there are not so many, or one stands twice.
    """
    if devices is None:
        return None
    if isinstance(devices, int | np.integer):
        found = jax.devices()
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
    return jax.device_put(model, NamedSharding(mesh, PartitionSpec())), {
        name: jax.device_put(x, _sharding(mesh, name)) for name, x in arguments.items()
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
        name: jax.tree.map(lambda x, name=name: shape(x, _sharding(mesh, name)), value)
        for name, value in arguments.items()
    }


def _sharding(mesh, name):
    axes = mesh.axis_names if name == "images" else ()
    return NamedSharding(mesh, PartitionSpec(*axes))
