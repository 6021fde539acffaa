"""The table of VGGT against the keys of the released checkpoint; recognition; configurations."""

import json
import math

import pytest

from vggt_jax import VGGTConfig
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.official import identify
from vggt_jax.checkpoints.rules import expand
from vggt_jax.models.conversion import native_shapes
from vggt_jax.models.registry import official_keys
from vggt_jax.models.vggt import keys

RELEASED = VGGTConfig()
MASK_TOKEN = "aggregator.patch_embed.mask_token"
RELEASED_PARAMETERS = 1_256_537_516  # facebook/VGGT-1B, counted in the official module


def test_every_released_key_is_consumed_once(released_shapes):
    slots = expand(keys.rules(RELEASED))
    assert len(released_shapes) == 1797
    assert list(keys.unused(RELEASED)) == [MASK_TOKEN]
    assert slots.keys() | {MASK_TOKEN} == released_shapes.keys()
    assert {key: slot.rule.shape for key, slot in slots.items()} == {
        key: shape for key, shape in released_shapes.items() if key != MASK_TOKEN
    }


def test_every_slot_of_every_parameter_is_filled_once():
    slots = expand(keys.rules(RELEASED)).values()
    filled = sorted((slot.rule.native, slot.index) for slot in slots)
    expected = []
    stacks = ("blocks.", "frame_blocks.", "global_blocks.", "trunk.", "_blocks.")
    for name, shape in native_shapes({}).items():
        stacked = any(stack in name for stack in stacks)
        expected += [(name, (i,)) for i in range(shape[0])] if stacked else [(name, ())]
    assert filled == sorted(expected)


def test_released_parameters_are_complete():
    shapes = native_shapes({})
    assert sum(map(math.prod, shapes.values())) == RELEASED_PARAMETERS - 1024  # the mask token
    assert shapes["camera_token"] == (2, 1, 1024)
    assert shapes["encoder.pos_embed"] == (1370, 1024)
    assert shapes["encoder.patch_embed.kernel"] == (14, 14, 3, 1024)
    assert shapes["frame_blocks.attn.qkv.kernel"] == (24, 1024, 3072)
    assert shapes["global_blocks.attn.k_norm.scale"] == (24, 64)
    assert shapes["camera_head.trunk.mlp.fc1.kernel"] == (4, 2048, 8192)
    assert shapes["camera_head.modulation.kernel"] == (2048, 6144)
    assert shapes["depth_head.output_conv2_2.kernel"] == (32, 2)
    assert shapes["point_head.output_conv2_2.kernel"] == (32, 4)
    assert shapes["point_head.resize_1.kernel"] == (512, 2, 2, 512)
    assert shapes["track_head.feature_extractor.output_conv1.kernel"] == (3, 3, 128, 128)
    assert shapes["track_head.tracker.updateformer.virtual_tracks"] == (64, 384)
    assert shapes["track_head.tracker.updateformer.flow_head.kernel"] == (384, 130)


def test_heads_that_are_off_have_no_parameters():
    off = dict.fromkeys(["enable_camera", "enable_depth", "enable_point", "enable_track"], False)
    names = native_shapes(off)
    assert {name.partition(".")[0] for name in names} == {
        "camera_token", "register_token", "encoder", "frame_blocks", "global_blocks"
    }  # fmt: skip
    assert {name.partition(".")[0] for name in native_shapes({**off, "enable_depth": True})} - {
        name.partition(".")[0] for name in names
    } == {"depth_head"}


def test_the_released_size_is_recognised(released_shapes):
    assert keys.recognise(released_shapes, "FILE") == (RELEASED, "VGGT-1B")


def test_absent_heads_are_recognised(released_shapes):
    shapes = {
        key: shape
        for key, shape in released_shapes.items()
        if not key.startswith(("track_head.", "camera_head."))
    }
    config, name = keys.recognise(shapes, "FILE")
    assert name == "VGGT-1B without camera_head, track_head"
    assert config == VGGTConfig(enable_camera=False, enable_track=False)
    assert expand(keys.rules(config)).keys() | {MASK_TOKEN} == shapes.keys()


