"""Which key blocks matter to which query blocks, predicted from pooled queries and keys."""

from pallas_kernels.selection.api import select_blocks
from pallas_kernels.selection.call import BlockSelection
from pallas_kernels.selection.rules import (
    Limits,
    Mass,
    RandomBaseline,
    Ratio,
    RatioOrMass,
    Rule,
    Stripe,
)

__all__ = [
    "BlockSelection",
    "Limits",
    "Mass",
    "RandomBaseline",
    "Ratio",
    "RatioOrMass",
    "Rule",
    "Stripe",
    "select_blocks",
]
