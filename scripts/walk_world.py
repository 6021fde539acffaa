"""Renders a long walk along the walls of a hall, as pictures with their true cameras.

    python scripts/walk_world.py --frames 3000 --hall 30 --out walk

The hall is square and full of things along its walls. The camera goes round and round, 2.6 m from
the walls, and looks at them; a step is 8 cm, a lap of a hall of 30 m is 1,208 frames. Written are
pictures `000000.png` and so on, and `cameras.npz` with `camera_from_world` [s 3 4] and `intrinsics`
[s 3 3] (OpenCV axes, metres, the centre of pixel i at i + 0.5).

The same arguments give the same pictures, and more frames only add some at the end. Frames are
rendered in chunks, each with the things that are nearest to its cameras: what is left out is out of
sight.
"""

import argparse
import dataclasses
import pathlib
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vggt_jax.geometry import camera_positions
from vggt_jax.synthetic.draws import Draws
from vggt_jax.synthetic.render import render
from vggt_jax.synthetic.solids import Solids
from vggt_jax.synthetic.textures import random_materials
from vggt_jax.synthetic.world import NO_LAMPS, WALLS, World

STEP = 0.08  # Metres between frames.
FROM_WALL = 2.6
CORNER = 1.5  # Metres, the radius on which the camera turns.
PER_METRE = 2.6  # Things along a metre of wall.
SEEN = (16, 8, 8)  # Cubes, balls and cylinders that are rendered in a chunk.
SHAPES = (0.54, 0.23, 0.23)  # Shares of these shapes.
CHUNK = 8
CEILING = 3.2
FIELD_OF_VIEW = 65.0
SEED = 5


@dataclasses.dataclass(frozen=True)
class Hall:
    """A hall of `side` metres: all its things, and the way round it.

    `shape` is 0 for cubes, 1 for balls, 2 for cylinders; materials of the sides of the room come
    after those of things.
    """

    side: float
    centre: np.ndarray
    half: np.ndarray
    rotation: np.ndarray
    shape: np.ndarray
    materials: object

    @classmethod
    def of_side(cls, side: float) -> "Hall":
        random = np.random.default_rng(SEED)
        number = int(4 * side * PER_METRE)
        wall = random.integers(0, 4, number)
        along = random.uniform(-0.5, 0.5, number) * (side - 0.6)
        hung = random.random(number) < 0.3
        shape = np.where(hung, 0, random.choice(3, number, p=SHAPES))
        half = random.uniform(0.12, 0.5, (number, 1)) * random.uniform(0.4, 1.3, (number, 3))
        half[shape == 1] = half[shape == 1][:, :1]
        half[shape == 2, 1] = half[shape == 2, 0]
        half[hung] = random.uniform(0.4, 1.6, (hung.sum(), 3)) * [0.5, 0.06, 0.4]
        to_wall = np.where(hung, 0.0, random.uniform(0.4, 1.3, number))
        height = np.where(hung, random.uniform(0.8, 2.4, number), half[:, 2])
        lifted = ~hung & (random.random(number) < 0.25)
        height = np.where(lifted, height + random.uniform(0.2, 1.2, number), height)
        turn = np.where(hung, 0.0, random.uniform(0, 2 * np.pi, number)) + wall * np.pi / 2
        # Of the wall at +y, then turned by quarters.
        place = np.stack([along, side / 2 - to_wall], axis=-1)
        quarter = wall * np.pi / 2
        x = np.cos(quarter) * place[:, 0] - np.sin(quarter) * place[:, 1]
        y = np.sin(quarter) * place[:, 0] + np.cos(quarter) * place[:, 1]
        zero, one = np.zeros(number), np.ones(number)
        rotation = np.stack([
            np.stack([np.cos(turn), -np.sin(turn), zero], -1),
            np.stack([np.sin(turn), np.cos(turn), zero], -1),
            np.stack([zero, zero, one], -1),
        ], axis=1)  # fmt: skip
        count = number + WALLS
        materials = random_materials(Draws(jax.random.key(SEED), 64 * count), count)
        as_numpy = jax.tree.map(np.asarray, materials)
        return cls(side, np.stack([x, y, height], -1), half, rotation, shape, as_numpy)

    @property
    def lap(self) -> float:
        """The length of a lap in metres."""
        straight = self.side - 2 * (FROM_WALL + CORNER)
        return 4 * straight + 2 * np.pi * CORNER

    def cameras(self, frames: np.ndarray) -> np.ndarray:
        """`camera_from_world` [s 3 4] of frames by their numbers."""
        s = frames * STEP
        wander = lambda wavelength, phase: np.sin(2 * np.pi * s / wavelength + phase)
        straight = self.side - 2 * (FROM_WALL + CORNER)
        quarter_length = straight + np.pi * CORNER / 2
        quarter, rest = np.floor(s / quarter_length), s % quarter_length
        bend = np.clip(rest - straight, 0, None) / CORNER
        # Below the wall at +y, from +x to -x, then around the corner.
        out = self.side / 2 - FROM_WALL
        x = straight / 2 - np.minimum(rest, straight) - CORNER * np.sin(bend)
        y = out - CORNER * (1 - np.cos(bend))
        outward = quarter * np.pi / 2 + bend
        turned = quarter * np.pi / 2
        position = np.stack([
            np.cos(turned) * x - np.sin(turned) * y,
            np.sin(turned) * x + np.cos(turned) * y,
            1.45 + 0.2 * wander(7.3, 0.3),
        ], axis=-1)  # fmt: skip
        away = np.stack([-np.sin(outward), np.cos(outward), 0 * outward], -1)
        position += (0.3 * wander(5.1, 1.0))[:, None] * away
        yaw = outward + np.deg2rad(14) * wander(6.1, 2.0)
        pitch = np.deg2rad(-8 + 5 * wander(4.3, 4.0))
        forward = np.stack(
            [-np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), np.sin(pitch)], -1
        )
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right, axis=-1, keepdims=True)
        down = np.cross(forward, right)
        roll = np.deg2rad(3) * wander(8.7, 5.0)[:, None]
        right, down = (
            np.cos(roll) * right + np.sin(roll) * down,
            np.cos(roll) * down - np.sin(roll) * right,
        )
        rotation = np.stack([right, down, forward], axis=1)
        translation = -np.einsum("sij,sj->si", rotation, position)
        return np.concatenate([rotation, translation[..., None]], axis=-1)

    def seen_from(self, place: np.ndarray) -> World:
        """The hall with the things that are nearest to a place."""
        distance = np.linalg.norm(self.centre - place, axis=-1)
        kept, active = [], []
        for shape, most in enumerate(SEEN):
            nearest = np.argsort(np.where(self.shape == shape, distance, np.inf))[:most]
            kept.append(nearest)
            active.append(self.shape[nearest] == shape)
        kept, number = np.concatenate(kept), len(self.centre)
        rows = np.concatenate([kept, np.arange(number, number + WALLS)])
        as_float = lambda x: np.asarray(x, np.float32)
        solids = Solids(
            centre=as_float(self.centre[kept]), half=as_float(self.half[kept]),
            rotation=as_float(self.rotation[kept]), active=np.concatenate(active), counts=SEEN,
        )  # fmt: skip
        white = np.ones(3, np.float32)
        return World(
            room=as_float([self.side / 2, self.side / 2, CEILING / 2]), is_open=np.bool_(False),
            solids=solids, materials=jax.tree.map(lambda x: x[rows], self.materials),
            light=as_float([0, 0, 0.95 * CEILING]), lamps=NO_LAMPS, lamp_colors=NO_LAMPS,
            ambient=np.float32(0.6), tint=white, sky=np.ones((2, 3), np.float32),
        )  # fmt: skip


