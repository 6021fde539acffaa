"""MapAnything as the registry knows it."""

from vggt_jax.models.base import ModelFamily
from vggt_jax.models.mapanything.config import MapAnythingConfig
from vggt_jax.models.mapanything.keys import KEYS
from vggt_jax.models.mapanything.memory import memory_of_mapanything
from vggt_jax.models.mapanything.model import MapAnything

FAMILY = ModelFamily(
    model=MapAnything, config=MapAnythingConfig, memory=memory_of_mapanything, keys=KEYS
)
