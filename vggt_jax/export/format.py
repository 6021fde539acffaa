"""What a format of exports is, which there are, and what can be asked of them.

A format is one value, a `FileFormat` or a `FolderFormat`, in a file of its own, and one line in
`formats.py`. The function that writes, the names of the options that it takes, and what a folder
holds are all that the rest of the package knows of it.
"""

import abc
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from jaxtyping import Float32, UInt8

from vggt_jax.errors import InputError
from vggt_jax.export.cameras import (
    CameraModel,
    Cameras,
    check_one_size,
    checked_names,
    scene_cameras,
)
from vggt_jax.export.images import (
    Images,
    Photographs,
    check_images,
    find_photographs,
    lie_in_place,
)
from vggt_jax.export.masks import FOLDER as MASKS
from vggt_jax.export.masks import SceneMasks
from vggt_jax.export.points import scene_points
from vggt_jax.export.smaller import check_factors, folders_of, write_smaller
from vggt_jax.export.tracks import TrackErrors
from vggt_jax.files import check_file, check_output_folder, output_folder
from vggt_jax.images.frames import Frames
from vggt_jax.scene.confidence import PointSource, confidence_limits
from vggt_jax.scene.reconstruction import Reconstruction

_MAX_CLOUD_POINTS = 2_000_000
DEPTHS = "depths"
"""The folder of depth maps in an export for nerfstudio."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a format wrote.

    Attributes:
      num_points: points that were written.
      num_frames: cameras that were written; 0 where there are none.
      errors: of points with tracks, as read again from the files; None for other formats.
      errors_before_adjustment: the same before bundle adjustment; None without it.
      notes: what a person should know, a sentence each.
    """

    num_points: int
    num_frames: int = 0
    errors: TrackErrors | None = None
    errors_before_adjustment: TrackErrors | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExportFormat(abc.ABC):
    """A format of exports: what `FileFormat` and `FolderFormat` have in common.

    Attributes:
      name: what `format` of `export_reconstruction` calls it.
      description: what it writes, in a few words.
      options: names of the options that it takes, besides those of every format: the thresholds of
        confidence, `max_points` and `overwrite`.
      check: checks options beyond their ranges, such as that a package is installed; raises
        InputError.
    """

    name: str
    description: str
    options: tuple[str, ...] = ()
    check: Callable[["ExportOptions"], None] = lambda options: None

    @abc.abstractmethod
    def export(self, recon: Reconstruction, path: Path, options: "ExportOptions") -> Written:
        """Writes a scene in NumPy arrays, whole or not at all.

        Raises:
          InputError: it cannot be written.
        """

    @abc.abstractmethod
    def check_place(self, path: Path, options: "ExportOptions") -> None:
        """Checks that this can be written to a place.

        Raises:
          InputError: something is there that may not be replaced.
        """

    @abc.abstractmethod
    def check_frames(self, frames: Frames, options: "ExportOptions") -> None:
        """Checks what depends on the photographs, before they are reconstructed.

        Raises:
          InputError: no export could hold them.
        """


