"""The configuration of a VGGT: its fields, their released values, and what they must satisfy."""

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
    "embed_dim": 1024,
    "num_heads": 16,
    "depth": 24,
    "vit_depth": 24,
    "vit_num_heads": 16,
    "mlp_ratio": 4.0,
    "num_register_tokens": 4,
    "camera_trunk_depth": 4,
    "camera_num_heads": 16,
    "camera_iters": 4,
    "dpt_features": 256,
    "dpt_out_channels": [256, 512, 1024, 1024],
    "dpt_layers": [4, 11, 17, 23],
    "track_features": 128,
    "track_hidden_size": 384,
    "track_num_heads": 8,
    "track_num_virtual_tracks": 64,
    "track_corr_levels": 7,
    "track_corr_radius": 4,
    "track_depth": 6,
    "track_iters": 4,
    "enable_camera": True,
    "enable_depth": True,
    "enable_point": True,
    "enable_track": True,
    "pixel_centre": 0.0,
}
"""The released VGGT-1B, which is also the default of every field of a configuration."""

HEADS = {
    "enable_camera": "camera_head",
    "enable_depth": "depth_head",
    "enable_point": "point_head",
    "enable_track": "track_head",
}
"""The official name of each head, by the field that says whether the model has it."""


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
    config = complete_fields(
        fields,
        RELEASED,
        origin,
        model="VGGT",
        may_be_zero=("num_register_tokens", "dpt_layers", "pixel_centre"),
    )
    for name, factor, divisor in (
        ("img_size", 1, "patch_size"),
        ("embed_dim", 4, "num_heads"),  # RoPE turns the halves of a y half and of an x half
        ("embed_dim", 1, "vit_num_heads"),
        ("track_hidden_size", 1, "track_num_heads"),
    ):
        require_multiple(config, name, divisor, origin, factor=factor)
    if 2 * config["embed_dim"] % config["camera_num_heads"]:
        raise CheckpointError(
            f"{origin}: 2 * embed_dim={2 * config['embed_dim']} must be a multiple of "
            f"camera_num_heads={config['camera_num_heads']}"
        )
    for name in ("dpt_features", "dpt_out_channels", "track_features"):
        # Their position embeddings have four parts: sines and cosines of x and of y.
        values = config[name] if isinstance(config[name], list) else [config[name]]
        if any(value % 4 for value in values):
            raise CheckpointError(f"{origin}: {name}={config[name]} must be a multiple of 4")
    if config["pixel_centre"] >= 1:
        raise CheckpointError(f"{origin}: pixel_centre={config['pixel_centre']} must be below 1")
    if max(config["dpt_layers"]) >= config["depth"]:
        raise CheckpointError(
            f"{origin}: dpt_layers={config['dpt_layers']} must be below depth={config['depth']}"
        )
    return config
