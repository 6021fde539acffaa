"""VGGT as the registry knows it."""

from vggt_jax.models.base import ModelFamily
from vggt_jax.models.vggt.config import VGGTConfig
from vggt_jax.models.vggt.keys import KEYS
from vggt_jax.models.vggt.memory import memory_of_vggt
from vggt_jax.models.vggt.model import VGGT

FAMILY = ModelFamily(model=VGGT, config=VGGTConfig, memory=memory_of_vggt, keys=KEYS)
