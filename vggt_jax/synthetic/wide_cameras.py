"""Cameras as people hold and carry them, in the wide world."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.blocks import argsort
from vggt_jax.synthetic.draws import Draws
from vggt_jax.synthetic.world import Ranges

PATHS = ("orbit", "approach", "forward", "sideways", "turn", "stand", "drone")
"""Around a thing and towards it; walks along the view and across it; turns on the spot, looking
out; several photographs of one thing from about one place; a drone that flies a line or an arc and
looks down."""
_ORBIT, _APPROACH, _FORWARD, _SIDEWAYS, _TURN, _STAND, _DRONE = range(len(PATHS))
_MARGIN = 0.3  # metres between a camera and the walls
_HAND = 0.015  # metres, standard deviation of what a hand adds
_FRAMES = 8  # for which `reach` is meant


def wide_paths(
    key: Array,
    ranges: Ranges,
    num_frames: int,
    room: Float[Array, "3"],
    field_of_view: Float[Array, ""],
) -> tuple[Float[Array, "s 3"], Float[Array, "s 3"], Float[Array, "3"]]:
    """Where cameras stand, what each looks at, and what upright is.

    Half of the scenes have the frames in the order of the path, the others in any. How far cameras
    move and turn follows from `reach`, so that neighbouring frames show nearly the same, or little
    in common.

    Args:
        room: half the extent, in metres.
        field_of_view: of the longer side, in radians.
    """
    draw = Draws(key, 12 * num_frames + 64)
    uniform = draw.uniform
    between = lambda name, *shape: draw.within(ranges[name], *shape)
    path = _choice(uniform(), ranges["paths"])
    is_ = lambda *names: sum((path == name for name in names[1:]), path == names[0])

    progress = _progress(draw, num_frames)
    middle = progress - 0.5
    low, high = ranges["reach"][0], ranges["reach"][1]
    reach = low * (high / low) ** uniform() * (num_frames / _FRAMES) ** 0.5
    tangent = jnp.tan(field_of_view / 2)
    # Through a long lens people stand back.
    distance = between("distance") * jnp.clip(0.6 / tangent, 0.8, 2.0)
    width = 2 * tangent * distance  # metres that a picture shows at this distance
    yaw, side = between("turn"), jnp.where(draw.chance(0.5), np.float32(1), np.float32(-1))
    slant = jnp.deg2rad(25.0) * draw.normal()
    height = between("eye")
    centre = jnp.stack([0.4 * uniform(low=-1.0), 0.4 * uniform(low=-1.0), between("target")])[None]

    # The angle at which each camera stands around the middle, or to which it turns.
    sweep = jnp.clip(reach * field_of_view, 0.02, 2 * jnp.pi)
    angle = yaw + side * jnp.where(is_(_ORBIT, _TURN), sweep, 0.25 * slant) * middle
    ray = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)  # [s 2], from the middle outwards
    across = jnp.stack([-jnp.sin(yaw), jnp.cos(yaw)])[None]
    outward = jnp.stack([jnp.cos(yaw), jnp.sin(yaw)])[None]

    wander = 1 + 0.12 * uniform(num_frames, low=-1.0)
    near = jnp.clip(1 - 0.25 * reach, 0.3, 0.95)
    along = jnp.where(path == _APPROACH, 1 - (1 - near) * progress, wander)
    orbit = along[:, None] * distance * ray
    small = 0.15 + 0.35 * uniform()
    turn = 0.5 * room[None, :2] * uniform(1, 2, low=-1.0) + small * ray
    heading = jnp.where(path == _FORWARD, 0.3 * slant, jnp.pi / 2 + slant)
    moves = jnp.cos(heading) * -outward + jnp.sin(heading) * side * across
    stride = jnp.where(path == _FORWARD, jnp.minimum(reach, 2.0) * distance * 0.6, reach * width)
    line = distance * outward + (middle * stride)[:, None] * moves
    stand = (
        distance * outward
        + 0.35 * jnp.minimum(reach, 1.5) * width * draw.normal(num_frames, 1) * across
    )
    xy = jnp.where(is_(_ORBIT, _APPROACH), orbit, jnp.where(path == _TURN, turn, line))
    xy = jnp.where(path == _STAND, stand, xy)
    # A drone's pictures are as wide as it is high.
    down = jnp.deg2rad(between("down"))
    aside = height / jnp.tan(down)
    above = middle * reach * 2 * tangent * height
    bend = 0.5 * above * jnp.sin(slant + 2 * middle)
    flight = aside * outward + above[:, None] * across + bend[:, None] * outward
    xy = jnp.where(path == _DRONE, flight, xy)
    xy += centre[:, :2]

    swing = jnp.where(path == _STAND, 0.2 * jnp.minimum(reach, 1.5) * width, 0.0)
    z = height * (1 + 0.08 * uniform(num_frames, low=-1.0)) + swing * draw.normal(num_frames)
    positions = jnp.concatenate([xy, z[:, None]], axis=-1) + _HAND * draw.normal(num_frames, 3)
    positions = _moved_inside(positions, room)

    # What a camera looks at: the middle, something straight ahead, or the ground.
    ahead = jnp.where(path == _TURN, ray, jnp.broadcast_to(-outward, ray.shape))
    ahead = jnp.concatenate(
        [ahead, (0.12 * draw.normal() - 0.05) * jnp.ones_like(z)[:, None]], axis=-1
    )
    beyond = positions + jnp.maximum(0.5 * distance, 1.0) * ahead
    below = positions - jnp.stack([*(aside * outward[0]), height])[None]
    centre = jnp.broadcast_to(centre, positions.shape)
    target = jnp.where(is_(_FORWARD, _SIDEWAYS, _TURN), beyond, centre)
    target = jnp.where(path == _DRONE, below, target)
    lean = jnp.where(path == _DRONE, np.float32(1), np.float32(0))
    up = jnp.stack([*(-lean * outward[0]), jnp.float32(1)])
    return positions, target, up


def _moved_inside(positions: Float[Array, "s 3"], room: Float[Array, "3"]) -> Float[Array, "s 3"]:
    """A path moved into a room as a whole, and shrunk if need be: no two cameras meet at a wall."""
    wall = room[None]
    low = jnp.concatenate([-wall[:, :2], jnp.zeros((1, 1), jnp.float32)], axis=-1) + _MARGIN
    high = jnp.concatenate([wall[:, :2], 2 * wall[:, 2:]], axis=-1) - _MARGIN
    least, most = (f(positions, axis=0, keepdims=True) for f in (jnp.min, jnp.max))
    half, middle = (most - least) / 2, (most + least) / 2
    shrink = jnp.minimum((high - low) / 2 / jnp.maximum(half, 1e-6), 1.0)
    half = half * shrink
    return jnp.clip(middle, low + half, high - half) + shrink * (positions - middle)


def _choice(number: Array, weights: Float[Array, " k"]) -> Int[Array, ""]:
    """A place by weight, from a number in [0, 1)."""
    ends = jnp.cumsum(weights)
    return jnp.sum(ends <= number * ends[-1], dtype=jnp.int32)


def _progress(draw: Draws, num_frames: int) -> Float[Array, " s"]:
    """How far along the path frames are, in [0, 1], in the order of the path or in any."""
    frames = jnp.arange(num_frames, dtype=jnp.float32)
    progress = (frames + 0.5 + draw.uniform(num_frames, low=-0.3, high=0.3)) / num_frames
    order = argsort(draw.uniform(num_frames))
    return jnp.where(draw.chance(0.5), progress[order], progress)
