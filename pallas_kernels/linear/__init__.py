"""Linear layers whose bias and activation cost no pass through memory."""

from pallas_kernels.linear.api import linear
from pallas_kernels.linear.gelu import gelu

__all__ = ["gelu", "linear"]
