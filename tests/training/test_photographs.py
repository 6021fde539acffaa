"""Scenes of photographs: what is cut out of them, and how they come among rendered ones."""

import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vggt_jax import geometry
from vggt_jax.errors import InputError
from vggt_jax.training import photographs, scenes
from vggt_jax.training.photographs import Photographs, read_photographs

SIDE, SIZE, FRAMES = 48, (28, 42), 4


def ramps(width, height):
    """A picture whose red grows with x and whose green grows with y, in a square of SIDE."""
    x, y = (np.clip(np.arange(SIDE) + 0.5, 0, length) for length in (width, height))
    columns, rows = np.meshgrid(x, y)
    return np.round(np.stack([columns * 5, rows * 5, 0 * rows], axis=-1)).astype(np.uint8)


@pytest.fixture(scope="module")
def world():
    """Two photographs side by side, in two shapes, of random points before them."""
    rng = np.random.default_rng(0)
    points = rng.uniform([-3, -3, 4], [3, 3, 9], (800, 3)).astype(np.float32)
    sizes = np.array([[36, 48], [48, 36]], np.int32)
    intrinsics = np.array([[50, 50, 24, 18], [40, 40, 18, 24]], np.float32)
    poses = np.tile(np.eye(3, 4, dtype=np.float32), (2, 1, 1))
    turn = np.array([[np.cos(0.2), 0, np.sin(0.2)], [0, 1, 0], [-np.sin(0.2), 0, np.cos(0.2)]])
    poses[1] = np.concatenate([turn, [[0.5], [0.1], [0.3]]], axis=1)
    seen = []
    for (fx, fy, cx, cy), pose in zip(intrinsics, poses, strict=True):
        x, y, z = (points @ pose[:, :3].T + pose[:, 3]).T
        seen.append(np.stack([fx * x / z + cx, fy * y / z + cy, z], axis=-1))
    bank = Photographs(
        pixels=np.stack([ramps(48, 36), ramps(36, 48)]),
        size=sizes,
        intrinsics=intrinsics,
        camera_from_world=poses,
        points=np.stack(seen).astype(np.float32),
        windows=np.array([[0, 1]], np.int32),
    )
    return bank, points


@pytest.fixture(scope="module")
def drawn(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photographs, "photograph", lambda key, light: light ** (1 / 2.2))
        patch.setattr(photographs, "_recoloured", lambda draw: jnp.eye(3))
        one = lambda bank, key: bank.draw(key, FRAMES, SIZE)
        draw = jax.jit(jax.vmap(one, in_axes=(None, 0)))
        found = draw(world[0], jax.random.split(jax.random.key(1), 12))
        return jax.tree.map(np.asarray, found)


def test_cameras_of_a_drawn_scene_fit_its_pictures(world, drawn):
    assert drawn.images.shape == (12, FRAMES, *SIZE, 3)
    turned = drawn.camera_from_world[..., :3]
    np.testing.assert_allclose(np.linalg.det(turned), 1, atol=1e-5)
    x, y = np.meshgrid(*(np.arange(length) + 0.5 for length in SIZE[::-1]))
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1)
    signs = mirrors(world[0], drawn)
    assert 0 < (signs < 0).sum() < len(signs)
    for scene, sign in enumerate(signs):
        across = np.diag([sign, 1, 1])
        for frame in range(FRAMES):
            # The window of two photographs begins again.
            pose = world[0].camera_from_world[frame % 2]
            rotation = pose[:, :3] @ across @ turned[scene, frame].T @ across
            rays = pixels @ np.linalg.inv(drawn.intrinsics[scene, frame]).T @ across @ rotation.T
            (fx, fy, cx, cy), (height, width) = (
                x[frame % 2] for x in (world[0].intrinsics, world[0].size)
            )
            place = rays[..., :2] / rays[..., 2:] * [fx, fy] + [cx, cy]
            assert -1 < place.min() and (place.max(axis=(0, 1)) < [width + 1, height + 1]).all()
            # Away from the edges, where ramps end.
            error = np.abs(drawn.images[scene, frame, ..., :2] - place * 5 / 255)[2:-2, 2:-2]
            assert error.max() < 0.014, (scene, frame)


