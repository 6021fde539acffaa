"""Rendered scenes: reproducible, and pictures, depth and cameras that agree with each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax import geometry
from vggt_jax.synthetic import SPLITS, correspondences, render_scenes
from vggt_jax.synthetic.draws import Draws
from vggt_jax.synthetic.textures import Materials, color_at

pytestmark = pytest.mark.slow

SIZE = (42, 56)


@pytest.fixture(scope="module")
def scenes():
    render = jax.jit(lambda key: render_scenes(key, 3, 4, size=SIZE))
    return render(jax.random.key(5)), render(jax.random.key(5)), render(jax.random.key(6))


def test_scenes_depend_on_the_key_alone(scenes):
    first, again, other = scenes
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (first, again)), strict=True))
    assert not (first.images == other.images).all()
    assert not (first.images[0] == first.images[1]).all()


def test_a_scene_does_not_depend_on_the_batch_and_splits_share_none(scenes):
    one = jax.jit(lambda key: render_scenes(key, 1, 4, size=SIZE))(jax.random.key(5))
    np.testing.assert_allclose(one.depth[0], scenes[0].depth[0], rtol=1e-4, atol=1e-4)
    assert not set(SPLITS["train"]) & set(SPLITS["test"])
    same_families = jax.eval_shape(
        lambda key: render_scenes(key, 1, 4, size=SIZE, split="validation"), jax.random.key(5)
    )
    assert same_families.depth.shape == one.depth.shape


def test_values_are_what_they_are_said_to_be(scenes):
    for batch in scenes:
        images, depth = np.asarray(batch.images), np.asarray(batch.depth)
        assert images.shape == (3, 4, *SIZE, 3) and images.min() >= 0 and images.max() <= 1
        assert images.std(axis=(2, 3)).mean() > 0.08  # something is to be seen
        assert ((depth > 0) == np.asarray(batch.valid)).all() and np.isfinite(depth).all()
        assert depth[depth > 0].min() > 0.1 and depth.max() < 50
        rotation = np.asarray(batch.camera_from_world[..., :3])
        identity = np.broadcast_to(np.eye(3), rotation.shape)
        np.testing.assert_allclose(rotation @ np.swapaxes(rotation, -1, -2), identity, atol=1e-5)
        np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)


def test_points_seen_in_one_frame_lie_at_the_depth_of_another(scenes):
    """Through cameras and depth alone, without the ray caster."""
    batch = scenes[0]
    height, width = SIZE
    points = np.asarray(batch.world_points())[:, 0].reshape(3, -1, 3)
    keep = np.asarray(batch.valid)[:, 0].reshape(3, -1).all(axis=0)
    points = jnp.asarray(points[:, keep])
    track, visible = map(np.asarray, correspondences(batch, points))
    assert visible[:, 0].mean() > 0.99  # the frame that they come from
    rows, columns = np.divmod(np.flatnonzero(keep), width)
    np.testing.assert_allclose(
        track[:, 0], np.broadcast_to(np.stack([columns, rows], -1), track[:, 0].shape), atol=2e-2
    )
    _, depth = geometry.project_points(points[:, None], batch.camera_from_world, batch.intrinsics)
    nearest = np.rint(track).astype(int)
    inside = (nearest >= 0).all(-1) & (nearest < (width, height)).all(-1)
    x, y = np.clip(nearest[..., 0], 0, width - 1), np.clip(nearest[..., 1], 0, height - 1)
    scene, frame = np.ogrid[:3, :4]
    seen = np.asarray(batch.depth)[scene[..., None], frame[..., None], y, x]
    relative = np.asarray(depth) / np.where(seen > 0, seen, np.inf) - 1
    others = inside & (np.arange(4) > 0)[:, None]
    shown, hidden = visible & others, ~visible & others & (np.asarray(depth) > 0)
    assert shown.sum() > 500 and hidden.sum() > 100
    # A pixel off, a slanted surface may be some percent nearer or farther.
    assert (
        np.median(np.abs(relative[shown])) < 0.01 and (np.abs(relative[shown]) < 0.1).mean() > 0.93
    )
    # What is hidden lies behind what is seen there.
    assert (relative[hidden] > -0.05).mean() > 0.95 and np.median(relative[hidden]) > 0.05


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="split='tests' is unknown; known are train"):
        render_scenes(jax.random.key(0), 1, 2, size=SIZE, split="tests")
    with pytest.raises(ValueError, match="'attic'.* unknown"):
        render_scenes(jax.random.key(0), 1, 2, size=SIZE, families=("room", "attic"))


def test_fine_patterns_fade_into_one_color():
    material = Materials(
        kind=jnp.array([1]),
        colors=jnp.array([[[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.2]]]),
        frequency=jnp.array([2.0]),
        offset=jnp.zeros((1, 3)),
        axis=jnp.array([[0.0, 0.0, 1.0]]),
        shine=jnp.zeros(1),
    )
    places = jax.random.uniform(jax.random.key(0), (997, 3), maxval=9.0)
    material = jax.tree.map(lambda x: jnp.broadcast_to(x, (997, *x.shape[1:])), material)
    color = jax.jit(color_at)
    near, far = (np.asarray(color(material, places, jnp.full(997, w))) for w in (1e-3, 10.0))
    assert near.std(axis=0).max() > 0.2 and far.std(axis=0).max() < 1e-5
    np.testing.assert_allclose(far[0], (0.5, 0.45, 0.1), atol=1e-5)  # between both colours


def test_draws():
    draw = Draws(jax.random.key(3), 30_000)
    normal = np.asarray(draw.normal(9973))
    assert abs(normal.mean()) < 0.04 and abs(normal.std() - 1) < 0.03
    numbers = np.asarray(draw.integers(9973, below=7))
    assert numbers.min() == 0 and numbers.max() == 6
    assert abs(np.asarray(draw.chance(0.3, 9973)).mean() - 0.3) < 0.02
    with pytest.raises(ValueError, match="numbers were asked for, of 30000"):
        draw.uniform(9973)
