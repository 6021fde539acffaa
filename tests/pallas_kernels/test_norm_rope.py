"""Bias, layer normalisation and rotary embedding against their formulas in float64."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import norm_rope
from pallas_kernels.norm_rope import api, triton

EPS = 1e-5
# The types of 16 bits, and how much rounding to them changes a number at most, by its size.
HALF_ULP = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
# One tile of the kernel and a tail; tails alone; and more heads than a program holds.
SIZES = [(3, 13, 16, 64), (3, 7, 2, 32), (1, 7, 128, 128)]
WAYS = {
    "triton-interpreted": {"implementation": "triton", "interpret": True},
    "xla": {"implementation": "xla"},
}


def draw(seed, b, p, n, h, dtype="bfloat16"):
    """Arguments by name; `b` numbers or None for the leading axes."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    angles = rng.uniform(-40, 40, size=(p, 2, 1, h // 4))
    angles = np.broadcast_to(angles, (p, 2, 2, h // 4)).reshape(p, h)
    return {
        "x": jnp.asarray(rng.normal(size=(b, p, n, h)), dtype),
        "cos": jnp.asarray(np.cos(angles), jnp.float32),
        "sin": jnp.asarray(np.sin(angles), jnp.float32),
        "bias": normal(n, h),
        "scale": normal(h),
        "offset": normal(h),
    }


def oracle(x, cos, sin, bias, scale, offset, eps=EPS):
    """In float64, a pair being a complex number."""
    x, cos, sin, bias, scale, offset = (
        np.asarray(a, np.float64) for a in (x, cos, sin, bias, scale, offset)
    )
    y = x + bias.reshape(x.shape[-2:])
    y = y - y.mean(-1, keepdims=True)
    y = y / np.sqrt(np.square(y).mean(-1, keepdims=True) + eps) * scale + offset
    a, b, c, d = np.split(y, 4, axis=-1)
    turn_y, _, turn_x, _ = np.split(cos + 1j * sin, 4, axis=-1)
    ab, cd = (a + 1j * b) * turn_y[:, None], (c + 1j * d) * turn_x[:, None]
    return np.concatenate([ab.real, ab.imag, cd.real, cd.imag], axis=-1)


def run(arguments, eps=EPS, **options):
    arguments = dict(arguments)
    tokens = [arguments.pop(name) for name in ("x", "cos", "sin")]
    return norm_rope(*tokens, **arguments, eps=eps, **options)


def assert_right(found, arguments, eps=EPS, atol=2e-5):
    """To half a unit of the type, and `atol` for what float32 loses on the way."""
    expected = oracle(**arguments, eps=eps)
    rtol = HALF_ULP.get(found.dtype.name, 0.0)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=rtol, atol=atol)


# Each size in one type, and each type in both ways; the second size is that of most tests here.
@pytest.mark.parametrize(
    ("sizes", "dtype", "way"),
    [
        (SIZES[0], "float16", "triton-interpreted"),
        (SIZES[1], "bfloat16", "triton-interpreted"),
        (SIZES[2], "bfloat16", "triton-interpreted"),
        ((3, 7, 1, 128), "bfloat16", "xla"),
        (SIZES[1], "float16", "xla"),
        pytest.param(SIZES[1], "float16", "triton-interpreted", marks=pytest.mark.slow),
        pytest.param((3, 7, 1, 128), "bfloat16", "triton-interpreted", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_equals_the_formula(sizes, dtype, way):
    arguments = draw(0, *sizes, dtype)
    found = run(arguments, **WAYS[way])
    assert found.dtype == dtype
    assert_right(found, arguments)


def test_float32():
    arguments = draw(1, 3, 7, 5, 12, "float32")
    found = run(arguments)
    assert found.dtype == jnp.float32
    assert_right(found, arguments)


@pytest.mark.parametrize("leading", [(2, 3), pytest.param((), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_other_shapes_and_types_of_arguments(way, leading):
    """Any leading axes, a flat bias, and parameters in the type of a model's."""
    arguments = draw(2, math.prod(leading), 7, 2, 32)
    x = arguments["x"]
    parameters = {
        name: np.asarray(arguments[name], x.dtype) for name in ("bias", "scale", "offset")
    }
    arguments |= parameters
    flat = {"x": np.asarray(x).reshape(*leading, 7, 2, 32), "bias": parameters["bias"].reshape(-1)}
    found = run(jax.tree.map(jnp.asarray, arguments | flat), **WAYS[way])
    assert found.shape == (*leading, 7, 2, 32)
    assert_right(np.asarray(found).reshape(x.shape), arguments)


def test_tiles_may_divide_the_tokens():
    arguments = draw(3, 4, 16, 16, 64)
    assert_right(run(arguments, **WAYS["triton-interpreted"]), arguments)


@pytest.mark.parametrize("way", WAYS)
def test_a_large_mean_does_not_drown_the_variance(way):
    arguments = draw(4, 3, 7, 2, 32)
    arguments["bias"] = jnp.asarray(np.asarray(arguments["bias"]) + 1000)
    # Numbers near 1000 are rounded to 3e-5 of themselves; the mean of squares would be off by 0.03,
    # and all but lost to a spread of 1.4.
    assert_right(run(arguments, **WAYS[way]), arguments, atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_eps_counts_where_the_spread_is_small(way, eps):
    arguments = draw(5, 3, 7, 2, 32)
    small = {name: np.asarray(arguments[name], np.float32) * 1e-3 for name in ("x", "bias")}
    arguments |= {"x": jnp.asarray(small["x"], "bfloat16"), "bias": jnp.asarray(small["bias"])}
    assert_right(run(arguments, eps, **WAYS[way]), arguments, eps, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_numbers_are_rounded_once(way):
    """A bias below the spacing of the type around `x` is not lost."""
    arguments = draw(6, 3, 7, 2, 32)
    signs = np.sign(np.asarray(arguments["x"], np.float32))
    arguments["x"] = jnp.asarray(64 * signs, "bfloat16")  # where they are 0.5 apart
    bias = np.asarray(arguments["bias"])
    arguments["bias"] = jnp.asarray(np.float32(0.05) * bias)
    expected = oracle(**arguments)
    lost = oracle(**(arguments | {"bias": 0 * bias}))
    assert np.abs(lost - expected).max() > 1e-3
    found = run(arguments, **WAYS[way])
    assert_right(found, arguments)


def losses(weights, **options):
    return lambda arguments: jnp.sum(weights * run(arguments, **options).astype(jnp.float32))


def test_gradient(relative_error):
    arguments = draw(7, 3, 7, 2, 32)
    arguments["bias"] = jnp.asarray(np.asarray(arguments["bias"]).reshape(-1))
    weights = np.random.default_rng(8).normal(size=(3, 7, 2, 32)).astype(np.float32)
    found, expected = (
        jax.jit(jax.grad(losses(weights, **options)))(arguments) for options in WAYS.values()
    )
    for name, gradient in found.items():
        np.testing.assert_array_equal(gradient, expected[name], err_msg=name)
        assert (gradient.shape, gradient.dtype) == (arguments[name].shape, arguments[name].dtype)
        assert np.any(gradient) == (name not in ("cos", "sin"))
    # And it is one: by differences along a direction, in float32.
    arguments |= {"x": jnp.asarray(np.asarray(arguments["x"], np.float32))}
    gradient = jax.tree.map(np.asarray, jax.jit(jax.grad(losses(weights)))(arguments))
    for name in ("x", "bias", "scale", "offset"):
        step = 1e-3 * np.sign(gradient[name])
        there, back = (
            np.sum(weights * oracle(**(arguments | {name: arguments[name] + sign * step})))
            for sign in (1, -1)
        )
        np.testing.assert_allclose(
            (there - back) / 2, np.sum(gradient[name] * step), rtol=1e-2, err_msg=name
        )


@pytest.mark.parametrize("way", WAYS)
def test_vmap(way):
    """Over tokens, which share all else."""
    arguments = draw(9, 3, 7, 2, 32)
    compute = lambda x: run(arguments | {"x": x}, **WAYS[way])
    found = jax.vmap(compute)(arguments["x"])
    np.testing.assert_array_equal(found, compute(arguments["x"]))
    assert_right(found, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_vmap_over_parameters(way):
    arguments = draw(9, 3, 7, 2, 32)
    bias = np.asarray(arguments["bias"])
    compute = lambda bias: run(arguments | {"bias": bias}, **WAYS[way])
    biases = np.stack([bias, -bias], axis=-1)
    found = np.asarray(jax.vmap(compute, in_axes=2, out_axes=1)(biases))
    for i in range(2):
        assert_right(found[:, i], arguments | {"bias": biases[..., i]})


WRONG = [
    ({"x": jnp.zeros((4, 32))}, r"x must be \[\*b p n h\].*not \(4, 32\)"),
    ({"x": jnp.zeros((0, 7, 4, 32))}, r"with tokens, heads.*not \(0, 7, 4, 32\)"),
    ({"x": jnp.zeros((3, 7, 4, 30))}, r"multiple of 4, not \(3, 7, 4, 30\)"),
    ({"x": jnp.zeros((3, 7, 4, 32), jnp.int32)}, "float32, bfloat16 or float16, not int32"),
    ({"cos": jnp.zeros((3, 32))}, r"cos must be \(7, 32\) for x \(3, 7, 4, 32\), not \(3, 32\)"),
    ({"sin": jnp.zeros((7, 16))}, r"sin must be \(7, 32\)"),
    ({"bias": jnp.zeros(32)}, r"bias must be \(4, 32\) or \(128,\) for x .*, not \(32,\)"),
    ({"scale": jnp.zeros((4, 32))}, r"scale must be \(32,\)"),
    ({"offset": jnp.zeros(128)}, r"offset must be \(32,\)"),
    ({"implementation": "cudnn"}, "implementation='cudnn' is unknown; use 'triton', 'xla' or None"),
    ({"implementation": "xla", "interpret": True}, "implementation='xla' is no kernel; leave out"),
]


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_wrong_arguments(pretend_device, backend, wrong, message):
    pretend_device(backend, "9.0")
    with pytest.raises(ValueError, match=message):
        run(draw(10, 3, 7, 4, 32) | wrong)


CANNOT = [
    ("cpu", None, "bfloat16", (4, 32), r"default_backend\(\)=.* is no NVIDIA GPU from Ampere on"),
    ("gpu", "7.5", "bfloat16", (4, 32), "no NVIDIA GPU from Ampere on"),
    ("gpu", "gfx942", "bfloat16", (4, 32), "no NVIDIA GPU from Ampere on"),
    ("gpu", "9.0", "float32", (4, 32), "float32 is not supported"),
    ("gpu", "9.0", "bfloat16", (4, 16), r"head_dim=16 is not supported \(32, 64, 128\)"),
    ("gpu", "9.0", "bfloat16", (4, 48), r"head_dim=48 is not supported"),
    ("gpu", "9.0", "bfloat16", (4, 256), r"head_dim=256 is not supported"),
    ("gpu", "9.0", "bfloat16", (12, 64), "num_heads=12 is no power of two"),
]


@pytest.mark.parametrize(("backend", "capability", "dtype", "heads", "reason"), CANNOT)
def test_what_the_kernel_cannot_do_goes_to_xla(
    pretend_device, backend, capability, dtype, heads, reason
):
    pretend_device(backend, capability)
    arguments = draw(11, 3, 7, *heads, dtype)
    with pytest.raises(
        NotImplementedError, match=f"triton: .*{reason}.*; use implementation='xla'"
    ):
        run(arguments, implementation="triton")
    assert_right(run(arguments), arguments)


@pytest.mark.parametrize("capability", ["8.0", "8.9", "9.0", "12.0"])
@pytest.mark.parametrize("dtype", HALF_ULP)
@pytest.mark.parametrize("heads", [(1, 32), (16, 64), (8, 128)])
def test_what_the_kernel_can_do_it_does(pretend_device, monkeypatch, capability, dtype, heads):
    pretend_device("gpu", capability)
    names = []
    note = lambda call, *, chosen: names.append(chosen.backend.name)
    monkeypatch.setattr(api, "_norm_rope", note)
    arguments = draw(12, 3, 7, *heads, dtype)
    for name in (None, "triton", "xla"):
        run(arguments, implementation=name)
    assert names == ["triton", "triton", "xla"]


def lower_for_h100(pretend_h100, *sizes, transform=lambda f: f):
    """The program's text, and the warnings on the way to it."""
    api._norm_rope.clear_cache()  # for the warnings
    b, p, n, h = sizes
    x = jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
    table, vector = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((p, h), (h,)))
    bias = jax.ShapeDtypeStruct((n * h,), jnp.bfloat16)

    def compute(x, cos, sin, bias, scale, offset):
        one = lambda x: norm_rope(x, cos, sin, bias=bias, scale=scale, offset=offset, eps=EPS)
        return transform(one)(x)

    with pretend_h100(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = jax.jit(compute).trace(x, table, table, bias, vector, vector)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return text, caught


@pytest.mark.parametrize(
    ("sizes", "transform"),
    [
        pytest.param((3, 1374, 16, 64), lambda f: f, id="one"),
        pytest.param(SIZES[1], jax.vmap, id="vmap"),
        pytest.param(SIZES[2], lambda f: f, id="many-heads", marks=pytest.mark.slow),
    ],
)
def test_becomes_one_kernel_on_a_gpu(pretend_h100, sizes, transform):
    text, caught = lower_for_h100(pretend_h100, *sizes, transform=transform)
    assert text.count("__gpu$xla.gpu.triton") + text.count("triton_kernel_call") == 1
    assert "stablehlo.add" not in text and "stablehlo.multiply" not in text
    assert caught == []


@pytest.mark.parametrize(("frames", "bits"), [(1500, 32), (1600, 64)])
def test_offsets_beyond_32_bits(pretend_h100, monkeypatch, frames, bits):
    """1600 frames of 1374 tokens are 2.25e9 numbers, more than 2^31; 1500 are fewer."""
    from jax._src.pallas.triton import lowering

    widths = set()
    compute = lowering._compute_offsets_from_indices

    def note(block_info, indexer):
        offsets = compute(block_info, indexer)
        if len(block_info.full_shape_dtype.shape) == 4:  # those into x and the result
            of_numbers = offsets[0] if isinstance(offsets, tuple) else offsets  # from JAX 0.12 on
            widths.add(lowering._element_type(of_numbers.type).width)
        return offsets

    monkeypatch.setattr(lowering, "_compute_offsets_from_indices", note)
    lower_for_h100(pretend_h100, frames, 1374, 16, 64)
    assert widths == {bits}


def test_tiles_are_of_one_size(monkeypatch):
    """A program has as many numbers for each thread, whatever the heads are."""
    found = {}

    def note(kernel, *, grid, in_specs, out_shape, **_):
        _, tokens, heads, h = in_specs[0].block_shape
        assert tokens * heads * h == triton._TILE == 64 * 128
        found[out_shape[0].shape[2:]] = tokens, heads, *grid
        return lambda x, *_: [x]

    monkeypatch.setattr(triton, "triton_call", note)
    for n, h in ((16, 64), (4, 32), (1, 32), (128, 128)):
        arguments = draw(13, 1, 1, n, h)
        arguments["x"] = jnp.zeros((3, 137, n, h), jnp.bfloat16)
        triton.norm_rope(*arguments.values(), EPS)
    assert found == {
        (16, 64): (8, 16, 3, 18, 1),
        (4, 32): (64, 4, 3, 3, 1),
        (1, 32): (256, 1, 3, 1, 1),
        (128, 128): (1, 64, 3, 137, 2),
    }
