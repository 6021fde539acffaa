"""Configurations of models as JSON fields: reading, completing and checking them."""

import json
import os
from collections.abc import Mapping
from typing import Any

from vggt_jax.checkpoints.errors import CheckpointError

Config = dict[str, Any]


def read_fields(path: str | os.PathLike) -> Config:
    """Reads the fields of a configuration from a JSON file.

    Raises:
        CheckpointError: the file is not a JSON object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not a JSON configuration ({error})") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: not a JSON configuration, which is an object of fields")
    return fields


def complete_fields(
    fields: Mapping[str, Any],
    released: Config,
    origin: str,
    *,
    model: str,
    may_be_zero: tuple[str, ...] = (),
) -> Config:
    """Returns a configuration with every field, absent ones as released.

    Args:
        fields: the fields of a JSON document.
        released: every field with its default, whose type is the field's.
        origin: where the fields come from, for messages.
        model: name of the family, such as VGGT, for messages.
        may_be_zero: the numbers, or lists of them, that need not be positive.

    Raises:
        CheckpointError: a field is unknown or has a wrong type.
    """
    if unknown := sorted(set(fields) - set(released)):
        raise CheckpointError(
            f"{origin}: unknown field {', '.join(unknown)} for a {model}; "
            f"known are {', '.join(released)}"
        )
    config = {}
    for name, value in (released | dict(fields)).items():
        if wanted := _unmet_type(released[name], value, 0 if name in may_be_zero else 1):
            raise CheckpointError(f"{origin}: {name}={value!r} must be {wanted}")
        config[name] = list(value) if isinstance(released[name], list) else value
    return config


def require_multiple(
    config: Config, name: str, divisor: str, origin: str, *, factor: int = 1
) -> None:
    """Checks that one field is a multiple of another one, times a factor.

    Raises:
        CheckpointError: it is not.
    """
    if config[name] % (factor * config[divisor]):
        multiple = divisor if factor == 1 else f"{factor} * {divisor}"
        raise CheckpointError(
            f"{origin}: {name}={config[name]} must be a multiple of "
            f"{multiple}={factor * config[divisor]}"
        )


def _unmet_type(default: Any, value: Any, least: int) -> str | None:
    """Returns what the value of a field must be, or None where it is that."""

    def is_count(x: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool) and x >= least

    match default:
        case bool():
            return None if isinstance(value, bool) else "true or false"
        case int():
            return None if is_count(value) else f"an integer of at least {least}"
        case float():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and 0 <= value < float("inf") and (value > 0 or least == 0):
                return None
            return "a positive number" if least else "a number of at least 0"
        case list():
            right = (
                isinstance(value, list | tuple) and len(value) == 4 and all(map(is_count, value))
            )
            return None if right else f"a list of 4 integers of at least {least}"
