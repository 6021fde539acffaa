"""Results as files: point clouds, cameras, pictures, arrays, and the formats of other programs.

`export_reconstruction` writes PLY, GLB, COLMAP and nerfstudio; `register_format` adds others.

Every file is written under another name beside its place and moved there when complete, so that an
interrupted run leaves no half of a file. What cannot be written raises `InputError`.
"""

from vggt_jax.export import formats as formats
from vggt_jax.export.cameras import scene_cameras as scene_cameras
from vggt_jax.export.cameras_json import write_cameras as write_cameras
from vggt_jax.export.format import ExportOptions as ExportOptions
from vggt_jax.export.format import FileFormat as FileFormat
from vggt_jax.export.format import FolderFormat as FolderFormat
from vggt_jax.export.format import Written as Written
from vggt_jax.export.format import register_format as register_format
from vggt_jax.export.pictures import overview_width as overview_width
from vggt_jax.export.pictures import write_depth_pictures as write_depth_pictures
from vggt_jax.export.pictures import write_overview as write_overview
from vggt_jax.export.ply import write_point_cloud as write_point_cloud
from vggt_jax.export.points import scene_points as scene_points
from vggt_jax.export.points import select_points as select_points
from vggt_jax.export.reconstruction import ExportReport as ExportReport
from vggt_jax.export.reconstruction import export_reconstruction as export_reconstruction
from vggt_jax.export.reconstruction import write_export as write_export
from vggt_jax.export.scene_pictures import write_scene_pictures as write_scene_pictures
from vggt_jax.export.top_view import draw_top_view as draw_top_view
from vggt_jax.export.track_pictures import write_track_pictures as write_track_pictures
from vggt_jax.scene.npz import write_predictions as write_predictions
