"""All that training carries from step to step."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

from vggt_jax.models.loading import SomeModel, named_parameters
from vggt_jax.training.optimizer import for_optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Parameters by their dotted names, their average, the optimiser's moments, and counters.

    Attributes:
        step: steps taken, those skipped among them.
        skipped: steps whose loss or gradient was not finite, and which changed nothing.
    """

    params: dict[str, Array]
    ema: dict[str, Array]
    moments: optax.OptState
    step: Int[Array, ""]
    skipped: Int[Array, ""]


def initial_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, in arrays of its own; parameters become float32."""
    params = {name: jnp.array(x, jnp.float32) for name, x in named_parameters(model).items()}
    with for_optax():
        moments = optimizer.init(params)
    return TrainState(
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        moments=moments,
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )


def with_named(model: SomeModel, params: dict[str, Array]) -> SomeModel:
    """The model with these parameters; it may be abstract. Works under `jax.jit` and `jax.grad`."""
    names = list(named_parameters(model))
    return jax.tree.unflatten(jax.tree.structure(model), [params[name] for name in names])
