"""vggt_jax.viewer.layers: which points each position of the controls shows."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax import InputError, Reconstruction, geometry
from vggt_jax.export import scene_points, select_points
from vggt_jax.images.frames import FrameTransform
from vggt_jax.scene.confidence import confidence_limits
from vggt_jax.viewer.layers import (
    MOST_CHUNKS,
    cut_points,
    depth_edges,
    point_sources,
)

S, HEIGHT, WIDTH = 3, 7, 11


def scene(seed=0, **fields):
    rng = np.random.default_rng(seed)
    pose = np.broadcast_to(np.eye(3, 4, dtype=np.float32), (S, 3, 4)).copy()
    pose[:, :, 3] = rng.normal(size=(S, 3))
    intrinsics = np.array([[20, 0, WIDTH / 2], [0, 22, HEIGHT / 2], [0, 0, 1]], np.float32)
    return Reconstruction(
        images=rng.integers(0, 256, (S, HEIGHT, WIDTH, 3), dtype=np.uint8),
        camera_from_world=pose,
        intrinsics=np.broadcast_to(intrinsics, (S, 3, 3)).copy(),
        depth=rng.uniform(1, 2, (S, HEIGHT, WIDTH)).astype(np.float32),
        depth_confidence=rng.uniform(1, 9, (S, HEIGHT, WIDTH)).astype(np.float32),
        world_points=rng.normal(size=(S, HEIGHT, WIDTH, 3)).astype(np.float32),
        world_points_confidence=rng.integers(1, 9, (S, HEIGHT, WIDTH)).astype(np.float32),
        **fields,
    )


def rows(*arrays):
    """Points with their colours, without order."""
    return sorted(map(tuple, np.concatenate(arrays, axis=1).tolist()))


@pytest.mark.parametrize("percentile", [0, 1, 25, 50, 77, 99, 100])
def test_the_slider_shows_what_the_point_cloud_selects(percentile):
    recon = scene()
    # Confidences of the point map are eight values: ties fall on one side.
    sources = {
        "depth": (recon.points_from_depth(), recon.depth_confidence),
        "head": (recon.world_points, recon.world_points_confidence),
    }
    for source, (points, confidence) in sources.items():
        layers = cut_points(recon, source=source)
        assert layers.step == 1
        shown = layers.shown(percentile, range(S))
        expected = select_points(points, confidence, recon.images, confidence_percentile=percentile)
        assert rows(layers.points[shown], layers.colors[shown]) == rows(*expected)
        threshold = layers.thresholds[layers.layer_of(percentile)]
        assert threshold == confidence[confidence >= threshold].min()


def test_frames_are_shown_by_themselves():
    recon = scene()
    layers = cut_points(recon, source="head")
    kept = recon.world_points_confidence >= layers.thresholds[40]
    for frames in ([0], [1], [2], [0, 2], []):
        shown = layers.shown(40, frames)
        expected = [recon.world_points[i][kept[i]] for i in frames]
        assert rows(layers.points[shown]) == sorted(
            tuple(x) for part in expected for x in part.tolist()
        )
    # Chunks are the whole, once.
    chunks = [layers.chunk(i, j) for i in range(S) for j in range(101)]
    assert [chunk.start for chunk in chunks[1:]] == [chunk.stop for chunk in chunks[:-1]]
    assert (chunks[0].start, chunks[-1].stop) == (0, S * HEIGHT * WIDTH)


def test_padding_and_what_is_no_number_are_left_out():
    transform = FrameTransform.identity((HEIGHT, WIDTH))
    padded = dataclasses.replace(transform, content_rows=(2, 6), content_columns=(1, 9))
    recon = scene(names=("0", "1", "2"), transforms=(transform, padded, transform))
    recon.depth[0, 3, 4] = np.nan
    recon.depth[0, 3, 5] = np.inf
    recon.depth[0, 3, 6] = -1
    recon.depth_confidence[2, 0, 0] = np.nan
    layers = cut_points(recon, source="depth")
    assert np.isfinite(layers.points).all()
    counts = np.diff(layers.ends[:, -1], prepend=0)
    assert counts.tolist() == [HEIGHT * WIDTH - 3, 4 * 8, HEIGHT * WIDTH - 1]
    inside = recon.points_from_depth()[1, 2:6, 1:9].reshape(-1, 3)
    assert rows(layers.points[layers.shown(0, [1])]) == rows(inside)


def test_edges_of_depth_are_left_out_where_asked():
    recon = scene()
    edges = np.asarray(geometry.depth_edges(jnp.asarray(recon.depth)))
    np.testing.assert_array_equal(depth_edges(recon), edges)
    own = np.zeros_like(edges)
    own[1, 2] = True
    with_own = dataclasses.replace(recon, depth_edges=own)
    for other, expected in ((recon, edges), (with_own, own)):
        layers = cut_points(other, source="head", hide_edges=True)
        assert rows(layers.points) == rows(other.world_points[~expected])
        # Percentiles are those of what is left.
        confidence = other.world_points_confidence[~expected]
        if confidence.size:
            assert layers.thresholds[50] == np.percentile(confidence, 50, method="lower")
    with pytest.raises(InputError, match="need a reconstruction with depth"):
        depth_edges(dataclasses.replace(recon, depth=None))


def test_too_many_points_are_drawn_alike():
    recon = scene()
    whole = cut_points(recon, source="head")
    layers = cut_points(recon, source="head", max_points=50)
    assert len(layers.points) == 50 and layers.candidates == S * HEIGHT * WIDTH
    # Thresholds do not depend on the draw.
    np.testing.assert_array_equal(layers.thresholds, whole.thresholds)
    assert set(rows(layers.points)) < set(rows(whole.points))
    assert rows(cut_points(recon, source="head", max_points=50).points) == rows(layers.points)
    assert rows(cut_points(recon, source="head", max_points=50, seed=1).points) != rows(
        layers.points
    )


@pytest.mark.parametrize(
    ("frames", "step"), [(1, 1), (24, 1), (25, 2.5), (60, 2.5), (61, 5), (119, 5), (120, 12.5)]
)
def test_longer_scenes_have_fewer_steps(frames, step):
    layers = cut_points(
        Reconstruction(
            images=np.zeros((frames, 1, 1, 3), np.uint8),
            world_points=np.zeros((frames, 1, 1, 3), np.float32),
        ),
        source="head",
    )
    assert layers.step == step and layers.ends.size <= MOST_CHUNKS
    assert layers.percentiles[layers.layer_of(25)] == 25
    assert [layers.layer_of(x) for x in (0, 100, 100 - step / 3)] == [
        0,
        *[len(layers.percentiles) - 1] * 2,
    ]


def test_sources_come_best_first():
    recon = scene()
    assert point_sources(recon) == ("depth", "head")
    assert point_sources(dataclasses.replace(recon, confidence_kind="sigmoid")) == ("head", "depth")
    told = dataclasses.replace(recon, best_points="head")
    assert point_sources(told) == ("head", "depth")
    assert point_sources(dataclasses.replace(told, world_points=None)) == ("depth",)
    unlike = dataclasses.replace(recon, best_points="depth", confidence_kind="sigmoid")
    assert point_sources(unlike) == ("depth", "head")
    assert point_sources(dataclasses.replace(recon, depth=None)) == ("head",)
    nothing = Reconstruction(images=recon.images)
    assert point_sources(nothing) == ()
    with pytest.raises(InputError, match="no points from 'depth', only from nothing"):
        cut_points(nothing, source="depth")
    with pytest.raises(InputError, match="max_points=0 must be at least 1"):
        cut_points(recon, source="depth", max_points=0)


@pytest.mark.parametrize("kind", ["one_plus_exp", "sigmoid"])
@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"confidence_percentile": 0},
        {"confidence_percentile": 40},
        {"min_confidence": 0.0},
        {"min_confidence": 0.2},
        {"min_confidence": 0.2, "confidence_percentile": 40},
    ],
)
def test_the_rule_is_that_of_exports(kind, rule):
    # 30 % of the confidences lie below 0.1.
    confidence = np.linspace(0.0, 1 / 3, S * HEIGHT * WIDTH).reshape(S, HEIGHT, WIDTH)
    mask = np.ones(confidence.shape, bool)
    mask[1, :, 3] = False
    recon = scene(mask=mask, depth_edges=np.zeros_like(mask), confidence_kind=kind)
    recon = dataclasses.replace(recon, world_points_confidence=confidence.astype(np.float32))
    recon.depth_edges[2, 4] = True
    smallest = rule.get("min_confidence")
    layers = cut_points(recon, source="head", min_confidence=smallest, hide_edges=True)
    percentile, _ = confidence_limits(kind, **rule)
    shown = layers.shown(percentile, range(S))
    expected = scene_points(recon, points="head", **rule)
    assert rows(layers.points[shown], layers.colors[shown]) == rows(*expected)
    assert 0 < shown.sum() < mask.sum()


def test_a_scene_without_any_usable_point():
    recon = scene()
    recon.depth[:] = np.nan
    layers = cut_points(recon, source="depth")
    assert layers.points.shape == layers.colors.shape == (0, 3)
    assert not layers.shown(0, range(S)).any()
