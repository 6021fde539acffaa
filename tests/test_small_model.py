"""The model and the scene that ship with the package: what must be true whichever they are."""

import contextlib
import io
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vggt_jax
from pallas_kernels import tuned
from vggt_jax import weights
from vggt_jax.evaluation import auc_at, pair_errors
from vggt_jax.models.origin import origin_of
from vggt_jax.pipeline import inputs
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.plan import plan_scene

SAMPLE = pathlib.Path(vggt_jax.__file__).parent / "samples" / "cellar"
CHOSEN = (0, 3, 6)  # As many as in examples/infer.py, which shares the program.
LARGEST = 24 * 2**20  # Bytes: a checkout is to stay below 40 MiB.


def true_frames():
    return json.loads((SAMPLE / "cameras.json").read_text(encoding="utf-8"))["frames"]


@pytest.fixture(scope="module")
def truth():
    return [true_frames()[i] for i in CHOSEN]


@pytest.fixture(scope="module")
def run():
    """The scene by the model that is taken where none is named, and what was said meanwhile."""
    inputs._small_model.cache_clear()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        recon = vggt_jax.infer([sorted(SAMPLE.glob("*.jpg"))[i] for i in CHOSEN])
    return recon, said.getvalue()


def test_it_is_small_and_its_heads_fit_the_kernels():
    path = weights.small_model_path()
    assert path.stat().st_size <= LARGEST
    model = vggt_jax.load_model()
    config = model.config
    assert str(model) == repr(model) and len(str(model)) < 200
    assert config.embed_dim // config.num_heads == 64
    assert config.pixel_centre == 0.5
    assert model.frame_blocks.attn.qkv.kernel.dtype == jnp.bfloat16
    card = path.with_name("MODEL_CARD.md").read_text(encoding="utf-8")
    assert "License" in card and "Limits" in card
    # The card is that of this file.
    assert f"{path.stat().st_size / 2**20:.1f} MiB" in card
    millions = sum(x.size for x in jax.tree.leaves(model)) / 1e6
    assert f"{millions:.1f} million parameters" in card


def test_its_plan_is_of_these_weights_and_shares_out_what_auto_samples():
    path = weights.small_plan_path()
    model = vggt_jax.load_model()
    origin = origin_of(model)
    about = json.loads(path.read_text(encoding="utf-8"))["about"]
    # `vggt-jax calibrate` once more makes it fit other weights.
    assert origin is not None and about["checksum"] == origin.checksum
    images = np.zeros((3, 112, 112, 3), np.uint8)
    found, said = [], []
    with tuned.override({"sampled.num_keys": 64, "sampled.min_tokens": 0}):
        auto = Options(model=model, attention="auto")
        alike = Options(model=model, attention=auto.scene_attention)
        for options in (auto, alike):
            scene = inputs.read(images, model, options)
            found.append(plan_scene(scene, model, options, say=said.append).attention)
        assert auto.of_results() != alike.of_results()  # Nor does a store mix the two.
    assert found == [
        vggt_jax.AttentionPlan.load(path).with_mean_keys(64).decided(),
        vggt_jax.Sampled(num_keys=64, min_tokens=0),
    ]
    assert len(found[0].layers) == model.num_layers
    keys = ", ".join(str(layer.num_keys) for layer in found[0].layers)
    assert said == [f"attention: AttentionPlan(keys by layer: {keys})"]


def test_without_a_model_it_runs_and_says_so_once(run, capsys):
    recon, said = run
    assert said.count("\n") == 1 and weights.SAID_WITHOUT_MODEL in said
    model = inputs.load(Options())
    assert capsys.readouterr().err == ""
    assert recon.provenance.is_small and recon.pixel_centre == 0.5
    # Photographs keep their shape, with the longer side of the model's own size.
    _, *size, _ = recon.images.shape
    original = recon.transforms[0].original_size
    assert max(size) == model.config.img_size
    assert size[0] / size[1] == pytest.approx(original[0] / original[1], rel=0.07)


def test_cameras_are_near_the_true_ones(run, truth):
    recon, _ = run
    poses = np.array([frame["camera_from_world"] for frame in truth], np.float32)
    auc = jax.jit(lambda found, truth: auc_at(pair_errors(found, truth), 30))
    # A model of 112 pixels has 0.87, one of 224 pixels 0.91, cameras drawn at random 0.00.
    assert auc(recon.camera_from_world, poses) > 0.7
    scale = recon.transforms[0].scale_x
    focal = np.array([frame["intrinsics_original"][0][0] for frame in truth]) * scale
    np.testing.assert_allclose(recon.intrinsics[:, 0, 0], focal, rtol=0.1)


def test_it_warns_of_photographs_that_are_no_scene(run):
    recon, _ = run
    least = recon.provenance.least_agreement
    assert 0.1 < least < recon.agreement and recon.warning == ""
    # Pieces of the photographs from anywhere, turned.
    rng = np.random.default_rng(0)
    _, *shape, _ = recon.images.shape
    pieces = []
    for i in CHOSEN:
        with Image.open(sorted(SAMPLE.glob("*.jpg"))[i]) as image:
            whole = np.asarray(image)
        place = [rng.integers(0, length - side + 1) for length, side in zip(whole.shape, shape)]
        piece = whole[place[0] :, place[1] :][: shape[0], : shape[1]]
        pieces.append(np.rot90(piece, 2 * rng.integers(2)))
    with pytest.warns(vggt_jax.InputWarning, match="probably no reconstruction"):
        recon = vggt_jax.infer(np.stack(pieces))
    assert recon.agreement < least and "the small model" in recon.warning


def test_points_of_two_frames_agree(run):
    """Depth and cameras fit together: what one frame sees lies where another sees it."""
    recon, _ = run
    _, height, width, _ = recon.images.shape
    points = np.asarray(recon.points_from_depth())
    shifted = recon.camera_from_world[1]
    in_second = points[0] @ shifted[:, :3].T + shifted[:, 3]
    pixels = in_second @ recon.intrinsics[1].T
    xy = pixels[..., :2] / pixels[..., 2:]
    inside = (pixels[..., 2] > 0) & (xy > 0).all(-1) & (xy < (width, height)).all(-1)
    assert inside.mean() > 0.5
    x, y = np.moveaxis(np.floor(xy[inside]).astype(int), -1, 0)
    ratio = in_second[inside][:, 2] / recon.depth[1][y, x]
    # Half of what both see differs by less than a twelfth; what is hidden differs by more. A model of
    # 112 pixels had less than a twentieth, that of 224 pixels has 0.053.
    assert np.median(np.abs(np.log(ratio))) < 1 / 12


def test_the_sample_is_what_its_cameras_say():
    frames = true_frames()
    assert [frame["name"] for frame in frames] == [f"{i:04}.jpg" for i in range(1, 9)]
    for frame in frames:
        with Image.open(SAMPLE / frame["name"]) as image:
            # The principal point is near the middle.
            off = np.array(frame["intrinsics_original"])[:2, 2] - np.array(image.size) / 2
            assert np.abs(off).max() < 0.12 * max(image.size)
            assert max(image.size) == 448
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 500_000
