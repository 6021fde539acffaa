"""π³ as the registry knows it."""

from vggt_jax.models.base import ModelFamily
from vggt_jax.models.pi3.config import Pi3Config
from vggt_jax.models.pi3.keys import KEYS
from vggt_jax.models.pi3.memory import memory_of_pi3
from vggt_jax.models.pi3.model import Pi3

FAMILY = ModelFamily(model=Pi3, config=Pi3Config, memory=memory_of_pi3, keys=KEYS)
