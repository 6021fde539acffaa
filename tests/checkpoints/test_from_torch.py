"""Conversion of the toy end to end: values, layouts, types, reports, failures, the command line."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from vggt_jax import VGGTConfig
from vggt_jax.checkpoints import read
from vggt_jax.checkpoints.rules import expand
from vggt_jax.models.conversion import convert, load_official, main, native_shapes
from vggt_jax.models.vggt.keys import rules

MASK_TOKEN = "aggregator.patch_embed.mask_token"
ROOT = Path(__file__).parents[2]


def test_every_value_arrives(toy, toy_config, toy_tensors):
    params, config, _ = load_official(toy)
    assert config == VGGTConfig.from_dict(toy_config).to_dict()
    assert {name: x.shape for name, x in params.items()} == native_shapes(toy_config)
    for key, slot in expand(rules(VGGTConfig(**config))).items():
        part = params[slot.rule.native][slot.index]
        np.testing.assert_array_equal(np.sort(part, None), np.sort(toy_tensors[key], None), key)


def test_layouts(toy, toy_tensors):
    params, _, _ = load_official(toy)

    def same(name, index, key, official):
        np.testing.assert_array_equal(params[name][index], official(toy_tensors[key]), name)

    trunk = "aggregator.frame_blocks.3"
    same("camera_token", (1, 0), "aggregator.camera_token", lambda x: x[0, 1, 0])
    same("register_token", 0, "aggregator.register_token", lambda x: x[0, 0])
    same("encoder.pos_embed", 25, "aggregator.patch_embed.pos_embed", lambda x: x[0, 25])
    same("frame_blocks.attn.qkv.kernel", (3, 5), f"{trunk}.attn.qkv.weight", lambda x: x[:, 5])
    same("frame_blocks.attn.qkv.bias", 3, f"{trunk}.attn.qkv.bias", lambda x: x)
    same("frame_blocks.attn.q_norm.scale", 3, f"{trunk}.attn.q_norm.weight", lambda x: x)
    same("frame_blocks.ls2", 3, f"{trunk}.ls2.gamma", lambda x: x)
    key = "aggregator.patch_embed.patch_embed.proj.weight"
    same("encoder.patch_embed.kernel", (2, 11, 1), key, lambda x: x[:, 1, 2, 11])
    same("camera_head.empty_pose_tokens", (), "camera_head.empty_pose_tokens", lambda x: x[0, 0])
    key = "camera_head.poseLN_modulation.1.weight"
    same("camera_head.modulation.kernel", (), key, lambda x: x.T)
    key = "depth_head.projects.1.weight"
    same("depth_head.projects.1.kernel", (), key, lambda x: x[:, :, 0, 0].T)
    key = "depth_head.resize_layers.0.weight"
    same("depth_head.resize_0.kernel", (7, 1, 3), key, lambda x: x[7, :, 1, 3])
    key = "depth_head.resize_layers.3.weight"
    same("depth_head.resize_3.kernel", (0, 2, 5), key, lambda x: x[:, 5, 0, 2])
    key = "point_head.scratch.refinenet2.resConfUnit1.conv2.weight"
    same(
        "point_head.refinenet2.res_conf_unit1.conv2.kernel", (0, 2, 5), key, lambda x: x[:, 5, 0, 2]
    )
    key = "point_head.scratch.output_conv2.2.weight"
    same("point_head.output_conv2_2.kernel", (), key, lambda x: x[:, :, 0, 0].T)
    tracker = "track_head.tracker.updateformer"
    same(f"{tracker}.virtual_tracks", 63, f"{tracker}.virual_tracks", lambda x: x[0, 63, 0])
    blocks = f"{tracker}.space_virtual2point_blocks"
    key = f"{blocks}.1.cross_attn.in_proj_weight"
    same(f"{blocks}.cross_attn.in_proj.kernel", (1, 5), key, lambda x: x[:, 5])
    key = f"{blocks}.1.norm_context.weight"
    same(f"{blocks}.norm_context.scale", 1, key, lambda x: x)


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_conversion_is_written_with_its_report(tmp_path, toy, name):
    report = convert(toy, tmp_path / name)
    params, document = read(tmp_path / name, verify=True)
    expected, config, _ = load_official(toy)
    assert document == {
        "format": "vggt-jax",
        "version": 1,
        "model": "vggt",
        "config": config,
        "checksum": report.checksum,
    }
    assert params.keys() == expected.keys()
    for key, x in expected.items():
        assert params[key].dtype == x.dtype
        np.testing.assert_array_equal(params[key], x, key)
    assert report.keys_read == 532
    assert list(report.ignored) == [MASK_TOKEN]
    assert report.parameters == len(expected)
    assert report.dtypes == {"float32": 1_504_828}
    assert report.recognised_as == "configuration vggt_toy.json, found beside the checkpoint"
    if name == "folder":
        assert json.loads((tmp_path / name / "report.json").read_text()) == report.to_dict()


def test_the_report_reads_well(tmp_path, toy):
    lines = str(convert(toy, tmp_path / "out")).splitlines()
    assert lines[0] == f"{toy} -> {tmp_path / 'out'}"
    assert "532 read, 1 ignored" in lines[2]
    assert f"{MASK_TOKEN}: masked-image training only" in lines[3]
    assert "344 arrays, 1,504,828 values (1,504,828 in float32)" in lines[4]


def test_a_given_configuration_is_used(tmp_path, save, toy_tensors, toy_config):
    path = save(toy_tensors)
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="not of the released size"):
        load_official(path)
    config_path = tmp_path / "sizes.json"
    config_path.write_text(json.dumps(toy_config))
    _, config, report = load_official(path, config_path)
    assert report.recognised_as == f"configuration {config_path}"
    assert load_official(path, toy_config)[1] == config


def test_a_head_that_is_off_is_left_out_with_the_reason(toy, toy_config):
    params, _, report = load_official(toy, toy_config | {"enable_track": False})
    assert not any(name.startswith("track_head.") for name in params)
    reasons = set(report.ignored.values())
    assert "the configuration says enable_track=false" in reasons and len(reasons) == 2
    assert report.keys_read + len(report.ignored) == 533


def test_extra_keys_are_listed_or_ignored(save, toy_tensors):
    extra = {f"nvs_head.{i}.weight": np.zeros((i + 1, 3), np.float32) for i in range(3)}
    path = save(toy_tensors | extra)
    with pytest.raises(ValueError, match="3 problems") as raised:
        load_official(path)
    assert all(key in str(raised.value) for key in extra)
    _, _, report = load_official(path, ignore=["nvs_head."])
    assert {key: report.ignored[key] for key in extra} == dict.fromkeys(extra, "--ignore nvs_head.")
    with pytest.raises(ValueError, match="no key begins with 'nvs_tail'"):
        load_official(path, ignore=["nvs_head.", "nvs_tail"])


def test_a_prefix_before_all_keys_is_undone(save, toy, toy_tensors):
    path = save({f"module.{key}": x for key, x in toy_tensors.items()})
    assert load_official(path)[2].checksum == load_official(toy)[2].checksum


def test_all_problems_of_a_checkpoint_are_listed(save, toy_tensors):
    x = {key: np.array(value) for key, value in toy_tensors.items()}
    for layer in range(2):
        del x[f"camera_head.trunk.{layer}.norm1.bias"]
    x["aggregator.camera_token"] = np.zeros((1, 2, 2, 64), np.float32)
    x["depth_head.norm.bias"] = np.zeros(128, np.int32)
    x["point_head.norm.weight"][3] = np.nan
    x["teacher.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="6 problems") as raised:
        load_official(save(x))
    lines = str(raised.value).splitlines()
    assert [line.split()[0] for line in lines[1:7]] == [
        "missing:", "missing:", "unexpected:", "misshapen:", "not", "not"
    ]  # fmt: skip
    assert "aggregator.camera_token is [1, 2, 2, 64], expected [1, 2, 1, 64]" in lines[4]
    assert "point_head.norm.weight has 1 NaN and 0 infinite of 128 values" in lines[6]


def test_bfloat16_is_stored_for_trunk_kernels_alone(tmp_path, toy):
    exact, _, _ = load_official(toy)
    report = convert(toy, tmp_path / "out", dtype="bfloat16")
    params, _ = read(tmp_path / "out", verify=True)
    stacks = ("encoder.blocks", "frame_blocks", "global_blocks")
    products = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    kernels = {f"{stack}.{product}.kernel" for stack in stacks for product in products}
    kernels.add("encoder.patch_embed.kernel")
    rounded = {name for name, x in params.items() if x.dtype == ml_dtypes.bfloat16}
    assert rounded == kernels
    for name, x in params.items():
        np.testing.assert_array_equal(x, exact[name].astype(x.dtype), name)
    size = sum(exact[name].size for name in kernels)
    assert report.dtypes == {"float32": 1_504_828 - size, "bfloat16": size}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_half_precision_is_kept_or_widened_exactly(tmp_path, save, toy_tensors, dtype, name):
    path = save({key: x.astype(dtype) for key, x in toy_tensors.items()})
    convert(path, tmp_path / name)
    kept, _ = read(tmp_path / name, verify=True)
    widened, _, _ = load_official(path, dtype="float32")
    for key, x in widened.items():
        assert kept[key].dtype == dtype and x.dtype == np.float32
        np.testing.assert_array_equal(kept[key].astype(np.float32), x, key)


def test_an_unknown_type_is_refused(toy):
    with pytest.raises(
        ValueError, match="dtype='float16' must be None or one of float32, bfloat16"
    ):
        load_official(toy, dtype="float16")


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_a_converted_checkpoint_is_not_converted_again(tmp_path, toy, name):
    convert(toy, tmp_path / name)
    with pytest.raises(ValueError, match="is converted already"):
        convert(tmp_path / name, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_command(tmp_path, toy, capsys):
    destination = tmp_path / "made" / "out"
    assert main([str(toy), str(destination)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{toy} -> {destination}\n") and printed.err == ""
    assert main([str(toy), str(destination)]) == 2
    assert capsys.readouterr().err == (
        f"error: {destination}: exists; choose another path, or replace it with --overwrite\n"
    )
    assert main([str(toy), str(destination), "--overwrite", "--dtype", "bfloat16"]) == 0
    assert read(destination)[0]["frame_blocks.mlp.fc1.kernel"].dtype == ml_dtypes.bfloat16


def test_command_lists_all_problems(tmp_path, save, toy_tensors, capsys):
    x = {key: value for key, value in toy_tensors.items() if ".norm2." not in key}
    missing = toy_tensors.keys() - x.keys()
    path = save(x | {"a.b": np.zeros(3, np.float32), "c.d": np.zeros(3, np.float32)})
    assert main([str(path), str(tmp_path / "out"), "--ignore", "a.", "--ignore", "c."]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        f"error: {path} does not fit configuration changed.json, found beside the checkpoint: "
        f"{len(missing)} problems ({len(missing)} missing)"
    )
    assert {line.split()[1] for line in lines if line.startswith("  missing: ")} == missing
    assert sorted(p.name for p in tmp_path.iterdir()) == ["changed.json", "changed.safetensors"]


def test_script_runs_from_the_repository(tmp_path, toy):
    def script(*arguments):
        command = [sys.executable, "convert/from_torch.py", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    destination = tmp_path / "out.safetensors"
    done = script(toy, destination)
    assert (done.returncode, done.stderr) == (0, "")
    assert read(destination)[1]["model"] == "vggt"
    refused = script(tmp_path / "none.safetensors", tmp_path / "other")
    assert refused.returncode == 2
    assert refused.stdout == "" and refused.stderr.count("\n") == 1
    assert refused.stderr.startswith(f"error: {tmp_path / 'none.safetensors'}: no such file; give")
