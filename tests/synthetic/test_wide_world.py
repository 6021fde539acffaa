"""The wide world by its rules: pictures on surfaces, cameras, thin things and grids, compression.

That it holds under strict settings of JAX is in test_jax_settings.py.
"""

import io
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.synthetic import SPLITS, WIDE_FAMILIES, picture_bank, read_pictures, render_scenes
from vggt_jax.synthetic.clutter import ROW, make_grid, make_thin
from vggt_jax.synthetic.draws import Draws
from vggt_jax.synthetic.photograph import _compressed
from vggt_jax.synthetic.scenes import _family, _tables
from vggt_jax.synthetic.wide_cameras import PATHS, wide_paths


@pytest.fixture(scope="module")
def bank():
    """A red picture, one that is black on the left and white on the right, and a chessboard of pixels."""
    pictures = np.zeros((3, 256, 256, 3), np.uint8)
    pictures[0] = (255, 0, 0)
    pictures[1, :, 128:] = 255
    pictures[2, ::2, ::2] = pictures[2, 1::2, 1::2] = 255
    return jax.tree.map(jnp.asarray, picture_bank(pictures))


@pytest.fixture(scope="module")
def sample(bank):
    fn = jax.jit(lambda *args: bank.sample(*args))

    def run(picture, x, width, mirrored):
        n = 8
        full = lambda value, dtype: jnp.full(n, value, dtype)
        place = np.stack([np.resize(x, n), np.full(n, 0.3)], axis=-1).astype(np.float32)
        args = full(picture, np.int32), place, full(width, np.float32), full(mirrored, bool)
        return np.asarray(fn(*args))[: np.size(x)]

    return run


