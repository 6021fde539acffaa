"""Real photographs with known cameras, beside rendered scenes: kept, read and drawn from."""

import dataclasses
import functools
import io
import itertools
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image

from vggt_jax import geometry
from vggt_jax.errors import InputError
from vggt_jax.synthetic.draws import Draws
from vggt_jax.synthetic.photograph import photograph

_SMALLEST_CROP = 0.5  # of the largest that has the shape of the batch
_NARROWEST = 0.35  # height of a crop in focal lengths, if the photograph has it: 20 degrees
_ZOOM = 0.1  # of the logarithm of a frame's crop, standard deviation from that of the scene
_AS_TAKEN = 0.25  # share of scenes whose cameras are not turned
_ROLL, _ROLL_OF_FRAME = 0.12, 0.06  # rad, standard deviations
_UPRIGHT = 0.85  # share of scenes that are not turned by a quarter
_STRETCH = 0.04  # of the logarithm of vertical to horizontal focal length, standard deviation
_OFF_CENTRE = 0.03  # of the principal point from the middle, standard deviation, in heights
_CHANGED = 0.6  # share of scenes whose exposure, noise and so on are changed
_RECOLOURED, _GREY = 0.3, 0.1  # shares of scenes with colours in any order, and with none
_GAMMA = 2.2
_LONGER = 3  # times that a lens is made longer where it sees beyond the photograph

# GPUs would round factors to ten bits: a fifth of a pixel.
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


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
        pixels: as stored (gamma 2.2), each in the upper left corner of a square.
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
        """A scene of a random window: cameras turned about their centres, half of the scenes
        mirrored, in changed light and colours.

        A turned camera looks at some part of a photograph, a larger or smaller one, with some roll:
        a homography, so that pose and intrinsics of the new picture are known exactly. That is to
        keep a model from learning by heart where the few photographs there are were taken. A window
        shorter than `num_frames` begins again. Depth is that of the nearest point in a pixel, where
        there is any.
        """
        all_of = jax.tree.map(jnp.asarray, self)
        key_draws, key_light = jax.random.split(key)
        draw = Draws(key_draws, 20 + 4 * num_frames)
        num_windows, length = self.windows.shape
        places = np.arange(num_frames, dtype=np.int32) % length
        frames = all_of.windows[draw.integers(below=num_windows)][places]
        source = all_of.intrinsics[frames]
        extent = all_of.size[frames, ::-1].astype(jnp.float32)  # x, y
        turn, target = _turned_cameras(draw, source, extent, size)
        images = _resampled(all_of.pixels, frames, extent, turn, source, target, size)
        nearest = _nearest(turn, source, target, all_of.points[frames], size)

        changed = photograph(key_light, images**_GAMMA)
        images = jnp.where(draw.chance(_CHANGED), changed, images)
        images = images @ _recoloured(draw)
        poses = _product(turn, all_of.camera_from_world[frames])
        is_mirrored = draw.chance(0.5)
        mirror = lambda x, axis: jnp.where(is_mirrored, jnp.flip(x, axis), x)
        images, nearest = mirror(images, 2), mirror(nearest, 2)
        sign = jnp.where(is_mirrored, -1.0, 1.0)
        across = jnp.stack([sign, jnp.float32(1), jnp.float32(1)])
        rotation = across[:, None] * poses[..., :3] * across
        poses = jnp.concatenate([rotation, (across * poses[..., 3])[..., None]], axis=-1)
        fx, fy, cx, cy = target.T
        cx = jnp.where(is_mirrored, size[1] - cx, cx)
        zero, one = jnp.zeros_like(cx), jnp.ones_like(cx)
        rows = [fx, zero, cx, zero, fy, cy, zero, zero, one]
        return PosedImages(
            images=images,
            depth=jnp.where(nearest > 0, 1 / jnp.maximum(nearest, 1e-9), 0.0),
            valid=nearest > 0,
            camera_from_world=poses,
            intrinsics=jnp.stack(rows, axis=-1).reshape(num_frames, 3, 3),
        )


