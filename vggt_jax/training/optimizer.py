"""AdamW or Muon with warm-up and decay, and an average of the weights."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float

from vggt_jax.errors import InputError

# Stacked matrices of the transformer blocks of encoder, trunk and camera head.
_MATRIX_OF_BLOCK = re.compile(
    r"^(encoder\.blocks|frame_blocks|global_blocks|camera_head\.trunk)\."
    r".*(qkv|proj|fc1|fc2)\.kernel$"
)
_RMS_OF_ADAM = 0.2  # root mean square of an update of AdamW, about (arXiv:2502.16982, section 2.2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimiser, its schedule and the average of the weights."""

    method: Literal["adamw", "muon"] = "adamw"
    """muon orthogonalises the updates of the matrices of all transformer blocks and leaves the
    other parameters to AdamW, with Nesterov's momentum. Its updates are as large as AdamW's, so
    that learning rates carry over (arXiv:2502.16982)."""

    learning_rate: float = 1e-3
    """The largest, after warm-up. To fine-tune, take a hundredth of it."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How it falls to 0 at the last step, or not at all."""
    weight_decay: float = 0.05
    """Of kernels only: not of norms, biases, scales, tokens and tables."""
    beta1: float = 0.9
    """Decay of the mean of gradients; for the matrices of muon it is 0.95, as in the paper."""
    beta2: float = 0.95
    """Decay of the mean of their squares."""
    max_gradient_norm: float = 1.0
    """Longer gradients are shortened to it."""
    ema_decay: float = 0.999
    """Of the average of the weights, which validation and export use. It starts lower, at
    (1 + step) / (10 + step)."""

    def __post_init__(self):
        if self.learning_rate <= 0 or self.max_gradient_norm <= 0 or self.warmup_steps < 0:
            raise InputError(
                f"{self.learning_rate=} and {self.max_gradient_norm=} must be positive, "
                f"{self.warmup_steps=} not negative"
            )
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"{self.ema_decay=} must be in [0, 1)")


def learning_rate(
    settings: OptimizerSettings, step: Array, total_steps: Array | int
) -> Float[Array, ""]:
    """The learning rate of a step, counted from 0: rises to `warmup_steps`, then falls to 0."""
    step = jnp.asarray(step, jnp.float32)
    warmup = settings.warmup_steps
    rise = jnp.minimum((step + 1) / (warmup + 1), 1.0)
    falling = jnp.asarray(jnp.maximum(total_steps - warmup, 1), jnp.float32)
    done = jnp.clip((step - warmup) / falling, 0.0, 1.0)
    fall = {
        "cosine": 0.5 * (1 + jnp.cos(jnp.pi * done)),
        "linear": 1 - done,
        "constant": jnp.float32(1),
    }[settings.schedule]
    return settings.learning_rate * rise * fall


def make_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
    """The optimiser at a learning rate of 1: the step multiplies by `-learning_rate`."""
    scale = optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2)
    if settings.method == "muon":
        muon = optax.contrib.muon(
            1.0,
            adam_b1=settings.beta1,
            adam_b2=settings.beta2,
            muon_weight_dimension_numbers=_matrices_of_blocks,
            consistent_rms=_RMS_OF_ADAM,
        )
        scale = optax.chain(muon, optax.scale(-1.0))
    return optax.chain(scale, optax.add_decayed_weights(settings.weight_decay, mask=decays))


@contextlib.contextmanager
def for_optax() -> Iterator[None]:
    """JAX as Optax expects it: it mixes types, and has constants of the default type."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


def _matrices_of_blocks(params: Any) -> dict:
    """Axes of inputs and outputs of what Muon is for, `[layers, inputs, outputs]`; else None."""
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return {name: axes if _MATRIX_OF_BLOCK.search(name) else None for name in params}


def decays(params: dict[str, Array]) -> dict[str, bool]:
    """Which parameters decay: kernels that training reaches."""
    return {
        name: name.endswith(".kernel") and not name.startswith("track_head.") for name in params
    }


def average(ema: Array, param: Array, step: Array, decay: float) -> Array:
    """The next average of a parameter, after the step of this number, counted from 0."""
    step = step.astype(jnp.float32)
    share = jnp.minimum(decay, (1 + step) / (10 + step))
    return share * ema + (1 - share) * param
