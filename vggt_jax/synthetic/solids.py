"""Solids and where rays meet them.

A solid is a unit shape under an affine map: a cube [-1, 1]^3, a ball of radius 1, or a cylinder of
radius 1 between z = -1 and z = 1. A ray is mapped instead of the solid; the map keeps distances
along the ray, so that one formula serves boxes, ellipsoids and elliptic cylinders in any pose.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

CUBE, BALL, CYLINDER = range(3)
Vector = tuple[Array, ...]  # components of a vector for every ray

# Rays begin this far from where they leave, in metres: far above float32's error, far below a
# pixel.
_START = 1e-3
# Directions are kept from zero, so that slabs divide by no zero. Their length is about 1.
_SMALLEST = 1e-9


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Solids:
    """The solids of a scene, `k` of them, sorted by shape.

    Attributes:
        centre: in metres, world coordinates, z up.
        half: half the extent along each local axis, in metres.
        rotation: world_from_local.
        active: whether the solid is there.
        counts: how many are cubes, balls and cylinders, in this order.
    """

    centre: Float[Array, "k 3"]
    half: Float[Array, "k 3"]
    rotation: Float[Array, "k 3 3"]
    active: Bool[Array, " k"]
    counts: tuple[int, int, int] = dataclasses.field(metadata={"static": True})

    def local(self, points: Float[Array, "*p 3"], solid: Int[Array, "*p"]) -> Float[Array, "*p 3"]:
        """Points in the coordinates of the unit shape of a solid each."""
        return _rotate_back(points - self.centre[solid], self.rotation[solid]) / self.half[solid]

    def shape(self, solid: Int[Array, "*p"]) -> Int[Array, "*p"]:
        """CUBE, BALL or CYLINDER."""
        at_least = lambda number: (solid >= number).astype(jnp.int32)
        return at_least(self.counts[0]) + at_least(sum(self.counts[:2]))


def first_hit(
    solids: Solids, origin: Float[Array, "*r 3"], direction: Float[Array, "*r 3"], limit: Array
) -> tuple[Float[Array, "*r"], Int[Array, "*r"]]:
    """How far each ray travels until it enters a solid, and which.

    Args:
        origin, direction: of rays; the distance is in lengths of the direction. No ray begins
            inside.
        limit: [*r], where the rays end.

    Returns:
        The distance, `limit` where nothing is met, and the index of the solid, -1 where none is.
    """

    origins, directions = _components(origin), _components(direction)

    def meet(interval, index, state):
        distance, solid = state
        index = jnp.asarray(index, jnp.int32)
        rotation, half, centre = solids.rotation[index], solids.half[index], solids.centre[index]
        moved = tuple(x - centre[i] for i, x in enumerate(origins))
        into_shape = lambda v: tuple(_dot(v, rotation[:, i]) / half[i] for i in range(3))
        enter, leave = interval(into_shape(moved), into_shape(directions))
        is_nearer = (enter < leave) & (enter > _START) & (enter < distance) & solids.active[index]
        return jnp.where(is_nearer, enter, distance), jnp.where(is_nearer, index, solid)

    state = limit, jnp.full(limit.shape, -1, jnp.int32)
    begin = 0
    for count, interval in zip(solids.counts, (_in_cube, _in_ball, _in_cylinder), strict=True):
        state = jax.lax.fori_loop(
            begin, begin + count, lambda i, state, f=interval: meet(f, i, state), state
        )
        begin += count
    return state


def normals(
    solids: Solids, points: Float[Array, "*p 3"], solid: Int[Array, "*p"]
) -> Float[Array, "*p 3"]:
    """Outward unit normals at points on the surface of a solid each."""
    p = solids.local(points, solid)
    x, y, z = (jnp.abs(component) for component in _components(p))
    largest = jnp.stack([(x >= y) & (x >= z), (y > x) & (y >= z), (z > x) & (z > y)], axis=-1)
    of_cube = jnp.where(largest, jnp.sign(p), 0.0)
    is_cap = z > jnp.sqrt(x * x + y * y)
    along, across = (jnp.array(axes, p.dtype) for axes in ([0, 0, 1], [1, 1, 0]))
    of_cylinder = jnp.where(is_cap[..., None], along, across) * p
    shape = solids.shape(solid)[..., None]
    local = jnp.where(shape == CUBE, of_cube, jnp.where(shape == BALL, p, of_cylinder))
    # Normals are mapped by the inverse transposed.
    local, rotation = local / solids.half[solid], solids.rotation[solid]
    return unit(total(rotation[..., i] * local[..., i, None] for i in range(3)))


def unit(v: Float[Array, "*p 3"]) -> Float[Array, "*p 3"]:
    """Vectors of length 1."""
    return v / length(v)[..., None]


def length(v: Float[Array, "*p 3"]) -> Float[Array, "*p"]:
    """Lengths of vectors."""
    return jnp.sqrt(dot(v, v))


def dot(a: Float[Array, "*p 3"], b: Float[Array, "*p 3"]) -> Float[Array, "*p"]:
    """Scalar products."""
    return _dot(_components(a), _components(b))


def total(terms: Iterable[Array]) -> Array:
    """The sum of arrays, of one at least."""
    return sum(terms)  # pyright: ignore[reportReturnType]  of none it would be 0


def distance_to(solids: Solids, points: Float[Array, "m 3"]) -> Float[Array, "m k"]:
    """About how far points are from each solid's bounding box, 0 inside."""
    local = _rotate_back(points[:, None] - solids.centre[None], solids.rotation[None])
    return jnp.linalg.norm(jnp.maximum(jnp.abs(local) - solids.half[None], 0.0), axis=-1)


