"""The heads of π³: pixels of tokens, points of raw maps, poses."""

import jax
import jax.numpy as jnp
import numpy as np

from vggt_jax.heads.pixels import PixelHead, points_from_raw
from vggt_jax.heads.pose import PoseHead
from vggt_jax.layers.precision import Precision
from vggt_jax.trunk.token_layout import TokenLayout

FLOAT32 = Precision.from_compute_dtype(jnp.float32)


def test_every_pixel_comes_from_its_patch_and_channel(randomised):
    side, rows, columns, dim, channels = 3, 2, 5, 7, 2
    head = randomised(lambda rngs: PixelHead(dim, channels, patch_size=side, rngs=rngs))
    layout = TokenLayout(num_special=0, rows=rows, columns=columns)
    tokens = np.random.default_rng(0).normal(size=(2, 3, rows * columns, dim)).astype(np.float32)
    found = np.asarray(jax.jit(lambda head, x: head(x, layout, FLOAT32))(head, tokens))
    assert found.shape == (2, 3, rows * side, columns * side, channels)
    kernel, bias = np.asarray(head.proj.kernel[...]), np.asarray(head.proj.bias[...])
    raw = tokens.astype(np.float64) @ kernel + bias
    for y, x, o in np.ndindex(rows * side, columns * side, channels):
        patch = y // side * columns + x // side
        channel = o * side**2 + y % side * side + x % side
        np.testing.assert_allclose(found[:, :, y, x, o], raw[:, :, patch, channel], 1e-5, 1e-5)


def test_points_are_rays_times_depth():
    raw = np.array([[0.5, -2.0, 0.0], [1.0, 3.0, np.log(4)]], np.float32)
    found = jax.jit(points_from_raw)(raw)
    np.testing.assert_allclose(found, [[0.5, -2, 1], [4, 12, 4]], rtol=1e-6)


def test_poses_are_rotations_and_translations(randomised):
    head = randomised(lambda rngs: PoseHead(6, rngs=rngs))
    tokens = np.random.default_rng(1).normal(size=(2, 3, 5, 6)).astype(np.float32)
    run = jax.jit(lambda head, x: head(x, FLOAT32))
    poses = np.asarray(run(head, tokens), np.float64)
    rotations = poses[..., :3, :3]
    np.testing.assert_allclose(
        rotations @ np.swapaxes(rotations, -1, -2),
        np.broadcast_to(np.eye(3), (2, 3, 3, 3)),
        0,
        2e-6,
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1, rtol=2e-6)
    np.testing.assert_array_equal(poses[..., 3, :], np.broadcast_to([0, 0, 0, 1], (2, 3, 4)))
    # No position: patches in another order give the same pose.
    again = run(head, tokens[:, :, ::-1])
    np.testing.assert_allclose(again, poses, rtol=0, atol=1e-5)
