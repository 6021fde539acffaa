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
from vggt_jax.synthetic.draws import Draws
from vggt_jax.training import photographs, scenes
from vggt_jax.training.photographs import Photographs, read_photographs

SIDE, SIZE, FRAMES, SCENES = 48, (28, 42), 4, 40


def ramps(width, height):
    """A picture whose red grows with x and whose green grows with y, in a square of SIDE; blue
    beside it."""
    columns, rows = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)
    square = np.stack([columns * 5, rows * 5, 0 * rows], axis=-1)
    square[(columns > width) | (rows > height)] = [0, 0, 255]
    return np.round(square).astype(np.uint8)


@pytest.fixture(scope="module")
def world():
    """Two photographs side by side, in two shapes, of random points before them."""
    rng = np.random.default_rng(0)
    points = rng.uniform([-3, -3, 4], [3, 3, 9], (800, 3)).astype(np.float32)
    sizes = np.array([[36, 48], [48, 36]], np.int32)
    intrinsics = np.array([[50, 50, 23, 19], [40, 42, 18, 24]], np.float32)
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
        found = draw(world[0], jax.random.split(jax.random.key(1), SCENES))
        return jax.tree.map(np.asarray, found)


def test_cameras_of_a_drawn_scene_fit_its_pictures(world, drawn):
    assert drawn.images.shape == (SCENES, FRAMES, *SIZE, 3)
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
            # Half a pixel at the edges, beyond which the photograph is continued, as its ramps are.
            assert (place > -0.3).all() and (place < [width + 0.3, height + 0.3]).all()
            seen = np.clip(place, 0.5, [width - 0.5, height - 0.5]) * 5 / 255
            error = np.abs(drawn.images[scene, frame, ..., :2] - seen)
            # Colours are rounded to 1/255, so the mean of four places by half of that at most.
            assert error.max() < 0.006 and error[2:-2, 2:-2].max() < 0.003, (scene, frame)
            assert drawn.images[scene, frame, ..., 2].max() == 0, (scene, frame)


def test_some_cameras_are_turned_and_some_upright(world, drawn):
    turns = np.empty((SCENES, FRAMES, 3, 3))
    for scene, sign in enumerate(mirrors(world[0], drawn)):
        across = np.diag([sign, 1, 1])
        taken = world[0].camera_from_world[np.arange(FRAMES) % 2, :, :3]
        turns[scene] = (
            across @ drawn.camera_from_world[scene, ..., :3] @ across @ np.swapaxes(taken, 1, 2)
        )
    angles = np.degrees(np.arccos(np.clip((np.trace(turns, axis1=2, axis2=3) - 1) / 2, -1, 1)))
    as_taken = (angles < 0.1).all(axis=1)
    # The roll of a camera about its axis, and how far the axis goes aside.
    roll = np.degrees(
        np.arctan2(turns[..., 1, 0] - turns[..., 0, 1], turns[..., 0, 0] + turns[..., 1, 1])
    )
    aside = np.degrees(np.arccos(np.clip(turns[..., 2, 2], -1, 1)))
    quarter = np.abs(np.abs(roll).mean(axis=1) - 90) < 40
    # Shares of 0.25 and of 0.75 * 0.15, within three standard errors of 40 scenes.
    assert 2 <= as_taken.sum() <= 18 and 1 <= quarter.sum() <= 11
    assert angles[~as_taken].min() > 0.1 and np.abs(roll[~as_taken & ~quarter]).max() < 40
    assert 3 < aside[~as_taken].mean() < 20
    # Those that are not turned see the middle of the photograph in its own proportions.
    stretched = drawn.intrinsics[..., 1, 1] / drawn.intrinsics[..., 0, 0]
    stretched = (
        stretched / (world[0].intrinsics[:, 1] / world[0].intrinsics[:, 0])[np.arange(FRAMES) % 2]
    )
    np.testing.assert_allclose(stretched, stretched[:, :1] + 0 * stretched, rtol=1e-5)
    assert 0.01 < np.log(stretched[:, 0]).std() < 0.08


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


def test_the_nearest_of_several_points_in_a_pixel_counts():
    camera = jnp.array([[10.0, 10.0, 4.0, 3.0]])
    points = jnp.array([[[2.2, 1.3, 5.0], [2.7, 1.6, 3.0], [2.1, 1.1, 8.0], [0, 0, 0], [7, 5, -2]]])
    found = photographs._nearest(jnp.eye(3)[None], camera, camera, points, (6, 8))
    expected = np.zeros((1, 6, 8))
    expected[0, 1, 2] = 1 / 3
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_lens_so_wide_that_corners_lie_behind_the_turned_camera_stays_one():
    extent, source = jnp.full((5, 2), 40.0), jnp.tile(jnp.array([6.0, 6.0, 20.0, 20.0]), (5, 1))
    turned = lambda key: photographs._turned_cameras(Draws(key, 40), source, extent, (28, 42))[1]
    focal = jax.jit(jax.vmap(turned))(jax.random.split(jax.random.key(0), 50))[..., 0]
    # Crops are half of the largest, which is 40 / 1.77 high where it is rolled by 45 degrees; three
    # passes make the lens longer by 1.5 at most, and the stretch is a few per cent.
    assert float(focal.max() / 6) < 28 / (0.5 * 40 / 1.77) * 1.5**3 * 1.05


def test_colours_come_in_every_order_and_grey():
    draws = jax.random.split(jax.random.key(0), 4000)
    mixed = np.asarray(jax.jit(jax.vmap(lambda key: photographs._recoloured(Draws(key, 3))))(draws))
    np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-6)
    grey = (mixed == mixed[..., :1]).all(axis=(1, 2))
    same = (mixed == np.eye(3)).all(axis=(1, 2))
    # One order of six is the usual one. Three standard errors of 4000 draws.
    assert abs(grey.mean() - 0.1) < 0.015 and abs(same.mean() - 0.9 * (0.7 + 0.3 / 6)) < 0.022
    others = {tuple(x.ravel()) for x in mixed[~grey & ~same]}
    assert len(others) == 5 and all(set(x) == {0.0, 1.0} for x in others)


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