def test_single_wrong_keys_do_not_hinder_recognition(released_shapes):
    shapes = dict(released_shapes)
    del shapes["aggregator.camera_token"]
    shapes["aggregator.patch_embed.pos_embed"] = (1, 26, 1024)
    shapes["depth_head.new.weight"] = (3,)
    assert keys.recognise(shapes, "FILE") == (RELEASED, "VGGT-1B")


def test_another_size_needs_a_configuration(released_shapes):
    shapes = {key: (*shape[:-1], 768) for key, shape in released_shapes.items()}
    with pytest.raises(
        CheckpointError, match=r"^FILE: a VGGT, but not of the released size.*--config"
    ):
        keys.recognise(shapes, "FILE")


# A few keys of each model, as in its official checkpoint.
PI3 = ["register_token", "encoder.cls_token", "decoder.0.norm1.weight", "point_decoder.norm.bias"]
OTHERS = {
    "VGGT-Omega ": ["aggregator.storage_tokens", "aggregator.inter_frame_blocks.0.norm1.weight"],
    "its keys begin with: cls_token, layers": ["layers.0.weight", "layers.1.weight", "cls_token"],
    "its keys begin with: none": [],
}


@pytest.mark.parametrize("looks_like", OTHERS)
def test_other_models_are_named(looks_like):
    with pytest.raises(CheckpointError, match=looks_like) as raised:
        identify(OTHERS[looks_like], "FILE", official_keys())
    assert "\n" not in str(raised.value)


def test_models_are_told_by_their_keys(released_shapes):
    assert identify(released_shapes, "FILE", official_keys()) == "vggt"
    assert identify(PI3, "FILE", official_keys()) == "pi3"
    pi3x = [*PI3, "pose_inject_blk.0.norm1.weight"]
    assert identify(pi3x, "FILE", official_keys()) == "pi3x"


def test_absent_fields_are_as_released(toy_config):
    config = VGGTConfig.from_dict(toy_config)
    assert list(config.to_dict()) == list(RELEASED.to_dict())
    assert config.to_dict() == RELEASED.to_dict() | toy_config
    assert config.camera_iters == 4 and config.enable_track is True


def test_a_configuration_shares_nothing_with_the_defaults():
    VGGTConfig().to_dict()["dpt_layers"].append(5)
    assert VGGTConfig().to_dict()["dpt_layers"] == [4, 11, 17, 23]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dims": 3}, r"unknown field dims for a VGGT; known are img_size, .*enable_track"),
        ({"embed_dim": "64"}, r"embed_dim='64' must be an integer from 1 to"),
        ({"depth": 0}, r"depth=0 must be an integer"),
        ({"depth": True}, r"depth=True must be an integer"),
        ({"mlp_ratio": None}, r"mlp_ratio=None must be a positive number"),
        ({"enable_track": 1}, r"enable_track=1 must be true or false"),
        ({"dpt_layers": [1, 2, 3]}, r"dpt_layers=\[1, 2, 3\] must be a list of 4 integers"),
        ({"depth": 4}, r"dpt_layers=\[4, 11, 17, 23\] must be below depth=4"),
        ({"num_heads": 7}, r"embed_dim=1024 must be a multiple of 4 \* num_heads=28"),
        ({"img_size": 500}, r"img_size=500 must be a multiple of patch_size=14"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(CheckpointError, match=f"^FILE: {message}"):
        VGGTConfig.from_dict(fields, "FILE")


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\xff", ""])
def test_a_file_that_is_no_json_object_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json: not a JSON configuration"):
        VGGTConfig.from_json(path)


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.json: cannot be read \(No such file"):
        VGGTConfig.from_json(tmp_path / "none.json")


def test_no_registers_are_possible():
    shapes = native_shapes({"num_register_tokens": 0})
    assert shapes["encoder.register_tokens"] == (0, 1024)


def test_json_round_trip():
    assert json.loads(json.dumps(RELEASED.to_dict())) == RELEASED.to_dict()
