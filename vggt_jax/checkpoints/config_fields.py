"""Fields of a model's configuration, as JSON files hold them."""

import json
import os
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
