"""vggt_jax.load_reconstruction: what was written comes back, and what is no result is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import vggt_jax
from vggt_jax import InputError, Reconstruction
from vggt_jax.export import write_predictions
from vggt_jax.images.loading import load_images
from vggt_jax.pipeline import one_scene as inference
from vggt_jax.trunk.attention.block_sparse import AttentionStats

SIZES = [(61, 83), (97, 53), (47, 47)]  # (height, width): landscape, portrait and square


def scene(folder, *, mode, **fields):
    """A reconstruction as `infer` returns it, with random numbers, and its frames."""
    rng = np.random.default_rng(0)
    paths = []
    for i, size in enumerate(SIZES):
        paths.append(folder / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(paths[-1])
    frames = load_images(paths, mode=mode, size=56)
    shape = frames.images.shape[:3]
    recon = Reconstruction(
        images=frames.images,
        camera_from_world=rng.normal(size=(3, 3, 4)).astype(np.float32),
        intrinsics=rng.normal(size=(3, 3, 3)).astype(np.float32),
        depth=rng.random(shape, np.float32),
        depth_confidence=rng.random(shape, np.float32),
        names=frames.names,
        transforms=frames.transforms,
        **fields,
    )
    return recon, frames


def write(folder, recon, frames):
    write_predictions(folder / "predictions.npz", inference.prediction_arrays(recon, frames))


@pytest.mark.parametrize("mode", ["crop", "pad", "budget"])
def test_everything_comes_back(tmp_path, mode):
    rng = np.random.default_rng(1)
    shares = {
        name: rng.random((4, 2), np.float32) for name in ("density", "covered", "saved", "entropy")
    }
    stats = AttentionStats(**shares)
    tracks = rng.normal(size=(3, 5, 2)).astype(np.float32)
    recon, frames = scene(
        tmp_path,
        mode=mode,
        confidence_kind="sigmoid",
        pixel_centre=0.5,
        tracks=tracks,
        attention_stats=stats,
    )
    write(tmp_path / "out", recon, frames)
    for path in (tmp_path / "out", str(tmp_path / "out" / "predictions.npz")):
        found = vggt_jax.load_reconstruction(path)
        for field in dataclasses.fields(Reconstruction):
            value, expected = getattr(found, field.name), getattr(recon, field.name)
            if field.metadata.get("static") or expected is None:
                assert value == expected, field.name
            else:
                jax.tree.map(np.testing.assert_array_equal, value, expected)
        assert found.transforms == frames.transforms
    np.testing.assert_array_equal(found.tracks_in_photographs(), recon.tracks_in_photographs())


def test_what_infer_writes_comes_back(tmp_path, tiny_pi3):
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 42, 3), np.uint8)
    model = tiny_pi3()
    vggt_jax.reconstruct_scenes({"hall": images}, tmp_path, model=model, progress=False)
    found = vggt_jax.load_reconstruction(tmp_path / "hall")
    expected = vggt_jax.infer(images, model=model)
    assert found.names == expected.names and found.transforms == expected.transforms
    assert (found.pixel_centre, found.confidence_kind) == (0.5, "sigmoid")
    np.testing.assert_allclose(found.depth, expected.depth, rtol=1e-3, atol=1e-4)


def test_places_without_results(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "predictions.npz").write_text("no zip file")
    for name, what in [
        ("missing", "no such file or folder"),
        ("empty", "no predictions.npz in this folder"),
        ("text", "is no .npz file, or damaged"),
    ]:
        with pytest.raises(InputError, match=what) as caught:
            vggt_jax.load_reconstruction(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_results_that_cannot_be_used(tmp_path):
    recon, frames = scene(tmp_path, mode="pad")
    arrays = inference.prediction_arrays(recon, frames)
    path = tmp_path / "predictions.npz"

    def refused(arrays, what):
        write_predictions(path, arrays)
        with pytest.raises(InputError, match=what):
            vggt_jax.load_reconstruction(path)

    earlier = {name: x for name, x in arrays.items() if name != "pixel_centre"}
    refused(earlier, "lacks pixel_centre, .*earlier version")
    refused(arrays | {"content": arrays["content"][:2]}, "content is not that of 3 frames")
    refused(arrays | {"confidence_kind": np.array("odds")}, "one_plus_exp, sigmoid")
    write_predictions(path, arrays)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF  # A flipped bit, which the checksums of the format find.
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        vggt_jax.load_reconstruction(path)
