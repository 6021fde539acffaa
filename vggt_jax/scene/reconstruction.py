"""What is known of a scene: the same for every model."""

import dataclasses
import functools
import math
import os
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from vggt_jax import geometry
from vggt_jax.errors import InputError
from vggt_jax.host import with_numpy
from vggt_jax.images.frames import FrameTransform
from vggt_jax.layers.scene_attention import AttentionStats
from vggt_jax.scene.provenance import Provenance

# JAX's in pure functions, NumPy's in what `infer` returns and files hold.
AnyArray: TypeAlias = Array | np.ndarray

PointSource = Literal["depth", "head"]
"""Where points of a scene come from: unprojected depth, or a point map of the model."""

LengthUnit = Literal["arbitrary", "metres", "given"]
"""Of all lengths of a scene: "arbitrary", one for each scene; "metres", as the model predicts them;
or "given", that of a length which somebody knew (`scale_to_distance`, `scale_to_depth`)."""

# What `self_agreement` compares.
_JUDGED = {"camera_from_world", "intrinsics", "depth", "world_points"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """A scene: cameras, depth, points and tracks of its frames, the same for every model.

    The world is the first camera for VGGT; for π³, which has no reference frame, it is no camera,
    and arbitrary. Cameras follow OpenCV: x right, y down, z forward. Lengths are in one unit per
    scene (`length_unit`). Pixels are those of the model's frames: `transforms` lead back to the
    photographs. Arrays have a leading scene axis if the images had one. What a model has no head
    for is None.

    Attributes:
        images: the frames, as the model saw them.
        camera_from_world: `[R | t]`, `point_camera = R @ point_world + t`.
        intrinsics: in pixels; the image spans [0, width] x [0, height].
        depth: along the viewing axis (z, not along the ray).
        depth_confidence, world_points_confidence: see `confidence_kind`; one and the same for π³.
        depth_edges: pixels at a jump of depth, whose points float between surfaces: neighbours
            differ by more than 3 %. Users of π³ leave them out; None for other models (see
            `geometry.depth_edges`).
        mask: True where a pixel may be used, False where it was masked (see `with_mask`): its
            confidence is 0 and its points are NaN. None where nobody gave masks.
        world_points: where each pixel's point lies, as a head of its own predicts it (VGGT), or as
            predicted in camera coordinates and moved by the camera (π³); see `points_from_depth`
            for the alternative.
        tracks: pixels `(x, y)` of the query points in every frame; may leave the image.
        track_visibility, track_confidence: in [0, 1].
        attention_stats: what attention did in each layer; None where it was dense.
        confidence_kind: "one_plus_exp" (VGGT): above 1 and not bounded, so that thresholds are best
            percentiles; "sigmoid" (π³): in [0, 1], where the official code keeps what is above 0.1.
        pixel_centre: where the ray of the first pixel meets the image that `intrinsics` describe:
            0, its corner, for VGGT, whose official code unprojects so; 0.5, its centre, for π³.
        length_unit: the unit of depth, positions and points, see `LengthUnit`.
        best_points: which points of the model are the more accurate, those that files and the
            viewer show where there are both; None where nobody said so: "head" where confidences
            are probabilities, else "depth".
        names: of the frames; empty where images were arrays.
        transforms: to the pixels of the photographs, one per frame; empty where nobody resized.
        provenance: what made the scene; empty where nobody knows.
    """

    images: Float[AnyArray, "*b s height width 3"] | UInt8[AnyArray, "*b s height width 3"]
    camera_from_world: Float[AnyArray, "*b s 3 4"] | None = None
    intrinsics: Float[AnyArray, "*b s 3 3"] | None = None
    depth: Float[AnyArray, "*b s height width"] | None = None
    depth_confidence: Float[AnyArray, "*b s height width"] | None = None
    depth_edges: Bool[AnyArray, "*b s height width"] | None = None
    mask: Bool[AnyArray, "*b s height width"] | None = None
    world_points: Float[AnyArray, "*b s height width 3"] | None = None
    world_points_confidence: Float[AnyArray, "*b s height width"] | None = None
    tracks: Float[AnyArray, "*b s m 2"] | None = None
    track_visibility: Float[AnyArray, "*b s m"] | None = None
    track_confidence: Float[AnyArray, "*b s m"] | None = None
    attention_stats: AttentionStats | None = None
    confidence_kind: str = dataclasses.field(default="one_plus_exp", metadata={"static": True})
    pixel_centre: float = dataclasses.field(default=0.0, metadata={"static": True})
    length_unit: LengthUnit = dataclasses.field(default="arbitrary", metadata={"static": True})
    best_points: PointSource | None = dataclasses.field(default=None, metadata={"static": True})
    names: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    transforms: tuple[FrameTransform, ...] = dataclasses.field(
        default=(), metadata={"static": True}
    )
    provenance: Provenance = dataclasses.field(default=Provenance(), metadata={"static": True})

    def __repr__(self) -> str:
        """On one line: frames, what there is of them, and what made it."""
        shape = getattr(self.images, "shape", None)
        if shape is None or len(shape) < 4:
            return f"<Reconstruction of images {shape}>"
        *scenes, num_frames, height, width, _ = shape
        parts = {
            "cameras": self.camera_from_world, "intrinsics": self.intrinsics, "depth": self.depth,
            "points": self.world_points, "mask": self.mask, "tracks": self.tracks,
        }  # fmt: skip
        there = ", ".join(name for name, value in parts.items() if value is not None) or "nothing"
        of_scenes = f"{math.prod(scenes)} scenes of " if scenes else ""
        made_by = f"; {self.provenance}" if self.provenance else ""
        return (
            f"<Reconstruction: {of_scenes}{num_frames} frames of {width}x{height}, {there}, "
            f"lengths {self.length_unit}{made_by}>"
        )

    @property
    def agreement(self) -> float | None:
        """How far the scene agrees with itself, in [0, 1]; None where it was not measured, see
        `Provenance`."""
        return self.provenance.agreement

    @property
    def warning(self) -> str:
        """What to know before relying on the scene, in a sentence, where its model was calibrated
        to tell (`scripts/calibrate_confidence.py`) and it agrees too little with itself; else
        empty."""
        return self.provenance.warning

    def replace(self, **changes: Any) -> "Reconstruction":
        """The scene with other values in some fields, such as true or corrected cameras.

        Points of a head move along with cameras: those of a frame stay where they are seen from its
        camera. `points_from_depth` follows by itself. `agreement` is not known of other cameras,
        intrinsics, depth or points.

        Args:
            changes: by the names of fields. `camera_from_world` may be `[s 4 4]`, too.

        Raises:
            ValueError: there is no such field, or an array has another shape than its field.
        """
        names = [field.name for field in dataclasses.fields(self)]
        if unknown := [name for name in changes if name not in names]:
            raise ValueError(f"{unknown[0]!r} is no field of a reconstruction ({', '.join(names)})")
        poses = changes.get("camera_from_world")
        if poses is not None:
            poses = changes["camera_from_world"] = poses[..., :3, :]
        for name, value in changes.items():
            before = getattr(self, name)
            shapes = getattr(before, "shape", None), getattr(value, "shape", None)
            if None not in shapes and shapes[0] != shapes[1]:
                raise ValueError(f"{name} of shape {shapes[1]} must be {shapes[0]}")
        moved = "world_points" not in changes and self.world_points is not None
        if poses is not None and moved and self.camera_from_world is not None:
            changes["world_points"] = _moved(self.world_points, self.camera_from_world, poses)
        if _JUDGED & set(changes) and "provenance" not in changes:
            changes["provenance"] = dataclasses.replace(self.provenance, agreement=None)
        return dataclasses.replace(self, **changes)

    def save(self, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes the scene to a folder, from which `load_reconstruction` reads it again.

        Args:
            folder: made if it is missing; `predictions.npz` in it is written whole or not at all.
            overwrite: whether a scene that is there may be replaced.

        Raises:
            InputError: there are several scenes, one is there, or it cannot be written.
        """
        from vggt_jax.scene.results import results_file, write_reconstruction

        file = results_file(folder)
        if file.exists() and not overwrite:
            raise InputError(f"{file}: exists; choose another folder, or overwrite=True")
        write_reconstruction(folder, self)

    def points_from_depth(self) -> Float[AnyArray, "*b s height width 3"]:
        """World points by unprojecting depth with cameras and intrinsics; NaN where masked.

        VGGT predicts these more accurately than `world_points`. For other models it is the other
        way round: their points need no intrinsics, which are an average over all pixels.

        Raises:
            ValueError: the model predicts no depth or no cameras.
        """
        if self.depth is None or self.camera_from_world is None:
            raise ValueError("points from depth need a model with a depth and a camera head")
        arrays = (self.depth, self.camera_from_world, self.intrinsics)
        xp, unproject = jnp, geometry.unproject_depth
        if isinstance(self.depth, np.ndarray):
            xp, unproject = np, functools.partial(with_numpy, unproject)
        points = unproject(*map(xp.asarray, arrays), pixel_centre=self.pixel_centre)
        if self.mask is not None:
            nan = points.dtype.type(np.nan)
            points = xp.where(xp.asarray(self.mask)[..., None], points, nan)
        return points

    def tracks_in_photographs(self) -> np.ndarray:
        """Tracks `[s m 2]` in the pixels of the original photographs.

        Raises:
            ValueError: there are no tracks, or the images were arrays.
        """
        if self.tracks is None or not self.transforms:
            raise ValueError(
                "there are no tracks of photographs: give infer files and query_points"
            )
        pairs = zip(self.transforms, self.tracks, strict=True)
        return np.stack([transform.pixels_to_original(track) for transform, track in pairs])


def _moved(points: Any, before: Any, after: Any) -> Any:
    """World points of every frame's pixels after its camera has moved, and they with it."""
    xp = np if isinstance(points, np.ndarray) else jnp
    in_camera = xp.einsum("...ij,...hwj->...hwi", before[..., :3], points)
    in_camera = in_camera + (before[..., 3] - after[..., 3])[..., None, None, :]
    return xp.einsum("...ji,...hwj->...hwi", after[..., :3], in_camera).astype(points.dtype)
