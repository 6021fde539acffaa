"""Camera paths: around the middle of a scene, or walking towards it, always with overlap."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.blocks import argsort
from vggt_jax.synthetic.draws import Draws
from vggt_jax.synthetic.solids import length, unit
from vggt_jax.synthetic.world import Ranges

_MARGIN = 0.35  # metres between a camera and the walls
_ROLL = 6.0  # degrees, standard deviation
_JITTER = (
    0.22  # metres, standard deviation of what a camera looks at, for each metre of distance / 2
)


def random_positions(
    key: Array, ranges: Ranges, num_frames: int, room: Float[Array, "3"]
) -> tuple[Float[Array, "s 3"], Float[Array, "3"]]:
    """Where cameras stand, and the place that all look at, about.

    Two thirds of the scenes have the frames in the order of the path, the others in any.
    """
    draw = Draws(key, 8 * num_frames + 32)
    uniform = draw.uniform
    between = lambda name, *shape: draw.within(ranges[name], *shape)
    frames = jnp.arange(num_frames, dtype=jnp.float32)
    progress = (frames + uniform(num_frames, low=-0.35, high=0.35)) / num_frames
    order = argsort(uniform(num_frames))
    progress = jnp.where(uniform() < 1 / 3, progress[order], progress)

    # Around the middle, with a distance and a height that wander.
    angle = between("turn") + jnp.deg2rad(between("arc")) * progress
    distance = between("distance") * (1 + 0.15 * uniform(num_frames, low=-1.0))
    around = distance[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    # On a line: from afar towards the side of the middle.
    begin, end = between("turn"), between("turn")
    far, near = between("distance"), 0.5 * between("distance")
    first = far * jnp.stack([jnp.cos(begin), jnp.sin(begin)])
    last = first * near / far + 0.5 * jnp.stack([jnp.cos(end), jnp.sin(end)])
    line = first[None] + progress[:, None] * (last - first)[None]
    line += 0.04 * draw.normal(num_frames, 2)
    xy = jnp.where(uniform() < ranges["walk"], line, around)

    height = between("eye") * (1 + 0.12 * uniform(num_frames, low=-1.0))
    positions = jnp.concatenate([xy, height[:, None]], axis=-1)
    low = jnp.array([_MARGIN - room[0], _MARGIN - room[1], _MARGIN])
    high = jnp.array([room[0] - _MARGIN, room[1] - _MARGIN, 2 * room[2] - _MARGIN])
    target = jnp.stack([0.3 * uniform(low=-1.0), 0.3 * uniform(low=-1.0), between("target")])
    return jnp.clip(positions, low[None], high[None]), target


def look_at(
    key: Array,
    positions: Float[Array, "s 3"],
    target: Float[Array, "#s 3"],
    up: Float[Array, "3"],
) -> Float[Array, "s 3 4"]:
    """`camera_from_world` of cameras that look about at a place, upright but for a little roll.

    Args:
        target: the place, one for all or one each.
        up: what upright is; never along the view.
    """
    draw = Draws(key, 4 * len(positions))
    distance = length(target - positions)[:, None]
    jitter = _JITTER * distance / 2 * draw.normal(*positions.shape)
    forward = unit(target + jitter - positions)
    right = unit(jnp.cross(forward, up[None]))
    down = jnp.cross(forward, right)
    roll = jnp.deg2rad(_ROLL) * draw.normal(len(positions), 1)
    right, down = (
        jnp.cos(roll) * right + jnp.sin(roll) * down,
        jnp.cos(roll) * down - jnp.sin(roll) * right,
    )
    rotation = jnp.stack([right, down, forward], axis=-2)
    translation = -jnp.sum(rotation * positions[:, None], axis=-1)
    return jnp.concatenate([rotation, translation[..., None]], axis=-1)


def random_intrinsics(
    key: Array, ranges: Ranges, num_frames: int, size: tuple[int, int]
) -> Float[Array, "s 3 3"]:
    """Intrinsics in pixels of a (height, width): the same for all frames, centred."""
    height, width = size
    low, high = ranges["field_of_view"]
    field_of_view = jnp.deg2rad(jax.random.uniform(key, (), jnp.float32, low, high))
    focal = (max(size) / 2) / jnp.tan(field_of_view / 2)
    rows = [[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]
    return jnp.broadcast_to(jnp.array(rows), (num_frames, 3, 3))


def off_centre(
    key: Array, ranges: Ranges, intrinsics: Float[Array, "s 3 3"], size: tuple[int, int]
) -> Float[Array, "s 3 3"]:
    """The same cameras with a principal point beside the middle, as of cut pictures; of all frames
    the same."""
    key, key_amount = jax.random.split(jax.random.fold_in(key, 1))
    low, high = ranges["off_centre"]
    amount = jax.random.uniform(key_amount, (), jnp.float32, low, high) * max(size)
    shift = jnp.clip(jax.random.normal(key, (2,), jnp.float32), -2.0, 2.0)
    return intrinsics.at[:, :2, 2].add(amount * shift)
