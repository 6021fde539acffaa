"""Pictures of a whole scene: the rows of the overview, the view from above, and tracks."""

import dataclasses

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from vggt_jax import Reconstruction
from vggt_jax.export import (
    draw_top_view,
    overview_width,
    write_overview,
    write_scene_pictures,
    write_track_pictures,
)

RED, GREEN, BLUE = (230, 0, 0), (0, 200, 0), (0, 0, 230)


def read(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def pale(color):
    return np.round(255 - (255 - np.array(color)) * 0.75)


# The overview


def test_confidence_is_coloured_by_its_percentile(tmp_path):
    images = np.zeros((2, 10, 13, 3), np.uint8)
    depth = np.ones((2, 10, 13), np.float32)
    # Exponential, so that colours by value would nearly all be dark.
    confidence = np.exp(np.linspace(0, 20, 260)).reshape(2, 10, 13)
    confidence[1, 9, 12] = np.nan
    mask = np.ones(depth.shape, bool)
    mask[0, :, 4] = False
    write_overview(tmp_path / "x.png", images, depth, mask, confidence=confidence)
    sheet = read(tmp_path / "x.png")
    assert sheet.shape == (3 * 10 + 4 * 8, 2 * 13 + 3 * 8, 3)
    assert overview_width(depth.shape) == 2 * 13 + 3 * 8
    rows = sheet[44:54]
    first, second = rows[:, 8:21], rows[:, 29:42]
    assert (first[:, 4] == 255).all() and (second[9, 12] == 255).all()
    colors = np.round(np.array(colormaps["viridis"](np.arange(256)))[:, :3] * 255)
    np.testing.assert_array_equal(first[0, 0], colors[0])
    np.testing.assert_array_equal(second[9, 11], colors[255])
    # Half of the valid values, 249 of which there are, lie below the 125th.
    middle = np.sort(confidence[mask & np.isfinite(confidence)])[124]
    frame, row, column = np.argwhere(confidence == middle)[0]
    seen = (first, second)[frame][row, column]
    assert np.abs(colors - seen).sum(axis=1).argmin() in (127, 128)


def test_the_view_from_above_is_the_last_row(tmp_path):
    images = np.zeros((3, 10, 13, 3), np.uint8)
    depth = np.ones((3, 10, 13), np.float32)
    view = np.random.default_rng(0).integers(0, 256, (17, 3 * 21 - 8, 3), dtype=np.uint8)
    write_overview(tmp_path / "x.png", images, depth, top_view=view)
    sheet = read(tmp_path / "x.png")
    assert sheet.shape == (2 * 18 + 8 + 17 + 8, 3 * 21 + 8, 3)
    np.testing.assert_array_equal(sheet[-25:-8, 8:-8], view)
    with pytest.raises(ValueError, match="must be 55 wide"):
        write_overview(tmp_path / "x.png", images, depth, top_view=view[:, 1:])
    with pytest.raises(ValueError, match=r"confidence\.shape="):
        write_overview(tmp_path / "x.png", images, depth, confidence=depth[1:])


# From above


def level_cameras(*positions):
    """Cameras that look along z with x to the right; down is y."""
    poses = np.zeros((len(positions), 3, 4))
    poses[:, :, :3] = np.eye(3)
    poses[:, :, 3] = -np.array(positions, np.float64)
    return poses


def box(center, half=0.2, count=3000, seed=0):
    return np.array(center) + np.random.default_rng(seed).uniform(-half, half, (count, 3))


def where(picture, color, distance=40):
    """The middle (column, row) of the pixels of a colour, or None."""
    near = np.abs(picture.astype(int) - np.array(color)).max(axis=-1) < distance
    return None if not near.any() else np.argwhere(near).mean(axis=0)[::-1]


def test_points_lie_where_they_are_from_above():
    # To the left ahead, to the right ahead, and to the right behind.
    points = np.concatenate([box((-3, 1, 4)), box((5, 1, 4)), box((5, 1, 0))])
    colors = np.repeat(np.array([RED, GREEN, BLUE], np.uint8), 3000, axis=0)
    picture = draw_top_view(
        (200, 300), level_cameras((0, 0, 0), (1, 0, 1)), points=points, colors=colors
    )
    assert picture.shape == (200, 300, 3)
    red, green, blue = (where(picture, pale(color)) for color in (RED, GREEN, BLUE))
    # Eight units lie between red and green, and half as many between green and blue.
    scale = (green[0] - red[0]) / 8
    assert scale > 20
    assert abs(red[1] - green[1]) < 3 and abs(green[0] - blue[0]) < 3
    assert blue[1] - green[1] == pytest.approx(4 * scale, abs=4)
    # The first camera stands at the origin, three units to the right of red and four behind it.
    apex = red + scale * np.array([3, 4])
    orange = where(picture, (225, 110, 20))
    assert np.abs(orange - apex).max() < 15 and orange[1] < apex[1]
    assert where(picture, (40, 90, 180)) is not None


def test_long_scenes_lie_across():
    points = np.concatenate([box((0, 1, 1)), box((0, 1, 30))])
    colors = np.repeat(np.array([RED, GREEN], np.uint8), 3000, axis=0)
    picture = draw_top_view((100, 300), level_cameras((0, 0, 0)), points=points, colors=colors)
    red, green = where(picture, pale(RED)), where(picture, pale(GREEN))
    # Ahead is to the right.
    assert green[0] - red[0] > 200 and abs(green[1] - red[1]) < 3
    upright = draw_top_view((300, 100), level_cameras((0, 0, 0)), points=points, colors=colors)
    red, green = where(upright, pale(RED)), where(upright, pale(GREEN))
    assert red[1] - green[1] > 200 and abs(green[0] - red[0]) < 3


def test_a_ceiling_does_not_hide_the_room():
    floor, ceiling = box((0, 1, 4), count=9000), box((0, -2, 4), count=9000, seed=1)
    points = np.concatenate([floor, ceiling])
    colors = np.repeat(np.array([RED, GREEN], np.uint8), 9000, axis=0)
    cameras = level_cameras((0, 0, 0), (2, 0, 0))
    picture = draw_top_view((90, 120), cameras, points=points, colors=colors)
    assert where(picture, pale(RED)) is not None and where(picture, pale(GREEN)) is None
    # All of it above the cameras, as towers are: all of it is shown.
    above = draw_top_view((90, 120), cameras, points=ceiling, colors=colors[9000:])
    assert where(above, pale(GREEN)) is not None


def test_wedges_open_to_what_cameras_see():
    def orange_pixels(focal):
        matrix = np.array([[[focal, 0, 50], [0, 100, 40], [0, 0, 1]]])
        picture = draw_top_view((200, 200), level_cameras((0, 0, 0)), matrix, image_width=100)
        near = np.abs(picture.astype(int) - (225, 110, 20)).max(axis=-1) < 60
        return np.ptp(np.argwhere(near)[:, 1])

    # Half the width by the focal length is the half of what it opens to at distance 1.
    narrow, wide = orange_pixels(100.0), orange_pixels(40.0)
    assert wide / narrow == pytest.approx(2.5, rel=0.15)
    assert orange_pixels(np.inf) == pytest.approx(narrow * 2 * np.tan(np.pi / 6), abs=2)


def test_nothing_to_draw():
    poses = np.full((2, 3, 4), np.nan)
    assert (draw_top_view((30, 40), poses) == 255).all()
    with pytest.raises(ValueError, match="belong together"):
        draw_top_view((30, 40), poses, points=np.zeros((1, 3)))
    with pytest.raises(ValueError, match="need the image_width"):
        draw_top_view((30, 40), poses, np.zeros((2, 3, 3)))


# Tracks


def test_tracks_are_dots_of_one_colour(tmp_path):
    images = np.full((2, 120, 150, 3), 128, np.uint8)
    tracks = np.array([[[20, 30], [100, 90]], [[60, 40], [np.nan, 3]]], np.float32)
    paths = write_track_pictures(tmp_path, images, tracks, ("a.jpg", "b.jpg"))
    assert [path.name for path in paths] == ["a_tracks.png", "b_tracks.png"]
    first, second = map(read, paths)
    color = first[30, 20]
    assert np.ptp(color) > 100
    np.testing.assert_array_equal(second[40, 60], color)
    assert np.abs(first[90, 100] - color).max() > 60
    # Two dots of radius 2 in the first picture, and one in the second; the rest is untouched.
    assert (first != 128).any(axis=-1).sum() == 2 * (second != 128).any(axis=-1).sum()
    changed = np.argwhere((second != 128).any(axis=-1))
    np.testing.assert_allclose(changed.mean(axis=0), [40, 60], atol=1e-6)
    assert np.ptp(changed, axis=0).tolist() == [4, 4]


def test_hidden_points_are_rings(tmp_path):
    images = np.full((1, 480, 600, 3), 128, np.uint8)
    tracks = np.array([[[100, 200], [300, 200]]], np.float32)
    visibility = np.array([[0.9, 0.1]])
    (path,) = write_track_pictures(tmp_path, images, tracks, ("x",), visibility)
    picture = read(path)
    assert np.ptp(picture[200, 100]) > 100
    np.testing.assert_array_equal(picture[200, 300], 128)
    assert np.ptp(picture[200, 297]) > 50


def test_tracks_that_do_not_fit(tmp_path):
    images = np.zeros((2, 5, 7, 3), np.uint8)
    with pytest.raises(ValueError, match="the same frames and tracks"):
        write_track_pictures(tmp_path, images, np.zeros((3, 4, 2)), ("a", "b"))
    with pytest.raises(ValueError, match="the same frames and tracks"):
        write_track_pictures(tmp_path, images, np.zeros((2, 4, 2)), ("a", "b"), np.zeros((2, 3)))
    assert list(tmp_path.iterdir()) == []


# All of them


def test_what_a_reconstruction_holds_is_drawn(tmp_path):
    rng = np.random.default_rng(0)
    recon = Reconstruction(
        images=rng.integers(0, 256, (2, 40, 50, 3), dtype=np.uint8),
        camera_from_world=level_cameras((0, 0, 0), (0.5, 0, 0)).astype(np.float32),
        intrinsics=np.broadcast_to(
            np.array([[50, 0, 25], [0, 50, 20], [0, 0, 1]], np.float32), (2, 3, 3)
        ),
        depth=rng.uniform(1, 2, (2, 40, 50)).astype(np.float32),
        depth_confidence=rng.uniform(1, 9, (2, 40, 50)).astype(np.float32),
        tracks=rng.uniform(0, 40, (2, 3, 2)).astype(np.float32),
        track_visibility=np.ones((2, 3), np.float32),
    )
    listing = lambda name: sorted(
        str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*.png")
    )
    depth = [f"depth_pictures/000{i}_depth.png" for i in (0, 1)]
    tracks = [f"track_pictures/000{i}_tracks.png" for i in (0, 1)]
    write_scene_pictures(tmp_path / "all", recon)
    assert listing("all") == [*depth, "overview.png", *tracks]
    # A title, three rows of pictures with words above, and the view from above as high as at least.
    height = 16 + 3 * (40 + 24) + (200 + 24) + 8
    assert read(tmp_path / "all" / "overview.png").shape == (height, 2 * 58 + 8, 3)
    without = dataclasses.replace(
        recon, camera_from_world=None, intrinsics=None, depth_confidence=None, tracks=None
    )
    write_scene_pictures(tmp_path / "less", without)
    assert listing("less") == [*depth, "overview.png"]
    height = 16 + 2 * (40 + 24) + 8
    assert read(tmp_path / "less" / "overview.png").shape == (height, 2 * 58 + 8, 3)
    write_scene_pictures(tmp_path / "none", Reconstruction(images=recon.images))
    assert listing("none") == []
    # Not one depth is usable: nothing above, and no failure.
    recon.depth[:] = np.nan
    write_scene_pictures(tmp_path / "hopeless", recon)
    assert "overview.png" in listing("hopeless")
