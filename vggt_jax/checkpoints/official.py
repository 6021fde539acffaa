"""What a model tells of its official checkpoints, and which model one of them belongs to."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, Self

from vggt_jax.checkpoints.config_fields import Config
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.rules import Rule, Shape, expand

# Share of the trunk tensors of a released model by which a checkpoint is taken for it.
_ENOUGH = 0.9


class Configuration(Protocol):
    """What a conversion asks of the configuration of a model."""

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], origin: str) -> Self:
        """Builds one from JSON fields, of which any may be absent; messages begin with `origin`."""
        ...

    def to_dict(self) -> Config:
        """All its fields as JSON-ready values."""
        ...


def keep_name(key: str) -> str:
    """For models whose parameters have one name each."""
    return key


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfficialKeys:
    """The official checkpoints of a model: their keys, and how they become ours.

    Attributes:
        title: name of the model in messages, such as "VGGT".
        hub_name: a released checkpoint, for messages.
        marks: how the keys begin by which the model is told from others.
        lookalikes: names of models that resemble it and cannot be converted, by a part of a key
            that they alone have.
        config: the class of its configuration.
        rules: the table of key rules of a configuration.
        unused: prefixes of official keys that a configuration has no parameter for, with reasons.
        recognise: the configuration and the name of the released model that official shapes, by
            key, belong to; the second argument is the checkpoint's name for messages.
        canonical: the one name, which rules know, of a key that may be another name of it: PyTorch
            saves modules that a model holds in several places under each of their names.
    """

    title: str
    hub_name: str
    marks: tuple[str, ...]
    lookalikes: Mapping[str, str]
    config: type[Configuration]
    rules: Callable[[Any], list[Rule]]
    unused: Callable[[Any], dict[str, str]]
    recognise: Callable[[Mapping[str, Shape], str], tuple[Configuration, str]]
    canonical: Callable[[str], str] = keep_name


def identify(keys: Iterable[str], source: str, known: Mapping[str, OfficialKeys]) -> str:
    """Returns the name of the model, in our checkpoints, that official keys belong to.

    Args:
        keys: all official keys; single ones may be missing or wrong.
        source: name of the checkpoint, for messages.
        known: the models that can be converted by their names. What marks one must not be an
            addition to one that comes later.

    Raises:
        CheckpointError: they are of no model that can be converted; the message says what they
            look like.
    """
    keys = list(keys)
    titles = [model.title for model in known.values()]
    hub_names = " or ".join(model.hub_name for model in known.values())
    give = f"give a checkpoint of {' or '.join(titles)} such as {hub_names}"
    for model in known.values():
        for mark, other in model.lookalikes.items():
            if any(mark in key for key in keys):
                raise CheckpointError(
                    f"{source}: looks like {other} (it has keys {mark}*), which cannot be "
                    f"converted; {give}"
                )
    for name, model in known.items():
        if any(key.startswith(model.marks) for key in keys):
            return name
    marks = " or ".join(mark for model in known.values() for mark in model.marks)
    found = ", ".join(sorted({key.partition(".")[0] for key in keys})[:8]) or "none"
    raise CheckpointError(
        f"{source}: neither {' nor '.join(titles)}: no key begins with {marks} "
        f"(its keys begin with: {found}); {give}"
    )


def require_released_size(
    shapes: Mapping[str, Shape], trunk: Iterable[Rule], source: str, *, model: str, released: str
) -> None:
    """Checks that nearly all tensors of the trunk are there with the shapes of the released model.

    Args:
        shapes: shape by official key.
        trunk: rules of the released model that every checkpoint of it has.
        source: name of the checkpoint, for messages.
        model: name of the family, such as VGGT.
        released: name of the released model, such as VGGT-1B.

    Raises:
        CheckpointError: they are not.
    """
    expected = {key: slot.rule.shape for key, slot in expand(trunk).items()}
    fitting = sum(shapes.get(key) == shape for key, shape in expected.items())
    if fitting < _ENOUGH * len(expected):
        raise CheckpointError(
            f"{source}: a {model}, but not of the released size: {fitting} of the {len(expected)} "
            f"trunk tensors of {released} are there with its shapes; describe the size with "
            "--config FILE.json"
        )
