"""Confidence as the share of views that agree: the official values, and which views are asked."""

import types

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.spatial.transform import Rotation

from vggt_jax import InputError, Options, Reconstruction
from vggt_jax.host import with_numpy
from vggt_jax.pipeline.run import with_known
from vggt_jax.scene.view_agreement import (
    _of_masked,
    pyramids_meet,
    with_multiview_confidence,
)

SHAPE = (3, 30, 41)  # that of the golden, so that all share a program
INTRINSICS = np.tile(np.float32([[40, 0, 20], [0, 38, 14.5], [0, 0, 1]]), (3, 1, 1))


def agreement(depth, cameras, *, mask=None, compared=None, intrinsics=INTRINSICS):
    """With pixels that are counted from the centre of the first."""
    mask, compared = (np.ones(SHAPE, bool) if x is None else x for x in (mask, compared))
    arrays = (depth, intrinsics, cameras, mask, compared)
    return with_numpy(_of_masked, *arrays, pixel_centre=0.0)


def at(*positions):
    """Cameras that look along z from there."""
    turned = np.tile(np.eye(3), (len(positions), 1, 1))
    return np.concatenate([turned, -np.array(positions)[..., None]], axis=2).astype(np.float32)


def test_values_are_those_of_the_official_code(golden):
    arrays = golden("mapanything_view_agreement")
    cameras = np.linalg.inv(arrays["camera_poses"].astype(np.float64))[:, :3].astype(np.float32)
    known = {"mask": arrays["mask"].astype(bool), "intrinsics": arrays["intrinsics"]}
    found = agreement(arrays["depth_z"], cameras, **known)
    # The first rows of two views fall on each other, where rounding decides who sees whom.
    np.testing.assert_allclose(found[:, 1:], arrays["conf"][:, 1:], rtol=0, atol=1e-6)
    assert (np.abs(found[:, 0] - arrays["conf"][:, 0]) > 1e-6).mean() < 0.1
    assert set(np.unique(arrays["conf"])) == {0, 0.5, 1}


def test_every_view_that_sees_a_point_has_a_say():
    depth = np.full(SHAPE, 2.0, np.float32)
    depth[2, :, 30:] = 2.1  # beyond .02 + .02 * 2
    depth[0, 3, 4] = 0  # nothing there
    cameras = at((0, 0, 0), (0, 0, 0), (0, 0, 0))
    expected = np.ones(SHAPE)
    expected[:2, :, 30:], expected[2, :, 30:] = 0.5, 0
    expected[0, 3, 4], expected[1:, 3, 4] = 0, 0.5
    np.testing.assert_allclose(agreement(depth, cameras), expected)

    masked = np.ones(SHAPE, bool)
    masked[2, :, 30:] = False
    found = agreement(depth, cameras, mask=masked)
    np.testing.assert_allclose(found, np.where(masked, expected, 0))
    found = agreement(depth, cameras, compared=masked)
    expected[:2, :, 30:] = 1
    np.testing.assert_allclose(found, expected)
    # Pixels of 1 / 20 at this depth; the last view stands aside and meets none.
    found = agreement(np.full(SHAPE, 2.0, np.float32), at((0, 0, 0), (0.5, 0, 0), (99, 0, 0)))
    expected = np.ones(SHAPE)
    expected[0, :, :10] = expected[1, :, 31:] = 0
    np.testing.assert_allclose(found, expected)


def test_pyramids_meet_where_they_have_a_point_in_common():
    rng, num = np.random.default_rng(0), 12
    depth = rng.uniform(1, 3, (num, 2, 2)).astype(np.float32)
    intrinsics = np.zeros((num, 3, 3), np.float32)
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = rng.uniform(30, 60, (2, num))
    intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = 20, 15, 1
    turns = Rotation.random(num, random_state=1).as_matrix()
    cameras = np.concatenate([turns, rng.normal(size=(num, 3, 1))], axis=2)
    corners = []
    for d, k, camera in zip(depth, intrinsics, cameras, strict=True):
        rays = np.array([[x, y, 1] for x in (-1, 1) for y in (-1, 1)])
        rays = rays * [k[0, 2] / k[0, 0], k[1, 2] / k[1, 1], 1]
        points = np.concatenate([rays * d.min(), rays * d.max()])
        corners.append((points - camera[:, 3]) @ camera[:, :3])

    def have_one(a, b):
        """Whether some mean of the corners of one is a mean of those of the other."""
        equal = np.concatenate([np.hstack([a.T, -b.T]), np.kron(np.eye(2), np.ones(8))])
        return linprog(np.zeros(16), A_eq=equal, b_eq=[0, 0, 0, 1, 1]).status == 0

    expected = [[have_one(a, b) for a in corners] for b in corners]
    found = with_numpy(pyramids_meet, depth, intrinsics, cameras)
    np.testing.assert_array_equal(found, expected)
    assert 0.15 < found.mean() < 0.85


def test_it_takes_the_place_of_predicted_confidences():
    depth = np.full(SHAPE, 2.0, np.float32)
    mask = np.ones(SHAPE, bool)
    mask[1, :, 30:] = False
    recon = Reconstruction(
        images=np.zeros((*SHAPE, 3), np.uint8),
        depth=depth,
        depth_confidence=np.full(SHAPE, 7.0, np.float32),
        world_points=np.zeros((*SHAPE, 3), np.float32),
        world_points_confidence=np.full(SHAPE, 7.0, np.float32),
        camera_from_world=at((0, 0, 0), (0, 0, 0), (0, 0, 0.5)),
        intrinsics=INTRINSICS,
        mask=mask,
        best_points="depth",
    )
    inputs = types.SimpleNamespace(intrinsics=None, mask=None, priors=None)
    # Twice as large, so that half a unit between cameras is one.
    options = Options(multiview_confidence=True, known_distance=(0, 2, 1.0))
    found = with_known(recon, inputs, options)
    assert found.confidence_kind == "sigmoid" and found.best_points == "depth"
    expected = agreement(2 * depth, at(*[(0, 0, 0)] * 2, (0, 0, 1.0)), mask=mask, compared=mask)
    np.testing.assert_allclose(found.depth_confidence, expected)
    np.testing.assert_allclose(found.world_points_confidence, expected)
    assert (found.depth_confidence[1] > 0).any() and not found.depth_confidence[~mask].any()
    assert with_known(recon, inputs, Options()).depth_confidence[0, 0, 0] == 7
    with pytest.raises(InputError, match="needs a scene with depth and cameras"):
        with_multiview_confidence(Reconstruction(images=recon.images, depth=depth))
