"""The small model that ships with the package: what runs where no model is named."""

import pathlib

NAME = "small"
"""What messages call it."""

DESCRIPTION = (
    "the small model that ships with vggt-jax, trained on synthetic scenes of 112x112 pixels; "
    "for photographs name another one, such as facebook/VGGT-1B"
)


def small_model_path() -> pathlib.Path:
    """Its checkpoint; MODEL_CARD.md lies beside it."""
    return pathlib.Path(__file__).parent / "small.safetensors"
