"""The model and the scene that ship with the package."""

import json
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vggt_jax
from vggt_jax import weights
from vggt_jax.evaluation import auc_at, pair_errors
from vggt_jax.pipeline import inputs

SAMPLE = pathlib.Path(vggt_jax.__file__).parent / "samples" / "cellar"


@pytest.fixture(scope="module")
def model():
    return vggt_jax.load_model()


def poses(path):
    frames = json.loads(path.read_text(encoding="utf-8"))["frames"]
    return np.array([frame["camera_from_world"] for frame in frames], np.float32)


def test_it_is_small_and_its_heads_fit_the_kernels(model):
    path = weights.small_model_path()
    assert path.stat().st_size <= 20 * 2**20
    config = model.config
    assert config.embed_dim // config.num_heads == 64
    assert config.pixel_centre == 0.5 and config.img_size == 112
    assert model.frame_blocks.attn.qkv.kernel.dtype == jnp.bfloat16
    card = path.with_name("MODEL_CARD.md").read_text(encoding="utf-8")
    assert "License" in card and "Limits" in card


def test_without_a_model_it_runs_and_says_so_once(capsys):
    inputs._small_model.cache_clear()
    recon = vggt_jax.infer(SAMPLE)
    assert "small model" in capsys.readouterr().err
    assert recon.images.shape == (8, 112, 112, 3) and recon.pixel_centre == 0.5
    auc = jax.jit(lambda found, truth: auc_at(pair_errors(found, truth), 30))
    # Measured: 0.87. The scene is of a family that training does not see.
    assert auc(recon.camera_from_world, poses(SAMPLE / "cameras.json")) > 0.8
    # Fields of view within a tenth: pictures are squares.
    truth = json.loads((SAMPLE / "cameras.json").read_text())["frames"][0]["intrinsics_original"]
    focal = truth[0][0] * 112 / 448
    np.testing.assert_allclose(recon.intrinsics[:, 0, 0], focal, rtol=0.1)

    vggt_jax.infer(SAMPLE)
    assert capsys.readouterr().err == ""


def test_it_warns_of_photographs_that_are_no_scene(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recon = vggt_jax.infer(SAMPLE, model=model)
    least = recon.provenance.least_agreement
    # Measured: 0.81.
    assert 0.1 < least < 0.7 < recon.agreement and recon.warning == ""
    # Pieces of the photographs from anywhere, turned. Measured: 0.01.
    rng = np.random.default_rng(0)
    pieces = []
    for path in sorted(SAMPLE.glob("*.jpg")):
        y, x = rng.integers(0, 448 - 112, 2)
        with Image.open(path) as image:
            pieces.append(np.rot90(np.asarray(image)[y : y + 112, x : x + 112], rng.integers(4)))
    with pytest.warns(vggt_jax.InputWarning, match="probably no reconstruction"):
        recon = vggt_jax.infer(np.stack(pieces), model=model)
    assert recon.agreement < 0.1 and "the small model" in recon.warning


def test_points_of_two_frames_agree(model):
    """Depth and cameras fit together: what one frame sees lies where another sees it."""
    recon = vggt_jax.infer(SAMPLE, model=model)
    points = np.asarray(recon.points_from_depth())
    shifted = recon.camera_from_world[1]
    in_second = points[0] @ shifted[:, :3].T + shifted[:, 3]
    pixels = in_second @ recon.intrinsics[1].T
    xy = pixels[..., :2] / pixels[..., 2:]
    inside = (pixels[..., 2] > 0) & (xy > 0).all(-1) & (xy < 112).all(-1)
    assert inside.mean() > 0.5
    x, y = np.moveaxis(np.floor(xy[inside]).astype(int), -1, 0)
    ratio = in_second[inside][:, 2] / recon.depth[1][y, x]
    # Half of what both see differs by less than a twentieth; what is hidden differs by more.
    assert np.median(np.abs(np.log(ratio))) < 0.05


def test_the_sample_is_what_its_cameras_say():
    frames = json.loads((SAMPLE / "cameras.json").read_text(encoding="utf-8"))["frames"]
    assert [frame["name"] for frame in frames] == [f"{i:04}.jpg" for i in range(1, 9)]
    for frame in frames:
        with Image.open(SAMPLE / frame["name"]) as image:
            assert image.size == (448, 448)
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 500_000
