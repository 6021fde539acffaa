"""Batches of rendered scenes."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vggt_jax import geometry
from vggt_jax.synthetic.cameras import look_at, off_centre, random_intrinsics, random_positions
from vggt_jax.synthetic.families import FAMILIES, SPLITS, WIDE_FAMILIES, Family, Split
from vggt_jax.synthetic.photograph import photograph
from vggt_jax.synthetic.pictures import PictureBank
from vggt_jax.synthetic.render import is_visible, render
from vggt_jax.synthetic.wide_cameras import wide_paths
from vggt_jax.synthetic.world import Ranges, World, random_world

_NOISE = 0.012  # standard deviation of a pixel's noise, at the most
_CLEAR_AHEAD = (0.0, 0.2, 0.4)  # shares of the way from a camera to what it looks at
# Ranges that all families share: an angle, and how high a thing hangs that stands on nothing.
_SHARED = {"turn": (0.0, 2 * jnp.pi), "lift": (0.1, 1.5)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes:
    """Rendered scenes with their truth.

    Attributes:
        images: in [0, 1], as a camera stores them (gamma 2.2).
        depth: along the viewing axis, in metres; 0 where there is only sky.
        valid: where there is a depth.
        camera_from_world: OpenCV axes; the world has z up.
        intrinsics: in pixels; the centre of pixel i lies at i + 0.5.
        world: what was rendered.
    """

    images: Float[Array, "b s height width 3"]
    depth: Float[Array, "b s height width"]
    valid: Bool[Array, "b s height width"]
    camera_from_world: Float[Array, "b s 3 4"]
    intrinsics: Float[Array, "b s 3 3"]
    world: World

    def world_points(self) -> Float[Array, "b s height width 3"]:
        """Where each pixel's point lies; the camera's place where there is only sky."""
        return geometry.unproject_depth(
            self.depth, self.camera_from_world, self.intrinsics, pixel_centre=0.5
        )


def render_scenes(
    key: Array,
    num_scenes: int,
    num_frames: int,
    *,
    size: tuple[int, int],
    split: Split = "train",
    families: tuple[str, ...] | None = None,
    bank: PictureBank | None = None,
) -> Scenes:
    """Draws and renders scenes: pure, deterministic in the key, for use under `jax.jit`.

    A scene depends on the key, its place in the batch and the split alone, so that a device of many
    can render its own part.

    Args:
        key: of `jax.random`.
        size: (height, width) in pixels.
        split: which families to draw from; the same key gives other scenes for another split.
        families: names instead of those of the split, out of WIDE_FAMILIES for a split of the wide
            world, of FAMILIES for another.
        bank: pictures for surfaces of the wide world, see `picture_bank`; the other world has none.

    Raises:
        ValueError: a split or a family is unknown, or there are pictures for a world that has none.
    """
    if split not in SPLITS:
        raise ValueError(f"{split=} is unknown; known are {', '.join(SPLITS)}")
    names = SPLITS[split] if families is None else families
    is_wide = split.startswith("wide-")
    known: Mapping[str, Family] = WIDE_FAMILIES if is_wide else FAMILIES
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"families {unknown} are unknown; known are {', '.join(known)}")
    if bank is not None and not is_wide:
        raise ValueError(f"{split=} takes no pictures; splits of the wide world do")
    key = jax.random.fold_in(key, list(SPLITS).index(split))
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_scenes, dtype=jnp.int32))
    tables = _tables([known[name] for name in names])
    render_scene = _render_wide_scene if is_wide else _render_scene
    return jax.vmap(lambda key: render_scene(key, tables, num_frames, size, bank))(keys)


def correspondences(
    scenes: Scenes, points: Float[Array, "b m 3"]
) -> tuple[Float[Array, "b s m 2"], Bool[Array, "b s m"]]:
    """Where points on surfaces appear in every frame.

    Args:
        points: in the world, as `scenes.world_points()` has them.

    Returns:
        Pixels `(x, y)` as indices, integers in the middle of a pixel, as `VGGTOutput.track`; and
        whether each point is inside the picture and nothing hides it.
    """
    *_, height, width = scenes.depth.shape

    def of_scene(world, points, camera_from_world, intrinsics):
        pixels, depth = geometry.project_points(points, camera_from_world, intrinsics)
        corner = jnp.array([width, height], pixels.dtype)[None, None]
        inside = (pixels >= 0).all(-1) & (pixels <= corner).all(-1)
        eyes = geometry.camera_positions(camera_from_world)[:, None]
        target = jnp.broadcast_to(points, (*pixels.shape[:-1], 3))
        seen = is_visible(world, jnp.broadcast_to(eyes, target.shape), target)
        return pixels - 0.5, inside & (depth > 0) & seen

    return jax.vmap(of_scene)(scenes.world, points, scenes.camera_from_world, scenes.intrinsics)


def _tables(families: Sequence[Family]) -> Ranges:
    """The ranges of all families, one row each."""
    rows = [dataclasses.asdict(family) | _SHARED for family in families]
    return {name: jnp.array([row[name] for row in rows], jnp.float32) for name in rows[0]}


def _render_scene(
    key: Array, tables: Ranges, num_frames: int, size: tuple[int, int], bank: PictureBank | None
) -> Scenes:
    keys = jax.random.split(key, 8)
    ranges = _family(keys[0], tables)
    room = _room(keys, ranges)
    positions, target = random_positions(keys[3], ranges, num_frames, room)
    up = jnp.array([0.0, 0.0, 1.0], jnp.float32)
    camera_from_world = look_at(keys[4], positions, target[None], up)
    intrinsics = random_intrinsics(keys[5], ranges, num_frames, size)
    # Nothing stands in a camera or right before one.
    shares = jnp.array(_CLEAR_AHEAD, jnp.float32)[:, None, None]
    ahead = positions[None] + shares * (target[None] - positions)[None]
    world = random_world(keys[6], ranges, ahead.reshape(-1, 3), room)
    linear, depth = render(world, camera_from_world, intrinsics, size)
    images = _develop(keys[7], linear)
    return _scenes(images, depth, camera_from_world, intrinsics, world)


def _render_wide_scene(
    key: Array, tables: Ranges, num_frames: int, size: tuple[int, int], bank: PictureBank | None
) -> Scenes:
    keys = jax.random.split(key, 9)
    ranges = _family(keys[0], tables)
    room = _room(keys, ranges)
    narrow = jax.random.uniform(
        keys[8], (), jnp.float32, minval=ranges["narrow"][0], maxval=ranges["narrow"][1]
    )
    room = room.at[1].multiply(narrow)
    intrinsics = random_intrinsics(keys[5], ranges, num_frames, size)
    half_angle = jnp.arctan(max(size) / 2 / intrinsics[0, 0, 0])
    positions, target, up = wide_paths(keys[3], ranges, num_frames, room, 2 * half_angle)
    camera_from_world = look_at(keys[4], positions, target, up)
    intrinsics = off_centre(keys[5], ranges, intrinsics, size)
    shares = jnp.array(_CLEAR_AHEAD, jnp.float32)[:, None, None]
    ahead = positions[None] + shares * (target - positions)[None]
    world = random_world(
        keys[6],
        ranges,
        ahead.reshape(-1, 3),
        room,
        is_wide=True,
        num_pictures=0 if bank is None else len(bank),
    )
    linear, depth = render(world, camera_from_world, intrinsics, size, bank)
    images = photograph(keys[7], linear)
    return _scenes(images, depth, camera_from_world, intrinsics, world)


def _family(key: Array, tables: Ranges) -> Ranges:
    """The ranges of one family, any."""
    family = jax.random.randint(key, (), 0, len(tables["room"]), jnp.int32)
    return {name: table[family] for name, table in tables.items()}


def _room(keys: Array, ranges: Ranges) -> Float[Array, "3"]:
    """Half the extent."""
    side = lambda key, name, shape: jax.random.uniform(
        key, shape, jnp.float32, minval=ranges[name][0], maxval=ranges[name][1]
    )
    return jnp.append(side(keys[1], "room", (2,)), side(keys[2], "ceiling", ())) / 2


def _scenes(images, depth, camera_from_world, intrinsics, world) -> Scenes:
    return Scenes(
        images=images,
        depth=depth,
        valid=depth > 0,
        camera_from_world=camera_from_world,
        intrinsics=intrinsics,
        world=world,
    )


def _develop(key: Array, linear: Float[Array, "s height width 3"]) -> Array:
    """Linear light to stored values: exposure, of the scene and of each frame, gamma and noise."""
    key_scene, key_frame, key_level, key_noise = jax.random.split(key, 4)
    frames = (linear.shape[0], 1, 1, 1)
    normal = lambda key, shape: jax.random.normal(key, shape, jnp.float32)
    exposure = 0.3 * normal(key_scene, ()) + 0.1 * normal(key_frame, frames)
    stored = jnp.clip(linear * 2.0**exposure, 1e-4, 1.0) ** (1 / 2.2)
    level = _NOISE * jax.random.uniform(key_level, (), jnp.float32)
    return jnp.clip(stored + level * normal(key_noise, linear.shape), 0.0, 1.0)
