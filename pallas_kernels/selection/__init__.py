"""Which key blocks matter to which query blocks, predicted from pooled queries and keys."""

from pallas_kernels.selection.api import BlockSelection, select_blocks

__all__ = ["BlockSelection", "select_blocks"]
