"""VGGTConfig: its defaults, its JSON, and what it refuses."""

import dataclasses
import json

import pytest

from vggt_jax import CheckpointError, Pi3Config, VGGTConfig

RELEASED = VGGTConfig().to_dict()


def test_the_defaults_are_the_released_sizes():
    """Those that no shape in a checkpoint shows: tests/checkpoints has the others."""
    for name, value in dict(
        num_heads=16, vit_num_heads=16, camera_num_heads=16, camera_iters=4,
        dpt_layers=[4, 11, 17, 23], track_num_heads=8, track_iters=4, pixel_centre=0.0,
        enable_camera=True, enable_depth=True, enable_point=True, enable_track=True,
    ).items():  # fmt: skip
        assert RELEASED[name] == value, name
    pi3 = Pi3Config()
    assert pi3.encoder_num_heads == pi3.decoder_num_heads == pi3.head_num_heads == 16
    assert VGGTConfig.vggt_1b() == VGGTConfig() and Pi3Config.pi3() == pi3


def test_configurations_of_both_models_share_their_ways(tmp_path):
    config = Pi3Config(decoder_depth=2, num_register_tokens=0)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert Pi3Config.from_json(path) == config == Pi3Config.from_dict(config.to_dict())
    assert config.num_special_tokens == 0 and Pi3Config().num_special_tokens == 5
    with pytest.raises(CheckpointError, match="unknown field depth for a Pi3; known are img_size"):
        Pi3Config.from_dict({"depth": 3})
    with pytest.raises(ValueError, match="^Pi3Config: decoder_depth=3 must be even"):
        Pi3Config(decoder_depth=3)


def test_absent_fields_are_as_released():
    assert VGGTConfig.from_dict({"embed_dim": 768}) == VGGTConfig(embed_dim=768)
    assert VGGTConfig.from_dict({}) == VGGTConfig.vggt_1b()


CHANGED = dict(
    img_size=70, embed_dim=96, num_heads=3, depth=5, dpt_layers=(0, 2, 3, 4), mlp_ratio=2.5,
    dpt_out_channels=(8, 16, 24, 40), num_register_tokens=0, camera_num_heads=6, vit_num_heads=6,
    enable_point=False,
)  # fmt: skip


def test_json_round_trip(tmp_path):
    config = VGGTConfig(**CHANGED)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert VGGTConfig.from_json(path) == config
    assert config.to_dict() == RELEASED | {
        name: list(value) if isinstance(value, tuple) else value for name, value in CHANGED.items()
    }


def test_lists_become_tuples_so_that_configurations_hash():
    from_json = VGGTConfig.from_dict({"dpt_layers": [4, 11, 17, 23]})
    assert from_json.dpt_layers == (4, 11, 17, 23)
    assert hash(from_json) == hash(VGGTConfig())


def test_fields_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VGGTConfig().depth = 3


def test_special_tokens_are_the_camera_and_the_registers():
    assert VGGTConfig().num_special_tokens == 5
    assert VGGTConfig(num_register_tokens=0).num_special_tokens == 1


POSITIVE = [
    name for name, value in RELEASED.items() if type(value) is int and name != "num_register_tokens"
]


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, -3, 2.0, "7"])
def test_counts_are_positive_integers(name, value):
    with pytest.raises(ValueError, match=rf"{name}={value!r} must be an integer from 1 to "):
        VGGTConfig(**{name: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_register_tokens": -1}, r"num_register_tokens=-1 must be an integer from 0 to "),
        ({"img_size": 500}, r"img_size=500 must be a multiple of patch_size=14"),
        ({"vit_num_heads": 7}, r"embed_dim=1024 must be a multiple of vit_num_heads=7"),
        ({"num_heads": 7}, r"embed_dim=1024 must be a multiple of 4 \* num_heads=28"),
        # A head of 18 channels cannot be cut into the four parts of RoPE.
        (
            {"embed_dim": 72, "num_heads": 4, "vit_num_heads": 6},
            r"embed_dim=72 must be a multiple of 4 \* num_heads=16",
        ),
        ({"track_num_heads": 5}, r"track_hidden_size=384 must be a multiple of track_num_heads=5"),
        ({"camera_num_heads": 3}, r"2 \* embed_dim=2048 must be a multiple of camera_num_heads=3"),
        ({"dpt_features": 258}, r"dpt_features=258 must be a multiple of 4"),
        ({"dpt_features": 260}, r"dpt_features=260 must be a multiple of 8 for the heads"),
        (
            {"dpt_out_channels": (8, 8, 6, 8)},
            r"dpt_out_channels=\[8, 8, 6, 8\] must be a multiple of 4",
        ),
        (
            {"dpt_out_channels": (8, 8, 8)},
            r"dpt_out_channels=\(8, 8, 8\) must be a list of 4 integers",
        ),
        (
            {"dpt_layers": (0, 1, 2, 3, 4)},
            r"dpt_layers=\(0, 1, 2, 3, 4\) must be a list of 4 integers",
        ),
        ({"track_features": 30}, r"track_features=30 must be a multiple of 4"),
        ({"depth": 23}, r"dpt_layers=\[4, 11, 17, 23\] must be below depth=23"),
        ({"dpt_layers": (-1, 2, 3, 4)}, r"dpt_layers=\(-1, 2, 3, 4\) must be a list of 4 integers"),
        ({"dpt_layers": 7}, r"dpt_layers=7 must be a list of 4 integers"),
        ({"mlp_ratio": -1.0}, r"mlp_ratio=-1\.0 must be a positive number"),
        ({"enable_depth": "no"}, r"enable_depth='no' must be true or false"),
        (
            {"resize_mode": "fit"},
            r"resize_mode='fit' must be one of crop, pad, budget, area, cover, longest",
        ),
        ({"resize_mode": None}, r"resize_mode=None must be a name"),
    ],
)
def test_sizes_that_do_not_fit_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        VGGTConfig(**fields)
    with pytest.raises(CheckpointError, match=f"^configuration: .*{message}"):
        VGGTConfig.from_dict(fields)


def test_the_smallest_depth_that_holds_the_layers():
    assert VGGTConfig(depth=24).depth == 24
    assert VGGTConfig(dpt_layers=(0, 0, 0, 0), depth=1).dpt_layers == (0, 0, 0, 0)


def test_unknown_fields_are_named_with_the_known():
    with pytest.raises(
        CheckpointError, match=r"unknown field dims, heads for a VGGT; known are img_size, "
    ):
        VGGTConfig.from_dict({"dims": 3, "depth": 24, "heads": 2})


@pytest.mark.parametrize("text", ["{", "", "null"])
def test_a_file_that_is_no_json_is_named(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"broken\.json: not a JSON configuration"):
        VGGTConfig.from_json(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.json: cannot be read .*No such file"):
        VGGTConfig.from_json(tmp_path / "none.json")
