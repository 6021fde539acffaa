"""The table of Pi3X against the keys of the released checkpoint."""

import json
import math
from pathlib import Path

import pytest

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.rules import expand
from vggt_jax.models.conversion import native_shapes
from vggt_jax.models.loading import abstract_model, named_parameters
from vggt_jax.models.pi3x import keys
from vggt_jax.models.pi3x.config import Pi3XConfig

RELEASED = Pi3XConfig()
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def released():
    shapes = json.loads((GOLDEN / "pi3x_shapes.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


def test_every_released_key_is_consumed_once(released):
    slots = expand(keys.rules(RELEASED))
    assert len(released) == 1873 and keys.unused(RELEASED) == {}
    assert {key: slot.rule.shape for key, slot in slots.items()} == released


def test_every_parameter_of_the_model_is_filled_once():
    shapes = native_shapes({}, "pi3x")
    assert sum(map(math.prod, shapes.values())) == 1_360_032_439
    model = abstract_model(RELEASED)
    assert {name: x.shape for name, x in named_parameters(model).items()} == shapes


def test_the_released_size_is_recognised(released):
    assert keys.recognise(released, "FILE") == (RELEASED, "Pi3X")
    few_wrong = {key: x for key, x in released.items() if not key.startswith("camera_head.")}
    assert keys.recognise(few_wrong | {"register_token": (3,)}, "FILE") == (RELEASED, "Pi3X")
    other_size = {key: (*shape[:-1], 768) for key, shape in released.items()}
    with pytest.raises(CheckpointError, match="a Pi3X, but not of the released size.*--config"):
        keys.recognise(other_size, "FILE")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pose_inject_layers": [1, 2]}, r"pose_inject_layers=\[1, 2\] must be odd, ascending"),
        ({"pose_inject_layers": [1, 37]}, "below decoder_depth=36"),
        ({"pose_inject_layers": []}, "must be a list of"),
        ({"conv_upsample_dims": [256, 128, 49]}, "must split into groups of 32"),
        ({"decoder_num_heads": 256}, r"decoder_dim=1024 must be a multiple of 8 \*"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(CheckpointError, match=message):
        Pi3XConfig.from_dict(fields)


def test_stages_and_injections_may_be_of_any_number():
    config = Pi3XConfig.from_dict({"pose_inject_layers": [5], "conv_upsample_dims": [64, 32]})
    assert config.pose_inject_layers == (5,) and config.conv_upsample_dims == (64, 32)