def test_a_picture_is_repeated_or_turned_over(sample):
    x = [0.2, 0.8, 1.2, 1.8, -0.2]
    np.testing.assert_allclose(sample(1, x, 1e-4, False)[:, 0], [0, 1, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(sample(1, x, 1e-4, True)[:, 0], [0, 1, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(sample(0, x, 1e-4, True), [[1, 0, 0]] * 5, atol=1e-6)


def test_pictures_fade_into_their_mean(sample):
    # Between texels of half a picture, stored values are mixed, and become light afterwards.
    x = [0.25, 0.4, 0.75]
    np.testing.assert_allclose(sample(1, x, 1e-4, False)[:, 0], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(sample(1, x, 0.5, False)[:, 0], [0, 0.3**2.2, 1], atol=1e-5)
    # Half of the light of a chessboard, not half of the stored value, from a texel of 2 pixels on.
    for width in (2 / 256, 0.1, 5.0):
        np.testing.assert_allclose(sample(2, x, width, True), 0.5, atol=4e-3)
    np.testing.assert_allclose(sample(0, x, 5.0, False)[:, 0], 1, atol=1e-6)


def test_pictures_come_from_folders_and_archives(tmp_path):
    def data(color, size=(300, 260)):
        buffer = io.BytesIO()
        Image.new("RGB", size, color).save(buffer, "PNG")
        return buffer.getvalue()

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "red.png").write_bytes(data((250, 0, 0)))
    (tmp_path / "licences.csv").write_text("no picture")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for name, color in (("2.png", (0, 0, 250)), ("1.png", (0, 250, 0)), ("x.txt", (1, 1, 1))):
            info = tarfile.TarInfo(name)
            info.size = len(data(color))
            tar.addfile(info, io.BytesIO(data(color)))
    pictures = read_pictures(tmp_path)
    assert pictures.shape == (3, 256, 256, 3)
    assert pictures.argmax(axis=-1).mean(axis=(1, 2)).tolist() == [0, 1, 2]  # red, green, blue

    (tmp_path / "c.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"c\.jpg: cannot be read"):
        read_pictures(tmp_path)
    (tmp_path / "c.jpg").unlink()
    (tmp_path / "b.tar").write_bytes(b"no archive at all")
    with pytest.raises(InputError, match=r"b\.tar: cannot be read"):
        read_pictures(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read_pictures(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        read_pictures(tmp_path / "empty")


def test_worlds_keep_their_families_and_pictures_apart(bank):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="'home'.* unknown; known are room"):
        render_scenes(key, 1, 2, size=(14, 14), families=("home",))
    with pytest.raises(ValueError, match="'room'.* unknown; known are home"):
        render_scenes(key, 1, 2, size=(14, 14), split="wide-train", families=("room",))
    with pytest.raises(ValueError, match="split='train' takes no pictures"):
        render_scenes(key, 1, 2, size=(14, 14), bank=bank)
    assert not set(SPLITS["wide-train"]) & set(SPLITS["wide-test"])
    assert all(len(family.paths) == len(PATHS) for family in WIDE_FAMILIES.values())


def test_cameras_stay_in_the_room_and_look_where_upright_is_defined():
    tables = _tables(list(WIDE_FAMILIES.values()))

    @jax.jit
    @jax.vmap
    def paths(key):
        ranges = _family(key, tables)
        room = jnp.stack([ranges["room"][0], 0.5 * ranges["room"][0], ranges["ceiling"][0]]) / 2
        return room, *wide_paths(key, ranges, 6, room, jnp.float32(0.9))

    room, positions, target, up = map(np.asarray, paths(jax.random.split(jax.random.key(0), 512)))
    assert (np.abs(positions[..., :2]) < room[:, None, :2]).all()
    assert (positions[..., 2] > 0).all() and (positions[..., 2] < 2 * room[:, None, 2]).all()
    view = target - positions
    view /= np.linalg.norm(view, axis=-1, keepdims=True)
    upright = up / np.linalg.norm(up, axis=-1, keepdims=True)
    assert np.linalg.norm(np.cross(view, upright[:, None]), axis=-1).min() > 0.02
    assert np.linalg.norm(np.diff(positions, axis=1), axis=-1).min() > 1e-4  # no two at one place
    # Some scenes look down from above, some turn on the spot, and some move far.
    extent = np.ptp(positions, axis=1).max(axis=-1)
    assert (view[..., 2] < -0.8).all(axis=1).any() and extent.min() < 0.4 and extent.max() > 2


def test_thin_things_and_grids():
    half = jnp.full((40, 3), 0.4)
    draw = Draws(jax.random.key(1), 1000)
    thin = np.asarray(make_thin(draw, half, 1.0))
    assert (thin[0] == np.float32(0.4)).all() and (thin[1:].min(axis=1) < 0.07).all()
    assert (np.asarray(make_thin(draw, half, 0.0)) == np.asarray(half)).all()

    angle = 0.7
    turn = jnp.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    rotation, centre = jnp.broadcast_to(turn, (40, 3, 3)), jnp.ones((40, 3))
    half, centre, rotation = map(
        np.asarray, make_grid(draw, jnp.bool_(True), 24, half, centre, rotation)
    )
    grid = slice(24 - ROW, 24)
    assert (np.ptp(half[grid], axis=0) == 0).all() and (half[: 24 - ROW] == np.float32(0.4)).all()
    steps = np.diff(centre[grid][:5], axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:1], steps.shape), atol=1e-5)
    assert np.linalg.norm(steps[0]) > 2 * half[24 - ROW, 0]  # they do not overlap
    np.testing.assert_allclose(np.cross(steps[0], rotation[24 - ROW, :, 0]), 0, atol=1e-5)
    np.testing.assert_allclose(centre[grid][:5, 2], half[grid][:5, 2], atol=1e-6)  # on the floor


def test_compression_rounds_blocks_and_leaves_the_rest():
    rng = np.random.default_rng(0)
    pictures = jnp.asarray(rng.random((1, 18, 24, 3)), jnp.float32)
    compressed = jax.jit(_compressed)
    np.testing.assert_allclose(compressed(pictures, jnp.float32(0)), pictures, atol=5e-3)
    coarse = np.asarray(compressed(pictures, jnp.float32(10)))
    assert (coarse[:, 16:] == np.asarray(pictures)[:, 16:]).all()
    blocks = coarse[0, :16].reshape(2, 8, 3, 8, 3)
    assert np.ptp(blocks, axis=(1, 3)).max() < 1e-4
