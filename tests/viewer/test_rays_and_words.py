"""What the viewer says and saves besides points: tracks, names, files, and notebooks."""

import builtins
import dataclasses

import numpy as np
import pytest
from PIL import Image

from vggt_jax import Reconstruction
from vggt_jax.export.pictures import write_overview
from vggt_jax.export.scene_pictures import scene_title
from vggt_jax.scene.provenance import Provenance
from vggt_jax.viewer.cameras import FIELD_OF_VIEW, overview
from vggt_jax.viewer.controls import about_text
from vggt_jax.viewer.rays import track_rays


@pytest.fixture
def tracked():
    """Two cameras a unit apart before a wall at depth 2; two points are followed."""
    height, width = 14, 28
    poses = np.tile(np.eye(3, 4, dtype=np.float32), (2, 1, 1))
    poses[1, 0, 3] = -1.0
    matrix = np.array([[20, 0, width / 2], [0, 20, height / 2], [0, 0, 1]], np.float32)
    return Reconstruction(
        images=np.zeros((2, height, width, 3), np.uint8),
        camera_from_world=poses,
        intrinsics=np.stack([matrix, matrix]),
        depth=np.full((2, height, width), 2.0, np.float32),
        depth_confidence=np.ones((2, height, width), np.float32),
        pixel_centre=0.5,
        names=("a.png", "b.png"),
        tracks=np.array([[[20, 5], [3, 3]], [[10, 5], [99, 3]]], np.float32),
        track_visibility=np.array([[0.9, 0.9], [0.9, 0.9]], np.float32),
        track_confidence=np.ones((2, 2), np.float32),
        provenance=Provenance(model="some/model", device="a device", seconds=2.0, is_small=True),
    )


def test_rays_go_from_cameras_to_the_points_they_saw(tracked):
    segments, colors = track_rays(tracked)
    assert segments.shape == colors.shape == (3, 2, 3)  # One lies outside of the second frame.
    np.testing.assert_allclose(segments[:, 0], [[0, 0, 0], [0, 0, 0], [1, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(segments[:, 1, 2], 2.0)
    np.testing.assert_allclose(segments[0, 1], segments[2, 1], atol=1e-5)  # The same point.
    assert (colors[0] == colors[2]).all() and (colors[0] != colors[1]).any()
    hidden = np.full((2, 2), 0.2, np.float32)
    assert track_rays(dataclasses.replace(tracked, track_visibility=hidden)) is None
    assert track_rays(dataclasses.replace(tracked, tracks=None)) is None


def test_the_scene_and_its_model_are_named(tracked):
    text = about_text(tracked)
    for part in (
        "**2 frames** of 28x14",
        "`a.png` to `b.png`",
        "some/model",
        "2.0 s",
        "small model",
    ):
        assert part in text
    assert scene_title(tracked) == "2 frames, a.png to b.png, by some/model"
    assert about_text(dataclasses.replace(tracked, provenance=Provenance(), names=())) == (
        "**2 frames** of 28x14; lengths arbitrary"
    )


def test_words_stand_between_the_pictures_and_change_none(tmp_path, tracked):
    images = np.full((2, 14, 280, 3), 90, np.uint8)
    depth = np.ones((2, 14, 280), np.float32)
    write_overview(tmp_path / "plain.png", images, depth, confidence=depth)
    write_overview(tmp_path / "said.png", images, depth, confidence=depth, title="x" * 500)
    plain, said = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("plain", "said"))
    assert said.shape[1] == plain.shape[1] and said.shape[0] == plain.shape[0] + 4 * 16
    for row in range(3):
        np.testing.assert_array_equal(
            said[40 + row * 38 : 54 + row * 38], plain[8 + row * 22 : 22 + row * 22]
        )
    assert (said[2:16] < 100).any() and (said[24:40] < 100).any()


def test_the_first_view_shows_the_whole_scene():
    points = np.random.default_rng(0).uniform([-30, -1, 4], [30, 1, 6], (5000, 3))
    view = overview(points, ())
    towards = view.look_at - view.position
    towards /= np.linalg.norm(towards)
    side = np.cross(towards, view.up)
    up = np.cross(side, towards)
    seen = (points - view.position) @ np.stack([side, up, towards]).T
    limit = np.tan(FIELD_OF_VIEW / 2)
    inside = (np.abs(seen[:, :2]) <= 1.02 * limit * seen[:, 2:]).all(axis=1)
    assert (seen[:, 2] > 0).all() and inside.mean() > 0.95


def test_a_notebook_is_not_blocked_and_saves(tracked, monkeypatch):
    pytest.importorskip("viser", reason="needs viser")
    from vggt_jax.viewer import view, viewing

    assert not viewing.in_notebook()
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    assert viewing.in_notebook()
    shown = view(tracked, port=0)
    try:
        assert shown.url in shown._repr_html_() and "<iframe" in shown._repr_html_()
        assert shown._glb()[:4] == b"glTF"
    finally:
        shown.close()
