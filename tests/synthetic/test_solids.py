"""Rays and solids against cases worked by hand and an independent search along the ray."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vggt_jax.synthetic import solids as library
from vggt_jax.synthetic.solids import Solids

# Compiled whole: one program instead of one for each operation.
distance_to, first_hit, normals = map(
    jax.jit, (library.distance_to, library.first_hit, library.normals)
)
local_points = jax.jit(Solids.local)


@jax.jit
def steepest(solids, points):
    """The direction in which the squares of local coordinates grow fastest."""
    step = jax.vmap(jax.grad(lambda p: jnp.sum(solids.local(p, 0) ** 2)))(points)
    return step / jnp.linalg.norm(step, axis=-1, keepdims=True)


def make(centre, half, turn, counts):
    rotation = Rotation.from_rotvec(np.asarray(turn, float)).as_matrix()
    arrays = (np.asarray(x, np.float32) for x in (centre, half, rotation))
    centre, half, rotation = arrays
    active = np.ones(len(centre), bool)
    return Solids(centre=centre, half=half, rotation=rotation, active=active, counts=counts)


def hit(solids, origin, direction, limit=100.0):
    origin, direction = np.float32(origin), np.float32(direction)
    distance, solid = first_hit(
        solids, origin, direction, np.full(origin.shape[:-1], limit, np.float32)
    )
    return np.asarray(distance), np.asarray(solid)


def test_distances_worked_by_hand():
    # A box of 2 x 4 x 6 at x = 10, a ball of radius 3 at y = 20, a cylinder of radius 2 at z = 30.
    centres, halves = np.diag([10, 20, 30]), [[1, 2, 3], [3, 3, 3], [2, 2, 5]]
    solids = make(centres, halves, np.zeros((3, 3)), (1, 1, 1))
    origin = [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [9, 20, 30], [0, 0, 0]]
    direction = [[1, 0, 0], [0, 2, 0], [0, 0, 1], [-1, 0, 0], [-1, -1.5, 0], [10, 1, 2.9]]
    distance, solid = hit(solids, origin, direction)
    # The last but one passes the cylinder, by sqrt(13) from its axis; the last one meets the box.
    np.testing.assert_allclose(distance, [9, 17 / 2, 25, 100, 100, 0.9], rtol=1e-6)
    assert solid.tolist() == [0, 1, 2, -1, -1, 0]


def test_what_is_not_active_or_beyond_the_limit_is_not_met():
    solids = make([[10, 0, 0]], [[1, 1, 1]], [[0, 0, 0]], (1, 0, 0))
    assert hit(solids, [[0, 0, 0]], [[1, 0, 0]], limit=8.9)[1] == -1
    absent = dataclasses.replace(solids, active=np.zeros(1, bool))
    assert hit(absent, [[0, 0, 0]], [[1, 0, 0]])[1] == -1


@pytest.mark.parametrize("counts", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_turned_and_stretched_solids_against_a_search_along_the_ray(counts):
    rng = np.random.default_rng(7)
    half, centre = np.array([0.7, 1.9, 1.1]), np.array([0.4, -0.8, 5.0])
    solids = make([centre], [half], [[0.9, -0.4, 1.7]], counts)
    direction = np.concatenate([rng.normal(size=(199, 2)) * 0.4, np.ones((199, 1))], axis=1)
    found, solid = hit(solids, np.zeros((199, 3)), direction)
    steps = np.linspace(0, 12, 24001)
    points = steps[:, None, None] * direction - centre
    local = points @ np.asarray(solids.rotation[0], float) / half  # R^T p for rows p
    inside = {
        (1, 0, 0): (np.abs(local) < 1).all(-1),
        (0, 1, 0): (local**2).sum(-1) < 1,
        (0, 0, 1): (np.hypot(local[..., 0], local[..., 1]) < 1) & (np.abs(local[..., 2]) < 1),
    }[counts]
    met = inside.any(axis=0)
    assert 30 < met.sum() < 190
    # A ray that only grazes may fall between two steps of the search.
    assert ((solid >= 0) == met).mean() > 0.97
    both = met & (solid >= 0)
    np.testing.assert_allclose(
        found[both], steps[inside.argmax(axis=0)][both], atol=1.1 * 12 / 24000
    )

    # Outward normals: a small step along them leaves the solid, against them enters it.
    surface = np.asarray((found[:, None] * direction)[both], np.float32)
    index = np.zeros(len(surface), int)
    normal = np.asarray(normals(solids, surface, index))
    np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1, rtol=1e-5)
    outside = {
        (1, 0, 0): lambda p: np.abs(p).max(-1),
        (0, 1, 0): lambda p: np.linalg.norm(p, axis=-1),
        (0, 0, 1): lambda p: np.maximum(np.hypot(p[:, 0], p[:, 1]), np.abs(p[:, 2])),
    }[counts]
    for sign in (1, -1):
        moved = np.asarray(local_points(solids, surface + np.float32(sign * 1e-2) * normal, index))
        assert ((outside(moved) > 1) == (sign > 0)).all()
    # And for a ball, that they are square to the surface: no other step leads away as fast.
    if counts[1]:
        np.testing.assert_allclose(normal, steepest(solids, surface), atol=1e-4)


def test_distance_to_bounding_boxes():
    solids = make([[0, 0, 0]], [[1, 2, 3]], [[0, 0, np.pi / 2]], (1, 0, 0))  # 4 wide, 2 deep
    points = np.array([[5.0, 0, 0], [0, 4, 0], [0.5, 0.5, 2], [2, 1, 7]], np.float32)
    np.testing.assert_allclose(
        np.asarray(distance_to(solids, points))[:, 0], [3, 3, 0, 4], atol=1e-5
    )
