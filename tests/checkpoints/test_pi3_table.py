"""The table of π³ against the keys of the released checkpoint; conversion of its toys."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vggt_jax import Pi3Config
from vggt_jax.checkpoints import read
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.rules import expand
from vggt_jax.checkpoints.safetensors_file import read_safetensors
from vggt_jax.models.conversion import load_official, main, native_shapes
from vggt_jax.models.pi3 import keys

RELEASED = Pi3Config()
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def odd(toy_checkpoint):
    return toy_checkpoint("pi3_odd")


@pytest.fixture(scope="module")
def released():
    shapes = json.loads((GOLDEN / "pi3_shapes.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


def test_every_released_key_is_consumed_once(released):
    slots = expand(keys.rules(RELEASED))
    assert len(released) == 1210 and keys.unused(RELEASED) == {}
    assert {key: slot.rule.shape for key, slot in slots.items()} == released


def test_every_slot_of_every_parameter_is_filled_once():
    filled = sorted((s.rule.native, s.index) for s in expand(keys.rules(RELEASED)).values())
    expected = []
    for name, shape in native_shapes({}, "pi3").items():
        stacked = "blocks." in name
        expected += [(name, (i,)) for i in range(shape[0])] if stacked else [(name, ())]
    assert filled == sorted(expected)
    assert sum(map(math.prod, native_shapes({}, "pi3").values())) == 958_696_738


def test_the_released_size_is_recognised(released):
    assert keys.recognise(released, "FILE") == (RELEASED, "Pi3")
    few_wrong = {key: x for key, x in released.items() if not key.startswith("camera_head.")}
    assert keys.recognise(few_wrong | {"register_token": (3,)}, "FILE") == (RELEASED, "Pi3")
    other_size = {key: (*shape[:-1], 768) for key, shape in released.items()}
    with pytest.raises(CheckpointError, match="a Pi3, but not of the released size.*--config"):
        keys.recognise(other_size, "FILE")


def test_blocks_alternate_between_frames_and_scene(odd):
    params, config, report = load_official(odd)
    tensors, _ = read_safetensors(odd)
    assert report.model == "pi3" and report.keys_read == len(tensors)
    assert config == Pi3Config.from_json(odd.with_suffix(".json")).to_dict()
    assert {name: x.shape for name, x in params.items()} == native_shapes(config, "pi3")
    for block in range(4):
        stack = ("frame_blocks", "global_blocks")[block % 2]
        found = params[f"{stack}.attn.qkv.kernel"][block // 2]
        np.testing.assert_array_equal(found, tensors[f"decoder.{block}.attn.qkv.weight"].T)
    np.testing.assert_array_equal(params["image_mean"], tensors["image_mean"].ravel())
    key = "camera_head.more_mlps.2.weight"
    np.testing.assert_array_equal(params["camera_head.mlp_2.kernel"], tensors[key].T)


def test_the_command_writes_which_model_it_is(tmp_path, odd, capsys):
    torch = pytest.importorskip("torch")
    tensors, _ = read_safetensors(odd)
    source = tmp_path / "changed.pt"
    torch.save({key: torch.from_numpy(np.array(x)) for key, x in tensors.items()}, source)
    config = ["--config", str(odd.with_suffix(".json"))]
    assert main([str(source), str(tmp_path / "out"), "--dtype", "bfloat16", *config]) == 0
    params, document = read(tmp_path / "out", verify=True)
    assert document["model"] == "pi3" and document["config"]["head_dim"] == 40
    narrow = {name for name, x in params.items() if x.dtype != np.float32}
    assert "point_decoder.linear_out.kernel" in narrow and "image_mean" not in narrow
    assert not any("head." in name for name in narrow)
    assert "pi3, configuration" in capsys.readouterr().out


def test_all_problems_are_listed(tmp_path, odd):
    tensors = {key: np.array(x) for key, x in read_safetensors(odd)[0].items()}
    del tensors["decoder.3.ls1.gamma"], tensors["image_std"]
    tensors["register_token"] = np.zeros((1, 1, 5, 48), np.float32)
    tensors["metric_head.weight"] = np.zeros(3, np.float32)
    tensors["conf_head.proj.bias"][7] = np.inf
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="5 problems") as raised:
        load_official(path, odd.with_suffix(".json"))
    message = str(raised.value)
    for part in (
        "missing: decoder.3.ls1.gamma [48]",
        "missing: image_std [1, 3, 1, 1]",
        "unexpected: metric_head.weight [3]",
        "register_token is [1, 1, 5, 48], expected [1, 1, 3, 48]",
        "conf_head.proj.bias has 0 NaN and 1 infinite of 196 values",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 3}, "unknown field embed_dim for a Pi3; known are img_size, .*camera_dim"),
        ({"decoder_depth": 35}, "decoder_depth=35 must be even"),
        ({"encoder_dim": 512}, "encoder_dim=512 and decoder_dim=1024 must be equal"),
        ({"head_num_heads": 3}, r"head_dim=1024 must be a multiple of 4 \* head_num_heads=12"),
        ({"decoder_num_heads": 7}, r"decoder_dim=1024 must be a multiple of 4 \* decoder_num"),
        ({"camera_dim": 0}, "camera_dim=0 must be an integer from 1 to"),
        ({"img_size": 500}, "img_size=500 must be a multiple of patch_size=14"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(CheckpointError, match=f"^FILE: {message}"):
        Pi3Config.from_dict(fields, "FILE")