def _turned_cameras(
    draw: Draws, source: Array, extent: Array, size: tuple[int, int]
) -> tuple[Array, Array]:
    """Cameras at the same places that see a part of each photograph.

    Args:
        source: intrinsics (fx, fy, cx, cy) of the photographs, [s 4].
        extent: their width and height, [s 2].

    Returns:
        Rotations from the camera of the photograph to the new one, [s 3 3], and the new
        intrinsics, [s 4], of pictures of `size`.
    """
    num_frames, (height, width) = len(source), size
    is_turned = ~draw.chance(_AS_TAKEN)
    quarter = jnp.where(draw.chance(_UPRIGHT), 0.0, jnp.where(draw.chance(0.5), 1.0, -1.0))
    roll = _ROLL * draw.normal() + _ROLL_OF_FRAME * draw.normal(num_frames) + quarter * np.pi / 2
    roll = jnp.where(is_turned, roll, 0.0)
    share = _SMALLEST_CROP ** draw.uniform()
    share = share * jnp.exp(jnp.where(is_turned, _ZOOM, 0.0) * draw.normal(num_frames))
    # What the rolled rectangle covers of the photograph, for a height of 1.
    cos, sin = jnp.abs(jnp.cos(roll)), jnp.abs(jnp.sin(roll))
    covered = jnp.stack([sin + cos * width / height, cos + sin * width / height], axis=-1)
    largest = jnp.min(extent / covered, axis=-1)
    crop = jnp.clip(share, _SMALLEST_CROP, 1.0) * largest
    crop = jnp.maximum(crop, jnp.minimum(_NARROWEST * source[:, 1], largest))
    spread = draw.uniform()
    shift = draw.uniform(2, low=-1.0, high=1.0)
    shift = shift + spread * draw.uniform(num_frames, 2, low=-1.0, high=1.0)
    shift = jnp.where(is_turned, jnp.clip(shift, -1.0, 1.0), 0.0)
    middle = extent / 2 + shift * (extent - crop[:, None] * covered) / 2

    # The axis of the new camera goes through the middle of what it sees.
    axis = _rays(source, middle[:, :1], middle[:, 1:])[..., 0]
    axis = jnp.where(is_turned, axis, jnp.array([0.0, 0.0, 1.0], jnp.float32))
    x, y, z = (axis / jnp.linalg.norm(axis, axis=-1, keepdims=True)).T
    zero = jnp.zeros_like(roll)
    to_axis = jnp.stack([-y, x, zero, 1 + z], axis=-1)
    about_axis = jnp.stack([zero, zero, jnp.sin(roll / 2), jnp.cos(roll / 2)], axis=-1)
    to_axis, about_axis = map(geometry.matrix_from_quaternion, (to_axis, about_axis))
    turn = jnp.swapaxes(_product(to_axis, about_axis), 1, 2)

    scale = (height / crop)[:, None]
    stretch = jnp.exp(_STRETCH * draw.normal() * jnp.array([-0.5, 0.5], jnp.float32))
    focal = source[:, :2] * scale * stretch
    # A camera that is not turned looks at the middle of the photograph past its own axis.
    offset = jnp.where(
        is_turned,
        _OFF_CENTRE * height * draw.normal(2),
        (source[:, 2:] - middle) * scale * stretch,
    )
    centre = jnp.array([width, height], jnp.float32) / 2 + offset
    corners = np.array([[0, width, 0, width], [0, 0, height, height]], np.float32)
    ahead = jnp.tile(jnp.array([[0.0], [0.0], [1.0]], jnp.float32), (num_frames, 1, 1))
    ahead = _seen_from(turn, ahead, source)
    edge = lambda towards: jnp.where(towards > 0, extent[:, :, None] - ahead, ahead)
    for _ in range(_LONGER):
        # Perspective may reach beyond the photograph: then a longer lens.
        rays = _rays(jnp.concatenate([focal, centre], axis=-1), *corners)
        towards = _seen_from(turn, rays, source) - ahead
        beyond = jnp.abs(towards) / jnp.maximum(edge(towards), 1e-3)
        # Of very wide photographs some corners lie behind the camera.
        focal = focal * jnp.clip(beyond.max(axis=(1, 2)), 1.0, 1.5)[:, None]
    return turn, jnp.concatenate([focal, centre], axis=-1)


