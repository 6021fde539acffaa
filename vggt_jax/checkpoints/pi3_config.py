"""The configuration of a π³: its fields, their released values, and what they must satisfy."""

import os
from collections.abc import Mapping
from typing import Any

from vggt_jax.checkpoints.config_fields import (
    Config,
    complete_fields,
    read_fields,
    require_multiple,
)
from vggt_jax.checkpoints.errors import CheckpointError

RELEASED: Config = {
    "img_size": 518,
    "patch_size": 14,
    "encoder_dim": 1024,
    "encoder_depth": 24,
    "encoder_num_heads": 16,
    "encoder_num_register_tokens": 4,
    "decoder_dim": 1024,
    "decoder_depth": 36,
    "decoder_num_heads": 16,
    "num_register_tokens": 5,
    "head_dim": 1024,
    "head_depth": 5,
    "head_num_heads": 16,
    "camera_dim": 512,
    "mlp_ratio": 4.0,
}
"""The released π³, which is also the default of every field of a configuration."""


def read_config(path: str | os.PathLike) -> Config:
    """Reads a configuration from a JSON file; absent fields are as released.

    Raises:
        CheckpointError: the file is not a JSON object, or `complete_config` refuses its fields.
    """
    return complete_config(read_fields(path), str(path))


def complete_config(fields: Mapping[str, Any], origin: str) -> Config:
    """Returns a configuration with every field, absent ones as released.

    Args:
        fields: the fields of a JSON document.
        origin: where they come from, for messages.

    Raises:
        CheckpointError: a field is unknown, has a wrong type or does not fit the others.
    """
    zero = ("encoder_num_register_tokens", "num_register_tokens")
    config = complete_fields(fields, RELEASED, origin, model="Pi3", may_be_zero=zero)
    for name, factor, divisor in (
        ("img_size", 1, "patch_size"),
        ("encoder_dim", 1, "encoder_num_heads"),
        ("decoder_dim", 4, "decoder_num_heads"),  # RoPE: the halves of a y half and of an x half
        ("head_dim", 4, "head_num_heads"),
    ):
        require_multiple(config, name, divisor, origin, factor=factor)
    if config["encoder_dim"] != config["decoder_dim"]:
        raise CheckpointError(
            f"{origin}: encoder_dim={config['encoder_dim']} and "
            f"decoder_dim={config['decoder_dim']} must be equal: patches go on as they come"
        )
    if config["decoder_depth"] % 2:
        raise CheckpointError(
            f"{origin}: decoder_depth={config['decoder_depth']} must be even: blocks within frames "
            "and over all frames alternate"
        )
    return config