def intrinsics_of(size: int) -> np.ndarray:
    """Of square pictures, [3 3]."""
    focal = size / 2 / np.tan(np.deg2rad(FIELD_OF_VIEW) / 2)
    return np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])


def stored(linear: jax.Array) -> jax.Array:
    """Linear colours as a camera stores them, uint8."""
    return jnp.round(255 * jnp.clip(linear, 1e-4, 1.0) ** (1 / 2.2)).astype(jnp.uint8)


def render_walk(hall: Hall, frames: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [s size size 3] uint8 and depth [s size size] of frames by their numbers."""
    images, depths = [], []
    intrinsics = np.broadcast_to(intrinsics_of(size), (CHUNK, 3, 3)).astype(np.float32)
    for start in range(0, len(frames), CHUNK):
        chunk = frames[np.minimum(np.arange(start, start + CHUNK), len(frames) - 1)]
        poses = hall.cameras(chunk).astype(np.float32)
        place = np.asarray(camera_positions(poses)).mean(axis=0)
        # What a camera looks at is in front of it.
        world = hall.seen_from(place + 1.6 * poses[:, 2, :3].mean(axis=0))
        linear, depth = _render(world, poses, intrinsics, size)
        count = min(CHUNK, len(frames) - start)
        images.append(np.asarray(linear)[:count])
        depths.append(np.asarray(depth)[:count])
    return np.concatenate(images), np.concatenate(depths)


def _pictures(world, poses, intrinsics, size):
    linear, depth = render(world, poses, intrinsics, (size, size))
    return stored(linear), depth


_render = jax.jit(_pictures, static_argnames="size")


def write_walk(hall: Hall, num_frames: int, size: int, out: pathlib.Path) -> None:
    """Writes pictures and `cameras.npz`; pictures that are there stay."""
    out.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(num_frames)
    with ThreadPoolExecutor(2) as executor:
        for start in range(0, num_frames, 10 * CHUNK):
            chunk = numbers[start : start + 10 * CHUNK]
            if (out / f"{chunk[-1]:06d}.png").exists():
                continue
            images, _ = render_walk(hall, chunk, size)
            paths = [out / f"{i:06d}.png" for i in chunk]
            list(executor.map(lambda x, path: Image.fromarray(x).save(path), images, paths))
    np.savez(
        out / "cameras.npz", camera_from_world=hall.cameras(numbers),
        intrinsics=np.broadcast_to(intrinsics_of(size), (num_frames, 3, 3)),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=3000)
    parser.add_argument("--hall", type=float, default=30.0, help="side of the hall in metres")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    write_walk(Hall.of_side(args.hall), args.frames, args.size, args.out)


if __name__ == "__main__":
    main()
