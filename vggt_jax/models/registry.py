"""The models that there are, one line each."""

from vggt_jax.checkpoints.official import OfficialKeys
from vggt_jax.errors import InputError
from vggt_jax.models.base import CameraSource, ModelConfig, ModelFamily, SceneModel
from vggt_jax.models.da3.family import FAMILY as DA3
from vggt_jax.models.mapanything.family import FAMILY as MAPANYTHING
from vggt_jax.models.pi3.family import FAMILY as PI3
from vggt_jax.models.pi3x.family import FAMILY as PI3X
from vggt_jax.models.vggt.family import FAMILY as VGGT
from vggt_jax.scene.priors import Priors

_FAMILIES = [
    VGGT,
    PI3X,
    PI3,
    MAPANYTHING,
    DA3,
]


def register(family: ModelFamily) -> None:
    """Makes a model of one's own known: to `load_model`, the estimate of memory, and all the rest.

    Raises:
        ValueError: another model has its name or its configuration.
    """
    for other in _FAMILIES:
        if other is not family and (other.name == family.name or other.config is family.config):
            raise ValueError(
                f"there is a model of the name {other.name} with the configuration "
                f"{other.config.__name__} already"
            )
    if family not in _FAMILIES:
        _FAMILIES.append(family)


def families() -> dict[str, ModelFamily]:
    """All models by their names in our checkpoints."""
    return {family.name: family for family in _FAMILIES}


def official_keys() -> dict[str, OfficialKeys]:
    """The models whose official checkpoints can be converted, by their names in ours."""
    return {family.name: family.keys for family in _FAMILIES if family.keys is not None}


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


def check_priors(model: SceneModel, priors: Priors) -> None:
    """Finds what is known of a scene that a model has no use for.

    Raises:
        InputError: there is some; the message names the models that take it.
    """
    for kind in priors.given:
        if kind not in model.traits.takes:
            others = [other for other in _FAMILIES if kind in other.model.traits.takes]
            names = " or ".join(
                other.model.traits.title
                + (f" ({other.keys.hub_name})" if other.keys is not None else "")
                for other in others
            )
            raise InputError(
                f"{model.traits.title} cannot be told known {kind}; "
                + (f"use {names}, or leave it out" if others else "leave it out")
            )


def check_camera_source(model: SceneModel, source: CameraSource) -> None:
    """Checks that the cameras of this model can come from there.

    Raises:
        InputError: they cannot.
    """
    if source not in model.traits.camera_sources:
        others = [
            x.model.traits.title for x in _FAMILIES if source in x.model.traits.camera_sources
        ]
        raise InputError(
            f"camera_source={source!r} is for {' and '.join(others)}, not for "
            f"{model.traits.title}; leave it out"
        )


def check_divides_frames(model: SceneModel) -> None:
    """Checks that devices can divide the frames of this model.

    Raises:
        InputError: they cannot.
    """
    if not model.traits.divides_frames:
        title = model.traits.title
        raise InputError(f"{title} cannot divide frames over devices; leave devices (mesh) out")
