"""What is known of a scene: masks, shapes, and what is refused."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vggt_jax.errors import InputError
from vggt_jax.scene.priors import Priors

S, SIZE = 3, (4, 5)


def some_priors(**changes):
    poses = np.tile(np.eye(4, dtype=np.float32), (S, 1, 1))
    poses[:, :3, :3] = Rotation.random(S, random_state=1).as_matrix()
    poses[:, :3, 3] = [[0, 0, 0], [1, 0, 2], [0.5, 1, 0]]
    intrinsics = np.tile(np.array([[3, 0, 2.5], [0, 3.5, 2], [0, 0, 1]]), (S, 1, 1))
    depth = np.arange(S * 20, dtype=np.float32).reshape(S, *SIZE)
    fields = {"intrinsics": intrinsics, "camera_from_world": poses, "depth": depth}
    return Priors(**fields | changes)


def test_checked_writes_everything_out():
    given = some_priors(intrinsics_known=np.array([True, False, True]), metric=True)
    given.camera_from_world[1] = np.nan
    given.depth[0, 0, 3], given.depth[2] = np.nan, -1
    given = dataclasses.replace(given, poses_known=np.array([True, False, True]))
    got = given.checked(S, SIZE)
    assert got.given == ("intrinsics", "poses", "depth") and got.metric.item() is True
    assert np.isnan(got.intrinsics[1]).all() and np.isnan(got.camera_from_world[1]).all()
    np.testing.assert_array_equal(got.intrinsics[2], given.intrinsics[2])
    np.testing.assert_array_equal(got.depth[0, 0], [0, 1, 2, 0, 4])
    # A frame without any depth has none, whatever was said.
    np.testing.assert_array_equal(got.depth_known, [True, True, False])
    np.testing.assert_array_equal(got.poses_known, [True, False, True])
    for array in (got.intrinsics, got.camera_from_world, got.depth):
        assert array.dtype == np.float32 and np.isfinite(array[[0, 2]]).all()


def test_poses_may_lack_their_last_row():
    square = some_priors()
    got = some_priors(camera_from_world=square.camera_from_world[:, :3]).checked(S, SIZE)
    np.testing.assert_array_equal(got.camera_from_world, square.camera_from_world)


def test_for_images_is_pure_and_harmless_where_nothing_is_known():
    depth = np.full((2, S, *SIZE), 2.0, np.float32)
    depth[0, 1, 2, 3], depth[1, 0] = np.nan, np.inf
    poses = np.full((2, S, 3, 4), np.nan, np.float32)
    poses[0] = some_priors().camera_from_world[:, :3]
    known = np.array([[True] * S, [False] * S])
    priors = Priors(depth=depth, camera_from_world=poses, poses_known=known, metric=True)
    images = jax.ShapeDtypeStruct((2, S, *SIZE, 3), jnp.uint8)
    got = jax.jit(lambda priors: priors.for_images(images))(priors)
    assert got.depth[0, 1, 2, 3] == 0 and not got.depth[1, 0].any() and got.depth[1, 1].all()
    np.testing.assert_array_equal(got.camera_from_world[0, :, :3], poses[0])
    np.testing.assert_array_equal(got.camera_from_world[1, 2], np.eye(4))
    np.testing.assert_array_equal(got.metric, [True, True])
    assert got.depth_known.all() and got.intrinsics is None


def test_some_frames_in_another_order_and_padded():
    whole = some_priors(depth_known=np.array([True, False, True])).checked(S, SIZE)
    got = whole.of_frames([2, 0], padded_to=4)
    np.testing.assert_array_equal(got.depth[:2], whole.depth[[2, 0]])
    np.testing.assert_array_equal(got.depth_known, [True, True, False, False])
    np.testing.assert_array_equal(got.camera_from_world[1], whole.camera_from_world[0])
    assert np.isnan(got.camera_from_world[2:]).all() and np.isnan(got.intrinsics[3]).all()


def test_rays_of_some_frames():
    rays = np.full((S, *SIZE, 3), np.nan, np.float32)
    rays[1] = [0.5, -0.25, 2]
    known = np.array([False, True, False])
    priors = Priors(rays=rays, rays_known=known).checked(S, SIZE).of_frames([1, 2], padded_to=4)
    assert priors.given == ("rays",)
    images = jax.ShapeDtypeStruct((4, *SIZE, 3), jnp.uint8)
    got = priors.for_images(images)
    np.testing.assert_array_equal(got.rays_known, [True, False, False, False])
    np.testing.assert_array_equal(got.rays[0], rays[1])
    np.testing.assert_array_equal(got.rays[3, 0, 0], [0, 0, 1])
    with pytest.raises(InputError, match="look forward"):
        Priors(rays=-rays, rays_known=known).checked(S, SIZE)


def test_only_drops_arrays_with_their_masks():
    priors = some_priors(depth_known=np.ones(S, bool), metric=True).only(["poses"])
    assert priors.given == ("poses",) and priors.depth_known is None and priors.metric is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intrinsics": np.eye(3)}, "intrinsics of shape (3, 3) must be (3, 3, 3)"),
        ({"intrinsics": np.zeros((S, 3, 3))}, "positive focal lengths"),
        ({"intrinsics": np.ones((S, 3, 3))}, "[[fx, skew, cx], [0, fy, cy], [0, 0, 1]]"),
        ({"camera_from_world": np.full((S, 4, 4), np.nan)}, "poses_known"),
        ({"camera_from_world": np.tile(2 * np.eye(4), (S, 1, 1))}, "must be a rotation"),
        ({"camera_from_world": np.tile(np.diag([1, 1, -1, 1.0]), (S, 1, 1))}, "right-handed"),
        ({"depth": np.ones((S, *SIZE), np.uint16)}, "depth is uint16, whose unit is unknown"),
        ({"depth": np.ones((S, 5, 4))}, "depth of shape (3, 5, 4) must be (3, 4, 5)"),
        ({"depth": np.zeros((S, *SIZE))}, "depth of no frame are known"),
        ({"depth": None, "depth_known": np.ones(S, bool)}, "depth_known was given without depth"),
        ({"poses_known": np.ones(S)}, "poses_known must be bool"),
        ({"poses_known": np.ones(2, bool)}, "poses_known must be bool of shape (3,)"),
        ({"metric": np.ones(2, bool)}, "metric of shape (2,)"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        some_priors(**changes).checked(S, SIZE)