def mirrors(bank, drawn):
    """-1 for scenes that are mirrored, else 1. Centres of cameras stay where they are, or cross."""
    centre = lambda pose: -np.einsum("...ij,...i->...j", pose[..., :3], pose[..., 3])
    expected, found = centre(bank.camera_from_world[1]), centre(drawn.camera_from_world[:, 1])
    signs = np.sign(expected[0] * found[:, 0])
    across = np.stack([signs, np.ones_like(signs), np.ones_like(signs)], axis=-1)
    np.testing.assert_allclose(found, across * expected, atol=1e-5)
    return signs


def test_depth_of_a_drawn_scene_is_that_of_its_points(world, drawn):
    np.testing.assert_array_equal(drawn.valid, drawn.depth > 0)
    assert drawn.valid.sum(axis=(2, 3)).min() > 10
    maps = map(jnp.asarray, (drawn.depth, drawn.camera_from_world, drawn.intrinsics))
    found = np.asarray(geometry.unproject_depth(*maps, pixel_centre=0.5))
    for scene, sign in enumerate(mirrors(world[0], drawn)):
        points = world[1] * [sign, 1, 1]
        mine = found[scene][drawn.valid[scene]]
        nearest = np.linalg.norm(mine[:, None] - points, axis=-1).min(axis=1)
        focal = drawn.intrinsics[scene, :, 0, 0].min()
        half_pixel = 0.71 * drawn.depth[scene][drawn.valid[scene]] / focal
        assert (nearest < 2 * half_pixel).all(), scene


def test_the_first_of_every_so_many_scenes_is_of_photographs(world):
    def render(keys, num_frames, size, sources):
        number = jax.random.key_data(keys)[:, -1].astype(jnp.float32)
        fill = lambda *shape: jnp.broadcast_to(
            number.reshape(-1, *[1] * len(shape)), (len(number), *shape)
        )
        return types.SimpleNamespace(
            images=fill(num_frames, *size, 3),
            depth=fill(num_frames, *size),
            valid=fill(num_frames, *size),
            camera_from_world=fill(num_frames, 3, 4),
            intrinsics=fill(num_frames, 3, 3),
        )

    def draw(key, num_frames, size):
        one = render(key[None], num_frames, size, None)
        return photographs.PosedImages(**{name: -x[0] for name, x in vars(one).items()})

    bank = types.SimpleNamespace(draw=draw)
    keys = jax.random.wrap_key_data(jnp.stack([jnp.zeros(6), jnp.arange(1, 7)], 1).astype("uint32"))
    sources = scenes.Sources(photographs=bank)
    found = scenes.with_photographs(render, 3)(keys, 2, (3, 4), sources)
    assert found.depth[:, 0, 0, 0].tolist() == [-1, 2, 3, -4, 5, 6]
    assert found.camera_from_world.shape == (6, 2, 3, 4)
    alone = scenes.with_photographs(render, 3)(keys, 2, (3, 4), scenes.Sources())
    assert alone.depth[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_file_that_is_no_pack_is_refused(tmp_path):
    path = tmp_path / "photographs.npz"
    for content in (b"", b"PK\x03\x04 and no more"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="pack_photographs"):
            read_photographs(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    one = {"size": [[2, 2]], "intrinsics": [[1, 1, 1, 1]], "camera_from_world": np.eye(3, 4)[None]}
    one |= {"points": np.zeros((1, 1, 3)), "windows": [[0]], "encoded": np.zeros(9, np.uint8)}
    np.savez(tmp_path / "none_decodes.npz", ends=[9], **one)
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    one["encoded"] = np.frombuffer(buffer.getvalue(), np.uint8)
    ends = [len(one["encoded"])]
    np.savez(tmp_path / "fine.npz", ends=ends, **one)
    assert read_photographs(tmp_path / "fine.npz").pixels.shape == (1, 2, 2, 3)
    np.savez(tmp_path / "other_size.npz", ends=ends, **one | {"size": [[2, 3]]})
    np.savez(tmp_path / "far_window.npz", ends=ends, **one | {"windows": [[1]]})
    np.savez(path, size=np.zeros((0, 2)))
    for name in ("photographs", "one", "none_decodes", "other_size", "far_window"):
        with pytest.raises(InputError, match="pack_photographs"):
            read_photographs(tmp_path / f"{name}.npz")
    with pytest.raises(InputError, match="photographs"):
        read_photographs(tmp_path / "none.npz")
