"""What makes a scene of the wide world crowded and hard: thin things, and grids of equal ones."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vggt_jax.synthetic.draws import Draws
from vggt_jax.synthetic.textures import Materials

ROW = 10  # boxes of a grid, the last cubes
_PER_ROW = 5


def make_thin(
    draw: Draws, half: Float[Array, "k 3"], share: Array, *, first: int = 1
) -> Float[Array, "k 3"]:
    """Makes boards (one side thin) and poles (two, and the third long) of a share of the solids.

    Args:
        first: place of the first that may be; the pedestal stays.
    """
    k = len(half)
    place = jnp.arange(k, dtype=jnp.int32)
    thin = draw.chance(share, k) & (place >= first)
    pole = draw.chance(0.5, k)
    least = draw.uniform(k, low=0.04, high=0.15)
    axis = draw.integers(k, below=3)
    is_axis = axis[:, None] == np.arange(3, dtype=np.int32)[None]
    board = jnp.where(is_axis, least[:, None], np.float32(1))
    upright = jnp.stack([least, least, draw.uniform(k, low=1.2, high=3.0)], axis=-1)
    factor = jnp.where(pole[:, None], upright, board)
    return jnp.where(thin[:, None], jnp.maximum(half * factor, 0.006), half)


def make_grid(
    draw: Draws,
    present: Array,
    cubes: int,
    half: Float[Array, "k 3"],
    centre: Float[Array, "k 3"],
    rotation: Float[Array, "k 3 3"],
) -> tuple[Array, Array, Array]:
    """Sets the last ROW cubes up as a grid of equal boxes in one or two storeys.

    Args:
        present: whether the scene has one.
        cubes: how many of the solids, the first, are cubes.

    Returns:
        half, centre and rotation.
    """
    begin = cubes - ROW
    one = half[begin] * draw.uniform(3, low=0.5, high=1.5)
    number = np.arange(ROW)
    along, storey = number % _PER_ROW - _PER_ROW // 2, number // _PER_ROW
    pitch = 2 * one[0] * draw.uniform(low=1.15, high=3.0)
    rise = 2 * one[2] * draw.uniform(low=1.0, high=1.8)
    cos, sin = rotation[begin, 0, 0], rotation[begin, 1, 0]
    offset = along.astype(np.float32) * pitch
    place = jnp.stack(
        [
            centre[begin, 0] + cos * offset,
            centre[begin, 1] + sin * offset,
            one[2] + storey.astype(np.float32) * rise,
        ],
        axis=-1,
    )
    zero = jnp.zeros((), jnp.float32)
    upright = jnp.stack(
        [
            jnp.stack([cos, -sin, zero]),
            jnp.stack([sin, cos, zero]),
            jnp.array([0.0, 0.0, 1.0], jnp.float32),
        ]
    )
    norm = jnp.maximum(jnp.sqrt(cos * cos + sin * sin), 1e-3)
    upright = upright.at[:2].divide(norm)
    put = lambda x, new: jnp.where(
        present, x.at[begin:cubes].set(jnp.broadcast_to(new, (ROW, *x.shape[1:]))), x
    )
    return put(half, one[None]), put(centre, place), put(rotation, upright[None])


def share_material(materials: Materials, present: Array, cubes: int) -> Materials:
    """Gives the grid one material."""
    begin = cubes - ROW
    return jax.tree.map(lambda x: jnp.where(present, x.at[begin:cubes].set(x[begin]), x), materials)
