"""What programs in this repository import to convert checkpoints: `from convert import convert`."""

from vggt_jax.checkpoints.errors import CheckpointError as CheckpointError
from vggt_jax.models.conversion import convert as convert
