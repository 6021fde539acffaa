"""One door to the formats that other programs read."""

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import jax
import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.export.colmap import (
    MORE_TRACKS,
    Adjustment,
    CameraModel,
    TrackErrors,
    colmap_cameras,
    write_colmap,
)
from vggt_jax.export.glb import write_glb
from vggt_jax.export.images import (
    check_photographs,
    find_photographs,
    has_extension,
    write_frames,
    write_photographs,
    write_video_frames,
)
from vggt_jax.export.matching import matched_tracks
from vggt_jax.export.nerfstudio import write_nerfstudio
from vggt_jax.export.options import ExportFormat, ExportOptions, Images
from vggt_jax.export.ply import write_point_cloud
from vggt_jax.export.scene import (
    Cameras,
    checked_names,
    confident_pixels,
    scene_cameras,
    scene_points,
)
from vggt_jax.export.tracks import Tracks, tracks_from_depth, tracks_from_head
from vggt_jax.files import output_folder
from vggt_jax.images.frames import FrameTransform
from vggt_jax.scene.confidence import allowed_pixels, confidence_of, percentile_thresholds
from vggt_jax.scene.reconstruction import Reconstruction

_MAX_CLOUD_POINTS = 2_000_000
_MAX_TRACKS = 100_000  # Default of the official demo_colmap.py, as a start for splatting plenty.


