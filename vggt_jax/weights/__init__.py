"""The small model that ships with the package: what runs where no model is named."""

import pathlib

NAME = "the small model"
"""What messages call it."""

GOOD_FOR = (
    "trained on rendered scenes and a few real ones; it gets many photographs wrong, so for those "
    "rather name another one, such as facebook/VGGT-1B"
)
"""What messages say of it; to be looked at when another model takes its place."""

SAID_WITHOUT_MODEL = f"no model was named, so this is {NAME} that ships with vggt-jax, {GOOD_FOR}"
"""What is said where nobody named a model."""


def small_model_path() -> pathlib.Path:
    """Its checkpoint; MODEL_CARD.md lies beside it."""
    return pathlib.Path(__file__).parent / "small.safetensors"


def small_plan_path() -> pathlib.Path:
    """How its layers share out the keys of a sample, found by `vggt-jax calibrate`."""
    return pathlib.Path(__file__).parent / "small_plan.json"
