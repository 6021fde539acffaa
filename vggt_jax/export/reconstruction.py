"""One door to the formats that other programs read."""

import dataclasses
import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np

from vggt_jax.confidence import allowed_pixels, confidence_of, percentile_thresholds
from vggt_jax.errors import InputError
from vggt_jax.export.colmap import (
    MORE_TRACKS,
    CameraModel,
    TrackErrors,
    colmap_cameras,
    import_pycolmap,
    write_colmap,
)
from vggt_jax.export.files import output_folder
from vggt_jax.export.glb import write_glb
from vggt_jax.export.images import (
    check_photographs,
    find_photographs,
    write_frames,
    write_photographs,
)
from vggt_jax.export.matching import matched_tracks
from vggt_jax.export.nerfstudio import POINTS, TRANSFORMS, write_nerfstudio
from vggt_jax.export.ply import write_point_cloud
from vggt_jax.export.scene import Cameras, confident_pixels, scene_cameras, scene_points
from vggt_jax.export.tracks import Tracks, tracks_from_depth, tracks_from_head
from vggt_jax.outputs import Reconstruction
from vggt_jax.preprocess import FrameTransform

ExportFormat = Literal["ply", "glb", "colmap", "nerfstudio"]
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
    images: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
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
    `points.ply`, both for the photographs in their original sizes, which lie in `images` beside them.
    `docs/export.md` has the conventions of each.

    Args:
      recon: from `infer` or `load_reconstruction`.
      path: the file (ply, glb) or the folder.
      format: see above.
      images: the photographs, to be copied to `path/images` (colmap, nerfstudio): the folder that was
        reconstructed, or one file per frame in order. A folder that is `path/images` is left as it
        is. None: frames that were not resized are written, and for others a note says what is missing.
      points: which points make the cloud (ply, glb, nerfstudio): from depth and cameras, or from the
        point head; None is what the model does better.
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
        depth fit the predicted cameras by construction, so that their observations are first moved to
        where the images agree, and those that match nowhere are left out.
      depth_tolerance: by which share depths may differ in a track (colmap, from depth).
      max_reprojection_error: model pixels by which a track may miss its observations (colmap).
      min_track_length: frames that must see a point, at least 2 (colmap).
      min_visibility: what visibility and confidence of a track must exceed (colmap, from the head).
      overwrite: whether an earlier file or export may be replaced.

    Returns:
      What was written.

    Raises:
      InputError: an option or the reconstruction cannot be used, a photograph is missing or of another
        size, pycolmap is not installed, or the place cannot be written.
    """
    path = Path(path)
    if format not in get_args(ExportFormat):
        raise InputError(f"{format=} must be one of {', '.join(get_args(ExportFormat))}")
    _check_format(locals(), format)
    _check_options(max_points, depth_tolerance, max_reprojection_error, min_track_length)
    if not 0 <= min_visibility < 1:
        raise InputError(f"{min_visibility=} must lie in [0, 1)")
    if recon.images.ndim != 4:
        raise InputError("several scenes cannot be exported together; give one, without scene axis")
    rule = {"confidence_percentile": confidence_percentile, "min_confidence": min_confidence}

    def cloud() -> tuple[np.ndarray, np.ndarray]:
        return scene_points(
            recon, points=points, max_points=max_points or _MAX_CLOUD_POINTS, **rule
        )

    if format in ("ply", "glb"):
        _check_file(path, overwrite)
        found, colors = cloud()
        drawn = scene_cameras(recon) if format == "glb" and cameras else None
        if format == "ply":
            write_point_cloud(path, found, colors)
        else:
            write_glb(path, found, colors, drawn, camera_size=camera_size)
        return ExportReport(
            path=path,
            format=format,
            num_frames=0 if drawn is None else len(drawn.names),
            num_points=len(found),
        )

    if format == "colmap":
        import_pycolmap()
    scene = scene_cameras(recon)
    photographs = _Photographs.of(scene, recon, path, images)
    scene, notes = photographs.cameras, list(photographs.notes)
    entries = ["sparse"] if format == "colmap" else [POINTS, TRANSFORMS]
    entries += ["images"] * photographs.are_written
    with output_folder(path, overwrite=overwrite, entries=entries, stale=entries) as folder:
        notes += photographs.write(folder / "images", recon)
        if format == "nerfstudio":
            found, colors = cloud()
            write_nerfstudio(folder, scene, found, colors)
            return ExportReport(
                path=path,
                format=format,
                num_frames=len(scene.names),
                num_points=len(found),
                notes=tuple(notes),
            )
        scene = colmap_cameras(scene, camera_model=camera_model, shared_camera=shared_camera)
        found = _tracks(
            recon,
            scene,
            source=tracks,
            max_points=max_points or _MAX_TRACKS,
            depth_tolerance=depth_tolerance,
            max_reprojection_error=max_reprojection_error,
            min_track_length=min_track_length,
            min_visibility=min_visibility,
            **rule,
        )
        if bundle_adjustment and tracks == "depth":
            before = len(found.pixels)
            found = matched_tracks(
                scene,
                found,
                np.asarray(recon.depth),
                recon.images,
                min_track_length=min_track_length,
            )
            notes.append(
                f"{len(found.pixels):,} of {before:,} observations were matched in the images, and make "
                "the adjustment"
            )
        sparse = folder / "sparse" / "0"
        sparse.mkdir(parents=True)
        errors, before, adjusted = write_colmap(
            sparse,
            scene,
            found,
            camera_model=camera_model,
            shared_camera=shared_camera,
            bundle_adjustment=bundle_adjustment,
        )
        if bundle_adjustment and len(adjusted) < len(scene.names):
            left = [name for i, name in enumerate(scene.names) if i not in adjusted]
            notes.append(
                f"{len(left)} frames share too few points with the others and were not adjusted: "
                f"{', '.join(left[:5])}{' and others' * (len(left) > 5)}"
            )
        if not errors.num_points:
            notes.append(
                f"no point is seen alike by {min_track_length} frames, so there are cameras alone; "
                f"{MORE_TRACKS}"
            )
        return ExportReport(
            path=path,
            format=format,
            num_frames=len(scene.names),
            num_points=errors.num_points,
            errors=errors,
            errors_before_adjustment=before,
            notes=tuple(notes),
        )


@dataclass(frozen=True, kw_only=True)
class _Photographs:
    """What will lie in the folder `images`, decided before anything is written."""

    cameras: Cameras
    paths: tuple[Path, ...] | None
    are_written: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, cameras: Cameras, recon: Reconstruction, path: Path, images) -> "_Photographs":
        place = path / "images"
        for i, name in enumerate(cameras.names):
            if name in cameras.names[:i]:
                raise InputError(
                    f"{name}: is there twice, and a file can be one image only; reconstruct again "
                    "without the copy"
                )
        if images is not None:
            paths = find_photographs(cameras, images)
            is_there = isinstance(images, (str, os.PathLike)) and (
                place.is_dir() and place.samefile(images)
            )
            if is_there:
                check_photographs(cameras, paths)
            return cls(cameras=cameras, paths=paths, are_written=not is_there)
        untouched = FrameTransform.identity(tuple(recon.images.shape[1:3]))
        if all(transform == untouched for transform in cameras.transforms):
            names = tuple(str(PurePosixPath(name).with_suffix(".png")) for name in cameras.names)
            if len(set(names)) < len(names):
                names = tuple(f"{name}.png" for name in cameras.names)
            return cls(
                cameras=dataclasses.replace(cameras, names=names), paths=None, are_written=True
            )
        note = (
            f"the photographs are not at hand: give the folder of images, or put {cameras.names[0]} and "
            f"the others into {place}, turned as their EXIF data says"
        )
        return cls(cameras=cameras, paths=None, are_written=False, notes=(note,))

    def write(self, folder: Path, recon: Reconstruction) -> list[str]:
        """Writes them to `folder`, and returns notes."""
        if not self.are_written:
            return []
        if self.paths is None:
            write_frames(folder, self.cameras, recon.images)
            return []
        turned = write_photographs(folder, self.cameras, self.paths)
        if not turned:
            return []
        return [f"{turned} photographs were turned as their EXIF data says, and written anew"]


def _check_format(arguments: dict[str, Any], format: ExportFormat) -> None:
    """Refuses options of other formats, which would do nothing."""
    parameters = inspect.signature(export_reconstruction).parameters
    for name, formats in _FORMATS_OF.items():
        if format not in formats and arguments[name] != parameters[name].default:
            raise InputError(
                f"{name} is for {' and '.join(formats)}, not for {format}; leave it out"
            )
    head = arguments["tracks"] == "head"
    of_depth = ("depth_tolerance", "confidence_percentile", "min_confidence")
    for name in of_depth if head else ("min_visibility",):
        if format == "colmap" and arguments[name] != parameters[name].default:
            raise InputError(f"{name} is not for tracks={arguments['tracks']!r}; leave it out")


def _check_options(
    max_points: int | None,
    depth_tolerance: float,
    max_reprojection_error: float,
    min_track_length: int,
) -> None:
    if max_points is not None and max_points < 1:
        raise InputError(f"{max_points=} must be at least 1")
    if not 0 < depth_tolerance < 1:
        raise InputError(f"{depth_tolerance=} must lie between 0 and 1")
    if not 0 < max_reprojection_error < np.inf:
        raise InputError(f"{max_reprojection_error=} must be positive")
    if min_track_length < 2:
        raise InputError(f"{min_track_length=} must be at least 2: one view has no depth to check")


def _check_file(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path}: exists; choose another --out, or replace with --overwrite")


def _tracks(
    recon: Reconstruction,
    cameras: Cameras,
    *,
    source: Literal["depth", "head"],
    max_points: int,
    depth_tolerance: float,
    max_reprojection_error: float,
    min_track_length: int,
    min_visibility: float,
    confidence_percentile: float | None,
    min_confidence: float | None,
) -> Tracks:
    limits = {
        "max_reprojection_error": max_reprojection_error,
        "min_track_length": min_track_length,
    }
    if source == "head":
        if recon.tracks is None:
            raise InputError(
                "this reconstruction has no tracks; reconstruct with query points, or take tracks from "
                "depth"
            )
        return tracks_from_head(
            cameras,
            recon.tracks[:, :max_points],
            recon.track_visibility[:, :max_points],
            recon.track_confidence[:, :max_points],
            # Confidence of depth says nothing about tracks, which have visibility and confidence.
            allowed_pixels(recon),
            recon.images,
            min_visibility=min_visibility,
            **limits,
        )
    if source != "depth":
        raise InputError(f"tracks={source!r} must be depth or head")
    if recon.depth is None:
        raise InputError("tracks from depth need a model with a depth head")
    confidence = confidence_of(recon, "depth")
    usable, percentile = confident_pixels(
        recon,
        "depth",
        confidence_percentile=confidence_percentile,
        min_confidence=min_confidence,
    )
    usable &= confidence >= percentile_thresholds(confidence[usable], percentile)
    return tracks_from_depth(
        cameras,
        np.asarray(recon.depth),
        confidence,
        usable,
        recon.images,
        max_points=max_points,
        depth_tolerance=depth_tolerance,
        **limits,
    )
