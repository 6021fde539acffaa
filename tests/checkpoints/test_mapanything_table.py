"""The table of MapAnything against the keys of the released checkpoints; conversion of its toys."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vggt_jax import MapAnythingConfig
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.rules import expand
from vggt_jax.checkpoints.safetensors_file import read_safetensors
from vggt_jax.models.conversion import load_official, native_shapes
from vggt_jax.models.mapanything import keys

GOLDEN = Path(__file__).parents[1] / "golden"
# Keys of the file and values of the parameters: NUMBERS[name of the list of keys].
RELEASED = {
    "mapanything": ("MapAnything V1.1", MapAnythingConfig.v1_1(), 736, 1_228_492_758),
    "mapanything_v1": ("MapAnything V1", MapAnythingConfig.v1(), 804, 563_336_150),
}


@pytest.fixture(scope="module")
def toy(toy_checkpoint):
    return toy_checkpoint("mapanything_toy")


def released(name):
    shapes = json.loads((GOLDEN / f"{name}_shapes.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_key_is_consumed_once(name):
    title, config, num_keys, num_values = RELEASED[name]
    shapes, slots = released(name), expand(keys.rules(config))
    assert len(shapes) == num_keys and keys.unused(config) == {}
    assert {key: slot.rule.shape for key, slot in slots.items()} == shapes
    native = native_shapes(config.to_dict(), "mapanything")
    filled = sorted((s.rule.native, s.index) for s in slots.values())
    expected = []
    for parameter, shape in native.items():
        stacked = "blocks." in parameter
        expected += [(parameter, (i,)) for i in range(shape[0])] if stacked else [(parameter, ())]
    assert filled == sorted(expected)
    assert sum(map(math.prod, native.values())) == num_values
    assert keys.recognise(shapes, "FILE") == (config, title)
    few_wrong = {key: x for key, x in shapes.items() if not key.startswith("scale_head.")}
    assert keys.recognise(few_wrong | {"scale_token": (3,)}, "FILE") == (config, title)
    other_size = {key: (*shape[:-1], 384) for key, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=f"not of the released size.*{title}.*--config"):
        keys.recognise(other_size, "FILE")


def aliases_of(key):
    """The other names under which the official module holds a parameter: for those of the dense
    head one, for layers that bring its maps to one width five."""
    for head, alias in (
        ("dense_head.0.", "dpt_feature_head."),
        ("dense_head.1.", "dpt_regressor_head."),
    ):
        if not key.startswith(head):
            continue
        rest = key.removeprefix(head)
        names = [rest]
        if rest.startswith("input_process.") and rest.split(".")[2] == "1":
            i, suffix = int(rest.split(".")[1]), rest.split(".", 3)[3]
            names += [f"scratch.layer{i + 1}_rn.{suffix}", f"scratch.layer_rn.{i}.{suffix}"]
        return sorted({prefix + name for prefix in (head, alias) for name in names} - {key})
    return []


@pytest.mark.parametrize("name", RELEASED)
def test_every_alias_has_one_name(name):
    shapes = released(name)
    aliases = {alias: key for key in shapes for alias in aliases_of(key)}
    assert len(aliases) == 76
    assert all(keys.canonical(alias) == key for alias, key in aliases.items())
    assert all(keys.canonical(key) == key for key in shapes)


@pytest.mark.parametrize("only", [True, False], ids=["aliases alone", "all names"])
def test_parameters_may_have_any_of_their_names(tmp_path, toy, only):
    tensors = {key: np.array(x) for key, x in read_safetensors(toy)[0].items()}
    expected, config, _ = load_official(toy)
    renamed = {}
    for key, x in tensors.items():
        names = aliases_of(key)
        renamed |= dict.fromkeys(names[-1:] or [key] if only else [key, *names], x)
    save_file(renamed, tmp_path / "renamed.safetensors")
    found, _, report = load_official(tmp_path / "renamed.safetensors", config)
    assert report.model == "mapanything" and report.keys_read == len(tensors)
    assert len(report.ignored) == (0 if only else 76)
    assert set(report.ignored.values()) <= {f"another name of {key}" for key in tensors}
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)


def test_names_of_one_parameter_must_agree(tmp_path, toy):
    tensors = {key: np.array(x) for key, x in read_safetensors(toy)[0].items()}
    tensors["dpt_regressor_head.conv1.bias"] = tensors["dense_head.1.conv1.bias"] + 1
    save_file(tensors, tmp_path / "changed.safetensors")
    message = "dpt_regressor_head.conv1.bias differs from dense_head.1.conv1.bias"
    with pytest.raises(CheckpointError, match=message):
        load_official(tmp_path / "changed.safetensors", toy.with_suffix(".json"))


def test_blocks_alternate_between_scene_and_frames(toy):
    params, config, report = load_official(toy)
    tensors, _ = read_safetensors(toy)
    assert report.model == "mapanything" and report.keys_read == len(tensors)
    assert config == MapAnythingConfig.from_json(toy.with_suffix(".json")).to_dict()
    for block in range(6):
        stack = ("global_blocks", "frame_blocks")[block % 2]
        key = f"info_sharing.self_attention_blocks.{block}.mlp.w12.weight"
        np.testing.assert_array_equal(params[f"{stack}.mlp.w12.kernel"][block // 2], tensors[key].T)
    key = "cam_rot_encoder.encoder.0.0.1.weight"
    np.testing.assert_array_equal(params["cam_rot_encoder.layers.1.kernel"], tensors[key].T)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 3}, "unknown field embed_dim for a MapAnything; known are img_size, "),
        ({"encoder_ffn": "glu"}, "encoder_ffn='glu' must be one of mlp, swiglu"),
        ({"info_sharing_ffn": 3}, "info_sharing_ffn=3 must be a name"),
        ({"info_sharing_depth": 15}, "info_sharing_depth=15 must be even"),
        ({"info_sharing_indices": [7, 10]}, r"info_sharing_indices=\[7, 10\] must be .*odd ones"),
        ({"info_sharing_indices": [7, 17]}, r"info_sharing_indices=\[7, 17\] must be .*below 16"),
        ({"info_sharing_indices": [11, 7]}, r"info_sharing_indices=\[11, 7\] must ascend"),
        ({"encoder_pos_embed_antialias": True}, "encoder_pos_embed_offset=0.1 must be 0 "),
        ({"encoder_num_heads": 7}, "encoder_dim=1536 must be a multiple of encoder_num_heads=7"),
        ({"img_size": 500}, "img_size=500 must be a multiple of patch_size=14"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(CheckpointError, match=message):
        MapAnythingConfig.from_dict(fields)
