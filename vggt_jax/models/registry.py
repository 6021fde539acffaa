"""The models that there are, one line each."""

from vggt_jax.models.base import ModelConfig, ModelFamily
from vggt_jax.models.pi3.family import FAMILY as PI3
from vggt_jax.models.vggt.family import FAMILY as VGGT

_FAMILIES = [
    VGGT,
    PI3,
]


def families() -> dict[str, ModelFamily]:
    """All models by their names in our checkpoints."""
    return {family.name: family for family in _FAMILIES}


def family_of(config: ModelConfig) -> ModelFamily:
    """The model of a configuration.

    Raises:
        TypeError: it is none of a model.
    """
    for family in _FAMILIES:
        if type(config) is family.config:
            return family
    known = ", ".join(family.config.__name__ for family in _FAMILIES)
    raise TypeError(f"{config!r} is no configuration of a model ({known})")
