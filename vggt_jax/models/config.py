"""What configurations of models have in common: JSON, and checks of their fields.

Sizes that decide the shapes of parameters, and what the pictures of a checkpoint are like; nothing
about how to run.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from vggt_jax.checkpoints.config_fields import read_fields
from vggt_jax.checkpoints.errors import CheckpointError

_MOST, _MOST_REPEATED = 2**15, 256
_REPEATED = ("depth", "layers", "iters", "levels", "radius", "mlp_ratio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigFields:
    """Base of the configurations: frozen dataclasses whose every field has a default.

    The type of a field is that of its default: a bool, an int, a float, a string, or a tuple of
    ints.

    Args:
        model: name of the model in messages, such as "VGGT".
        may_be_zero: the numbers, or tuples of them, that need not be positive, beside those of the
            base.
        any_length: the tuples that may have another length than their default, from 1, beside those
            of the base.
    """

    _model: ClassVar[str]
    _may_be_zero: ClassVar[tuple[str, ...]] = ()
    _any_length: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(
        cls,
        *,
        model: str,
        may_be_zero: tuple[str, ...] = (),
        any_length: tuple[str, ...] = (),
    ):
        cls._model = model
        cls._may_be_zero = (*cls._may_be_zero, *may_be_zero)
        cls._any_length = (*cls._any_length, *any_length)

    def __post_init__(self):
        self._validate(type(self).__name__)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], origin: str = "configuration") -> Self:
        """Builds a configuration from JSON fields; absent fields take the default.

        Args:
            origin: where the fields come from, for messages.

        Raises:
            vggt_jax.CheckpointError: a field is unknown or has a wrong type, or the values do not
                fit each other.
        """
        known = cls._defaults()
        if unknown := sorted(set(fields) - set(known)):
            raise CheckpointError(
                f"{origin}: unknown field {', '.join(unknown)} for a {cls._model}; "
                f"known are {', '.join(known)}"
            )
        config = object.__new__(cls)  # The constructor would name the class in messages.
        for name, value in (known | dict(fields)).items():
            object.__setattr__(config, name, value)
        config._validate(origin)
        return config

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> Self:
        """Reads a configuration from a JSON file with these field names.

        Raises:
            vggt_jax.CheckpointError: the file is no JSON, or `from_dict` refuses its fields.
        """
        return cls.from_dict(read_fields(path), str(path))

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def check(self, origin: str) -> None:
        """Checks what the fields, each of the right type, must satisfy together.

        Raises:
            vggt_jax.CheckpointError: they do not; the message begins with `origin`.
        """

    def require_multiple(self, name: str, divisor: str, origin: str, *, factor: int = 1) -> None:
        """Checks that one field is a multiple of another one, times a factor.

        Raises:
            vggt_jax.CheckpointError: it is not.
        """
        value, unit = getattr(self, name), factor * getattr(self, divisor)
        if value % unit:
            multiple = divisor if factor == 1 else f"{factor} * {divisor}"
            raise CheckpointError(
                f"{origin}: {name}={value} must be a multiple of {multiple}={unit}"
            )

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {field.name: field.default for field in dataclasses.fields(cls)}

    def _validate(self, origin: str) -> None:
        for name, default in self._defaults().items():
            value = getattr(self, name)
            least = 0 if name in self._may_be_zero else 1
            if name in self._any_length and isinstance(value, list | tuple) and value:
                default = (1,) * len(value)
            if wanted := _unmet_type(default, value, least, _most(name)):
                shown = repr(value) if not isinstance(value, int) or abs(value) < 1e30 else "that"
                raise CheckpointError(f"{origin}: {name}={shown[:60]} must be {wanted}")
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        self.check(origin)


def _most(name: str) -> int:
    """The largest number that a field may be: what is above takes all memory, or hours to trace."""
    return _MOST_REPEATED if name.endswith(_REPEATED) else _MOST


def _unmet_type(default: Any, value: Any, least: int, most: int) -> str | None:
    """Returns what the value of a field must be, or None where it is that."""

    def is_count(x: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool) and least <= x <= most

    match default:
        case bool():
            return None if isinstance(value, bool) else "true or false"
        case int():
            return None if is_count(value) else f"an integer from {least} to {most}"
        case float():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and 0 <= value <= most and (value > 0 or least == 0):
                return None
            return f"a {'positive ' * least}number up to {most}"
        case str():
            return None if isinstance(value, str) else "a name"
        case tuple():
            right = isinstance(value, list | tuple) and len(value) == len(default)
            if right and all(map(is_count, value)):
                return None
            return f"a list of {len(default)} integers from {least} to {most}"
        case _:
            raise TypeError(f"a field with the default {default!r} is of no type that is known")