@dataclass(frozen=True, kw_only=True)
class ExportReport:
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
    format: ExportFormat
    num_frames: int
    num_points: int
    errors: TrackErrors | None = None
    errors_before_adjustment: TrackErrors | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        cameras = f"{self.num_frames} cameras, " if self.num_frames else ""
        lines = [f"{self.format}: {cameras}{self.num_points:,} points -> {self.path}"]
        if self.errors_before_adjustment is not None:
            lines += [f"before bundle adjustment: {self.errors_before_adjustment}"]
            lines += [f"after bundle adjustment: {self.errors}"]
        elif self.errors is not None:
            lines += [str(self.errors)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def export_reconstruction(
    recon: Reconstruction,
    path: str | os.PathLike,
    *,
    format: ExportFormat,
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
    overwrite: bool = False,
) -> ExportReport:
    """Writes a scene for other programs, whole or not at all.

    "ply" writes a file of points, in OpenCV's axes. "glb" writes a file of points and cameras, in
    glTF's. "colmap" writes a folder with `sparse/0` and "nerfstudio" one with `transforms.json` and
    `points.ply`, both for the photographs in their original sizes, which lie in `images` beside
    them. `docs/export.md` has the conventions of each.

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
    recon = jax.device_get(recon)
    return (_write_folder if options.is_folder else _write_file)(recon, path, options)


def _cloud(recon: Reconstruction, options: ExportOptions) -> tuple[np.ndarray, np.ndarray]:
    return scene_points(
        recon,
        points=options.points,
        confidence_percentile=options.confidence_percentile,
        min_confidence=options.min_confidence,
        max_points=options.max_points or _MAX_CLOUD_POINTS,
    )


def _write_file(recon: Reconstruction, path: Path, options: ExportOptions) -> ExportReport:
    found, colors = _cloud(recon, options)
    drawn = scene_cameras(recon) if options.format == "glb" and options.cameras else None
    if options.format == "ply":
        write_point_cloud(path, found, colors)
    else:
        write_glb(path, found, colors, drawn, camera_size=options.camera_size)
    return ExportReport(
        path=path,
        format=options.format,
        num_frames=0 if drawn is None else len(drawn.names),
        num_points=len(found),
    )


def _write_folder(recon: Reconstruction, path: Path, options: ExportOptions) -> ExportReport:
    photographs = _Photographs.of(scene_cameras(recon), recon, path, options)
    scene, notes = photographs.cameras, list(photographs.notes)
    entries = options.entries(with_images=photographs.are_written)
    with output_folder(path, overwrite=options.overwrite, entries=entries, stale=entries) as folder:
        notes += photographs.write(folder / "images", recon)
        if options.format == "nerfstudio":
            found, colors = _cloud(recon, options)
            write_nerfstudio(folder, scene, found, colors)
            return ExportReport(
                path=path,
                format=options.format,
                num_frames=len(scene.names),
                num_points=len(found),
                notes=tuple(notes),
            )
        errors, before, more = _write_sparse(folder, recon, scene, options)
        return ExportReport(
            path=path,
            format=options.format,
            num_frames=len(scene.names),
            num_points=errors.num_points,
            errors=errors,
            errors_before_adjustment=before,
            notes=(*notes, *more),
        )


def _write_sparse(
    folder: Path, recon: Reconstruction, scene: Cameras, options: ExportOptions
) -> tuple[TrackErrors, TrackErrors | None, list[str]]:
    """Writes `sparse/0`, and returns its errors, those before adjustment, and notes."""
    models = {"camera_model": options.camera_model, "shared_camera": options.shared_camera}
    scene = colmap_cameras(scene, **models)
    found, notes = _tracks(recon, scene, options), []
    if options.bundle_adjustment and options.tracks == "depth":
        before = len(found.pixels)
        found = matched_tracks(
            scene,
            found,
            np.asarray(recon.depth),
            np.asarray(recon.images),
            min_track_length=options.min_track_length,
        )
        notes.append(
            f"{len(found.pixels):,} of {before:,} observations were matched in the images, and "
            "make the adjustment"
        )
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    errors, adjustment = write_colmap(
        sparse, scene, found, **models, bundle_adjustment=options.bundle_adjustment
    )
    if adjustment is not None:
        notes += _notes_of_adjustment(adjustment, scene.names, shared=options.shared_camera)
    if not errors.num_points:
        notes.append(
            f"no point is seen alike by {options.min_track_length} frames, so there are cameras "
            f"alone; {MORE_TRACKS}"
        )
    return errors, None if adjustment is None else adjustment.errors_before, notes


def _notes_of_adjustment(
    adjustment: Adjustment, names: tuple[str, ...], *, shared: bool
) -> list[str]:
    notes = []
    if not adjustment.is_converged:
        notes.append(
            "bundle adjustment stopped before it converged: what was written is better than "
            "before, and not the best"
        )
    left = [name for i, name in enumerate(names) if i not in adjustment.frames]
    if left:
        what = "have poses that were not adjusted" if shared else "were not adjusted"
        which = f"{', '.join(left[:5])}{' and others' * (len(left) > 5)}"
        focal = "; the focal length is the shared camera's, adjusted on the others" * shared
        notes.append(
            f"{len(left)} frames share too few points with the others and {what}: {which}{focal}"
        )
    return notes


@dataclass(frozen=True, kw_only=True)
class _Photographs:
    """What will lie in the folder `images`, decided before anything is written."""

    cameras: Cameras
    frame_names: tuple[str, ...]
    paths: tuple[Path, ...] | None = None
    video: Path | None = None
    are_written: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, cameras: Cameras, recon: Reconstruction, path: Path, options: ExportOptions
    ) -> "_Photographs":
        names = checked_names(cameras.names, len(cameras.names), distinct=True)

        def made(called: tuple[str, ...], **fields) -> "_Photographs":
            # a.x and a.y would both become a.png.
            called = called if len(set(called)) == len(names) else _with_png(names)
            renamed = dataclasses.replace(cameras, names=called)
            return cls(cameras=renamed, frame_names=names, **fields)

        if options.images is not None:
            paths = find_photographs(names, options.images)
            if paths is None:
                assert isinstance(options.images, str | os.PathLike)
                return made(_with_png(names), video=Path(options.images), are_written=True)
            if options.stays_in_place(path):
                assert isinstance(options.images, str | os.PathLike)
                check_photographs(cameras, paths)
                called = tuple(file.relative_to(options.images).as_posix() for file in paths)
                return made(called, paths=paths, are_written=False)
            # Frames of arrays have no extension: it is that of their file.
            called = tuple(
                name
                if has_extension(name) or PurePosixPath(name).name == file.name
                else f"{name}{file.suffix}"
                for name, file in zip(names, paths, strict=True)
            )
            return made(called, paths=paths, are_written=True)
        height, width = recon.images.shape[1:3]
        untouched = FrameTransform.identity((height, width))
        if all(transform == untouched for transform in cameras.transforms):
            called = (
                str(PurePosixPath(name).with_suffix("")) if has_extension(name) else name
                for name in names
            )
            return made(_with_png(called), are_written=True)
        have_names = all(map(has_extension, names))
        called = names if have_names else _with_png(names)
        of = "folder of images" if have_names else "folder of images or the video"
        note = (
            f"the photographs are not at hand: give the {of}, or put {called[0]} and "
            f"the others into {path / 'images'}, turned as their EXIF data says"
        )
        return made(called, are_written=False, notes=(note,))

    def write(self, folder: Path, recon: Reconstruction) -> list[str]:
        """Writes them to `folder`, and returns notes."""
        if not self.are_written:
            return []
        if self.video is not None:
            write_video_frames(folder, self.cameras, self.video, self.frame_names)
            return []
        if self.paths is None:
            write_frames(folder, self.cameras, np.asarray(recon.images))
            return []
        turned = write_photographs(folder, self.cameras, self.paths)
        if not turned:
            return []
        return [f"{turned} photographs were turned as their EXIF data says, and written anew"]


def _with_png(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}.png" for name in names)


def _tracks(recon: Reconstruction, cameras: Cameras, options: ExportOptions) -> Tracks:
    max_points = options.max_points or _MAX_TRACKS
    limits = {
        "max_reprojection_error": options.max_reprojection_error,
        "min_track_length": options.min_track_length,
    }
    if options.tracks == "head":
        found = recon.tracks, recon.track_visibility, recon.track_confidence
        if any(x is None for x in found):
            raise InputError(
                "this reconstruction has no tracks; reconstruct with query points, or take tracks "
                "from depth"
            )
        tracks, visibility, confidence = (np.asarray(x)[:, :max_points] for x in found)
        return tracks_from_head(
            cameras,
            tracks,
            visibility,
            confidence,
            # Confidence of depth says nothing about tracks, which have visibility and confidence.
            allowed_pixels(recon),
            np.asarray(recon.images),
            min_visibility=options.min_visibility,
            **limits,
        )
    if recon.depth is None:
        raise InputError("tracks from depth need a model with a depth head")
    confidence = confidence_of(recon, "depth")
    usable, percentile = confident_pixels(
        recon,
        "depth",
        confidence_percentile=options.confidence_percentile,
        min_confidence=options.min_confidence,
    )
    usable &= confidence >= percentile_thresholds(confidence[usable], percentile)
    return tracks_from_depth(
        cameras,
        np.asarray(recon.depth),
        confidence,
        usable,
        np.asarray(recon.images),
        max_points=max_points,
        depth_tolerance=options.depth_tolerance,
        **limits,
    )
