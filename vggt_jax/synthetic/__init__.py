"""A procedural world: scenes of textured solids, rendered by ray casting, with everything known.

Pure JAX functions that run inside a jitted training step, so that no data set is stored or read.
"""

from vggt_jax.synthetic.families import FAMILIES as FAMILIES
from vggt_jax.synthetic.families import SPLITS as SPLITS
from vggt_jax.synthetic.families import WIDE_FAMILIES as WIDE_FAMILIES
from vggt_jax.synthetic.families import Split as Split
from vggt_jax.synthetic.pictures import PictureBank as PictureBank
from vggt_jax.synthetic.pictures import picture_bank as picture_bank
from vggt_jax.synthetic.pictures import read_pictures as read_pictures
from vggt_jax.synthetic.scenes import Scenes as Scenes
from vggt_jax.synthetic.scenes import correspondences as correspondences
from vggt_jax.synthetic.scenes import render_scenes as render_scenes
