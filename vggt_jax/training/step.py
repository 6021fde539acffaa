"""The compiled programs: many steps in one, each of which renders scenes and learns from them."""

import dataclasses
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from vggt_jax.models.vggt.model import VGGT
from vggt_jax.training.losses import LossWeights, losses
from vggt_jax.training.normalization import SceneTruth, normalize_scenes
from vggt_jax.training.optimizer import (
    OptimizerSettings,
    average,
    for_optax,
    learning_rate,
)
from vggt_jax.training.predict import Execution, predict
from vggt_jax.training.state import TrainState, with_named
from vggt_jax.training.validation import scene_metrics
from vggt_jax.training.variants import Variant

_FRAMES_KEY = 2**31 - 1
AXIS = "data"  # of the mesh: devices, each with its part of the scenes

# Scenes of these keys, `[b]`, with so many frames of (height, width); a pure function. What follows
# is what it was said to need beside, such as pictures of surfaces.
Render = Callable[..., SceneTruth]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a step needs beside its state.

    Attributes:
        model: abstract, for its structure alone.
        render: makes scenes from one key each.
        frozen: beginnings of names of parameters that do not learn.
    """

    model: VGGT
    render: Render
    optimizer: optax.GradientTransformation
    settings: OptimizerSettings
    weights: LossWeights
    execution: Execution
    frozen: tuple[str, ...] = ()


def make_steps(
    recipe: Recipe, variant: Variant, *, num_steps: int, mesh: Mesh
) -> jax.stages.Wrapped:
    """`num_steps` steps as one jitted function of the state, the seed's key and the total of steps.

    Arguments beyond these go to `recipe.render`: arrays that are no part of the program. The state
    is donated. A step's scenes depend on these, the key and the number of the step alone, not on
    devices or on how many steps run at a time.

    Returns:
        The next state, and for every step the parts of the loss, `gradient_norm`, `learning_rate`
        and `skipped` (0 or 1).
    """
    local_scenes = variant.num_scenes // mesh.size
    size = (variant.height, variant.width)

    def loss(params, scenes, dense_frames):
        model = with_named(recipe.model, params)
        output = predict(model, scenes.images, recipe.execution, dense_frames=dense_frames)
        targets = normalize_scenes(scenes).with_maps_of(dense_frames)
        parts = losses(output, targets, recipe.weights)
        return parts["total"], parts

    def step(state, key, total_steps, data):
        key = jax.random.fold_in(key, state.step)
        places = jnp.arange(local_scenes, dtype=jnp.int32)
        index = jax.lax.axis_index(AXIS) * local_scenes + places
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        with jax.named_scope("render"):
            scenes = recipe.render(keys, variant.num_frames, size, *data)
        # Scenes of a batch are numbered from 0, so this key is none of theirs.
        key_frames = jax.random.fold_in(key, _FRAMES_KEY)
        dense_frames = recipe.execution.dense_frames(key_frames, variant.num_frames)
        gradients, parts = jax.grad(loss, has_aux=True)(state.params, scenes, dense_frames)
        gradients = {
            name: jnp.zeros_like(x) if name.startswith(recipe.frozen) else x
            for name, x in gradients.items()
        }
        # Every device holds the mean over as many scenes as any other.
        gradients, parts = jax.lax.pmean((gradients, parts), AXIS)
        return update(recipe, state, gradients, parts, total_steps)

    def steps(state, key, total_steps, *data):
        one = lambda state, _: step(state, key, total_steps, data)
        return jax.lax.scan(one, state, length=num_steps)

    everywhere = PartitionSpec()
    sharded = jax.shard_map(
        steps, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False
    )
    return jax.jit(sharded, donate_argnums=0)


def update(
    recipe: Recipe,
    state: TrainState,
    gradients: dict[str, Array],
    parts: dict[str, Array],
    total_steps: Array | int,
) -> tuple[TrainState, dict[str, Array]]:
    """The state after one step, the same but for its counters if anything was not finite."""
    settings = recipe.settings
    norm = jnp.sqrt(sum(jnp.sum(x * x) for x in gradients.values()))
    fine = jnp.isfinite(norm) & jnp.isfinite(parts["total"])
    shorten = settings.max_gradient_norm / jnp.maximum(norm, settings.max_gradient_norm)
    gradients = jax.tree.map(lambda x: shorten * x, gradients)
    with for_optax():
        updates, moments = recipe.optimizer.update(gradients, state.moments, state.params)
    directions = cast(dict[str, Array], updates)  # of the structure of the gradients
    rate = learning_rate(settings, state.step, total_steps)
    params = {
        name: x if name.startswith(recipe.frozen) else x - rate * directions[name]
        for name, x in state.params.items()
    }
    ema = {
        name: average(x, params[name], state.step, settings.ema_decay)
        for name, x in state.ema.items()
    }
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
    skipped = 1 - fine.astype(jnp.int32)
    new_state = TrainState(
        params=keep(params, state.params),
        ema=keep(ema, state.ema),
        moments=keep(moments, state.moments),
        step=state.step + 1,
        skipped=state.skipped + skipped,
    )
    extra = {"gradient_norm": norm, "learning_rate": rate, "skipped": skipped}
    return new_state, parts | extra


def make_validation(
    recipe: Recipe, variant: Variant, *, num_batches: int, mesh: Mesh
) -> jax.stages.Wrapped:
    """Metrics and losses over `num_batches` batches as one jitted function of parameters and key.

    Arguments beyond these go to `recipe.render`, as those of `make_steps` do.
    `recipe.render` is to render scenes that training does not see.
    """
    local_scenes = variant.num_scenes // mesh.size
    size = (variant.height, variant.width)

    def batch(params, key, data):
        places = jnp.arange(local_scenes, dtype=jnp.int32)
        index = jax.lax.axis_index(AXIS) * local_scenes + places
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        scenes = recipe.render(keys, variant.num_frames, size, *data)
        output = predict(with_named(recipe.model, params), scenes.images, recipe.execution)
        targets = normalize_scenes(scenes)
        return losses(output, targets, recipe.weights) | scene_metrics(output, targets)

    def run(params, key, *data):
        keys = jax.random.split(key, num_batches)
        found = jax.lax.map(lambda key: batch(params, key, data), keys)
        return jax.lax.pmean(jax.tree.map(jnp.mean, found), AXIS)

    everywhere = PartitionSpec()
    return jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False)
    )