@dataclass(frozen=True, kw_only=True)
class FileFormat(ExportFormat):
    """A format that is one file.

    Attributes:
      write: `write(recon, path, options)` writes a scene in NumPy arrays to the file, whole or not
        at all (`files.replacing`).
      mark: what the beginning of every file holds that `write` wrote: nothing else is
        replaced.
    """

    write: Callable[[Reconstruction, Path, "ExportOptions"], Written]
    mark: bytes = b""

    def export(self, recon: Reconstruction, path: Path, options: "ExportOptions") -> Written:
        return self.write(recon, path, options)

    def check_place(self, path: Path, options: "ExportOptions") -> None:
        check_file(path, overwrite=options.overwrite, mark=self.mark)

    def check_frames(self, frames: Frames, options: "ExportOptions") -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class FolderFormat(ExportFormat):
    """A format that is a folder with the photographs in `images`, and masks of them in `masks`.

    Attributes:
      entries: what the folder holds beside `images` and `masks`.
      flat_names: whether the programs look for smaller photographs by their names without folders.
      write: `write(recon, folder, cameras, options)` writes a scene in NumPy arrays into an empty
        folder, which takes its place when all went well. `cameras` has the names of the files in
        `images`, and of those in `masks` if there are any.
    """

    entries: tuple[str, ...]
    flat_names: bool = False
    write: Callable[[Reconstruction, Path, Cameras, "ExportOptions"], Written]

    def export(self, recon: Reconstruction, path: Path, options: "ExportOptions") -> Written:
        photographs = Photographs.of(scene_cameras(recon), recon, path, options.images)
        masks = SceneMasks.of(recon, photographs, path)
        smaller = folders_of(options.data_factor, with_masks=bool(masks.cameras.masks))
        entries = self._all_entries(
            with_images=photographs.are_written, with_masks=masks.are_written
        )
        stale = self._all_entries(
            with_images=photographs.are_written, with_masks=photographs.are_written
        )
        earlier = [x.name for kind in ("images", MASKS, DEPTHS) for x in path.glob(f"{kind}_*")]
        with output_folder(
            path,
            overwrite=options.overwrite,
            entries=[*entries, *smaller],
            stale=[*stale, *earlier],
            inputs=[one.path for one in photographs.photographs or ()],
        ) as folder:
            notes = (*photographs.notes, *photographs.write(folder / "images", recon))
            notes = (*notes, *masks.notes)
            masks.write(folder, recon)
            if options.data_factor:
                factors, flat = options.data_factor, self.flat_names
                write_smaller(folder, path, masks.cameras, factors, flat=flat)
            written = self.write(recon, folder, masks.cameras, options)
            return dataclasses.replace(written, notes=(*notes, *written.notes))

    def check_place(self, path: Path, options: "ExportOptions") -> None:
        images = options.images
        with_images = images is not None and not lie_in_place(images, path)
        entries = self._all_entries(with_images=with_images, with_masks=False)
        entries += folders_of(options.data_factor, with_masks=False)
        check_output_folder(path, overwrite=options.overwrite, entries=entries)

    def check_frames(self, frames: Frames, options: "ExportOptions") -> None:
        names = checked_names(frames.names, len(frames.images), distinct=True)
        if options.images is not None:
            find_photographs(names, options.images)
        if options.shared_camera:
            check_one_size(names, [transform.original_size for transform in frames.transforms])

    def _all_entries(self, *, with_images: bool, with_masks: bool) -> list[str]:
        images, masks = ["images"] * with_images, [MASKS] * with_masks
        return [*self.entries, *images, *masks]


_formats: dict[str, ExportFormat] = {}


def register_format(format: ExportFormat) -> None:
    """Makes a format known to `export_reconstruction` and to the command line.

    Raises:
      ValueError: its name is taken, or an option that it takes does not exist.
    """
    if format.name in _formats:
        raise ValueError(f"there is a format {format.name!r} already; choose another name")
    if unknown := set(format.options) - set(_DEFAULTS):
        raise ValueError(f"{format.name}: no option is called {', '.join(sorted(unknown))}")
    _formats[format.name] = format


def format_names() -> tuple[str, ...]:
    """What `format` may be, in the order of registration."""
    return tuple(_formats)


def format_named(name: str) -> ExportFormat:
    """The format of a name.

    Raises:
      InputError: there is none.
    """
    if name not in _formats:
        raise InputError(f"format={name!r} must be one of {', '.join(_formats)}")
    return _formats[name]


