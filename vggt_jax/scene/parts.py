"""A scene whose frames lie in several files, written as one file without being in memory."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vggt_jax.images.frames import Frames, FrameTransform
from vggt_jax.scene.npz import InPieces, Predictions
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.results import write_arrays

# What has values of frames, beside the fields of a reconstruction.
_VALID = "valid"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenePart:
    """Some frames of a scene, in a file of results with a world of its own.

    Attributes:
        file: of `write_reconstruction`.
        frames: of the file, those that are taken.
        scale, rotation, translation: what brings its world into that of the scene,
            `x -> scale * rotation @ x + translation`.
        names, transforms: of the frames that are taken.
    """

    file: Path
    frames: slice
    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    names: tuple[str, ...]
    transforms: tuple[FrameTransform, ...]

    def array(self, name: str) -> np.ndarray:
        """A field of a reconstruction for these frames, in the world of the scene."""
        with Predictions(self.file) as predictions:
            predictions.members([name])
            found = predictions.read(name)[self.frames]
        if name == "depth":
            return (found * self.scale).astype(found.dtype)
        if name == "camera_from_world":
            return self.cameras(found).astype(found.dtype)
        if name == "world_points":
            # In float32: a matrix product of float64 would take twice the memory of the map.
            turned = found @ (self.scale * self.rotation.T).astype(found.dtype)
            return turned + self.translation.astype(found.dtype)
        return found

    def cameras(self, camera_from_world: Float[np.ndarray, "s 3 4"]) -> Float[np.ndarray, "s 3 4"]:
        """Cameras of the part's world, in that of the scene."""
        rotation = camera_from_world[..., :3].astype(np.float64) @ self.rotation.T
        translation = self.scale * camera_from_world[..., 3] - rotation @ self.translation
        return np.concatenate([rotation, translation[..., None]], axis=-1)


def write_parts(path: str | os.PathLike, scene: Reconstruction, parts: Sequence[ScenePart]) -> None:
    """Writes parts of a scene as `write_reconstruction` writes a whole one.

    One array of one part is in memory at a time.

    Args:
        path: as there.
        scene: any frames of it, which say what it has; its static fields are those of the whole,
            and so is `attention_stats`.
        parts: of the scene, in the order of its frames.

    Raises:
        InputError: a file cannot be written, or read.
    """
    names = tuple(name for part in parts for name in part.names)
    transforms = tuple(transform for part in parts for transform in part.transforms)
    whole = dataclasses.replace(scene, names=names, transforms=transforms)

    def pieces(name: str) -> Iterator[np.ndarray]:
        for part in parts:
            yield _valid(part, (height, width)) if name == _VALID else part.array(name)

    num_frames = sum(part.frames.stop - part.frames.start for part in parts)
    height, width = np.shape(scene.images)[1:3]

    def in_pieces(name: str, like: np.ndarray) -> InPieces:
        return InPieces(
            shape=(num_frames, *like.shape[1:]), dtype=like.dtype, pieces=lambda: pieces(name)
        )

    write_arrays(path, whole, of_frames=in_pieces)


def _valid(part: ScenePart, size: tuple[int, int]) -> np.ndarray:
    count = part.frames.stop - part.frames.start
    if not part.transforms:
        return np.ones((count, *size), bool)
    images = np.broadcast_to(np.uint8(0), (count, *size, 3))
    return Frames(images=images, names=part.names, transforms=part.transforms).valid_mask()