def _rays(intrinsics: Array, x: Array | np.ndarray, y: Array | np.ndarray) -> Array:
    """Directions [s 3 n] of depth 1 through pixels x, y [n] or [s n] of cameras [s 4]."""
    fx, fy, cx, cy = (intrinsics[:, i, None] for i in range(4))
    x, y = (x - cx) / fx, (y - cy) / fy
    return jnp.stack([x, y, jnp.ones_like(x)], axis=1)


def _seen_from(turn: Array, rays: Array, source: Array) -> Array:
    """Where directions of turned cameras [s 3 n] lie in the photographs, pixels [s 2 n]."""
    rays = _product(jnp.swapaxes(turn, 1, 2), rays)
    flat = rays[:, :2] / jnp.maximum(rays[:, 2:], 1e-3)
    return flat * source[:, :2, None] + source[:, 2:, None]


def _resampled(
    pixels: Array,
    frames: Array,
    extent: Array,
    turn: Array,
    source: Array,
    target: Array,
    size: tuple[int, int],
) -> Float[Array, "s height width 3"]:
    """What turned cameras see of photographs, in [0, 1]: the mean of four places in each pixel,
    each between four pixels of the photograph, whose edges are continued."""
    height, width = size
    y, x = ((np.arange(2 * length, dtype=np.float32) + 0.5) / 2 for length in size)
    x, y = (z.ravel() for z in np.meshgrid(x, y))
    place = _seen_from(turn, _rays(target, x, y), source) - 0.5
    place = jnp.clip(place, 0.0, extent[:, :, None] - 1)
    before = jnp.floor(place)
    part = place - before
    corner = lambda dx, dy: pixels[
        frames[:, None],
        jnp.minimum(before[:, 1] + dy, extent[:, 1, None] - 1).astype(jnp.int32),
        jnp.minimum(before[:, 0] + dx, extent[:, 0, None] - 1).astype(jnp.int32),
    ].astype(jnp.float32)
    along_x, along_y = part[:, 0, :, None], part[:, 1, :, None]
    above = corner(0, 0) * (1 - along_x) + corner(1, 0) * along_x
    below = corner(0, 1) * (1 - along_x) + corner(1, 1) * along_x
    found = (above * (1 - along_y) + below * along_y) / 255
    return found.reshape(len(frames), height, 2, width, 2, 3).mean(axis=(2, 4))


def _nearest(
    turn: Array, source: Array, target: Array, points: Array, size: tuple[int, int]
) -> Float[Array, "s height width"]:
    """One over the depth of the nearest point in each pixel of turned cameras, 0 where there is
    none."""
    height, width = size
    source_x, source_y, depth = jnp.moveaxis(points, -1, 0)
    points = _product(turn, _rays(source, source_x, source_y) * depth[:, None])  # [s 3 p]
    z = jnp.maximum(points[:, 2], 1e-6)
    flat = points[:, :2] / z[:, None]
    x, y = jnp.moveaxis(target[:, :2, None] * flat + target[:, 2:, None], 1, 0)
    there = (depth > 0) & (points[:, 2] > 1e-6)
    there &= (x >= 0) & (x < width) & (y >= 0) & (y < height)
    row, column = (jnp.where(there, place, 0).astype(jnp.int32) for place in (y, x))
    empty = jnp.zeros((height, width), jnp.float32)
    return jax.vmap(lambda row, column, value: empty.at[row, column].max(value))(
        row, column, jnp.where(there, 1 / z, 0.0)
    )


def _recoloured(draw: Draws) -> Float[Array, "3 3"]:
    """What to multiply colours by: most often nothing, or in another order, or grey."""
    order = np.stack([np.eye(3)[list(order)] for order in itertools.permutations(range(3))])
    mixed = jnp.asarray(order, jnp.float32)[draw.integers(below=len(order))]
    mixed = jnp.where(draw.chance(_RECOLOURED), mixed, jnp.eye(3, dtype=jnp.float32))
    grey = np.tile(np.array([[0.299], [0.587], [0.114]], np.float32), (1, 3))  # ITU-R BT.601
    return jnp.where(draw.chance(_GREY), grey, mixed)


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
    pixels = np.zeros((len(images), side, side, 3), np.uint8)
    for place, image in zip(pixels, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    parts["points"] = parts["points"].astype(np.float32)
    return Photographs(pixels=pixels, **{name: parts[name] for name in _KEPT})


_KEPT = ("size", "intrinsics", "camera_from_world", "points", "windows")
