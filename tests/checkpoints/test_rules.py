"""The engine on tables of a few rules."""

import ml_dtypes
import numpy as np
import pytest

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.rules import Rule, expand, fill, leave_out, native_shapes

RULES = [
    Rule(
        official="blocks.{layer}.fc.weight",
        shape=(5, 3),
        native="blocks.fc.kernel",
        transform=lambda x: x.T,
        layers=2,
        bfloat16=True,
    ),
    Rule(official="norm.weight", shape=(7,), native="norm.scale"),
]


def tensors(dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"blocks.0.fc.weight": (5, 3), "blocks.1.fc.weight": (5, 3), "norm.weight": (7,)}
    return {key: rng.standard_normal(shape).astype(dtype) for key, shape in shapes.items()}


def filled(x, dtype=None):
    return fill(RULES, x, source="FILE", model="TINY", dtype=dtype)


def problems_of(x) -> list[str]:
    with pytest.raises(CheckpointError) as raised:
        filled(x)
    return str(raised.value).splitlines()


def test_layers_are_stacked_and_transformed():
    x = tensors()
    params = filled(x)
    assert list(params) == ["blocks.fc.kernel", "norm.scale"]
    for layer in range(2):
        np.testing.assert_array_equal(
            params["blocks.fc.kernel"][layer], x[f"blocks.{layer}.fc.weight"].T
        )
    np.testing.assert_array_equal(params["norm.scale"], x["norm.weight"])
    assert {name: array.shape for name, array in params.items()} == native_shapes(RULES)


def test_native_shapes_allocate_nothing():
    huge = Rule(official="x", shape=(10**9, 10**6), native="y", transform=lambda x: x.T)
    assert native_shapes([huge]) == {"y": (10**6, 10**9)}


def test_rules_that_meet_are_refused():
    with pytest.raises(ValueError, match=r"two rules meet the key norm\.weight"):
        expand([*RULES, Rule(official="norm.weight", shape=(7,), native="other")])
    with pytest.raises(ValueError, match=r"two rules fill the parameter norm\.scale"):
        expand([*RULES, Rule(official="other", shape=(7,), native="norm.scale")])
    with pytest.raises(ValueError, match="layer"):
        Rule(official="blocks.{layer}.bias", shape=(7,), native="blocks.bias")


def test_every_problem_is_listed():
    x = tensors()
    del x["blocks.1.fc.weight"]
    x["norm.weight"] = np.zeros(6, np.float32)
    x["extra.a"], x["extra.b"] = np.zeros((2, 3), np.float32), np.zeros((), np.float32)
    x["blocks.0.fc.weight"][1, :2] = np.nan, -np.inf
    assert problems_of(x) == [
        "FILE does not fit TINY: 5 problems (1 missing, 2 unexpected, 1 misshapen, 1 not finite)",
        "  missing: blocks.1.fc.weight [5, 3]",
        "  unexpected: extra.a [2, 3]",
        "  unexpected: extra.b []",
        "  misshapen: norm.weight is [6], expected [7]",
        "  not finite: blocks.0.fc.weight has 1 NaN and 1 infinite of 15 values as float32",
        "keys that the model does not need are left out with --ignore PREFIX",
        "a model of another size is described with --config FILE.json",
    ]


def test_a_single_problem_is_counted_as_one():
    x = tensors()
    x["norm.weight"][3] = np.inf
    assert problems_of(x)[0] == "FILE does not fit TINY: 1 problem (1 not finite)"


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "float8_e4m3fn"])
def test_other_types_are_listed(dtype):
    x = tensors()
    x["norm.weight"] = np.zeros(7, dtype)
    assert problems_of(x)[1] == (
        f"  not floating point: norm.weight is {dtype}, expected one of float64, float32, float16, "
        "bfloat16"
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_types_are_kept_as_stored(dtype):
    x = tensors(dtype)
    params = filled(x)
    assert {array.dtype for array in params.values()} == {np.dtype(dtype)}
    np.testing.assert_array_equal(params["blocks.fc.kernel"][1], x["blocks.1.fc.weight"].T)


def test_float64_is_rounded_to_float32():
    x = tensors(np.float64)
    scale = filled(x)["norm.scale"]
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, x["norm.weight"].astype(np.float32))


def test_layers_of_different_types_share_one_that_holds_both():
    x = tensors()
    x["blocks.0.fc.weight"] = x["blocks.0.fc.weight"].astype(ml_dtypes.bfloat16)
    x["blocks.1.fc.weight"] = x["blocks.1.fc.weight"].astype(np.float16)
    kernel = filled(x)["blocks.fc.kernel"]
    assert kernel.dtype == np.float32
    for layer in range(2):
        exact = x[f"blocks.{layer}.fc.weight"].astype(np.float32).T
        np.testing.assert_array_equal(kernel[layer], exact)


def test_float32_is_asked_for():
    x = tensors(np.float16)
    params = filled(x, "float32")
    assert {array.dtype for array in params.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["norm.scale"], x["norm.weight"].astype(np.float32))


def test_bfloat16_is_for_the_marked_rules():
    x = tensors()
    params = filled(x, "bfloat16")
    assert params["norm.scale"].dtype == np.float32
    rounded = x["blocks.1.fc.weight"].T.astype(ml_dtypes.bfloat16)
    assert params["blocks.fc.kernel"].dtype == rounded.dtype
    np.testing.assert_array_equal(params["blocks.fc.kernel"][1], rounded)


def test_values_that_overflow_are_listed():
    x = tensors(np.float64)
    x["norm.weight"][2] = 1e300
    assert "norm.weight has 0 NaN and 1 infinite of 7 values as float32" in problems_of(x)[1]


def test_an_empty_parameter_needs_no_key():
    rules = [*RULES, Rule(official="registers", shape=(1, 0, 7), native="registers")]
    params = fill(rules, tensors(), source="FILE", model="TINY")
    assert params["registers"].shape == (1, 0, 7)


def test_keys_are_left_out_by_prefix_with_their_reason():
    kept, ignored = leave_out(tensors(), {"blocks.1.": "last", "norm": "no need"})
    assert list(kept) == ["blocks.0.fc.weight"]
    assert ignored == {"blocks.1.fc.weight": "last", "norm.weight": "no need"}
