"""Pictures of real surfaces on the surfaces of a world: how they are kept, laid on and read."""

import dataclasses
import io
import os
import pathlib
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32
from PIL import Image, ImageOps

from vggt_jax.errors import InputError
from vggt_jax.synthetic.draws import Draws

SIDE = 256  # pixels of a picture
_LEVELS = SIDE.bit_length() - 1  # of the pyramid: 256, 128, ..., 2
_FIRST = np.cumsum([0, *((SIDE >> level) ** 2 for level in range(_LEVELS))])  # pixel of each level
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
_GAMMA = 2.2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureBank:
    """Square pictures, each with its halves of size, all in one array.

    Attributes:
        texels: one picture a row, its levels one after the other, the largest first; red, green and
            blue in a
            byte each, the lowest first, gamma 2.2.
    """

    texels: UInt32[Array | np.ndarray, "t n"]

    def __len__(self) -> int:
        return self.texels.shape[0]

    def sample(
        self,
        picture: Int[Array, "*p"],
        place: Float[Array, "*p 2"],
        width: Float[Array, "*p"],
        mirrored: Bool[Array, "*p"],
    ) -> Float[Array, "*p 3"]:
        """Linear colours, interpolated within and between levels.

        Args:
            picture: row; one that does not exist is the nearest.
            place: in sides of the picture, which goes on beyond [0, 1) by repetition.
            width: about what a pixel covers, in sides of the picture.
            mirrored: whether every second repetition is turned over, so that there are no seams.
        """
        picture = jnp.clip(picture, 0, len(self) - 1)
        level = jnp.clip(jnp.log2(jnp.maximum(width * SIDE, 1e-6)), 0.0, _LEVELS - 1.0)
        low = jnp.minimum(jnp.floor(level), _LEVELS - 2.0)
        share = (level - low)[..., None]
        within = jnp.where(
            mirrored[..., None], 1 - jnp.abs(1 - jnp.mod(place, 2.0)), jnp.mod(place, 1.0)
        )
        low = low.astype(jnp.int32)
        fine = self._of_level(picture, within, low, mirrored)
        coarse = self._of_level(picture, within, low + 1, mirrored)
        return (fine + share * (coarse - fine)) ** _GAMMA

    def _of_level(self, picture, within, level, mirrored):
        side = jnp.right_shift(jnp.int32(SIDE), level)
        x, y = (within[..., i] * side.astype(jnp.float32) - 0.5 for i in range(2))
        left, top = jnp.floor(x), jnp.floor(y)
        share_x, share_y = (x - left)[..., None], (y - top)[..., None]
        first = jnp.asarray(_FIRST, jnp.int32)[level]

        def texel(column, row):
            inside = lambda i: jnp.where(
                mirrored, jnp.clip(i, 0, side - 1), jnp.mod(i, jnp.maximum(side, 1))
            )
            column, row = (inside(i.astype(jnp.int32)) for i in (column, row))
            packed = self.texels[picture, first + row * side + column]
            parts = [jnp.right_shift(packed, jnp.uint32(8 * i)) for i in range(3)]
            bytes_ = [(part & jnp.uint32(255)).astype(jnp.float32) for part in parts]
            return jnp.stack(bytes_, axis=-1) / 255

        mix = lambda a, b, share: a + share * (b - a)
        upper = mix(texel(left, top), texel(left + 1, top), share_x)
        lower = mix(texel(left, top + 1), texel(left + 1, top + 1), share_x)
        return mix(upper, lower, share_y)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How pictures lie on surfaces, one row for each material.

    Attributes:
        picture: row of the bank; -1 for a surface with a pattern instead.
        tiles: sides of the picture per metre.
        turn: cosine and sine of the angle in the plane.
        shift: in sides of the picture.
        mirrored: see `PictureBank.sample`.
        tint: factor of the colours.
    """

    picture: Int[Array, "*m"]
    tiles: Float[Array, "*m"]
    turn: Float[Array, "*m 2"]
    shift: Float[Array, "*m 2"]
    mirrored: Bool[Array, "*m"]
    tint: Float[Array, "*m 3"]


def random_layout(
    draw: Draws, count: int, num_pictures: int, pictured: Array, tile: Float[Array, "2"]
) -> Layout:
    """Layouts of `count` materials.

    Args:
        pictured: share of the surfaces with a picture.
        tile: smallest and largest side of a picture, in metres; evenly by its logarithm.
    """
    angle = draw.uniform(count, high=2 * jnp.pi)
    # Half of them lie along the edges, as boards and bricks do.
    angle = jnp.where(draw.chance(0.5, count), 0.0, angle)
    side = tile[0] * (tile[1] / tile[0]) ** draw.uniform(count)
    picture = draw.integers(count, below=num_pictures)
    return Layout(
        picture=jnp.where(draw.chance(pictured, count), picture, -1),
        tiles=1 / side,
        turn=jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1),
        shift=draw.uniform(count, 2),
        mirrored=draw.chance(0.5, count),
        tint=draw.uniform(count, 1, low=0.6, high=1.3)
        * (1 + 0.1 * draw.uniform(count, 3, low=-1.0)),
    )


def lay_on(
    bank: PictureBank,
    layout: Layout,
    places: Float[Array, "*p 3"],
    normals: Float[Array, "*p 3"],
    footprint: Float[Array, "*p"],
) -> Float[Array, "*p 3"]:
    """Colours of places in objects by their pictures, which fall on them along the nearest axis.

    Args:
        places: metres, in axes of the object.
        normals: of the surface in the same axes.
        footprint: about the width in metres that a pixel covers there.
    """
    x, y, z = (jnp.abs(normals[..., i]) for i in range(3))
    along_x, along_y = (x >= y) & (x >= z), y >= z
    pick = lambda a, b, c: jnp.where(along_x, a, jnp.where(along_y, b, c))
    across = pick(places[..., 1], places[..., 0], places[..., 0])
    down = pick(places[..., 2], places[..., 2], places[..., 1])
    cos, sin = layout.turn[..., 0], layout.turn[..., 1]
    turned = jnp.stack([cos * across - sin * down, sin * across + cos * down], axis=-1)
    place = turned * layout.tiles[..., None] + layout.shift
    color = bank.sample(layout.picture, place, footprint * layout.tiles, layout.mirrored)
    return jnp.clip(color * layout.tint, 0.0, 1.0)


def read_pictures(source: str | os.PathLike) -> np.ndarray:
    """All pictures of a folder, uint8 [t SIDE SIDE 3], in the order of their names.

    Args:
        source: holds pictures, in folders or not, and .tar files of pictures, as
            scripts/pack_textures.py
            writes them. Each is cut to a square in its middle.

    Raises:
        InputError: there is no such folder, nothing in it, or a picture cannot be read.
    """
    folder = pathlib.Path(source)
    if not folder.is_dir():
        raise InputError(f"textures {folder}: no such folder")
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_square, _files(folder)))
    if not found:
        raise InputError(f"textures {folder}: holds no pictures and no .tar files of pictures")
    return np.stack(found)


def _square(file: tuple[str, bytes]) -> np.ndarray:
    name, data = file
    try:
        with Image.open(io.BytesIO(data)) as image:
            square = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"textures {name}: cannot be read ({error})") from error
    return np.asarray(square)


def _files(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _ENDINGS:
            yield str(path), path.read_bytes()
        elif path.suffix == ".tar":
            try:
                with tarfile.open(path) as tar:
                    for member in sorted(tar, key=lambda member: member.name):
                        file = tar.extractfile(member)
                        if file is not None and member.name.lower().endswith(_ENDINGS):
                            yield f"{path}: {member.name}", file.read()
            except tarfile.TarError as error:
                raise InputError(f"textures {path}: cannot be read ({error})") from error


def picture_bank(pictures: np.ndarray) -> PictureBank:
    """Pictures uint8 [t SIDE SIDE 3] with all their levels, on the host.

    Raises:
        ValueError: another shape.
    """
    if pictures.ndim != 4 or pictures.shape[1:] != (SIDE, SIDE, 3):
        raise ValueError(f"pictures are {pictures.shape}, not [t {SIDE} {SIDE} 3]")
    texels = np.empty((len(pictures), _FIRST[-1]), np.uint32)
    to_linear = (np.arange(256) / 255).astype(np.float32) ** np.float32(_GAMMA)
    for row, picture in zip(texels, pictures, strict=True):
        linear = to_linear[picture]
        for level in range(_LEVELS):
            stored = np.rint(255 * linear ** np.float32(1 / _GAMMA)).astype(np.uint32)
            packed = stored[..., 0] | stored[..., 1] << 8 | stored[..., 2] << 16
            row[_FIRST[level] : _FIRST[level + 1]] = packed.reshape(-1)
            side = len(linear) // 2
            linear = linear.reshape(side, 2, side, 2, 3).mean(axis=(1, 3))
    return PictureBank(texels=texels)
