"""Errors of depth: against plain loops over pixels, and by hand."""

import itertools

import jax
import numpy as np
import pytest

from vggt_jax import evaluation

# Compiled whole: one program instead of one for each operation.
align_depth = jax.jit(evaluation.align_depth)
compiled_metrics = jax.jit(evaluation.depth_metrics, static_argnames=("alignment", "per"))


def depth_metrics(*maps, **options):
    """In arrays of NumPy, whose operations are not compiled."""
    return jax.device_get(compiled_metrics(*maps, **options))


B, S, H, W = 2, 3, 11, 13


def depths(seed):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 8, (B, S, H, W))
    depth = (0.3 * truth + 0.4) * np.exp(0.3 * rng.normal(size=truth.shape))
    truth[rng.random(truth.shape) < 0.1] = 0  # sky
    truth[0, 1, :3] = np.nan
    valid = rng.random(truth.shape) < 0.8
    return depth.astype(np.float32), truth.astype(np.float32), valid


def expected_metrics(depth, truth, valid, alignment, per):
    """Of one scene, in float64, pixel by pixel."""
    frames = [
        [(d, t) for d, t, v in zip(*(x.ravel() for x in frame), strict=True) if v and t > 0]
        for frame in zip(depth, truth, valid, strict=True)
    ]
    groups = frames if per == "frame" else [list(itertools.chain(*frames))]
    errors, ratios = [], []
    for group in groups:
        d, t = np.array(group, np.float64).T
        if alignment == "median":
            d = d * np.median(t) / np.median(d)
        elif alignment == "scale":
            d = d * np.linalg.lstsq(d[:, None], t)[0][0]
        elif alignment == "scale_and_shift":
            d = np.polyval(np.polyfit(d, t, 1), d)
        errors += [abs(a - b) / b for a, b in zip(d, t, strict=True)]
        ratios += [max(a / b, b / a) if a > 0 else np.inf for a, b in zip(d, t, strict=True)]
    shares = [np.mean(np.array(ratios) < 1.25**k) for k in (1, 2, 3)]
    return np.mean(errors), *shares, len(errors)


@pytest.mark.parametrize("per", ["scene", "frame"])
@pytest.mark.parametrize("alignment", ["none", "median", "scale", "scale_and_shift"])
def test_metrics(alignment, per):
    depth, truth, valid = depths(0)
    found = depth_metrics(depth, truth, valid, alignment=alignment, per=per)
    for scene in range(B):
        expected = expected_metrics(depth[scene], truth[scene], valid[scene], alignment, per)
        result = [x[scene] for x in vars(found).values()]
        np.testing.assert_allclose(result, expected, rtol=1e-5)
        assert 0 < expected[1] < expected[3] <= 1


def test_by_hand():
    truth = np.array([[[1.0, 2.0, 4.0, 0.0]]], np.float32)
    depth = np.array([[[1.2, 1.5, 8.0, 3.0]]], np.float32)
    found = depth_metrics(depth, truth, alignment="none")
    np.testing.assert_allclose(found.abs_rel, (0.2 + 0.25 + 1) / 3, rtol=1e-6)
    # Ratios 1.2, 4/3 and 2, against 1.25, 1.5625 and 1.953.
    np.testing.assert_allclose([found.delta1, found.delta2, found.delta3], [1 / 3, 2 / 3, 2 / 3])
    assert found.num_pixels == 3
    # Medians 2 and 1.5: factor 4/3.
    np.testing.assert_allclose(
        np.asarray(align_depth(depth, truth))[0, 0], depth[0, 0] * 4 / 3, rtol=1e-6
    )


def test_scale_and_shift_do_not_matter_where_they_are_fitted():
    _, truth, valid = depths(1)
    found = depth_metrics(5 * truth, truth, valid)
    assert np.max(found.abs_rel) < 1e-6 and np.all(found.delta1 == 1)
    found = depth_metrics(5 * truth + 2, truth, valid, alignment="scale_and_shift")
    assert np.max(found.abs_rel) < 1e-5
    by_frame = truth * np.array([1, 2, 3], np.float32)[:, None, None]
    assert np.max(depth_metrics(by_frame, truth, valid, per="frame").abs_rel) < 1e-6
    assert np.min(depth_metrics(by_frame, truth, valid).abs_rel) > 0.1


def test_predictions_that_are_no_depth():
    truth = np.full((1, 2, 3), 2.0, np.float32)
    depth = truth.copy()
    depth[0, 0, 0] = -2
    found = depth_metrics(depth, truth)
    np.testing.assert_allclose([found.abs_rel, found.delta3], [2 / 6, 5 / 6], rtol=1e-6)
    depth[0, 0, 1] = np.nan
    found = depth_metrics(depth, truth)
    assert found.abs_rel == np.inf
    np.testing.assert_allclose(found.delta1, 4 / 6, rtol=1e-6)
    for alignment in ("none", "median", "scale", "scale_and_shift"):
        found = depth_metrics(depth * np.nan, truth, alignment=alignment)
        assert found.abs_rel == np.inf and found.delta3 == 0
    # Where that pixel does not count, it is as if it were not there.
    assert depth_metrics(depth, truth, depth > 0).abs_rel == 0


def test_without_a_valid_pixel_nothing_is_defined():
    depth, truth, valid = depths(2)
    valid[1] = False
    found = depth_metrics(depth, truth, valid)
    assert np.isfinite(found.abs_rel[0]) and np.isnan(found.abs_rel[1])
    assert np.isnan(found.delta1[1]) and found.num_pixels[1] == 0
    # A frame without any is no obstacle to the others.
    valid = np.ones_like(valid)
    valid[0, 1] = False
    found = depth_metrics(depth, truth, valid, per="frame")
    expected = expected_metrics(depth[0], truth[0], valid[0] & (truth[0] > 0), "median", "scene")
    assert np.isfinite(found.abs_rel).all() and found.num_pixels[0] == expected[-1]


def test_arguments_are_checked():
    depth, truth, valid = depths(3)
    with pytest.raises(ValueError, match="alignment='mean' is unknown; use one of"):
        depth_metrics(depth, truth, valid, alignment="mean")
    with pytest.raises(ValueError, match="per='pixel' is unknown"):
        depth_metrics(depth, truth, valid, per="pixel")
    with pytest.raises(ValueError, match=r"must be \[... s height width\] alike"):
        depth_metrics(depth, truth[:, :2], valid)
