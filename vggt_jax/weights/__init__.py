"""The small model that ships with the package: what runs where no model is named."""

import pathlib

NAME = "the small model"
"""What messages call it."""

SAID_WITHOUT_MODEL = (
    f"no model was named, so this is {NAME} that ships with vggt-jax, trained on synthetic scenes "
    "of 112x112 pixels; for photographs name another one, such as facebook/VGGT-1B"
)
"""What is said where nobody named a model."""


def small_model_path() -> pathlib.Path:
    """Its checkpoint; MODEL_CARD.md lies beside it."""
    return pathlib.Path(__file__).parent / "small.safetensors"
