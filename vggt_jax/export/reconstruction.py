"""One function for all the formats that other programs read."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax

from vggt_jax import weights
from vggt_jax.errors import InputError, printable
from vggt_jax.export.cameras import CameraModel
from vggt_jax.export.format import ExportOptions, Written
from vggt_jax.export.images import Images
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.stretches import is_mapped


@dataclass(frozen=True, kw_only=True)
class ExportReport(Written):
    """What an export wrote; as text, what to tell a person.

    Attributes:
      path: the file or folder.
      format: see `export_reconstruction`.
      num_frames: cameras that were written; 0 in a PLY.
      num_points: points that were written.
      errors: of COLMAP's points, as read again from the files; None for other formats.
      errors_before_adjustment: the same before bundle adjustment; None without it.
      notes: what a person should know, a sentence each.
    """

    path: Path
    format: str

    def __str__(self) -> str:
        cameras = f"{self.num_frames} cameras, " if self.num_frames else ""
        lines = [f"{self.format}: {cameras}{self.num_points:,} points -> {self.path}"]
        if self.errors_before_adjustment is not None:
            lines += [f"before bundle adjustment: {self.errors_before_adjustment}"]
            lines += [f"after bundle adjustment: {self.errors}"]
        elif self.errors is not None:
            lines += [str(self.errors)]
        return "\n".join(map(printable, [*lines, *(f"note: {note}" for note in self.notes)]))


def export_reconstruction(
    recon: Reconstruction,
    path: str | os.PathLike,
    *,
    format: str,
    images: Images | None = None,
    points: Literal["depth", "head"] | None = None,
    confidence_percentile: float | None = None,
    min_confidence: float | None = None,
    max_points: int | None = None,
    cameras: bool = True,
    camera_size: float | None = None,
    tracks: Literal["depth", "head"] = "depth",
    camera_model: CameraModel = "PINHOLE",
    shared_camera: bool = False,
    bundle_adjustment: bool = False,
    depth_tolerance: float = 0.03,
    max_reprojection_error: float = 2.0,
    min_track_length: int = 2,
    min_visibility: float = 0.2,
    data_factor: Sequence[int] = (),
    depth_maps: bool = False,
    voxel_size: float | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Writes a scene for other programs, whole or not at all.

    "ply" writes a file of points, in OpenCV's axes. "glb" writes a file of points and cameras, in
    glTF's, upright. "mesh" writes a PLY file of triangles that Open3D fuses from depth. "colmap"
    writes a folder with `sparse/0` and "nerfstudio" one with `transforms.json` and `points.ply`,
    both for the photographs in their original sizes, which lie in `images` beside them.
    `docs/export.md` has the conventions of each.

    Args:
      recon: from `infer` or `load_reconstruction`.
      path: the file (ply, glb) or the folder.
      format: see above.
      images: the photographs, to be copied to `path/images` (colmap, nerfstudio): the folder that
        was reconstructed, or one file per frame in order, or the video, whose chosen frames are
        written as PNG. A folder that is `path/images` is left as it is. None: frames that were not
        resized are written, and for others a note says what is missing.
      points: which points make the cloud (ply, glb, nerfstudio): from depth and cameras, or from
        the point head; None is what the model does better.
      confidence_percentile: leave out this percentage, the least confident. None is 25 for VGGT,
        unless `min_confidence` is given, and 0 for π³.
      min_confidence: leave out what is not above this; None is 0.1 for π³ and nothing for VGGT.
      max_points: at most so many points; None is 2,000,000, and 100,000 for tracks (colmap).
      cameras: whether to draw cameras (glb).
      camera_size: their length in the scene's unit (glb); None is one that suits the scene.
      tracks: where tracks come from (colmap): depth, checked in both directions, or the track head.
      camera_model: "PINHOLE", or "SIMPLE_PINHOLE" with one focal length (colmap).
      shared_camera: one camera for all photographs, the mean of theirs (colmap).
      bundle_adjustment: refine poses, focal lengths and points with pycolmap (colmap). Tracks from
        depth fit the predicted cameras by construction, so that their observations are first moved
        to where the images agree, and those that match nowhere are left out.
      depth_tolerance: by which share depths may differ in a track (colmap, from depth).
      max_reprojection_error: model pixels by which a track may miss its observations (colmap).
      min_track_length: frames that must see a point, at least 2 (colmap).
      min_visibility: what visibility and confidence of a track must exceed (colmap, from the head).
      data_factor: by which whole numbers to make photographs smaller, besides, into `images_2` and
        so on (colmap, nerfstudio).
      depth_maps: whether to write depth of the photographs, too (nerfstudio).
      voxel_size: side of a voxel in the scene's unit (mesh); None is a 400th of the scene.
      overwrite: whether an earlier file or export may be replaced.

    Returns:
      What was written.

    Raises:
      InputError: an option or the reconstruction cannot be used, a photograph is missing or of
        another size, pycolmap is not installed, or the place cannot be written.
    """
    options = ExportOptions(
        format=format,
        images=images,
        points=points,
        confidence_percentile=confidence_percentile,
        min_confidence=min_confidence,
        max_points=max_points,
        cameras=cameras,
        camera_size=camera_size,
        tracks=tracks,
        camera_model=camera_model,
        shared_camera=shared_camera,
        bundle_adjustment=bundle_adjustment,
        depth_tolerance=depth_tolerance,
        max_reprojection_error=max_reprojection_error,
        min_track_length=min_track_length,
        min_visibility=min_visibility,
        data_factor=tuple(data_factor),
        depth_maps=depth_maps,
        voxel_size=voxel_size,
        overwrite=overwrite,
    )
    return write_export(recon, path, options)


def write_export(
    recon: Reconstruction, path: str | os.PathLike, options: ExportOptions
) -> ExportReport:
    """`export_reconstruction` with options that were checked already.

    Raises:
      InputError: as there.
    """
    path = Path(path)
    if recon.images.ndim != 4:
        raise InputError("several scenes cannot be exported together; give one, without scene axis")
    options.check_place(path)
    recon = recon if is_mapped(recon) else jax.device_get(recon)
    written = options.of_format.export(recon, path, options)
    if recon.provenance.is_small:
        written = dataclasses.replace(written, notes=(*written.notes, weights.SAID_OF_RESULTS))
    return ExportReport(path=path, format=options.format, **vars(written))
