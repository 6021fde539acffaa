"""VGGT and π³ in JAX: photographs in; cameras, depth, point maps and tracks out."""

from convert.errors import CheckpointError as CheckpointError
from vggt_jax.checkpoint import load_model as load_model
from vggt_jax.checkpoint import save_model as save_model
from vggt_jax.config import Pi3Config as Pi3Config
from vggt_jax.config import VGGTConfig as VGGTConfig
from vggt_jax.errors import InputError as InputError
from vggt_jax.inference import infer as infer
from vggt_jax.inference import reconstruct as reconstruct
from vggt_jax.layers.attention import Dense as Dense
from vggt_jax.layers.sparse_attention import AttentionStats as AttentionStats
from vggt_jax.layers.sparse_attention import BlockSparse as BlockSparse
from vggt_jax.many_scenes import ScenesReport as ScenesReport
from vggt_jax.many_scenes import reconstruct_scenes as reconstruct_scenes
from vggt_jax.models.pi3 import Pi3 as Pi3
from vggt_jax.models.vggt import VGGT as VGGT
from vggt_jax.outputs import Pi3Output as Pi3Output
from vggt_jax.outputs import Reconstruction as Reconstruction
from vggt_jax.outputs import VGGTOutput as VGGTOutput
from vggt_jax.preprocess import Frames as Frames
from vggt_jax.preprocess import load_images as load_images
from vggt_jax.viewer import view as view
