"""The released weights, where somebody names them."""

import os

import jax
import numpy as np
import pytest

import vggt_jax


@pytest.mark.weights
def test_released_weights_reconstruct_two_frames():
    model = vggt_jax.load_model(os.environ["VGGT_JAX_WEIGHTS"])
    images = np.random.default_rng(0).uniform(size=(2, 70, 98, 3)).astype(np.float32)
    points = np.asarray([[11.0, 17.0], [60.5, 40.0]], np.float32)
    has_tracks = model.track_head is not None
    run = jax.jit(vggt_jax.reconstruct)
    recon = run(model, images, query_points=points if has_tracks else None)
    for name, value in vars(recon).items():
        if isinstance(value, jax.Array):
            assert np.all(np.isfinite(value)), name
    rotation = np.asarray(recon.camera_from_world[:, :, :3])
    identity = np.broadcast_to(np.eye(3), (2, 3, 3))
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), identity, atol=1e-5)
    assert np.all(np.asarray(recon.depth) > 0) and np.all(np.asarray(recon.depth_confidence) > 1)
