"""VGGT in JAX: photographs in; cameras, depth, point maps and tracks out."""

from vggt_jax.config import VGGTConfig as VGGTConfig
from vggt_jax.errors import InputError as InputError
from vggt_jax.layers.attention import Dense as Dense
from vggt_jax.models.vggt import VGGT as VGGT
from vggt_jax.outputs import VGGTOutput as VGGTOutput
