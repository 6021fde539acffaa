"""PyTorch checkpoints into ours, and ours on disk: the engine, which knows no model."""

from vggt_jax.checkpoints.config_fields import read_fields
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.native import annotate, checksum, is_native, read, write
from vggt_jax.checkpoints.report import ConversionReport

__all__ = [
    "CheckpointError",
    "ConversionReport",
    "annotate",
    "checksum",
    "is_native",
    "read",
    "read_fields",
    "write",
]
