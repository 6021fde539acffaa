"""Ray casting: pictures and depth of a world."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vggt_jax.synthetic.pictures import PictureBank, lay_on
from vggt_jax.synthetic.solids import Solids, dot, first_hit, length, normals, total, unit
from vggt_jax.synthetic.textures import clouds, color_at
from vggt_jax.synthetic.world import World

_FAR = 1e3  # metres, beyond everything
_LIFT = 2e-3  # metres that shadow rays begin above the surface


def render(
    world: World,
    camera_from_world: Float[Array, "s 3 4"],
    intrinsics: Float[Array, "s 3 3"],
    size: tuple[int, int],
    bank: PictureBank | None = None,
) -> tuple[Float[Array, "s height width 3"], Float[Array, "s height width"]]:
    """Linear colours, and depth along the viewing axis in metres, 0 where there is sky.

    Args:
        bank: the pictures that materials lay on surfaces; None if they lay none.
    """
    height, width = size
    columns = jnp.arange(width, dtype=jnp.float32)[None, None]
    rows = jnp.arange(height, dtype=jnp.float32)[None, :, None]
    x = (columns + 0.5 - intrinsics[:, None, None, 0, 2]) / intrinsics[:, None, None, 0, 0]
    y = (rows + 0.5 - intrinsics[:, None, None, 1, 2]) / intrinsics[:, None, None, 1, 1]
    x, y = jnp.broadcast_arrays(x, y)
    in_camera = jnp.stack([x, y, jnp.ones_like(x)], axis=-1)  # z is 1, so distances are depths
    rotation = camera_from_world[:, None, None, :, :3]
    turn_back = lambda v: total(rotation[..., i, :] * v[..., i, None] for i in range(3))
    direction = turn_back(in_camera)
    origin = -turn_back(camera_from_world[:, None, None, :, 3])
    origin = jnp.broadcast_to(origin, direction.shape)

    # What is stacked and taken apart again is stored in between: fused, it would be computed anew
    # for every component of a component.
    origin, direction = jax.lax.optimization_barrier((origin, direction))
    depth, surface = cast(world, origin, direction)
    points = jax.lax.optimization_barrier(origin + depth[..., None] * direction)
    view = -unit(direction)
    solid = jnp.minimum(surface, sum(world.solids.counts) - 1)
    of_solid = normals(world.solids, points, solid)
    of_room = _room_normals()[jnp.clip(surface - sum(world.solids.counts), 0, 5)]
    is_room = (surface >= sum(world.solids.counts))[..., None]
    normal = jnp.where(is_room, of_room, of_solid)
    local = world.solids.local(points, solid) * world.solids.half[solid]
    local = jnp.where(is_room, points, local)
    view, local, normal = jax.lax.optimization_barrier((view, local, normal))
    slope = jnp.abs(dot(normal, view)).clip(0.15)
    footprint = depth * length(direction) / intrinsics[:, None, None, 0, 0] / slope
    material = world.materials[jnp.maximum(surface, 0)]
    color = color_at(material, local, footprint)
    if material.layout is not None and bank is not None:
        of_object = jnp.where(is_room, normal, _in_axes_of(world.solids, normal, solid))
        picture = lay_on(bank, material.layout, local, of_object, footprint)
        color = jnp.where((material.layout.picture >= 0)[..., None], picture, color)

    everywhere = (None, None, None)
    to_light = world.light[everywhere] - points
    distance = length(to_light)
    lit = _sees_light(world, points + _LIFT * normal, to_light)
    to_light = jax.lax.optimization_barrier(to_light / distance[..., None])
    facing = dot(normal, to_light).clip(0.0)
    reach = 1.6 / (1 + 0.08 * jnp.minimum(distance, 8.0) ** 2)
    reach = jnp.where(world.is_open, 1.1, reach)
    direct = jnp.where(lit, facing * reach, 0.0)
    # Light from everywhere is a little stronger from above, so that edges show in the shade too.
    shade = world.ambient * (0.8 + 0.2 * normal[..., 2] + 0.1 * normal[..., 0])
    halfway = jax.lax.optimization_barrier(to_light + view)
    glint = (dot(normal, halfway) / length(halfway).clip(1e-6)).clip(0.0) ** 40
    glint = material.shine * jnp.where(lit, glint, 0.0)
    surface_color = color
    color = (color * (shade + direct)[..., None] + glint[..., None]) * world.tint[everywhere]
    for i in range(len(world.lamps)):
        color += surface_color * _of_lamp(world.lamps[i], world.lamp_colors[i], points, normal)

    is_sky = surface < 0
    up = -view[..., 2]
    haze = jnp.clip(1 - 2 * up + 0.4 * clouds(-view), 0.0, 1.0)[..., None]
    haze, color = jax.lax.optimization_barrier((haze, color))
    horizon, above = (color[everywhere] for color in world.sky)
    sky = above + haze * (horizon - above)
    return jnp.where(is_sky[..., None], sky, color), jnp.where(is_sky, 0.0, depth)


def cast(
    world: World, origin: Float[Array, "*r 3"], direction: Float[Array, "*r 3"]
) -> tuple[Float[Array, "*r"], Array]:
    """Where rays from inside the room end, in lengths of their direction, and on which surface.

    Returns:
        The distance and the surface: a solid, or, after the solids, a side of the room (low and
        high in x, y, z); -1 for the sky.
    """
    low = (-world.room[0], -world.room[1], 0.0)
    high = (world.room[0], world.room[1], 2 * world.room[2])
    to_room, side = jnp.inf, 0
    for axis in range(3):
        o, d = origin[..., axis], direction[..., axis]
        d = jnp.where(jnp.abs(d) < 1e-9, 1e-9, d)
        leave = jnp.where(d > 0, high[axis] - o, low[axis] - o) / d
        side = jnp.where(leave < to_room, 2 * axis + (d > 0).astype(jnp.int32), side)
        to_room = jnp.minimum(leave, to_room)
    is_sky = world.is_open & (side != 4)  # all but the floor
    to_room = jnp.where(is_sky, _FAR, to_room)
    distance, solid = first_hit(world.solids, origin, direction, to_room)
    side = jnp.where(is_sky, -1, sum(world.solids.counts) + side)
    return distance, jnp.where(solid >= 0, solid, side)


def is_visible(
    world: World, origin: Float[Array, "*r 3"], points: Float[Array, "*r 3"]
) -> Bool[Array, "*r"]:
    """Whether nothing lies between a place and a point on a surface (within a thousandth)."""
    distance, _ = cast(world, origin, points - origin)
    return distance > 1 - 1e-3


def _of_lamp(place: Float[Array, "3"], light: Float[Array, "3"], points: Array, normal: Array):
    """Light of a lamp without shadows, which falls off as that of the first does indoors."""
    everywhere = (None,) * (points.ndim - 1)
    to_lamp = place[everywhere] - points
    distance = length(to_lamp).clip(1e-3)
    facing = (dot(normal, to_lamp) / distance).clip(0.0)
    reach = 1.6 / (1 + 0.08 * jnp.minimum(distance, 8.0) ** 2)
    return (facing * reach)[..., None] * light[everywhere]


def _in_axes_of(solids: Solids, vectors: Array, solid: Array) -> Array:
    """Directions in the world in the axes of a solid each."""
    rotation = solids.rotation[solid]
    return total(vectors[..., i, None] * rotation[..., i, :] for i in range(3))


def _sees_light(world: World, points: Array, to_light: Array) -> Array:
    limit = jnp.full(points.shape[:-1], 0.98, points.dtype)
    return first_hit(world.solids, points, to_light, limit)[1] < 0


def _room_normals() -> Array:
    """Inward, of the sides in the order of `cast`."""
    return jnp.concatenate([jnp.stack([a, -a]) for a in np.eye(3, dtype=np.float32)])
