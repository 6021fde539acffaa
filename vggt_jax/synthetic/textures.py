"""Solid textures: colours as functions of the place in an object, different for every object."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vggt_jax.synthetic.draws import Draws
from vggt_jax.synthetic.pictures import Layout
from vggt_jax.synthetic.solids import dot, total, unit

KINDS = ("marble", "checks", "stripes", "tiles", "speckles")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Materials:
    """What surfaces look like, one row each.

    Attributes:
        kind: place in KINDS.
        colors: three, linear RGB in [0, 1].
        frequency: features per metre.
        offset: of the place, so that no two objects show the same part of a pattern.
        axis: unit vector across stripes.
        shine: strength of the highlight.
        contrast: factor of all that varies, 0 for a surface of one colour; None for 1.
        layout: of pictures; None where all surfaces have patterns.
    """

    kind: Int[Array, "*m"]
    colors: Float[Array, "*m 3 3"]
    frequency: Float[Array, "*m"]
    offset: Float[Array, "*m 3"]
    axis: Float[Array, "*m 3"]
    shine: Float[Array, "*m"]
    contrast: Float[Array, "*m"] | None = None
    layout: Layout | None = None

    def __getitem__(self, index: Array) -> "Materials":
        return jax.tree.map(lambda x: x[index], self)


def random_materials(draw: Draws, count: int) -> Materials:
    """`count` materials; a third of them nearly grey, as walls and furniture are."""
    hue = draw.uniform(count, 3, 3)
    grey = total(hue[..., i] for i in range(3))[..., None] / 3
    saturation = jnp.array([0.15, 0.6, 1.0], jnp.float32)[draw.integers(count, 1, 1, below=3)]
    brightness = draw.uniform(count, 3, 1, low=0.15, high=1.0)
    colors = (grey + saturation * (hue - grey)) * brightness
    return Materials(
        kind=draw.integers(count, below=len(KINDS)),
        colors=jnp.clip(colors + 0.03, 0.0, 1.0),
        frequency=1.2 * 6.0 ** draw.uniform(count),
        offset=draw.uniform(count, 3, low=-50.0, high=50.0),
        axis=unit(draw.normal(count, 3)),
        shine=draw.uniform(count, low=-0.3, high=0.4).clip(0.0),
    )


def color_at(
    materials: Materials, places: Float[Array, "*p 3"], footprint: Float[Array, "*p"]
) -> Float[Array, "*p 3"]:
    """Colours of places in objects, a material each.

    Args:
        places: metres.
        footprint: about the width in metres that a pixel covers there; patterns that are finer fade
            into their mean, so that pictures do not flicker from frame to frame.
    """
    scale = materials.frequency
    p = jax.lax.optimization_barrier(places * scale[..., None] + materials.offset)
    width = footprint * scale
    coarse = _fractal(p, width, octaves=4, seed=1)  # [*p], about [-1, 1]
    fine = _fractal(p * 2.7, width * 2.7, octaves=3, seed=2)
    coarse, fine = jax.lax.optimization_barrier((coarse, fine))
    if materials.contrast is not None:
        coarse, fine = coarse * materials.contrast, fine * materials.contrast

    cell = jnp.floor(p)
    # Over an edge between cells, the share of the pixel on the near side.
    to_edge = jnp.abs(p - jnp.round(p))
    nearest_edge = jnp.minimum(jnp.minimum(to_edge[..., 0], to_edge[..., 1]), to_edge[..., 2])
    sharp = _fade(width)
    parity = sharp * (1 - 2 * jnp.mod(cell[..., 0] + cell[..., 1] + cell[..., 2], 2))
    stripes = sharp * jnp.sin(2 * jnp.pi * (dot(p, materials.axis) + 0.35 * coarse))
    of_cell = sharp * (2 * _hash(cell, 3) - 1)
    grout = sharp * (nearest_edge < 0.05).astype(sharp.dtype)
    speckles = _fade(3 * width) * jnp.where(
        _noise(p * 3.0, 4) > 0.35, np.float32(1), np.float32(-0.6)
    )

    kind = materials.kind
    pattern = jax.lax.select_n(kind, 1.8 * coarse, parity, stripes, of_cell, speckles)
    if materials.contrast is not None:
        pattern, grout = pattern * materials.contrast, grout * materials.contrast
    a, b, c = (materials.colors[..., i, :] for i in range(3))
    mix = lambda x, y, share: x + (y - x) * share[..., None]
    color = mix(a, b, jnp.clip(0.5 + 0.5 * pattern, 0.0, 1.0))
    color = mix(color, c, jnp.clip(0.9 * fine, 0.0, 0.8))
    color = color * (1 - 0.7 * grout * (kind == 3).astype(grout.dtype))[..., None]
    return color * (1 + 0.35 * coarse + 0.25 * fine)[..., None].clip(0.2)


def clouds(directions: Float[Array, "*p 3"]) -> Float[Array, "*p"]:
    """A slow pattern over directions, about [-1, 1]."""
    flat = jnp.zeros(directions.shape[:-1], directions.dtype)
    return _fractal(4.0 * directions, flat, octaves=3, seed=5)


def _fade(width: Array) -> Array:
    """1 where a pattern of period 1 is wider than pixels, 0 where pixels average it out."""
    return jnp.clip(2.0 - 4.0 * width, 0.0, 1.0)


def _fractal(p: Array, width: Array, *, octaves: int, seed: int) -> Array:
    result: Any = 0.0
    for octave in range(octaves):
        scale = 2.03**octave
        result += 0.6**octave * _fade(width * scale) * _noise(p * scale, seed + 10 * octave)
    return result


def _noise(p: Array, seed: int) -> Array:
    """Smooth noise in [-1, 1] that changes over a distance of 1: hashed corners, interpolated."""
    corner = jnp.floor(p)
    t = p - corner
    t = t * t * (3 - 2 * t)
    share = lambda axis: (1 - t[..., axis], t[..., axis])
    result: Any = 0.0
    # Components apart and no sums over an axis of 3, which would be kernels of their own on a GPU.
    for (i, of_x), (j, of_y), (k, of_z) in itertools.product(
        *(enumerate(share(a)) for a in range(3))
    ):
        result += of_x * of_y * of_z * _hash(corner, seed, (i, j, k))
    return 2 * result - 1


def _hash(corner: Float[Array, "*p 3"], seed: int, step: tuple[int, int, int] = (0, 0, 0)) -> Array:
    """A number in [0, 1) for each cell of a grid: multiplications by odd constants and shifts."""
    cell = lambda axis: corner[..., axis].astype(jnp.int32).astype(jnp.uint32) + step[axis]
    # Constants of xxHash32 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md).
    x = cell(0) * jnp.uint32(2654435761) ^ cell(1) * jnp.uint32(2246822519)
    x = x ^ cell(2) * jnp.uint32(3266489917) ^ jnp.uint32(seed * 668265263 % 2**32)
    x = (x ^ x >> 15) * jnp.uint32(2246822519)
    x = (x ^ x >> 13) * jnp.uint32(3266489917)
    return (x >> 8).astype(jnp.float32) * 2.0**-24
