"""The one rule of confidence; how files and the viewer follow it is tested beside them."""

import dataclasses

import numpy as np
import pytest

from vggt_jax import InputError, Reconstruction
from vggt_jax.images.frames import FrameTransform
from vggt_jax.scene import confidence

VGGT, PI3 = "one_plus_exp", "sigmoid"


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (VGGT, {}, (25, 0)),
        (VGGT, {"min_confidence": 3.0}, (0, 3)),
        (VGGT, {"min_confidence": 3.0, "confidence_percentile": 7}, (7, 3)),
        (VGGT, {"confidence_percentile": 0}, (0, 0)),
        (PI3, {}, (0, 0.1)),
        (PI3, {"confidence_percentile": 0}, (0, 0.1)),
        (PI3, {"confidence_percentile": 100}, (100, 0.1)),
        (PI3, {"min_confidence": 0.0}, (0, 0)),
    ],
)
def test_defaults_are_those_of_the_model(kind, given, expected):
    assert confidence.confidence_limits(kind, **given) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"confidence_percentile": -1},
        {"confidence_percentile": 101},
        {"confidence_percentile": float("nan")},
        {"min_confidence": -0.1},
        {"min_confidence": float("nan")},
    ],
)
def test_numbers_out_of_range(given):
    (name,) = given
    with pytest.raises(InputError, match=f"{name}="):
        confidence.confidence_limits(VGGT, **given)


def scene(**fields):
    shape = (2, 3, 5)
    return Reconstruction(
        images=np.zeros((*shape, 3), np.uint8),
        camera_from_world=np.tile(np.eye(3, 4, dtype=np.float32), (2, 1, 1)),
        intrinsics=np.tile(np.eye(3, dtype=np.float32), (2, 1, 1)),
        depth=np.ones(shape, np.float32),
        world_points=np.zeros((*shape, 3), np.float32),
        **fields,
    )


def test_what_is_usable():
    likely = np.full((2, 3, 5), 0.5, np.float32)
    likely[0, 0, :3] = np.nan, np.inf, 0.2
    edges, mask = np.zeros(likely.shape, bool), np.ones(likely.shape, bool)
    edges[0, 1, 1], mask[0, 1, 2] = True, False
    whole = FrameTransform.identity((3, 5))
    padded = FrameTransform(**(vars(whole) | {"content_rows": (1, 3), "content_columns": (0, 4)}))
    recon = scene(depth_confidence=likely, mask=mask, transforms=(whole, padded), names=("a", "b"))
    recon.depth[0, 2, :3] = 0, -1, np.nan
    expected = np.zeros(likely.shape, bool)
    expected[0], expected[1, 1:3, :4] = True, True
    expected[0, 1, 2] = False
    np.testing.assert_array_equal(confidence.allowed_pixels(recon), expected)
    expected[0, 0, :3] = expected[0, 1, 1] = expected[0, 2, :3] = False
    found = confidence.usable_pixels(recon, "depth", min_confidence=0.2, depth_edges=edges)
    np.testing.assert_array_equal(found, expected)


def test_without_confidences_every_allowed_pixel_is_certain():
    recon = scene(mask=np.arange(30).reshape(2, 3, 5) % 2 == 0)
    for source in confidence.point_sources(recon):
        assert (confidence.confidence_of(recon, source) == 1).all()
        found = confidence.usable_pixels(recon, source, min_confidence=0.1)
        np.testing.assert_array_equal(found, recon.mask)
    assert confidence.chosen_source(recon, None) == "depth"
    with pytest.raises(InputError, match="points='head'.*from depth"):
        confidence.chosen_source(dataclasses.replace(recon, world_points=None), "head")
