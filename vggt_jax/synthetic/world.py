"""What a scene consists of, drawn at random."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vggt_jax.geometry import matrix_from_quaternion
from vggt_jax.synthetic.clutter import ROW, make_grid, make_thin, share_material
from vggt_jax.synthetic.draws import Draws
from vggt_jax.synthetic.pictures import random_layout
from vggt_jax.synthetic.solids import Solids, distance_to
from vggt_jax.synthetic.textures import Materials, random_materials

# The most cubes, balls and cylinders in a scene; with the fewest that is still cluttered.
COUNTS = (14, 6, 6)
WIDE_COUNTS = (24, 6, 10)  # in the wide world; the last ten cubes may be a grid
LAMPS = 2  # that cast no shadow, in the wide world
WALLS = 6  # sides of the room: low and high in x, y, z
_CLEARANCE = 0.3  # metres between a place to keep clear and the nearest solid

NO_LAMPS: Any = np.zeros((0, 3), np.float32)

Ranges = dict[str, Float[Array, "2"] | Float[Array, ""]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """A scene. World coordinates are metres, z up, the floor at z = 0.

    Attributes:
        room: half the extent of the room around (0, 0, ceiling / 2).
        is_open: no walls and no ceiling.
        materials: of the solids, then of the sides of the room.
        light: place of the lamp; far away in the open.
        lamps: places of other lamps, which cast no shadow; none but in the wide world.
        lamp_colors: their light.
        ambient: share of the light that comes from everywhere.
        tint: colour of the light.
        sky: colours at the horizon and above.
    """

    room: Float[Array, "3"]
    is_open: Bool[Array, ""]
    solids: Solids
    materials: Materials
    light: Float[Array, "3"]
    lamps: Float[Array, "l 3"]
    lamp_colors: Float[Array, "l 3"]
    ambient: Float[Array, ""]
    tint: Float[Array, "3"]
    sky: Float[Array, "2 3"]


def random_world(
    key: Array,
    ranges: Ranges,
    clear: Float[Array, "m 3"],
    room: Array,
    *,
    is_wide: bool = False,
    num_pictures: int = 0,
) -> World:
    """A scene around the middle of a room, with room for the cameras.

    Args:
        ranges: of the family.
        clear: places to keep clear: solids nearer than 0.3 m to one are left out.
        room: half the extent.
        is_wide: with more things, and what `ranges` of a `WideFamily` ask for.
        num_pictures: how many there are to lay on surfaces of the wide world.
    """
    counts = WIDE_COUNTS if is_wide else COUNTS
    k = sum(counts)
    draw = Draws(key, (96 if is_wide else 64) * k)
    between = lambda name, *shape: draw.within(ranges[name], *shape)
    chance = lambda name, *shape: draw.chance(ranges[name], *shape)
    is_open = chance("is_open")

    half = between("object_size", k, 1) * draw.uniform(k, 3, low=0.4, high=1.3)
    # Balls stay round half of the time, and cylinders are round.
    place = jnp.arange(k, dtype=jnp.int32)
    is_ball = (place >= counts[0]) & (place < sum(counts[:2]))
    is_cylinder = place >= sum(counts[:2])
    round_ball = is_ball & draw.chance(0.5, k)
    half = jnp.where(round_ball[:, None], half[:, :1], half)
    half = half.at[:, 1].set(jnp.where(is_cylinder, half[:, 0], half[:, 1]))
    half = half.at[:, 2].multiply(jnp.where(is_cylinder, np.float32(1.6), np.float32(1)))

    angle, radius = between("turn", k), between("spread", k)
    xy = radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    # Solid 0 is the pedestal, where there is one.
    side = between("pedestal")
    has_pedestal = side > 0
    pedestal = jnp.stack([side, side * 0.8, jnp.float32(0.35)])
    half = half.at[0].set(jnp.where(has_pedestal, pedestal, half[0]))
    xy = xy.at[0].multiply(jnp.where(has_pedestal, np.float32(0), np.float32(1)))

    # Things stand on the floor, or on the top of a solid among the first, or hang in the air.
    raised = chance("raised", k) & (place > 0)
    base = jnp.where(has_pedestal, 0, draw.integers(k, below=4))
    on_base = raised & (place >= jnp.where(has_pedestal, np.int32(1), np.int32(4)))
    xy = jnp.where(
        on_base[:, None],
        xy[base] + half[base, :2] * draw.uniform(k, 2, low=-0.8, high=0.8),
        xy,
    )
    lift = jnp.where(on_base, 2 * half[:, 2][base], 0.0)
    lift += jnp.where(raised & ~on_base, between("lift", k), 0.0)
    if is_wide:
        half = make_thin(draw, half, ranges["thin"])
    centre = jnp.concatenate([xy, (lift + half[:, 2])[:, None]], axis=-1)

    yaw = between("turn", k)
    upright = jnp.stack([0 * yaw, 0 * yaw, jnp.sin(yaw / 2), jnp.cos(yaw / 2)], axis=-1)
    anyhow = draw.normal(k, 4)
    tilted = chance("tilted", k) & ~(has_pedestal & (place == 0))
    rotation = matrix_from_quaternion(jnp.where(tilted[:, None], anyhow, upright))

    can_hang = chance("hung", k) & (place < counts[0]) & (place >= 4) & ~is_open
    half, centre, rotation = _hang(draw, can_hang, room, half, centre, rotation)

    share = between("objects")
    rank = jnp.concatenate([jnp.arange(n, dtype=jnp.float32) / n for n in counts])
    active = rank < share
    materials = None
    if is_wide:
        has_grid = chance("rows")
        half, centre, rotation = make_grid(draw, has_grid, counts[0], half, centre, rotation)
        is_grid = (place >= counts[0] - ROW) & (place < counts[0])
        active = jnp.where(is_grid, has_grid | active, active)
        materials = share_material(
            _wide_materials(draw, ranges, k, num_pictures), has_grid, counts[0]
        )
    solids = Solids(centre=centre, half=half, rotation=rotation, active=active, counts=counts)
    is_clear = (distance_to(solids, clear) > _CLEARANCE).all(axis=0)
    solids = dataclasses.replace(solids, active=solids.active & is_clear)

    lamp = draw.uniform(3, low=-0.7, high=0.7) * room
    lamp = lamp.at[2].set(1.9 * room[2])
    sun = jnp.array([lamp[0], lamp[1], 1.5 * room[2]]) * 40
    tint = 1 + 0.15 * draw.uniform(3, low=-1.0, high=1.0)
    colors = jnp.array([[0.9, 0.9, 0.95], [0.45, 0.65, 1.0]], jnp.float32)
    sky = draw.uniform(2, 1, low=0.5, high=1.0) * colors
    lamps, lamp_colors = _more_lamps(draw, ranges, room) if is_wide else (NO_LAMPS, NO_LAMPS)
    return World(
        room=room,
        is_open=is_open,
        solids=solids,
        materials=random_materials(draw, k + WALLS) if materials is None else materials,
        light=jnp.where(is_open, sun, lamp),
        lamps=lamps,
        lamp_colors=lamp_colors,
        ambient=draw.uniform(low=0.3, high=0.65),
        tint=tint,
        sky=sky,
    )


def _hang(
    draw: Draws, hung: Array, room: Array, half: Array, centre: Array, rotation: Array
) -> tuple[Array, Array, Array]:
    """Half the extent, centre and rotation with boxes as pictures and shelves, flat on walls.

    Args:
        hung: [k], which.
    """
    k = len(half)
    wall = draw.integers(k, below=4)
    along = draw.uniform(k, 2, low=-0.8, high=0.8)
    axis, sign = wall // 2, 2 * (wall % 2).astype(jnp.float32) - 1
    is_x = (axis == 0)[:, None]
    on_wall = jnp.where(
        is_x,
        jnp.stack([sign * room[0], along[:, 0] * room[1]], axis=-1),
        jnp.stack([along[:, 0] * room[0], sign * room[1]], axis=-1),
    )
    height = room[2] * (1 + 0.6 * along[:, 1])
    flat = jnp.array([[0.06, 0.6, 0.5]], jnp.float32) * draw.uniform(k, 3, low=0.4, high=1.6)
    flat = jnp.where(is_x, flat, flat[:, np.array([1, 0, 2], np.int32)])
    hung_ = hung[:, None]
    half = jnp.where(hung_, flat, half)
    centre = jnp.where(hung_, jnp.concatenate([on_wall, height[:, None]], axis=-1), centre)
    return half, centre, jnp.where(hung_[..., None], np.eye(3, dtype=np.float32), rotation)


def _wide_materials(draw: Draws, ranges: Ranges, k: int, num_pictures: int) -> Materials:
    """Patterns, surfaces of one colour, and pictures if there are any, of solids and walls."""
    count = k + WALLS
    materials = random_materials(draw, count)
    plain = draw.chance(ranges["plain"], count)
    contrast = jnp.where(plain, 0.15 * draw.uniform(count), draw.uniform(count, low=0.4))
    layout = None
    if num_pictures:
        layout = random_layout(draw, count, num_pictures, ranges["pictured"], ranges["tile"])
        layout = dataclasses.replace(layout, picture=jnp.where(plain, -1, layout.picture))
    return dataclasses.replace(materials, contrast=contrast, layout=layout)


def _more_lamps(draw: Draws, ranges: Ranges, room: Float[Array, "3"]) -> tuple[Array, Array]:
    """Places and colours of lamps beside the first."""
    place = draw.uniform(LAMPS, 3, low=-0.9, high=0.9) * room[None]
    place = place.at[:, 2].set(room[2] * draw.uniform(LAMPS, low=0.8, high=1.9))
    warm = draw.uniform(LAMPS, 1, low=-1.0)
    color = jnp.exp(0.25 * warm * np.array([[1, 0, -1]], np.float32))
    strength = draw.within(ranges["lamps"], LAMPS, 1)
    strength = jnp.where(draw.chance(0.6, LAMPS, 1), strength, 0.0)
    return place, strength * color
