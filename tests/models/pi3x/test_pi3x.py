"""Parts of Pi3X against formulas and data of the official code."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vggt_jax.layers.attention import Dense
from vggt_jax.layers.precision import Precision
from vggt_jax.models.pi3x.injection import PoseInjection, Turns
from vggt_jax.models.pi3x.outputs import depth_normal_edges
from vggt_jax.models.pi3x.prompts import Prompts
from vggt_jax.scene.priors import Priors
from vggt_jax.trunk.alternation import make_trunk_blocks

FLOAT32 = Precision.from_compute_dtype(jnp.float32)


def some_poses(b, s, seed=0):
    poses = np.tile(np.eye(4, dtype=np.float32), (b, s, 1, 1))
    rng = np.random.default_rng(seed)
    turns = Rotation.random(b * s, random_state=seed).as_matrix()
    poses[..., :3, :3] = turns.reshape(b, s, 3, 3)
    poses[..., :3, 3] = rng.normal(size=(b, s, 3))
    return poses


def test_edges_are_the_official_ones(golden):
    arrays = golden("pi3x_geometry")
    points, valid = (arrays[name][None, None] for name in ("points", "mask"))
    find = jax.jit(depth_normal_edges)
    found = np.asarray(find(points, valid))[0, 0]
    np.testing.assert_array_equal(found, arrays["edges"])
    # Of a mask that hides nothing there are others.
    assert (np.asarray(find(points, np.ones_like(valid)))[0, 0] != found).sum() > 100


def test_what_cameras_turn_they_turn_back():
    places = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]])
    x = np.random.default_rng(1).normal(size=(1, 3, 6, 2, 16)).astype(np.float32)

    @jax.jit
    def turn(poses, x):
        turns = Turns.of(poses, places, 16)
        return turns.queries(x), turns.keys(x), turns.results(turns.keys(x))

    q, k, back = map(np.asarray, turn(some_poses(1, 3), x))
    np.testing.assert_allclose(back, x, atol=1e-5)
    # Scores of a frame with itself are those without cameras, of the same patch.
    np.testing.assert_allclose(np.sum(q * k, -1), np.sum(x * x, -1), rtol=1e-4)


def test_injection_depends_on_relative_poses_and_on_frames_with_one(randomised):
    b, s, p, c = 2, 3, 6, 16
    module = randomised(
        lambda rngs: PoseInjection(
            make_trunk_blocks(c, 2, 2.0, 2, norm_eps=1e-6, layer_scale=0.01, rngs=rngs)
        )
    )
    positions = np.array([[0, 0], *np.argwhere(np.ones((2, 3))) + 1])  # one special token
    rng = np.random.default_rng(2)
    tokens = rng.normal(size=(b, s, 1 + p, c)).astype(np.float32)
    shown = np.array([[True, False, True], [False, False, False]])

    @jax.jit
    def run(tokens, poses):
        return module(
            jnp.int32(1),
            tokens,
            poses,
            jnp.asarray(shown),
            positions,
            num_special=1,
            dense=Dense(),
            precision=FLOAT32,
            frames_per_chunk=2,
        )

    poses = some_poses(b, s)
    found = np.asarray(run(tokens, poses))
    changed = np.abs(found - tokens).max(-1) > 1e-3
    assert changed[0, [0, 2], 1:].all()
    assert not changed[..., 0].any() and not changed[0, 1].any() and not changed[1].any()
    world = some_poses(1, 1, seed=5)[0, 0]
    np.testing.assert_allclose(run(tokens, world @ poses), found, atol=3e-4)
    # What is in hidden frames does not matter, where others see it.
    other = tokens.copy()
    other[0, 1] += 1
    np.testing.assert_allclose(
        np.asarray(run(other, poses))[0, [0, 2]], found[0, [0, 2]], atol=1e-5
    )


def prompts_of(shape, **known):
    """Prompts of a scene [b s height width], in arrays of NumPy."""
    images = jax.ShapeDtypeStruct((*shape, 3), jnp.uint8)
    of_priors = jax.jit(lambda priors: Prompts.of_priors(priors, images))
    return types.SimpleNamespace(**jax.device_get(vars(of_priors(Priors(**known)))))


def test_the_scale_of_prompts_is_that_of_depth_or_of_positions():
    cameras = np.linalg.inv(some_poses(1, 3).astype(np.float64)).astype(np.float32)
    depth = np.full((1, 3, 4, 5), 2.0, np.float32)
    depth[0, 1], depth[0, 2, 0, 0] = 6.0, np.nan
    mean = (depth[0, 0].sum() + depth[0, 1].sum() + 38.0) / 59
    prompts = prompts_of((1, 3, 4, 5), camera_from_world=cameras, depth=depth)
    np.testing.assert_allclose(prompts.depth[0, 1, ..., 0], 6 / mean, rtol=1e-6)
    assert prompts.depth[0, 2, 0, 0].tolist() == [0, 0] and prompts.depth[0, 2, 0, 1, 1] == 1
    centres = np.linalg.inv(cameras[0].astype(np.float64))[:, :3, 3]
    distances = np.linalg.norm(centres - centres[0], axis=1)
    found = np.linalg.norm(prompts.poses[0, :, :3, 3], axis=1)
    np.testing.assert_allclose(found, distances / mean, rtol=1e-4, atol=1e-6)
    # Nobody's depth is shown: the mean distance of the others from the first.
    hidden = np.zeros((1, 3), bool)
    prompts = prompts_of((1, 3, 4, 5), camera_from_world=cameras, depth=depth, depth_known=hidden)
    found = np.linalg.norm(prompts.poses[0, :, :3, 3], axis=1)
    np.testing.assert_allclose(found, distances / distances[1:].mean(), rtol=1e-4, atol=1e-6)


def test_frames_without_a_pose_do_not_count_in_the_scale():
    cameras = np.linalg.inv(some_poses(1, 4).astype(np.float64)).astype(np.float32)
    some = cameras.copy()
    some[0, [0, 2]] = np.nan
    known = np.array([[False, True, False, True]])
    found = prompts_of((1, 4, 4, 5), camera_from_world=some, poses_known=known)
    alone = prompts_of((1, 2, 4, 5), camera_from_world=cameras[:, [1, 3]])
    np.testing.assert_allclose(found.poses[:, [1, 3]], alone.poses, atol=1e-6)
    np.testing.assert_array_equal(found.poses_shown, known)


def test_cameras_that_hardly_move_keep_their_lengths():
    cameras = np.tile(np.eye(4, dtype=np.float32), (2, 3, 1, 1))
    cameras[0, 1, 0, 3], cameras[1, 1, 0, 3] = 0.019, 0.021
    found = prompts_of((2, 3, 4, 5), camera_from_world=cameras)
    np.testing.assert_allclose(found.poses[0, 1, 0, 3], -0.019, rtol=1e-5)
    np.testing.assert_allclose(found.poses[1, 1, 0, 3], -2, rtol=1e-5)  # the mean of two is half


@pytest.mark.parametrize("alone", [True, False])
def test_one_pose_alone_is_not_shown(alone):
    known = np.array([[True, not alone, False]])
    cameras = some_poses(1, 3)
    found = prompts_of((1, 3, 4, 5), camera_from_world=cameras, poses_known=known)
    np.testing.assert_array_equal(found.poses_shown, known & (not alone))


def test_rays_pass_through_the_centres_of_pixels_and_win_where_known():
    intrinsics = np.tile(np.array([[8, 2, 3.0], [0, 5, 2], [0, 0, 1]]), (1, 2, 1, 1))
    rays = np.ones((1, 2, 4, 5, 3), np.float32)
    known = np.array([[False, True]])
    found = prompts_of((1, 2, 4, 5), intrinsics=intrinsics, rays=rays, rays_known=known)
    expected = np.linalg.inv(intrinsics[0, 0]) @ [4.5, 1.5, 1]
    np.testing.assert_allclose(found.rays[0, 0, 1, 4], expected[:2], rtol=1e-5)
    np.testing.assert_allclose(found.rays[0, 1, 1, 4], [1, 1], rtol=1e-5)
    assert found.rays_shown.all()
