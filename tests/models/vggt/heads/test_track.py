"""The tracker: its embeddings against formulas, and what a track depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vggt_jax.layers.precision import Precision
from vggt_jax.models.vggt.heads.track import Tracker, _flow_embedding, _position_embedding

FLOAT32 = Precision.from_compute_dtype(jnp.float32)
B, S, M, HEIGHT, WIDTH, FEATURES = 2, 4, 3, 9, 11, 8

run = jax.jit(lambda tracker, features, points: tracker(features, points, FLOAT32))


def make_tracker(rngs):
    return Tracker(
        FEATURES,
        12,
        num_heads=3,
        num_virtual_tracks=5,
        corr_levels=3,
        corr_radius=1,
        depth=1,
        num_iterations=2,
        rngs=rngs,
    )


@pytest.fixture(scope="module")
def tracker(randomised):
    return randomised(make_tracker)


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(B, S, HEIGHT, WIDTH, FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def points():
    """In pixels of the images, which are twice as large as the features."""
    return np.random.default_rng(1).uniform(0, 2 * HEIGHT, (B, M, 2)).astype(np.float32)


def moved(found, before):
    """Which of track, visibility and confidence differ, `[3 b s m]`."""
    pairs = zip(map(np.asarray, found), map(np.asarray, before), strict=True)
    track, vis, conf = (a != b for a, b in pairs)
    return np.stack([track.any(axis=-1), vis, conf])


def test_the_first_frame_stays_at_the_query_points(tracker, features, points):
    track, vis, conf = map(np.asarray, run(tracker, features, points))
    assert track.shape == (B, S, M, 2) and vis.shape == conf.shape == (B, S, M)
    np.testing.assert_array_equal(track[:, 0], points)
    assert np.all(np.any(track[:, 1:] != points[:, None], axis=-1))
    assert np.all((0 < vis) & (vis < 1) & (0 < conf) & (conf < 1))


def test_a_frame_moves_the_tracks_in_all_frames_of_its_scene(tracker, features, points):
    changed = features.copy()
    changed[1, 2] += np.random.default_rng(2).normal(size=features.shape[2:])
    found = moved(run(tracker, changed, points), run(tracker, features, points))
    assert not found[:, 0].any()
    assert found[0, 1, 1:].all() and not found[0, 1, 0].any()  # tracks begin where they are told
    assert found[1:, 1].all()


def test_a_point_moves_the_tracks_of_the_others(tracker, features, points):
    changed = points.copy()
    changed[1, 2] += 1.5
    found = moved(run(tracker, features, changed), run(tracker, features, points))
    assert not found[:, 0].any()
    assert found[0, 1, 1:].all() and found[1:, 1].all()


class Echo(nnx.Module):
    """Stands in for the transformer: moves a track by a multiple of two columns of its tokens.

    The columns are the first two behind the flow's embedding in one scene, the next two in the other.
    """

    def __init__(self, factor):
        self.factor = nnx.Param(jnp.float32(factor))

    def __call__(self, tokens, precision, num_frames):
        columns = [tokens[i, ..., FEATURES + 2 * i : FEATURES + 2 * i + 2] for i in range(B)]
        movement = self.factor[...] * jnp.stack(columns)
        return jnp.concatenate([movement, tokens[..., :FEATURES]], axis=-1)


def test_movements_enter_the_tokens_in_units_of_518_pixels(randomised, features, points):
    tracker = randomised(make_tracker)
    flows = []
    for factor in (10, 20):
        tracker.updateformer = Echo(factor)
        track, _, _ = run(tracker, features, points)
        flows.append((np.asarray(track) - points[:, None])[:, 1:] / 2)  # of half the size
    # In the first of two iterations nothing has moved, and the columns hold what is constant, c. Then
    # they hold c + factor * c / 518.
    assert np.all(np.abs(flows[0]) > 1e-3)
    ratio = (2 * 20 + 20**2 / 518) / (2 * 10 + 10**2 / 518)
    np.testing.assert_allclose(flows[1], flows[0] * ratio, rtol=0, atol=1e-4)
    assert np.abs(flows[1] - 2 * flows[0]).max() > 1e-2


def test_the_flow_embedding_is_sines_and_cosines_interleaved():
    dim = 12
    flow = np.random.default_rng(4).uniform(-0.05, 0.05, (5, 2)).astype(np.float32)
    found = jax.jit(_flow_embedding, static_argnums=1)(flow, dim)
    expected = np.empty((5, 2, dim))
    for i, axis, pair in np.ndindex(5, 2, dim // 2):
        angle = float(flow[i, axis]) * 2 * pair * 1000 / dim
        expected[i, axis, 2 * pair : 2 * pair + 2] = np.sin(angle), np.cos(angle)
    # Angles of up to 42 are rounded to 2e-6 twice.
    np.testing.assert_allclose(found, expected.reshape(5, -1), rtol=0, atol=1e-5)


def test_the_position_embedding_is_interpolated_between_whole_positions():
    dim = 24
    points = np.asarray([[2, 1], [0.25, 3.5], [4.75, 0.5], [-2, 9], [6, 4]], np.float32)
    height, width = 5, 7

    def whole(x, y):
        parts = []
        for position in (x, y):
            angles = position / 10000 ** (np.arange(dim // 4) / (dim / 4))
            parts += [*np.sin(angles), *np.cos(angles)]
        return np.asarray(parts)

    expected = []
    for x, y in points.clip(0, [width - 1, height - 1]).astype(np.float64):
        x0, y0 = min(int(x), width - 2), min(int(y), height - 2)
        wx, wy = x - x0, y - y0
        top = (1 - wx) * whole(x0, y0) + wx * whole(x0 + 1, y0)
        bottom = (1 - wx) * whole(x0, y0 + 1) + wx * whole(x0 + 1, y0 + 1)
        expected.append((1 - wy) * top + wy * bottom)
    embed = jax.jit(_position_embedding, static_argnums=(1, 2, 3))
    np.testing.assert_allclose(embed(points, height, width, dim), expected, rtol=0, atol=2e-6)


def test_images_too_small_for_the_pyramid_are_refused(tracker, features, points):
    with pytest.raises(
        ValueError,
        match="image sides of at least 8 pixels for its 3 correlation levels, not 6x22",
    ):
        tracker(jnp.asarray(features[:, :, :3]), jnp.asarray(points), FLOAT32)
    smallest = np.zeros((1, 1, 4, 4, FEATURES), np.float32), np.zeros((1, 1, 2), np.float32)
    shapes = jax.eval_shape(lambda *xs: tracker(*xs, FLOAT32), *smallest)
    assert shapes[0].shape == (1, 1, 1, 2)
