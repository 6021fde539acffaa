"""Pi3X as the registry knows it."""

from vggt_jax.models.base import ModelFamily
from vggt_jax.models.pi3x.config import Pi3XConfig
from vggt_jax.models.pi3x.keys import KEYS
from vggt_jax.models.pi3x.memory import memory_of_pi3x
from vggt_jax.models.pi3x.model import Pi3X

FAMILY = ModelFamily(model=Pi3X, config=Pi3XConfig, memory=memory_of_pi3x, keys=KEYS)
