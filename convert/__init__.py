"""PyTorch checkpoints into ours, and ours on disk; knows no model code."""

from convert.errors import CheckpointError
from convert.from_torch import convert, load_official
from convert.native import checksum, is_native, read, write
from convert.report import ConversionReport
from convert.vggt import native_shapes

__all__ = [
    "CheckpointError",
    "ConversionReport",
    "checksum",
    "convert",
    "is_native",
    "load_official",
    "native_shapes",
    "read",
    "write",
]
