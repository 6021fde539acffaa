"""Where models were loaded from, for what they make to say so."""

import dataclasses
import weakref
from typing import Any


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model was loaded from.

    Attributes:
        source: as it was named.
        checksum: of its parameters as they were stored.
        is_small: whether it is the small model that ships with the package.
        least_agreement: see `Provenance`; None where nobody calibrated it.
    """

    source: str
    checksum: str | None
    is_small: bool = False
    least_agreement: float | None = None


# By identity: a model is a tree for JAX, in which notes of its own would make another structure.
_origins: dict[int, Origin] = {}


def remember(model: Any, origin: Origin) -> None:
    """Notes where a model was loaded from, as long as it lives."""
    _origins[id(model)] = origin
    weakref.finalize(model, _origins.pop, id(model), None)


def origin_of(model: Any) -> Origin | None:
    """Where a model was loaded from; None where nobody noted it."""
    return _origins.get(id(model))
