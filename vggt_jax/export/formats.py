"""The formats that exports have, one line each."""

from vggt_jax.export.colmap import COLMAP
from vggt_jax.export.format import register_format
from vggt_jax.export.glb import GLB
from vggt_jax.export.mesh import MESH
from vggt_jax.export.nerfstudio import NERFSTUDIO
from vggt_jax.export.ply import PLY

for _format in (PLY, GLB, COLMAP, NERFSTUDIO, MESH):
    register_format(_format)
