"""PyTorch checkpoints into ours, and ours on disk; knows no model code."""

from convert.config_fields import read_fields
from convert.errors import CheckpointError
from convert.from_torch import convert, load_official, native_shapes
from convert.native import checksum, is_native, read, write
from convert.report import ConversionReport

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
