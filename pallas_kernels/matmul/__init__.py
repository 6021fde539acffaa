"""Linear layers whose bias and activation cost no pass through memory."""

from pallas_kernels.matmul.api import linear
from pallas_kernels.matmul.gelu import gelu

__all__ = ["gelu", "linear"]
