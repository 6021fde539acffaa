import types

import jax
import numpy as np
import pytest

from vggt_jax import geometry
from vggt_jax.training.normalization import normalize_scenes

HEIGHT, WIDTH = 3, 5


def scenes(seed=0, num_scenes=2, num_frames=3):
    rng = np.random.default_rng(seed)
    cameras = np.zeros((num_scenes, num_frames, 3, 4), np.float32)
    for camera in cameras.reshape(-1, 3, 4):
        q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        camera[:, :3] = q * np.sign(np.linalg.det(q))
        camera[:, 3] = rng.normal(size=3)
    intrinsics = np.broadcast_to(
        np.array([[4.0, 0, 2.5], [0, 6.0, 1.5], [0, 0, 1]], np.float32),
        (num_scenes, num_frames, 3, 3),
    )
    shape = (num_scenes, num_frames, HEIGHT, WIDTH)
    valid = rng.uniform(size=shape) < 0.7
    depth = np.where(valid, rng.uniform(1, 5, size=shape), 0).astype(np.float32)
    return types.SimpleNamespace(
        images=None, depth=depth, valid=valid, camera_from_world=cameras, intrinsics=intrinsics
    )


@jax.jit
def normalize_arrays(arrays):
    return normalize_scenes(types.SimpleNamespace(**arrays))


def normalize(given):
    return normalize_arrays(vars(given))


cameras_of = jax.jit(lambda x: geometry.camera_from_pose_encoding(x, (HEIGHT, WIDTH))[0])


def test_against_points_found_one_by_one():
    given = scenes()
    found = normalize(given)
    for b in range(2):
        full = [np.vstack([c, [0, 0, 0, 1]]).astype(np.float64) for c in given.camera_from_world[b]]
        first_from_camera = [full[0] @ np.linalg.inv(camera) for camera in full]
        points = np.zeros((3, HEIGHT, WIDTH, 3))
        for s, y, x in zip(*np.nonzero(given.valid[b])):
            ray = np.linalg.inv(given.intrinsics[b, s].astype(float)) @ [x + 0.5, y + 0.5, 1]
            point = np.append(ray * given.depth[b, s, y, x], 1)
            points[s, y, x] = (first_from_camera[s] @ point)[:3]
        scale = np.linalg.norm(points[given.valid[b]], axis=-1).mean()
        assert found.scale[b] == pytest.approx(scale, rel=1e-5)
        np.testing.assert_allclose(found.world_points[b], points / scale, atol=1e-5)
        np.testing.assert_allclose(found.depth[b], given.depth[b] / scale, rtol=1e-5)
        for camera, back in zip(cameras_of(found.pose_enc[b]), first_from_camera):
            expected = np.linalg.inv(back)[:3]
            expected[:, 3] /= scale
            np.testing.assert_allclose(camera, expected, atol=2e-5)


def test_scale_and_world_do_not_matter():
    given, other = scenes(), scenes()
    other.depth = 3 * other.depth
    other.camera_from_world = other.camera_from_world.copy()
    other.camera_from_world[..., 3] *= 3
    # Another world: its origin and axes moved by a rigid motion.
    moved = np.vstack([scenes(7).camera_from_world[0, 0], [0, 0, 0, 1]]).astype(np.float32)
    other.camera_from_world = other.camera_from_world @ moved
    one, two = normalize(given), normalize(other)
    for name in ("pose_enc", "depth", "world_points"):
        np.testing.assert_allclose(getattr(two, name), getattr(one, name), atol=2e-5)


def test_no_valid_pixel_and_broken_depth_stay_finite():
    given = scenes()
    given.valid[0] = False
    given.depth[1, 0, 0, 0], given.valid[1, 0, 0, 0] = np.nan, True
    found = normalize(given)
    assert found.scale[0] == 1
    assert not found.valid[1, 0, 0, 0]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
