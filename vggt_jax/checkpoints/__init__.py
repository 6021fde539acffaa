"""PyTorch checkpoints into ours, and ours on disk; knows no model code."""

from vggt_jax.checkpoints.config_fields import read_fields
from vggt_jax.checkpoints.conversion import convert, load_official, native_shapes
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.native import checksum, is_native, read, write
from vggt_jax.checkpoints.report import ConversionReport

__all__ = [
    "CheckpointError",
    "ConversionReport",
    "checksum",
    "convert",
    "is_native",
    "load_official",
    "native_shapes",
    "read",
    "read_fields",
    "write",
]
