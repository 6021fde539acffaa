"""Masks: the pixels that they name, in files and arrays, and what they take away from a scene."""

import warnings

import numpy as np
import pytest
from PIL import Image

import vggt_jax
from vggt_jax import InputError, InputWarning, with_mask
from vggt_jax.export import select_points
from vggt_jax.images import masks
from vggt_jax.images.frames import FrameTransform
from vggt_jax.images.loading import load_images

SIZES = [(61, 83), (97, 53), (48, 48)]  # (height, width): landscape, portrait and square


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(7)
    for i, size in enumerate(SIZES):
        Image.fromarray(rng.integers(30, 200, (*size, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("mode", ["crop", "pad", "budget"])
def test_a_mask_follows_its_photograph(photographs, mode):
    """A mask that is the photograph itself, at the centre of every pixel of the frame."""
    frames = load_images(photographs, mode=mode, size=56)
    halves = [np.arange(h * w).reshape(h, w) % w < w // 3 for h, w in SIZES]
    found = masks.load_masks(halves, frames)
    for i, transform in enumerate(frames.transforms):
        height, width = transform.model_size
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
        x, y = np.moveaxis(transform.pixels_to_original(grid), -1, 0)
        h, w = SIZES[i]
        inside = (x > -0.5) & (x < w - 0.5) & (y > -0.5) & (y < h - 0.5)
        np.testing.assert_array_equal(found[i], inside & (np.floor(x + 0.5) < w // 3))
        assert 0.1 < found[i].mean() < 0.4


@pytest.mark.parametrize("name", ["{stem}.png", "{stem}.png.png", "{stem}.PNG"])
def test_masks_are_found_by_name(photographs, tmp_path, name):
    folder = tmp_path / "masks"
    folder.mkdir()
    for i, (h, w) in enumerate(SIZES):
        mask = np.zeros((h, w), np.uint8)
        mask[: h // 2] = i + 1  # Any grey but black is used, as in COLMAP.
        Image.fromarray(mask).save(folder / name.format(stem=i), format="PNG")
    (folder / "notes.txt").write_text("")
    frames = load_images(photographs, mode="budget", size=56)
    found = masks.load_masks(folder, frames)
    height = frames.images.shape[1]
    # The row of a cut through the middle of a pixel may go either way.
    assert found[:, : height // 2 - 1].all() and not found[:, height // 2 + 1 :].any()


def test_a_mask_serves_one_photograph(tmp_path):
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png: would serve several photographs; .*a.jpg.png"):
        masks.find_masks(tmp_path, ["x/a.jpg", "y/a.jpg"])


def test_kinds_of_mask_files(tmp_path):
    shape = (24, 40)
    left = np.zeros(shape, np.uint8)
    left[:, :16] = 255
    rgba = np.dstack([np.full((*shape, 3), 90, np.uint8), left])
    Image.fromarray(left).save(tmp_path / "a.jpg", quality=40)
    Image.fromarray(left > 0).save(tmp_path / "b.png")
    Image.fromarray((left > 0).astype(np.uint16)).save(tmp_path / "c.png")
    Image.fromarray(rgba).save(tmp_path / "d.png")
    Image.fromarray(left).resize((20, 12), Image.Resampling.NEAREST).save(tmp_path / "e.png")
    # Floats, as programs that estimate masks write them: a little of a grey is not black.
    Image.fromarray((left / 255 * 0.25).astype(np.float32)).save(tmp_path / "f.tif")
    paths = [tmp_path / name for name in ("a.jpg", "b.png", "c.png", "d.png", "e.png", "f.tif")]
    photographs = [np.zeros((*shape, 3), np.uint8)] * 8
    frames = load_images(photographs, size=(8, 40), patch_size=8, mode="pad")
    frames = type(frames)(
        images=np.zeros((8, *shape, 3), np.uint8),
        names=frames.names,
        transforms=(FrameTransform.identity(shape),) * 8,
    )
    found = masks.load_masks([*paths, left.astype(np.float32), Image.fromarray(left)], frames)
    for mask in found:
        np.testing.assert_array_equal(mask, left > 0)


def test_background_by_colour():
    images = np.full((1, 5, 4, 3), 120, np.uint8)
    images[0, 0, :3] = [[241, 255, 241], [240, 255, 255], [255, 255, 255]]
    images[0, 4, :3] = [[5, 5, 5], [5, 5, 6], [0, 0, 0]]
    white, black = masks.background_mask(images, "white"), masks.background_mask(images, ["black"])
    assert np.argwhere(~white).tolist() == [[0, 0, 0], [0, 0, 2]]
    assert np.argwhere(~black).tolist() == [[0, 4, 0], [0, 4, 2]]
    both = masks.background_mask(images.astype(np.float32) / 255, {"white", "black"})
    np.testing.assert_array_equal(both, white & black)

    images[0] = (60, 110, 40)
    images[0, :3, 0] = (100, 150, 220)  # Blue from the upper edge down.
    images[0, :2, 1] = (230, 235, 240)  # A cloud.
    images[0, 1:, 2] = (100, 150, 220)  # Water below a tree.
    sky = masks.background_mask(images, ["sky"])
    assert np.argwhere(~sky).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 2, 0]]
    with pytest.raises(InputError, match="'grey' is unknown; use white, black, sky"):
        masks.background_mask(images, ["grey"])


def test_masked_pixels_have_no_points_and_no_confidence(tiny):
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (3, 28, 42, 3), np.uint8)
    mask = rng.random((3, 28, 42)) < 0.6
    plain = vggt_jax.infer(images, model=tiny())
    masked = vggt_jax.infer(images, model=tiny(), masks=mask)
    np.testing.assert_array_equal(masked.mask, mask)
    np.testing.assert_array_equal(masked.depth, plain.depth)
    for name in ("depth_confidence", "world_points_confidence"):
        expected = np.where(mask, getattr(plain, name), 0)
        np.testing.assert_array_equal(getattr(masked, name), expected, err_msg=name)
    for points, expected in [
        (masked.world_points, plain.world_points),
        (masked.points_from_depth(), plain.points_from_depth()),
    ]:
        assert np.isnan(points[~mask]).all()
        np.testing.assert_array_equal(points[mask], expected[mask])
        chosen, _ = select_points(
            points, masked.depth_confidence, images, confidence_percentile=0.0
        )
        assert len(chosen) == mask.sum()
    twice = with_mask(masked, ~mask)
    assert not twice.mask.any() and plain.mask is None


def test_edges_of_depth_for_vggt(tiny):
    images = np.random.default_rng(7).integers(0, 256, (2, 28, 42, 3), np.uint8)
    recon = vggt_jax.infer(images, model=tiny(), mask_edges=True)
    assert recon.depth_edges.shape == recon.depth.shape and recon.depth_edges.dtype == bool
    padded = np.pad(recon.depth, ((0, 0), (1, 1), (1, 1)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    jump = windows.max((-2, -1)) - windows.min((-2, -1))
    np.testing.assert_array_equal(recon.depth_edges, jump / recon.depth > 0.03)
    assert vggt_jax.infer(images, model=tiny()).depth_edges is None


def test_masks_that_do_not_fit(photographs, tmp_path):
    frames = load_images(photographs, mode="crop", size=56)
    folder = tmp_path / "masks"
    folder.mkdir()
    whole = [np.ones(size, np.uint8) for size in SIZES]
    for name in ("0.png", "0.jpg", "1.png"):
        Image.fromarray(whole[0]).save(folder / name)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for given, what in [
        (folder, "2 masks for 0.png; there must be one, such as 0.png or 0.png.png"),
        (tmp_path / "nowhere", "cannot be read"),
        (whole[:2], "2 masks for 3 photographs"),
        ([whole[0], whole[0], whole[2]], r"mask 1 .*is 83x61 pixels .*and 1.png 53x97"),
        ([text, *whole[1:]], "text.png: not an image"),
        ([tmp_path / "none.png", *whole[1:]], "none.png: no such file"),
        ([whole[0][..., None], *whole[1:]], "must be .height width."),
        (3, "type int"),
    ]:
        with pytest.raises(InputError, match=what) as caught:
            masks.load_masks(given, frames)
        assert "\n" not in str(caught.value)
    (folder / "0.jpg").unlink()
    with pytest.raises(InputError, match="no mask for 2.png"):
        masks.load_masks(folder, frames)


def test_photographs_are_no_masks(tmp_path):
    """Labels in a few colours are; they say nothing."""
    rng = np.random.default_rng(1)
    photograph = rng.integers(0, 256, (40, 60, 3), np.uint8)
    frames = load_images([photograph], size=28, mode="pad")
    labels = np.array([[0, 0, 0], [255, 0, 0], [0, 90, 200]], np.uint8)
    grey = np.repeat(rng.integers(0, 256, (40, 60, 1), np.uint8), 3, axis=2)
    for i, pixels in enumerate([labels[rng.integers(0, 3, (40, 60))], grey]):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            masks.load_masks([tmp_path / f"{i}.png"], frames)
    Image.fromarray(photograph).save(tmp_path / "photograph.png")
    with pytest.warns(
        InputWarning, match=r"1 mask \(of 0000\) with as many colours as a photograph"
    ):
        masks.load_masks([tmp_path / "photograph.png"], frames)
