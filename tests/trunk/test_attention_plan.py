"""Plans of attention: what they say of each layer and scene, and their files."""

import dataclasses
import json

import pytest

from pallas_kernels import tuned
from vggt_jax import AttentionPlan, BlockSparse, Dense, InputError, Sampled
from vggt_jax.trunk.attention.plan import attention_of

BLOCKS = BlockSparse(sparse_ratio=0.9, token_order="hilbert", block_q=64)
PLAN = AttentionPlan(layers=(Dense(), Sampled(num_keys=100, seed=4), BLOCKS), min_tokens=50)


def test_layers_of_a_scene():
    """Each layer decides for itself, a scene of few tokens for all."""
    assert PLAN.token_order == "hilbert"
    large = PLAN.for_scene(3, num_tokens=1000, num_patches=900)
    assert large == [layer.decided() for layer in (Dense(), Sampled(num_keys=100, seed=4), BLOCKS)]
    assert PLAN.for_scene(3, num_tokens=110, num_patches=100) == [Dense(), Dense(), large[2]]
    assert PLAN.for_scene(3, num_tokens=49, num_patches=40) == [Dense()] * 3
    assert "fewer than min_tokens=50" in PLAN.why_dense(num_tokens=49, num_patches=40)
    assert PLAN.decided().why_dense(num_tokens=49, num_patches=40) is None
    samples = AttentionPlan(layers=(Sampled(num_keys=10), Sampled(num_keys=20)), min_tokens=0)
    assert samples.why_dense(num_tokens=30, num_patches=15) is None
    assert "no more than num_keys=10" in samples.why_dense(num_tokens=9, num_patches=9)
    with pytest.raises(ValueError, match="for 3 layers, but there are 24"):
        PLAN.of_layers(24)


def test_more_keys_by_layer():
    more = PLAN.with_keys_times([1.0, 8.0, 2.0])
    assert more.layers[1].num_keys == 1024
    assert more.layers[::2] == PLAN.layers[::2]
    assert Sampled(num_keys=60_000).with_keys_times([1.0, 9.0]).num_keys == 65_536
    assert BLOCKS.with_keys_times([2.0]) == BLOCKS


def test_a_plan_is_a_file(tmp_path):
    path = tmp_path / "plan.json"
    PLAN.save(path, about={"drift": [1.5, 0.5, 0.0]})
    assert AttentionPlan.load(path) == PLAN == attention_of(str(path))
    assert hash(AttentionPlan.load(path)) == hash(PLAN)
    content = json.loads(path.read_text())
    assert content["layers"][1] == {"kind": "sampled", "num_keys": 100, "seed": 4}
    assert content["about"] == {"drift": [1.5, 0.5, 0.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "cameras"}, 'its "format" is not'),
        ({"version": 2}, "version 2; this reads 1"),
        ({"layers": []}, 'its "layers" are no list'),
        ({"layers": [3]}, 'a layer must be an object with a "kind"'),
        ({"layers": [{"kind": "sparse"}]}, "must be an object"),
        ({"layers": [{"kind": "sampled", "keys": 3}]}, "unexpected keyword argument 'keys'"),
        ({"layers": [{"kind": "sampled", "num_keys": "3"}]}, "must be a whole number"),
        ({"layers": [{"kind": "block_sparse"}]}, "needs sparse_ratio or cdf_threshold"),
        ({"min_tokens": True}, "must be a whole number"),
        ({"min_tokens": -1}, "must be at least 0"),
    ],
)
def test_files_that_are_no_plan(tmp_path, change, message):
    path = tmp_path / "plan.json"
    PLAN.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=f"plan.json: no plan of attention.*{message}"):
        AttentionPlan.load(path)


@pytest.mark.parametrize("text", [None, "", "[", "[" * 100_000, "{}", "x" * (2**20 + 1)])
def test_files_that_are_no_json(tmp_path, text):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="no plan of attention"):
        attention_of(path)


def test_values_that_are_no_plan():
    with pytest.raises(ValueError, match="differ in their token_order: hilbert, raster"):
        AttentionPlan(layers=(BLOCKS, dataclasses.replace(BLOCKS, token_order="raster")))
    with pytest.raises(ValueError, match="needs a value for each layer"):
        AttentionPlan(layers=())
    with pytest.raises(ValueError, match="no attention of a single layer"):
        AttentionPlan(layers=(PLAN,))
    with pytest.raises(ValueError, match="2 numbers, but there are 1"):
        AttentionPlan(layers=(BlockSparse(sparse_ratio=(0.5, 0.6)),))


def test_named_values():
    assert attention_of("dense") == Dense()
    with tuned.override({"sampled.num_keys": 70, "sampled.min_tokens": 90}):
        assert attention_of("auto") == Sampled(num_keys=70, min_tokens=90)
    with pytest.raises(InputError, match='"auto" or "dense"'):
        attention_of(7)
