"""vggt-jax calibrate."""

import json

import numpy as np
import pytest
from PIL import Image

import vggt_jax
from vggt_jax import AttentionPlan, Sampled


@pytest.fixture
def scenes(tmp_path):
    """Two folders of five photographs, one of them with a folder images, of 200 patches each."""
    rng = np.random.default_rng(5)
    folders = [tmp_path / "kitchen", tmp_path / "garden"]
    for folder, inside in zip(folders, (".", "images")):
        (folder / inside).mkdir(parents=True)
        for i in range(5):
            picture = Image.fromarray(rng.integers(0, 256, (140, 224, 3), np.uint8))
            picture.save(folder / inside / f"{i}.png")
    return folders


def test_a_plan_for_two_scenes(run, scenes, tiny, tmp_path, capsys):
    model = tmp_path / "model.safetensors"
    vggt_jax.save_model(tiny(enable_track=False, enable_point=False), model)
    out = tmp_path / "new" / "plan.json"
    options = ("--keys", 128, "--min-tokens", 0, "--seed", 4, "--size", 112, "--out", out)
    assert run("calibrate", model, *scenes, *options) == 0
    about = json.loads(out.read_text())["about"]
    assert about["model"] == str(model) and about["photographs"] == list(map(str, scenes))
    assert about["num_frames"] == [5, 5] and about["num_patches"] == [200, 200]
    assert about["size"] == [[70, 112]] * 2 and about["jax"]
    # Cameras are read from special tokens of the last layer, which see everything; depth is not.
    camera, depth = about["layers"]["camera"], about["layers"]["depth"]
    assert camera[0] > 0.1 and camera[1] < 1e-3 * camera[0] and depth[1] > 1e-5
    assert about["keys"] == [192, 64]
    assert about["by_layer"].keys() == about["alike"].keys() == about["layers"].keys()
    keys = about["keys"] if about["chosen"] == "by_layer" else [128, 128]
    sampled = tuple(Sampled(num_keys=x, seed=4, min_tokens=0) for x in keys)
    assert AttentionPlan.load(out) == AttentionPlan(layers=sampled, min_tokens=0)
    with Image.open(out.with_suffix(".png")) as picture:
        assert len(np.unique(np.asarray(picture)[..., 0])) > 10  # bars of several colours
    said = capsys.readouterr().out
    assert "chosen: " + ("by layer" if keys[0] == 192 else "all alike") in said
    assert f"plan -> {out}" in said


def test_what_is_refused(refused, scenes, checkpoint, tmp_path):
    out, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    calibrate = lambda *args, out=out: refused("calibrate", checkpoint, *args, "--out", out)
    assert "no images given" in calibrate()
    for place in (".", "..", "/"):
        assert "is a folder" in calibrate(scenes[0], out=place)
    assert "nowhere: no such file" in calibrate(scenes[0], tmp_path / "nowhere")
    photographs = sorted(scenes[0].iterdir())
    assert "name folders and videos, each of a scene, or" in calibrate(scenes[1], photographs[0])
    message = calibrate(*photographs[:2])
    assert "scene 0: 2 frames of 28x14, but to calibrate takes three" in message
    message = calibrate(scenes[1], "--keys", 64, "--min-tokens", 0)
    assert "garden/images: 5 frames of 28x14 have 10 patches, no more than --num-keys 64" in message
    message = calibrate(scenes[1], "--keys", 64, "--size", 112)
    assert "tokens, fewer than --min-tokens 4096" in message
    assert "--num-keys 100 must be a multiple of 64" in calibrate(scenes[0], "--keys", 100)
    assert "is to be a plan, such as plan.json" in calibrate(scenes[0], out=picture)
    for path in (out, picture):
        path.write_text("mine")
        assert f"{path.name}: exists" in calibrate(scenes[0])
        assert path.read_text() == "mine"
        path.unlink()
