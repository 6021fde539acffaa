"""What becomes of a reconstruction where layers of attention over all frames are left out."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from vggt_jax.evaluation.cameras import auc_at, pair_errors
from vggt_jax.evaluation.drift import Drift, drift_between
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models.base import SceneModel
from vggt_jax.models.loading import named_parameters
from vggt_jax.pipeline.reconstruct import reconstruct

Part = Literal["block", "attention"]
"""What is left out: the whole global block, attention and MLP, or its attention alone."""

Order = Literal["front", "back", "both", "middle"]
ORDERS: tuple[Order, ...] = ("front", "back", "both", "middle")


def dropped_layers(depth: int, number: int, order: Order) -> tuple[int, ...]:
    """Which layers go where so many are dropped.

    Args:
        depth: of the trunk.
        number: how many go, in [0, depth].
        order: "front", the first; "back", the last; "both", half of them at each end, the odd one
            in front; "middle", those around the middle, the odd one behind it.

    Raises:
        ValueError: there are not so many.
    """
    if not 0 <= number <= depth:
        raise ValueError(f"{number=} must be in [0, {depth}]")
    if order == "front":
        return tuple(range(number))
    if order == "back":
        return tuple(range(depth - number, depth))
    if order == "both":
        front = -(-number // 2)
        return (*range(front), *range(depth - (number - front), depth))
    first = (depth - number + 1) // 2
    return tuple(range(first, first + number))


def without_layers(model: SceneModel, layers: Collection[int], part: Part = "block") -> SceneModel:
    """The model whose global blocks in these layers add nothing to the stream.

    The last product of each branch is set to zero, in a copy; all else is shared. Shapes stay, so
    that a compiled program serves every choice of layers.

    Raises:
        ValueError: the trunk has no such layer.
    """
    depth = model.num_layers
    if unknown := [layer for layer in layers if not 0 <= layer < depth]:
        raise ValueError(f"layer {unknown[0]} must be in [0, {depth})")
    lasts = ("attn.proj.",) if part == "attention" else ("attn.proj.", "mlp.fc2.", "mlp.w3.")
    kept = np.ones(depth, np.float32)
    kept[list(layers)] = 0

    def changed(name: str, leaf: jax.Array) -> jax.Array:
        if not name.startswith("global_blocks.") or not any(f".{x}" in name for x in lasts):
            return leaf
        return leaf * kept.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype)

    leaves, structure = jax.tree.flatten(model)
    names = named_parameters(model)
    return structure.unflatten([changed(*x) for x in zip(names, leaves, strict=True)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropped:
    """A reconstruction without some layers.

    Attributes:
        order, layers: which were left out.
        drift: how far it is from that of all layers.
        auc: AUC@30 against the true cameras, or, where they are not known, against those of all
            layers; NaN where the model predicts no cameras.
    """

    order: Order
    layers: tuple[int, ...]
    drift: Drift
    auc: float


def drop_layers(
    model: SceneModel,
    images: np.ndarray,
    *,
    numbers: Sequence[int],
    orders: Sequence[Order] = ORDERS,
    part: Part = "block",
    truth: Float[np.ndarray, "s 3 4"] | None = None,
    attention: SceneAttention = Dense(),
    compute_dtype: DTypeLike | None = None,
    say: Any = lambda text: None,
) -> list[Dropped]:
    """Reconstructs a scene without some layers, for each order and number of them.

    Args:
        images: [s height width 3], as the model sees them.
        numbers: how many layers go; 0 is the whole model.
        truth: camera_from_world of these frames, if known.
        say: called with what runs next.
    """
    run = functools.partial(_predict, attention=attention, compute_dtype=compute_dtype)
    images = jax.device_put(images)
    whole = run(model, images)
    expected = whole.get("cameras") if truth is None else jnp.asarray(truth, jnp.float32)
    by_layers: dict[tuple[int, ...], tuple[Drift, float]] = {}
    results = []
    for order in orders:
        for number in numbers:
            layers = dropped_layers(model.num_layers, number, order)
            if layers not in by_layers:
                say(f"{order}: {number} layers")
                found = run(without_layers(model, layers, part), images)
                drift, auc = jax.device_get(_compare(found, whole, expected))
                by_layers[layers] = jax.tree.map(np.float64, drift), float(auc)
            drift, auc = by_layers[layers]
            results.append(Dropped(order=order, layers=layers, drift=drift, auc=auc))
    return results


@functools.partial(jax.jit, static_argnames=("attention", "compute_dtype"))
def _predict(model, images, *, attention, compute_dtype):
    recon = reconstruct(model, images, attention=attention, compute_dtype=compute_dtype)
    points = recon.world_points if recon.depth is None else None
    found = {"cameras": recon.camera_from_world, "depth": recon.depth, "points": points}
    return {name: value for name, value in found.items() if value is not None}


@jax.jit
def _compare(found, whole, expected):
    auc = jnp.float32(jnp.nan)
    if expected is not None and "cameras" in found:
        auc = auc_at(pair_errors(found["cameras"], expected), 30)
    return drift_between(found, whole), auc
