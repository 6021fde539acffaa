import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.models.vggt.outputs import VGGTOutput
from vggt_jax.training.normalization import Targets
from vggt_jax.training.validation import scene_metrics


def encoding(position, degrees):
    """Camera at `position`, turned about z."""
    half = np.radians(degrees) / 2
    c, s = np.cos(2 * half), np.sin(2 * half)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return np.concatenate([-rotation @ position, [0, 0, np.sin(half), np.cos(half), 1, 1]])


def test_metrics_by_hand():
    places = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.5]], float)
    true = np.stack([encoding(place, 0) for place in places])[None]
    turns = zip(places, (0, 0, 9.5), strict=True)
    turned = np.stack([encoding(place, turn) for place, turn in turns])[None]
    depth = np.array([1.0, 2, 4, 8, 5]).reshape(1, 1, 1, 5)
    predicted = np.array([2.0, 4, 8, 8, 77]).reshape(1, 1, 1, 5)
    valid = np.array([1, 1, 1, 1, 0], bool).reshape(1, 1, 1, 5)
    arrays = lambda *xs: [jnp.asarray(np.repeat(x, 2, axis=0), jnp.float32) for x in xs]
    true, turned, depth, predicted = arrays(true, turned, depth, predicted)
    targets = Targets(
        pose_enc=true,
        depth=depth,
        world_points=jnp.zeros((2, 1, 1, 5, 3)),
        valid=jnp.asarray(np.concatenate([valid, valid & False])),
        has_points=jnp.array([True, False]),
        scale=jnp.ones(2),
    )
    output = VGGTOutput(pose_enc=turned, depth=predicted[..., None])
    found = jax.jit(scene_metrics)(output, targets)
    # Pairs (0, 1): no error. (0, 2) and (1, 2): turned by 9.5 degrees; the directions of their
    # translations turn with the camera, by less. Below 10, 11, ..., 30 degrees: 21 of 30.
    assert found["auc30"] == pytest.approx((1 + 2 * 21 / 30) / 3, abs=1e-6)
    # Median of the truth 3, of the prediction 6: scale 1/2, so that only the fourth is off, by
    # half. The second scene has no valid pixel and does not count.
    assert found["abs_rel"] == pytest.approx(0.125)
    assert scene_metrics(VGGTOutput(), targets) == {}
