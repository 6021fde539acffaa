"""Real photographs with known cameras, beside rendered scenes: kept, read and drawn from."""

import dataclasses
import io
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.synthetic.draws import Draws
from vggt_jax.synthetic.photograph import photograph

_SMALLEST_CROP = 0.6  # of the largest that has the shape of the batch
_OFF_CENTRE = 0.03  # of a crop from the principal point, standard deviation, in heights of the crop
_CHANGED = 0.6  # share of scenes whose exposure, colours, noise and so on are changed
_GAMMA = 2.2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PosedImages:
    """Scenes with their truth, as training takes them (`SceneTruth`)."""

    images: Float[Array, "*b s height width 3"]
    depth: Float[Array, "*b s height width"]
    valid: Bool[Array, "*b s height width"]
    camera_from_world: Float[Array, "*b s 3 4"]
    intrinsics: Float[Array, "*b s 3 3"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Photographs:
    """Photographs of all scenes, and which of them are taken together.

    Attributes:
        pixels: as stored (gamma 2.2), each in the upper left corner of a square and continued
            beyond its edges.
        size: height and width of each.
        intrinsics: focal lengths and principal point (fx, fy, cx, cy), in pixels; the centre of
            pixel i lies at i + 0.5.
        camera_from_world: OpenCV axes; every scene has a world and a unit of its own.
        points: what structure from motion found in each: x, y in pixels and depth along the viewing
            axis; rows of zeros where there are no more.
        windows: rows of photographs of one scene; the first n of a row, for every n, see enough of
            each other.
    """

    pixels: UInt8[Array | np.ndarray, "n side side 3"]
    size: Int[Array | np.ndarray, "n 2"]
    intrinsics: Float[Array | np.ndarray, "n 4"]
    camera_from_world: Float[Array | np.ndarray, "n 3 4"]
    points: Float[Array | np.ndarray, "n p 3"]
    windows: Int[Array | np.ndarray, "w m"]

    def draw(self, key: Array, num_frames: int, size: tuple[int, int]) -> PosedImages:
        """A scene of a random window: cropped, half of them mirrored, in changed light.

        Crops have the shape of `size` and one share of the largest possible for all frames; their
        middle is near the principal point. A window shorter than `num_frames` begins again. Depth
        is that of the nearest point in a pixel, where there is any.
        """
        all_of = jax.tree.map(jnp.asarray, self)
        key_draws, key_light = jax.random.split(key)
        draw = Draws(key_draws, 16)
        num_windows, length = self.windows.shape
        places = np.arange(num_frames, dtype=np.int32) % length
        frames = all_of.windows[draw.integers(below=num_windows)][places]
        height, width = size
        of = all_of.size[frames].astype(jnp.float32)  # [s 2]
        focal, centre = jnp.split(all_of.intrinsics[frames], 2, axis=-1)  # (x, y)
        share = _SMALLEST_CROP ** draw.uniform()
        crop = share * jnp.minimum(of[:, 0], of[:, 1] * height / width)  # [s], its height
        middle = centre + crop[:, None] * _OFF_CENTRE * draw.normal(2)
        extent = crop[:, None] * jnp.array([width / height, 1.0], jnp.float32)  # (x, y)
        corner = jnp.clip(middle - extent / 2, 0.0, of[:, ::-1] - extent)
        scale = height / crop  # [s]

        def cut(frame, scale, corner):
            scale = jnp.stack([scale, scale])
            return jax.image.scale_and_translate(
                all_of.pixels[frame].astype(jnp.float32) / 255,
                (height, width, 3),
                (0, 1),
                scale,
                -corner[::-1] * scale,
                method="linear",
            )

        images = jnp.clip(jax.vmap(cut)(frames, scale, corner), 0.0, 1.0)
        focal, centre = focal * scale[:, None], (centre - corner) * scale[:, None]
        points = all_of.points[frames]
        x, y = ((points[..., i] - corner[:, None, i]) * scale[:, None] for i in range(2))
        there = (points[..., 2] > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        row, column = (jnp.where(there, z, 0).astype(jnp.int32) for z in (y, x))
        nearness = jnp.where(there, 1 / jnp.maximum(points[..., 2], 1e-6), 0.0)
        nearest = jax.vmap(
            lambda row, column, z: jnp.zeros((height, width), jnp.float32).at[row, column].max(z)
        )(row, column, nearness)

        changed = photograph(key_light, images**_GAMMA)
        images = jnp.where(draw.chance(_CHANGED), changed, images)
        poses = all_of.camera_from_world[frames]
        is_mirrored = draw.chance(0.5)
        mirror = lambda x, axis: jnp.where(is_mirrored, jnp.flip(x, axis), x)
        images, nearest = mirror(images, 2), mirror(nearest, 2)
        sign = jnp.where(is_mirrored, -1.0, 1.0)
        across = jnp.stack([sign, jnp.float32(1), jnp.float32(1)])
        turned = across[:, None] * poses[..., :3] * across
        poses = jnp.concatenate([turned, (across * poses[..., 3])[..., None]], axis=-1)
        middle_x = jnp.where(is_mirrored, width - centre[:, 0], centre[:, 0])
        zero, one = jnp.zeros_like(middle_x), jnp.ones_like(middle_x)
        rows = [focal[:, 0], zero, middle_x, zero, focal[:, 1], centre[:, 1], zero, zero, one]
        return PosedImages(
            images=images,
            depth=jnp.where(nearest > 0, 1 / jnp.maximum(nearest, 1e-9), 0.0),
            valid=nearest > 0,
            camera_from_world=poses,
            intrinsics=jnp.stack(rows, axis=-1).reshape(num_frames, 3, 3),
        )


def read_photographs(path: pathlib.Path) -> Photographs:
    """Photographs as `scripts/pack_photographs.py` packs them.

    Raises:
        InputError: there is no such file, or it is none of these.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {name: file[name] for name in (*_KEPT, "encoded", "ends")}
        images = []
        for begin, end in zip([0, *parts["ends"]], parts["ends"], strict=False):
            with Image.open(io.BytesIO(parts["encoded"][begin:end].tobytes())) as image:
                images.append(np.asarray(image.convert("RGB")))
        number = {len(parts[name]) for name in _KEPT if name != "windows"} | {len(images)}
        if len(number) > 1 or [list(image.shape[:2]) for image in images] != parts["size"].tolist():
            raise ValueError("its parts do not fit together")
        if not parts["windows"].size or parts["windows"].max() >= len(images):
            raise ValueError("its windows do not fit its photographs")
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"photographs {path}: not a file of scripts/pack_photographs.py ({error})"
        ) from error
    side = max(max(image.shape[:2]) for image in images)
    pixels = np.empty((len(images), side, side, 3), np.uint8)
    for place, image in zip(pixels, images, strict=True):
        below, right = (side - length for length in image.shape[:2])
        place[:] = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
    parts["points"] = parts["points"].astype(np.float32)
    return Photographs(pixels=pixels, **{name: parts[name] for name in _KEPT})


_KEPT = ("size", "intrinsics", "camera_from_world", "points", "windows")
