"""The table of Depth Anything 3 against the keys of the released checkpoints."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vggt_jax import DA3Config
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.official import identify
from vggt_jax.checkpoints.rules import expand
from vggt_jax.checkpoints.safetensors_file import read_safetensors
from vggt_jax.models.conversion import load_official, native_shapes
from vggt_jax.models.da3 import keys
from vggt_jax.models.loading import abstract_model, named_parameters
from vggt_jax.models.registry import official_keys

GOLDEN = Path(__file__).parents[1] / "golden"
# Keys and values of the file.
RELEASED = {
    "small": ("DA3-SMALL", DA3Config.small(), 437, 34_299_463),
    "base": ("DA3-BASE", DA3Config.base(), 437, 135_366_599),
    "large": ("DA3-LARGE", DA3Config.large(), 637, 410_941_767),
    "giant": ("DA3-GIANT", DA3Config.giant(), 971, 1_355_674_125),
}
CHAIN = "model.head.scratch.output_conv"


def released(name):
    shapes = json.loads((GOLDEN / f"da3_{name}_shapes.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def toy(toy_checkpoint):
    return toy_checkpoint("da3_odd")


@pytest.mark.parametrize(
    "name",
    [
        "small",
        pytest.param("base", marks=pytest.mark.slow),
        pytest.param("large", marks=pytest.mark.slow),
        pytest.param("giant", marks=pytest.mark.slow),
    ],
)
def test_every_released_key_is_consumed_once(name):
    title, config, num_keys, num_values = RELEASED[name]
    shapes, slots = released(name), expand(keys.rules(config))
    assert len(shapes) == num_keys and sum(map(math.prod, shapes.values())) == num_values
    unread = {key for key in shapes if key.startswith(tuple(keys.unused(config)))}
    # Three levels of rays that nothing reads, of five and two convolutions; norms are of the first.
    assert len([key for key in unread if key.startswith(CHAIN)]) == 3 * 2 * (5 + 2)
    assert len(unread) == 3 * 2 * (5 + 2) + (66 if name == "giant" else 0)
    used = {key: shape for key, shape in shapes.items() if key not in unread}
    assert {key: slot.rule.shape for key, slot in slots.items()} == used
    native = native_shapes(config.to_dict(), "da3")
    parameters = named_parameters(abstract_model(config))
    assert native == {key: x.shape for key, x in parameters.items()}
    assert sum(map(math.prod, native.values())) == sum(map(math.prod, used.values()))
    assert identify(shapes, "FILE", official_keys()) == "da3"
    assert keys.recognise(shapes, "FILE") == (config, title)
    few_wrong = {key: x for key, x in shapes.items() if not key.startswith("model.cam_enc.")}
    assert keys.recognise(few_wrong, "FILE") == (config, title)
    other_size = {key: (*shape[:-1], 416) for key, shape in shapes.items()}
    with pytest.raises(CheckpointError, match="not of the released size.*--config"):
        keys.recognise(other_size, "FILE")


def test_models_of_another_kind_are_refused_by_name():
    monocular = [key for key in released("large") if "camera_token" not in key]
    monocular = {key: (1,) for key in monocular if not key.startswith("model.cam_")}
    assert identify(monocular, "FILE", official_keys()) == "da3"
    with pytest.raises(CheckpointError, match="DA3MONO-LARGE or DA3METRIC-LARGE.*DA3-SMALL"):
        keys.recognise(monocular, "FILE")
    nested = [key.replace("model.", "model.da3.", 1) for key in released("giant")]
    nested += [key.replace("model.", "model.da3_metric.", 1) for key in monocular]
    with pytest.raises(CheckpointError, match="DA3NESTED-GIANT-LARGE.*cannot be converted"):
        identify(nested, "FILE", official_keys())


def test_one_norm_may_have_any_of_its_four_names(tmp_path, toy):
    tensors = {key: np.array(x) for key, x in read_safetensors(toy)[0].items()}
    expected, config, report = load_official(toy)
    assert report.model == "da3" and len(report.ignored) == 3 * 2 * (5 + 2)
    name = f"{CHAIN}2_aux.0.2"
    assert f"{name}.weight" in tensors
    alias = lambda key: key.replace(name, f"{CHAIN}2_aux.3.2")
    save_file({alias(key): x for key, x in tensors.items()}, tmp_path / "renamed.safetensors")
    found, _, _ = load_official(tmp_path / "renamed.safetensors", config)
    assert found.keys() == expected.keys()
    for key, x in expected.items():
        np.testing.assert_array_equal(found[key], x)


def test_blocks_go_to_encoder_lead_frames_and_scene(toy):
    params, config, _ = load_official(toy)
    tensors, _ = read_safetensors(toy)
    assert config == DA3Config.from_json(toy.with_suffix(".json")).to_dict()
    places = {0: ("encoder.blocks", 0), 2: ("encoder.blocks", 2), 3: ("lead_block", ...)}
    places |= {4: ("frame_blocks", 0), 5: ("global_blocks", 0), 11: ("global_blocks", 3)}
    for block, (stack, index) in places.items():
        key = f"model.backbone.pretrained.blocks.{block}.mlp.w12.weight"
        np.testing.assert_array_equal(params[f"{stack}.mlp.w12.kernel"][index], tensors[key].T)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 3}, "unknown field embed_dim for a Depth Anything 3; known are img_size, "),
        ({"ffn": "swiglu"}, "ffn='swiglu' must be one of mlp, swiglufused"),
        ({"rope_start": 7}, "rope_start=7 must be alt_start=8"),
        ({"depth": 25}, "depth=25 must be even and at least alt_start"),
        ({"out_layers": [11, 15, 18, 23]}, r"out_layers=\[11, 15, 18, 23\] must ascend and be bl"),
        ({"out_layers": [7, 15, 19, 23]}, r"out_layers=\[7, 15, 19, 23\] must .* from 8 to 23"),
        ({"out_layers": [15, 11, 19, 23]}, "must ascend"),
        ({"out_layers": [9, 11, 15, 19]}, "must end with the last block, 23"),
        ({"num_heads": 7}, "dim=1024 must be a multiple of num_heads=7"),
        ({"cam_enc_num_heads": 7}, "dim=1024 must be a multiple of cam_enc_num_heads=7"),
        ({"dim": 1008, "num_heads": 56}, r"dim=1008 must be a multiple of 4 \* num_heads=224"),
        ({"img_size": 500}, "img_size=500 must be a multiple of patch_size=14"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(CheckpointError, match=message):
        DA3Config.from_dict(fields)
