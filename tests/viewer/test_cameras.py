"""vggt_jax.viewer.cameras: where pyramids stand, what they open to, and which way is up."""

import dataclasses
import math

import numpy as np
import pytest

from vggt_jax import Reconstruction
from vggt_jax.images.frames import FrameTransform
from vggt_jax.viewer.cameras import overview, viewer_cameras

HEIGHT, WIDTH = 20, 30


def rotation(axis, degrees):
    """About one of the axes, right-handed."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = np.eye(3)
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return matrix


def scene(world_from_camera, positions, intrinsics=((25, 0, 15), (0, 20, 10), (0, 0, 1)), **fields):
    world_from_camera = np.asarray(world_from_camera, np.float64)
    transposed = np.swapaxes(world_from_camera, 1, 2)
    translation = -np.einsum("sij,sj->si", transposed, np.asarray(positions, np.float64))
    count = len(world_from_camera)
    images = np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Reconstruction(
        images=images,
        camera_from_world=np.concatenate([transposed, translation[..., None]], -1).astype(
            np.float32
        ),
        intrinsics=np.broadcast_to(np.array(intrinsics, np.float32), (count, 3, 3)).copy(),
        **fields,
    )


def test_pyramids_stand_where_cameras_stood():
    turned = rotation("y", 40) @ rotation("x", -20)
    first, second = viewer_cameras(scene([np.eye(3), turned], [[0, 0, 0], [1, -2, 3]]))
    assert (first.name, second.name, second.frame) == ("0", "1", 1)
    np.testing.assert_allclose(second.position, [1, -2, 3], atol=1e-6)
    np.testing.assert_allclose(second.rotation, turned, atol=1e-6)
    w, x, y, z = second.quaternion
    # The rotated z axis, from the quaternion by hand.
    forward = [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]
    np.testing.assert_allclose(forward, turned[:, 2], atol=1e-6)
    assert first.field_of_view == pytest.approx(2 * math.atan(10 / 20))
    # 30 / 25 wide and 20 / 20 high at distance 1.
    assert first.aspect == pytest.approx(1.2)


def test_pictures_are_small_and_without_padding():
    transform = dataclasses.replace(
        FrameTransform.identity((HEIGHT, WIDTH)), content_rows=(5, 15), content_columns=(0, 30)
    )
    recon = scene([np.eye(3)], [[0, 0, 0]], names=("a.jpg",), transforms=(transform,))
    (camera,) = viewer_cameras(recon)
    assert camera.name == "a.jpg"
    np.testing.assert_array_equal(camera.picture, recon.images[0, 5:15])
    assert camera.field_of_view == pytest.approx(2 * math.atan(5 / 20))
    assert camera.aspect == pytest.approx((15 / 25) / (5 / 20))
    (small,) = viewer_cameras(recon, picture_side=12)
    assert small.picture.shape == (4, 12, 3) and small.field_of_view == camera.field_of_view


def test_a_principal_point_aside_widens_the_picture():
    recon = scene([np.eye(3)], [[0, 0, 0]], intrinsics=((25, 0, 12), (0, 20, 10), (0, 0, 1)))
    (camera,) = viewer_cameras(recon)
    # From 12 to the farther side are 18 pixels, so there are 18 on the other side too: 6 of them
    # grey.
    assert camera.picture.shape == (20, 36, 3)
    np.testing.assert_array_equal(camera.picture[:, 6:], recon.images[0])
    assert (camera.picture[:, :6] == 200).all()
    assert camera.aspect == pytest.approx((18 / 25) / (10 / 20))


def test_cameras_that_cannot_be_drawn():
    recon = scene([np.eye(3)] * 5, np.zeros((5, 3)))
    recon.intrinsics[0, 0, 0] = np.inf
    recon.intrinsics[1, 1, 1] = 0
    recon.camera_from_world[2, 0, 3] = np.nan
    recon.intrinsics[3, 0, 2] = 1e7
    assert [camera.frame for camera in viewer_cameras(recon)] == [4]
    assert viewer_cameras(Reconstruction(images=recon.images)) == ()


def test_the_overview_is_behind_the_cameras_and_above():
    recon = scene([np.eye(3)] * 2, [[-1, 0, 0], [1, 0, 0]])
    points = np.random.default_rng(0).uniform([-2, -1, 4], [2, 1, 6], (5000, 3))
    points[7] = 1e6  # An outlier does not make the scene large.
    view = overview(points, viewer_cameras(recon))
    np.testing.assert_allclose(view.look_at, [0, 0, 5], atol=0.1)
    # The box reaches from the cameras to z = 6 and is 4 wide and 2 high, nearly.
    assert view.size == pytest.approx(np.linalg.norm([4, 2, 6]), rel=0.05)
    assert view.position[2] < 0 and view.position[1] < -1
    np.testing.assert_allclose(view.up, [0, -1, 0], atol=1e-6)


def test_an_overview_of_little():
    nothing = overview(np.zeros((0, 3)), ())
    assert nothing.size > 0 and np.isfinite(nothing.position).all()
    down = viewer_cameras(scene([rotation("x", -90)], [[0, 0, 0]]))
    view = overview(np.zeros((0, 3)), down)
    assert np.isfinite(view.position).all() and np.linalg.norm(view.position - view.look_at) > 0.1
