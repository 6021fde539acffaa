"""vggt_jax.checkpoints.wrapping: the model in what training leaves behind, and which files are one."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.sources import find_checkpoint, read_tensors
from vggt_jax.checkpoints.wrapping import without_wrapping
from vggt_jax.models.registry import official_keys

MODEL = {f"aggregator.frame_blocks.{i}.w": np.full(3, i, np.float32) for i in range(4)}
MODEL |= {"camera_head.w": np.ones(2, np.float32)}
OTHER = np.full(3, 99, np.float32)


def prefixed(prefix, model=MODEL):
    return {prefix + key: x for key, x in model.items()}


def averaged(prefix):
    return {prefix + key: OTHER for key in MODEL}


@pytest.mark.parametrize(
    "tensors",
    [
        MODEL,
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("_orig_mod.module."),
        prefixed("model."),
        prefixed("model._orig_mod.module."),
        prefixed("state_dict.net.backbone."),
        prefixed("_forward_module.model."),
        {key.replace("blocks.", "blocks._fsdp_wrapped_module."): x for key, x in MODEL.items()},
        {key.replace(".w", "._orig_mod.w"): x for key, x in MODEL.items()},
        MODEL | averaged("ema."),
        MODEL | averaged("ema_model.module."),
        prefixed("model.") | averaged("model_ema.") | {"model_ema.decay": OTHER},
        prefixed("state_dict.") | averaged("ema_state_dict."),
        prefixed("state_dict.model.") | averaged("state_dict.teacher."),
        prefixed("model.") | averaged("optimizer.state.") | {"epoch": np.asarray(None, object)},
        prefixed("model.") | {"loss.lpips.w": OTHER, "lr_scheduler.last": OTHER},
        MODEL | {"epoch": np.asarray(None, object)},
        averaged("model_swa.") | prefixed("a_longer_name.for_the_model."),
    ],
)
def test_the_model_is_found(tensors):
    found, outside = without_wrapping(tensors, "FILE", official_keys())
    assert found.keys() == MODEL.keys()
    for key, x in MODEL.items():
        np.testing.assert_array_equal(found[key], x)
    assert len(outside) == len(tensors) - len(MODEL) and all(outside.values())


def test_what_is_left_out_is_told_why():
    tensors = prefixed("model.") | averaged("ema.") | averaged("optimizer.state.") | {"x": OTHER}
    _, outside = without_wrapping(tensors, "FILE", official_keys())
    assert "average of the weights" in outside["ema.camera_head.w"]
    assert "optimizer" in outside["optimizer.state.camera_head.w"]
    assert outside["x"] == "not of the model, whose keys begin with model."


def test_two_models_are_not_guessed_at():
    with pytest.raises(CheckpointError, match=r"two models, one\.\* and two\.\*.*--ignore two\."):
        without_wrapping(prefixed("one.") | averaged("two."), "FILE", official_keys())


def test_an_average_alone_is_the_model():
    found, _ = without_wrapping(prefixed("ema."), "FILE", official_keys())
    assert found.keys() == MODEL.keys()


def test_other_keys_stay_as_they_are():
    tensors = {"bert.encoder.w": OTHER, "module.x": OTHER}
    found, outside = without_wrapping(tensors, "FILE", official_keys())
    assert set(found) == {"bert.encoder.w", "x"} and not outside


# Files


def save_shards(folder, pattern="model-{:05d}-of-00002.safetensors"):
    halves = [dict(list(MODEL.items())[:2]), dict(list(MODEL.items())[2:])]
    names = [pattern.format(i + 1) for i in range(2)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, folder / name)
    return {key: name for name, half in zip(names, halves, strict=True) for key in half}


def assert_is_model(source):
    tensors = read_tensors(*find_checkpoint(source).files)
    assert tensors.keys() == MODEL.keys()
    for key, x in MODEL.items():
        np.testing.assert_array_equal(tensors[key], x)


@pytest.mark.parametrize("name", ["weights", "last.ckpt", "epoch=3.bin", "x.safetensors"])
def test_a_folder_with_one_checkpoint_of_any_name(tmp_path, name):
    save_file(MODEL, tmp_path / name)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.json").write_text("{}")
    np.savez(tmp_path / "results.npz", a=OTHER)  # An archive, and no checkpoint.
    (tmp_path / "empty.pt").touch()
    assert_is_model(tmp_path)
    assert_is_model(tmp_path / name)
    save_file(MODEL, tmp_path / "second")
    with pytest.raises(CheckpointError, match=r"holds several checkpoints \(.*second.*name one"):
        find_checkpoint(tmp_path)
    save_file(MODEL, tmp_path / "model.safetensors")
    assert find_checkpoint(tmp_path).files == (tmp_path / "model.safetensors",)


def test_shards(tmp_path):
    index = save_shards(tmp_path)
    assert_is_model(tmp_path)  # Their names say that they are all.
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    assert_is_model(tmp_path)
    assert_is_model(path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002.safetensors is missing"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["[", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}',
     '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": "/etc/passwd"}}', "[" * 100_000],
)  # fmt: skip
def test_an_index_that_cannot_be(tmp_path, text):
    path = tmp_path / "a.index.json"
    path.write_text(text)
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_two_shards_with_one_key(tmp_path):
    for name in "ab":
        save_file(MODEL, tmp_path / name)
    with pytest.raises(CheckpointError, match="b: aggregator.frame_blocks.0.w is in another shard"):
        read_tensors(tmp_path / "a", tmp_path / "b")
