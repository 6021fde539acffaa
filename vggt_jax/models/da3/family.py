"""Depth Anything 3 as the registry knows it."""

from vggt_jax.models.base import ModelFamily
from vggt_jax.models.da3.config import DA3Config
from vggt_jax.models.da3.keys import KEYS
from vggt_jax.models.da3.memory import memory_of_da3
from vggt_jax.models.da3.model import DA3

FAMILY = ModelFamily(model=DA3, config=DA3Config, memory=memory_of_da3, keys=KEYS)
"""Depth Anything 3: Recovering the Visual Space from Any Views (arXiv:2511.10647)."""