def formats_with(option: str) -> tuple[str, ...]:
    """The names of the formats that take an option; all of them where it is for every format."""
    if option in OPTIONS_OF_EVERY_FORMAT:
        return format_names()
    return tuple(name for name, format in _formats.items() if option in format.options)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of `export_reconstruction`, which describes them; checked when they are made.

    What is annotated with a text is an option of `vggt-jax export`, with the text as its help.

    `check_place` and `check_frames` check what depends on the disk and on photographs, so that long
    work can wait for all three.

    Raises:
      InputError: a value is out of its range or of another format, photographs are missing, or
        pycolmap is needed and not installed.
    """

    format: str
    images: Annotated[
        Images | None,
        "Folder of the photographs, or the video, to put beside the scene, if results are exported",
    ] = None
    points: PointSource | None = None
    confidence_percentile: float | None = None
    min_confidence: float | None = None
    max_points: Annotated[
        int | None, "Most points; by default 2,000,000, and 100,000 for colmap"
    ] = None
    cameras: Annotated[bool, "Draw the cameras"] = True
    camera_size: Annotated[
        float | None,
        "Length of a drawn camera in the units of the scene; by default one that suits it",
    ] = None
    tracks: Annotated[
        Literal["depth", "head"],
        "Tracks from depth, checked in both directions, or from the track head, for which "
        "photographs must have been reconstructed with --query-points",
    ] = "depth"
    camera_model: Annotated[CameraModel, "Two focal lengths or one"] = "PINHOLE"
    shared_camera: Annotated[bool, "One camera for all photographs"] = False
    bundle_adjustment: Annotated[bool, "Refine poses, focal lengths and points with pycolmap"] = (
        False
    )
    depth_tolerance: Annotated[
        float, "Share by which depths may differ in a track; for tracks from depth"
    ] = 0.03
    max_reprojection_error: Annotated[
        float, "Pixels of the model by which a track may miss what it was seen at"
    ] = 2.0
    min_track_length: Annotated[int, "Photographs that must see a point"] = 2
    min_visibility: Annotated[
        float, "What visibility and confidence of a track must exceed; for tracks from the head"
    ] = 0.2
    data_factor: Annotated[
        tuple[int, ...],
        "Also write smaller photographs, of a half, a quarter ... of the size (2 4 8), to images_2 "
        "and so on, as gsplat asks for, whose default is 4",
    ] = ()
    depth_maps: Annotated[bool, "Write depth of the photographs, for depth-nerfacto"] = False
    voxel_size: Annotated[
        float | None, "Side of a voxel in the units of the scene; by default a 400th of it"
    ] = None
    overwrite: Annotated[bool, "Replace an earlier export"] = False

    def __post_init__(self):
        self._check_format()
        self._check_values()
        if self.images is not None:
            check_images(self.images)
        self.of_format.check(self)

    @property
    def of_format(self) -> ExportFormat:
        """The format that is asked for."""
        return format_named(self.format)

    def changed(self, name: str) -> bool:
        """Whether an option has another value than by default."""
        return getattr(self, name) != _DEFAULTS[name]

    def cloud(
        self, recon: Reconstruction
    ) -> tuple[Float32[np.ndarray, "m 3"], UInt8[np.ndarray, "m 3"]]:
        """The points that these options ask for, with their colours; see `scene_points`.

        Raises:
          InputError: nothing is left, or the model has no such points.
        """
        return scene_points(
            recon,
            points=self.points,
            confidence_percentile=self.confidence_percentile,
            min_confidence=self.min_confidence,
            max_points=self.max_points or _MAX_CLOUD_POINTS,
        )

    def check_place(self, path: str | os.PathLike) -> None:
        """Checks that this can be written to a place.

        Raises:
          InputError: something is there that may not be replaced.
        """
        self.of_format.check_place(Path(path), self)

    def check_frames(self, frames: Frames) -> None:
        """Checks what depends on the photographs, before they are reconstructed.

        Raises:
          InputError: names or sizes are such that no export could hold them, or a photograph is
            missing.
        """
        self.of_format.check_frames(frames, self)

    def _check_format(self) -> None:
        """Refuses options of other formats, which would do nothing."""
        taken = self.of_format.options
        for name in _DEFAULTS:
            if name in OPTIONS_OF_EVERY_FORMAT or name in taken or not self.changed(name):
                continue
            raise InputError(
                f"{name} is for {' and '.join(formats_with(name))}, not for {self.format}; "
                "leave it out"
            )

    def _check_values(self) -> None:
        confidence_limits(
            "one_plus_exp",  # Ranges are those of any model.
            confidence_percentile=self.confidence_percentile,
            min_confidence=self.min_confidence,
        )
        if self.points not in (None, "depth", "head"):
            raise InputError(f"points={self.points!r} must be depth or head")
        if self.tracks not in ("depth", "head"):
            raise InputError(f"tracks={self.tracks!r} must be depth or head")
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
        check_factors(self.data_factor)
        if self.voxel_size is not None and not 0 < self.voxel_size < np.inf:
            raise InputError(f"voxel_size={self.voxel_size} must be positive")
        if not 0 <= self.min_visibility < 1:
            raise InputError(f"min_visibility={self.min_visibility} must lie in [0, 1)")


OPTIONS_OF_EVERY_FORMAT = ("confidence_percentile", "min_confidence", "max_points", "overwrite")
# Of all options but the format itself.
_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(ExportOptions)
    if field.name != "format"
}
