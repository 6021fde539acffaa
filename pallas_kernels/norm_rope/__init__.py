"""Queries and keys on their way to attention: bias, layer normalisation, rotary embedding."""

from pallas_kernels.norm_rope.api import norm_rope
from pallas_kernels.norm_rope.xla import apply_rope

__all__ = ["apply_rope", "norm_rope"]