def _rotate_back(x: Float[Array, "*p 3"], rotation: Float[Array, "*q 3 3"]) -> Array:
    """`rotation^T @ x` without a matrix product, which a GPU would round."""
    return total(x[..., i, None] * rotation[..., i, :] for i in range(3))


def _components(v: Array) -> tuple[Array, Array, Array]:
    """x, y and z apart: sums over an axis of 3 would be kernels of their own on a GPU."""
    return v[..., 0], v[..., 1], v[..., 2]


def _dot(a: Sequence[Array] | Array, b: Sequence[Array] | Array) -> Array:
    return total(a[i] * b[i] for i in range(len(a)))


def _slab(o: Array, d: Array) -> tuple[Array, Array]:
    """Where a ray is in [-1, 1]."""
    d = jnp.where(jnp.abs(d) < _SMALLEST, _SMALLEST, d)
    a, b = (-1 - o) / d, (1 - o) / d
    return jnp.minimum(a, b), jnp.maximum(a, b)


def _in_cube(o: Vector, d: Vector) -> tuple[Array, Array]:
    enters, leaves = zip(*map(_slab, o, d), strict=True)
    return functools.reduce(jnp.maximum, enters), functools.reduce(jnp.minimum, leaves)


def _in_ball(o: Vector, d: Vector) -> tuple[Array, Array]:
    a = _dot(d, d) + _SMALLEST**2
    middle = -_dot(o, d) / a
    # The distance of the line from the centre, which does not cancel like `b * b - a * c`.
    foot = tuple(x + middle * v for x, v in zip(o, d, strict=True))
    inside = 1 - _dot(foot, foot)
    half = jnp.sqrt(jnp.maximum(inside, 0.0) / a)
    return middle - half, jnp.where(inside > 0, middle + half, -jnp.inf)


def _in_cylinder(o: Vector, d: Vector) -> tuple[Array, Array]:
    enter_side, leave_side = _in_ball(o[:2], d[:2])
    enter_cap, leave_cap = _slab(o[2], d[2])
    return jnp.maximum(enter_side, enter_cap), jnp.minimum(leave_side, leave_cap)
