"""What can be asked of an export, checked before there is anything to export."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.export.colmap import CameraModel, check_one_size, import_pycolmap
from vggt_jax.export.images import check_images, find_photographs
from vggt_jax.export.nerfstudio import POINTS, TRANSFORMS
from vggt_jax.export.scene import checked_names
from vggt_jax.files import check_file, check_output_folder
from vggt_jax.images.frames import Frames
from vggt_jax.scene.confidence import PointSource, confidence_limits

ExportFormat = Literal["ply", "glb", "colmap", "nerfstudio"]
Images = str | os.PathLike | Sequence[str | os.PathLike]
# Options of only some formats.
_FORMATS_OF = {
    "images": ("colmap", "nerfstudio"),
    "points": ("ply", "glb", "nerfstudio"),
    "cameras": ("glb",),
    "camera_size": ("glb",),
    **dict.fromkeys(
        (
            "tracks",
            "camera_model",
            "shared_camera",
            "bundle_adjustment",
            "depth_tolerance",
            "max_reprojection_error",
            "min_track_length",
            "min_visibility",
        ),
        ("colmap",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of `export_reconstruction`, which describes them; checked when they are made.

    `check_place` and `check_frames` check what depends on the disk and on photographs, so that long
    work can wait for all three.

    Raises:
      InputError: a value is out of its range or of another format, photographs are missing, or
        pycolmap is needed and not installed.
    """

    format: ExportFormat
    images: Images | None = None
    points: PointSource | None = None
    confidence_percentile: float | None = None
    min_confidence: float | None = None
    max_points: int | None = None
    cameras: bool = True
    camera_size: float | None = None
    tracks: Literal["depth", "head"] = "depth"
    camera_model: CameraModel = "PINHOLE"
    shared_camera: bool = False
    bundle_adjustment: bool = False
    depth_tolerance: float = 0.03
    max_reprojection_error: float = 2.0
    min_track_length: int = 2
    min_visibility: float = 0.2
    overwrite: bool = False

    def __post_init__(self):
        if self.format not in get_args(ExportFormat):
            raise InputError(f"format={self.format!r} must be one of ply, glb, colmap, nerfstudio")
        self._check_format()
        self._check_values()
        if self.images is not None:
            check_images(self.images)
        if self.format == "colmap":
            import_pycolmap()

    @property
    def is_folder(self) -> bool:
        """Whether the format is a folder with photographs, and not a file of points."""
        return self.format in ("colmap", "nerfstudio")

    def entries(self, *, with_images: bool) -> list[str]:
        """What a folder of this format holds."""
        return (["sparse"] if self.format == "colmap" else [POINTS, TRANSFORMS]) + (
            ["images"] if with_images else []
        )

    def stays_in_place(self, path: Path) -> bool:
        """Whether the photographs lie in the folder of the export already."""
        place = path / "images"
        images = self.images
        is_path = isinstance(images, str | os.PathLike)
        return is_path and place.is_dir() and place.samefile(images)

    def check_place(self, path: str | os.PathLike) -> None:
        """Checks that this can be written to a place.

        Raises:
          InputError: something is there that may not be replaced.
        """
        path = Path(path)
        if not self.is_folder:
            check_file(path, overwrite=self.overwrite)
            return
        with_images = self.images is not None and not self.stays_in_place(path)
        check_output_folder(
            path, overwrite=self.overwrite, entries=self.entries(with_images=with_images)
        )

    def check_frames(self, frames: Frames) -> None:
        """Checks what depends on the photographs, before they are reconstructed.

        Raises:
          InputError: names or sizes are such that no export could hold them, or a photograph is
            missing.
        """
        if not self.is_folder:
            return
        names = checked_names(frames.names, len(frames.images), distinct=True)
        if self.images is not None:
            find_photographs(names, self.images)
        if self.shared_camera:
            check_one_size(names, [transform.original_size for transform in frames.transforms])

    def _check_format(self) -> None:
        """Refuses options of other formats, which would do nothing."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, formats in _FORMATS_OF.items():
            if self.format not in formats and getattr(self, name) != defaults[name]:
                raise InputError(
                    f"{name} is for {' and '.join(formats)}, not for {self.format}; leave it out"
                )
        if self.tracks not in ("depth", "head"):
            raise InputError(f"tracks={self.tracks!r} must be depth or head")
        of_depth = ("depth_tolerance", "confidence_percentile", "min_confidence")
        for name in of_depth if self.tracks == "head" else ("min_visibility",):
            if self.format == "colmap" and getattr(self, name) != defaults[name]:
                raise InputError(f"{name} is not for tracks={self.tracks!r}; leave it out")

    def _check_values(self) -> None:
        confidence_limits(
            "one_plus_exp",  # Ranges are those of any model.
            confidence_percentile=self.confidence_percentile,
            min_confidence=self.min_confidence,
        )
        if self.points not in (None, "depth", "head"):
            raise InputError(f"points={self.points!r} must be depth or head")
        if self.camera_model not in get_args(CameraModel):
            raise InputError(
                f"camera_model={self.camera_model!r} must be PINHOLE or SIMPLE_PINHOLE"
            )
        if self.max_points is not None and self.max_points < 1:
            raise InputError(f"max_points={self.max_points} must be at least 1")
        if self.camera_size is not None and not 0 < self.camera_size < np.inf:
            raise InputError(f"camera_size={self.camera_size} must be positive")
        if not 0 < self.depth_tolerance < 1:
            raise InputError(f"depth_tolerance={self.depth_tolerance} must lie between 0 and 1")
        if not 0 < self.max_reprojection_error < np.inf:
            raise InputError(
                f"max_reprojection_error={self.max_reprojection_error} must be positive"
            )
        if self.min_track_length < 2:
            raise InputError(
                f"min_track_length={self.min_track_length} must be at least 2: one view has no "
                "depth to check"
            )
        if not 0 <= self.min_visibility < 1:
            raise InputError(f"min_visibility={self.min_visibility} must lie in [0, 1)")
