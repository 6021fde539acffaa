"""Fields of a model's configuration, as JSON files hold them."""

import os
from typing import Any

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.files import read_json

Config = dict[str, Any]


def read_fields(path: str | os.PathLike) -> Config:
    """Reads the fields of a configuration from a JSON file.

    Raises:
        CheckpointError: the file is not a JSON object.
    """
    fields = read_json(path, "JSON configuration", error=CheckpointError)
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: not a JSON configuration, which is an object of fields")
    return fields
