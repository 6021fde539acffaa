"""Sparse models of COLMAP: cameras of the photographs, and points with observations."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.export.cameras import CameraModel, Cameras, check_one_size
from vggt_jax.export.format import ExportOptions, FolderFormat, Written
from vggt_jax.export.matching import matched_tracks
from vggt_jax.export.points import confident_pixels
from vggt_jax.export.tracks import TrackErrors, Tracks, tracks_from_depth, tracks_from_head
from vggt_jax.files import replacing
from vggt_jax.images.files import counted, listed
from vggt_jax.scene.confidence import allowed_pixels, confidence_of, percentile_thresholds
from vggt_jax.scene.reconstruction import Reconstruction

# Points: fewer hardly hold two frames together (COLMAP asks for as many to place an image).
_FEWEST_SHARED = 30
_SHOWN_FROM = 3  # Photographs that must see a point for COLMAP's window to show it, by default.
_PROVENANCE = "provenance.json"
MORE_TRACKS = "raise max_reprojection_error, or depth_tolerance for tracks from depth"
_MAX_TRACKS = 100_000  # Default of the official demo_colmap.py, as a start for splatting plenty.


@dataclass(frozen=True, kw_only=True)
class Adjustment:
    """What bundle adjustment did.

    Attributes:
      errors_before: of the sparse model before it.
      frames: indices of those whose poses were adjusted.
      is_converged: False if it used up its iterations.
    """

    errors_before: TrackErrors
    frames: tuple[int, ...]
    is_converged: bool


def colmap_cameras(
    cameras: Cameras, *, camera_model: CameraModel = "PINHOLE", shared_camera: bool = False
) -> Cameras:
    """The cameras as a model of COLMAP can hold them, for frames and photographs alike.

    Args:
      cameras: of the scene.
      camera_model: "PINHOLE" has two focal lengths; "SIMPLE_PINHOLE" one, their mean.
      shared_camera: one camera for all photographs, the mean of theirs.

    Raises:
      InputError: the camera model is unknown, or photographs that share a camera differ in size.
    """
    if camera_model not in ("PINHOLE", "SIMPLE_PINHOLE"):
        raise InputError(f"{camera_model=} must be PINHOLE or SIMPLE_PINHOLE")
    matrices = cameras.original_intrinsics.copy()
    if shared_camera:
        check_one_size(cameras.names, cameras.original_sizes)
        matrices[:] = matrices.mean(axis=0)
    if camera_model == "SIMPLE_PINHOLE":
        matrices[:, [0, 1], [0, 1]] = matrices[:, [0, 1], [0, 1]].mean(axis=1, keepdims=True)
    frames = [t.intrinsics_to_model(m) for t, m in zip(cameras.transforms, matrices, strict=True)]
    return dataclasses.replace(cameras, original_intrinsics=matrices, intrinsics=np.stack(frames))


def write_colmap(
    folder: Path,
    cameras: Cameras,
    tracks: Tracks,
    *,
    camera_model: CameraModel = "PINHOLE",
    shared_camera: bool = False,
    bundle_adjustment: bool = False,
) -> tuple[TrackErrors, Adjustment | None]:
    """Writes `cameras.bin`, `images.bin`, `points3D.bin`, `rigs.bin` and `frames.bin`.

    Images are numbered from 1 in the order of the frames, points from 1 in the order of the tracks,
    and points of an image in that of their tracks: the same input gives the same bytes (bundle
    adjustment aside, whose threads add up in no fixed order).

    Args:
      folder: existing and empty; by itself not atomic, see `files.output_folder`.
      cameras: from `colmap_cameras` with the same options.
      tracks: found with these cameras.
      camera_model, shared_camera: see `colmap_cameras`.
      bundle_adjustment: refines poses, focal lengths and points of the largest group of frames that
        points hold together, until the observations fit best. Two cameras keep the coordinates and
        the scale in place. Frames outside the group keep their poses, and their focal lengths too,
        unless they share the camera of the others.

    Returns:
      The errors of what was written, as read again from the files; and what bundle adjustment did.

    Raises:
      InputError: pycolmap is not installed, there is nothing to adjust, or the adjustment fails.
    """
    pycolmap = import_pycolmap()
    if bundle_adjustment and (len(cameras.names) < 2 or not len(tracks.points)):
        raise InputError(
            f"bundle_adjustment needs tracks through two frames; there are {len(tracks.points)} "
            f"tracks and {len(cameras.names)} frames: {MORE_TRACKS}"
        )
    model = _sparse_model(pycolmap, cameras, tracks, camera_model, shared_camera)
    adjustment = None
    if bundle_adjustment:
        before = _track_errors(model)
        adjusted = _largest_group(cameras, tracks)
        if len(adjusted) < 2:
            raise InputError(
                f"bundle_adjustment needs two frames that share {_FEWEST_SHARED} points; "
                f"{MORE_TRACKS}, or leave it out"
            )
        adjustment = Adjustment(
            errors_before=before,
            frames=tuple(adjusted),
            is_converged=_adjust(pycolmap, model, adjusted),
        )
    model.update_point_3d_errors()
    model.write(str(folder))
    return _track_errors(pycolmap.Reconstruction(str(folder))), adjustment


def _largest_group(cameras: Cameras, tracks: Tracks) -> list[int]:
    """Frames that points hold together: groups without common points would drift apart."""
    num_frames = len(cameras.names)
    sees = np.zeros((num_frames, len(tracks.points)), np.float32)
    sees[tracks.observed_frame, tracks.observed_point] = 1
    linked = sees @ sees.T >= _FEWEST_SHARED
    group = np.arange(num_frames)
    for _ in range(num_frames):  # The smallest number spreads by at least one frame each time.
        smallest = np.where(linked, group, num_frames).min(axis=1)
        smallest = np.minimum(smallest, group)
        if (smallest == group).all():
            break
        group = smallest
    return np.flatnonzero(group == np.bincount(group).argmax()).tolist()


def _adjust(pycolmap, model, frames: list[int]) -> bool:
    """Adjusts the model in place, and returns whether that converged.

    Raises:
      InputError: it failed.
    """
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_principal_point = False
    # A wrong match counts for its distance and not for the square of it.
    options.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
    config = pycolmap.BundleAdjustmentConfig()
    for i in frames:
        config.add_image(i + 1)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    summary = pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    if not summary.is_solution_usable():
        raise InputError(
            f"bundle_adjustment failed ({summary.brief_report()}), and nothing was written; leave "
            "it out, or choose other tracks"
        )
    kinds = pycolmap.BundleAdjustmentTerminationType
    return summary.termination_type in (kinds.CONVERGENCE, kinds.USER_SUCCESS)


def import_pycolmap():
    """The package pycolmap.

    Raises:
      InputError: it is not installed.
    """
    try:
        import pycolmap
    except ModuleNotFoundError as error:
        if error.name != "pycolmap":
            raise
        raise InputError(
            "COLMAP export needs pycolmap; install it with: pip install 'vggt-jax[colmap]'"
        ) from error
    return pycolmap


def _sparse_model(pycolmap, cameras: Cameras, tracks: Tracks, camera_model: str, shared: bool):
    model = pycolmap.Reconstruction()
    num_frames = len(cameras.names)
    camera_ids = [1] * num_frames if shared else list(range(1, num_frames + 1))
    for i in range(1 if shared else num_frames):
        matrix, (height, width) = cameras.original_intrinsics[i], cameras.original_sizes[i]
        focal = [matrix[0, 0], matrix[1, 1]][: 2 if camera_model == "PINHOLE" else 1]
        camera = pycolmap.Camera(
            camera_id=camera_ids[i],
            model=camera_model,
            width=width,
            height=height,
            params=[*focal, matrix[0, 2], matrix[1, 2]],
        )
        model.add_camera_with_trivial_rig(camera)

    # Which point of its image an observation is: they are numbered from 0 within each.
    number = np.zeros(len(tracks.pixels), np.int64)
    for i in range(num_frames):
        here = np.flatnonzero(tracks.observed_frame == i)
        number[here] = np.arange(len(here))
        # COLMAP's coordinates are continuous: the centre of the first pixel is at 0.5.
        xy = cameras.transforms[i].pixels_to_original(tracks.pixels[here]) + 0.5
        image = pycolmap.Image(
            name=cameras.names[i], keypoints=xy, camera_id=camera_ids[i], image_id=i + 1
        )
        pose = cameras.camera_from_world[i]
        rotation = pycolmap.Rotation3d(np.ascontiguousarray(pose[:, :3]))
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(rotation, pose[:, 3].copy()))

    first = np.searchsorted(tracks.observed_point, np.arange(len(tracks.points) + 1))
    frames, numbers = (tracks.observed_frame + 1).tolist(), number.tolist()
    for k in range(len(tracks.points)):
        observations = range(first[k], first[k + 1])
        elements = [pycolmap.TrackElement(frames[o], numbers[o]) for o in observations]
        model.add_point3D(tracks.points[k], pycolmap.Track(elements), tracks.colors[k])
    return model


def _track_errors(model) -> TrackErrors:
    """Errors from the numbers that the model itself holds."""
    points = model.points3D
    errors = [np.zeros(0)]
    for image in model.images.values():
        seen = image.get_observation_points2D()
        if not seen:
            continue
        xyz = np.stack([points[point.point3D_id].xyz for point in seen])
        xy = np.stack([point.xy for point in seen])
        pose = image.cam_from_world().matrix()
        camera_points = xyz @ pose[:, :3].T + pose[:, 3]
        matrix = model.cameras[image.camera_id].calibration_matrix()
        projected = camera_points[:, :2] / camera_points[:, 2:] * matrix[[0, 1], [0, 1]]
        errors.append(np.linalg.norm(projected + matrix[:2, 2] - xy, axis=1))
    errors = np.concatenate(errors)
    return TrackErrors(
        num_points=len(points),
        num_observations=len(errors),
        mean_track_length=len(errors) / max(len(points), 1),
        median=float(np.median(errors)) if len(errors) else float("nan"),
        mean=float(errors.mean()) if len(errors) else float("nan"),
    )


def _write(
    recon: Reconstruction, folder: Path, cameras: Cameras, options: ExportOptions
) -> Written:
    """Writes `sparse/0`."""
    models = {"camera_model": options.camera_model, "shared_camera": options.shared_camera}
    cameras = colmap_cameras(cameras, **models)
    found, notes = _tracks(recon, cameras, options), []
    if options.bundle_adjustment and options.tracks == "depth":
        before = len(found.pixels)
        found = matched_tracks(
            cameras,
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
        sparse, cameras, found, **models, bundle_adjustment=options.bundle_adjustment
    )
    if recon.provenance:  # COLMAP's files have no comments.
        with replacing(folder / _PROVENANCE) as file:
            file.write(json.dumps(recon.provenance.to_dict(), indent=1).encode() + b"\n")
    if adjustment is not None:
        notes += _notes_of_adjustment(adjustment, cameras.names, shared=options.shared_camera)
    length = np.bincount(found.observed_point, minlength=len(found.points))
    if (num_hidden := int((length < _SHOWN_FROM).sum())) > len(length) / 2:
        notes.append(
            f"{num_hidden:,} of {len(length):,} points are seen by two photographs alone, which "
            "COLMAP's window hides: set Render > Render options > Minimum track length to 2"
        )
    sees_none = [
        name
        for i, name in enumerate(cameras.names)
        if errors.num_points and not (found.observed_frame == i).any()
    ]
    if sees_none:
        notes.append(
            f"{counted(len(sees_none), 'photograph')} ({listed(sees_none)}) see no point that "
            "another does: their cameras are written, and gsplat's --depth_loss cannot use them"
        )
    if not errors.num_points:
        notes.append(
            f"no point is seen alike by {options.min_track_length} frames, so there are cameras "
            f"alone; {MORE_TRACKS}"
        )
    return Written(
        num_frames=len(cameras.names),
        num_points=errors.num_points,
        errors=errors,
        errors_before_adjustment=None if adjustment is None else adjustment.errors_before,
        notes=tuple(notes),
    )


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


def _check(options: ExportOptions) -> None:
    """Refuses options of the tracks that are not made, which would do nothing."""
    of_depth = ("depth_tolerance", "confidence_percentile", "min_confidence")
    for name in of_depth if options.tracks == "head" else ("min_visibility",):
        if options.changed(name):
            raise InputError(f"{name} is not for tracks={options.tracks!r}; leave it out")
    import_pycolmap()


COLMAP = FolderFormat(
    name="colmap",
    description="a folder with sparse/0 and images",
    entries=("sparse", _PROVENANCE),
    options=(
        "images",
        "data_factor",
        "tracks",
        "camera_model",
        "shared_camera",
        "bundle_adjustment",
        "depth_tolerance",
        "max_reprojection_error",
        "min_track_length",
        "min_visibility",
    ),
    write=_write,
    check=_check,
)
