"""A linear layer with bias and activation against its formula in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import linear, mosaic_gpu_call, tuned
from pallas_kernels.linear import gelu
from pallas_kernels.linear.api import OPERATION
from pallas_kernels.linear.call import LinearCall
from pallas_kernels.linear.gelu import gelu_in_few_operations
from pallas_kernels.linear.swiglu import swiglu_in_few_operations
from pallas_kernels.linear.xla import linear as xla_linear

SIMULATED = {"implementation": "mosaic_gpu", "interpret": True}
# How much rounding to a type changes a number at most, by its size.
HALF_ULP = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}


def draw(seed, m, i, o, dtype="bfloat16"):
    rng = np.random.default_rng(seed)
    x, kernel, bias = rng.normal(size=(m, i)), rng.normal(size=(i, o)), rng.normal(size=o)
    return jnp.asarray(x, dtype), jnp.asarray(kernel * i**-0.5, dtype), jnp.asarray(bias, "float32")


def normal_below(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def exact_gelu(x):
    return x * np.vectorize(normal_below)(x)


def exact_silu(x):
    return x / (1 + np.exp(-x))


def oracle(x, kernel, bias, activation):
    x, kernel, bias = (np.asarray(a, np.float64) for a in (x, kernel, bias))
    y = x @ kernel + bias
    if activation == "swiglu":
        gate, value = np.split(y, 2, axis=-1)
        return exact_silu(gate) * value
    return exact_gelu(y) if activation == "gelu" else y


def assert_right(found, arguments, activation, *, roundings=1):
    """Within the rounding of sums, so many times, and of the result; GELU is 1.13 steep at most,
    and SiLU 1.1.

    With more than one rounding, the product and the bias are rounded, which are larger than their
    sum.
    """
    sums, expected = np.abs(oracle(*arguments, None)), oracle(*arguments, activation)
    if roundings > 1:
        sums = sums + 2 * np.abs(np.asarray(arguments[2], np.float64))
    assert found.shape == expected.shape and found.dtype == arguments[0].dtype
    half = HALF_ULP[found.dtype.name]
    rounded = sums + half
    if activation == "swiglu":  # Either factor times what rounding changes in the other.
        gate, value = np.split(rounded, 2, axis=-1)
        rounded = 2 * gate * value
    allowed = half * (1.13 * roundings * rounded + np.abs(expected)) + 1e-5
    assert np.all(np.abs(np.asarray(found, np.float64) - expected) <= allowed)


@pytest.mark.new_jax
@pytest.mark.parametrize(
    ("sizes", "activation", "dtype"),
    [
        # Two thread blocks: three rounds of tiles and a tail of rows.
        ((300, 256, 512), "gelu", "bfloat16"),
        # As many groups of steps as parts are written in, and a number of rows that 8 does not
        # divide.
        ((133, 1024, 256), "gelu", "float16"),
        # Groups of steps in which nothing is left to be written.
        ((256, 1280, 256), "gelu", "bfloat16"),
        ((264, 512, 512), None, "bfloat16"),
        # One tile, for one of the two blocks.
        ((3, 768, 256), None, "float16"),
        # Half as many parts: some of each group of steps, and of the first groups alone.
        ((300, 256, 512), "swiglu", "bfloat16"),
        ((133, 2304, 512), "swiglu", "float16"),
    ],
    ids=str,
)
def test_the_kernel_in_the_simulator(sizes, activation, dtype):
    arguments = draw(0, *sizes, dtype)
    found = linear(*arguments, activation=activation, **SIMULATED)
    assert_right(found, arguments, activation)


@pytest.mark.parametrize("dtype", HALF_ULP)
@pytest.mark.parametrize("activation", [None, "gelu", "swiglu"])
def test_xla(dtype, activation):
    arguments = draw(1, 13, 20, 14, dtype)
    run = jax.jit(functools.partial(linear, activation=activation, precision="highest"))
    assert_right(run(*arguments), arguments, activation, roundings=2)
    without = run(*arguments[:2])
    no_bias = (*arguments[:2], np.zeros(14))
    assert_right(without, no_bias, activation, roundings=2)


@pytest.mark.new_jax
def test_without_a_bias():
    x, kernel, _ = draw(2, 128, 256, 256)
    assert_right(linear(x, kernel, **SIMULATED), (x, kernel, jnp.zeros(256)), None)


@pytest.mark.new_jax
def test_axes_before_the_last_are_rows():
    x, kernel, bias = draw(3, 264, 256, 256)
    run = functools.partial(linear, kernel=kernel, bias=bias, **SIMULATED)
    expected = run(x)
    assert_right(expected, (x, kernel, bias), None)
    np.testing.assert_array_equal(run(x.reshape(3, 88, 256)).reshape(264, 256), expected)
    np.testing.assert_array_equal(jax.vmap(run)(x.reshape(3, 88, 256)), run(x.reshape(3, 88, 256)))


@pytest.mark.new_jax
def test_a_batch_of_layers():
    x, kernel, bias = draw(4, 128, 256, 512)
    kernels, biases = jnp.stack([kernel[:, :256], kernel[:, 256:]]), bias.reshape(2, 256)
    found = jax.vmap(functools.partial(linear, x, **SIMULATED))(kernels, biases)
    expected = linear(x, kernel, bias, **SIMULATED)
    assert_right(expected, (x, kernel, bias), None)
    np.testing.assert_array_equal(jnp.concatenate(list(found), axis=1), expected)


@pytest.mark.new_jax
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_the_gradient_is_that_of_xla(activation):
    arguments = draw(5, 130, 256, 256)
    weights = jnp.asarray(np.random.default_rng(6).normal(size=(130, 256)), jnp.float32)

    def gradient(**options):
        def loss(*arguments):
            y = linear(*arguments, activation=activation, **options)
            return jnp.sum(weights * y.astype(jnp.float32))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments)

    for found, expected in zip(gradient(**SIMULATED), gradient(implementation="xla"), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert np.any(np.asarray(found))


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 401, dtype=np.float32)
    found = np.asarray(jax.jit(gelu)(x), np.float64)
    # Rounding of erf, 6e-8, times |x| / 2; the approximation by tanh is off by 5e-4.
    np.testing.assert_allclose(found, exact_gelu(x.astype(np.float64)), rtol=0, atol=1e-6)


def test_gelu_keeps_the_type_and_computes_in_float32():
    x = jnp.asarray([-2.5, -0.75, 0.5, 3.0], jnp.bfloat16)
    found = jax.jit(gelu)(x)
    assert found.dtype == jnp.bfloat16
    expected = jnp.asarray(exact_gelu(np.asarray(x, np.float64)), jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_gelu_in_few_operations_is_as_exact():
    x = np.linspace(-12, 12, 24001, dtype=np.float32)
    found = np.asarray(jax.jit(gelu_in_few_operations)(x), np.float64)
    # The probability above x, which does not lose digits where it is small.
    above = np.vectorize(lambda t: 0.5 * math.erfc(t / math.sqrt(2)))(x.astype(np.float64))
    expected = x * np.where(x < 0, above[::-1], 1 - above)
    np.testing.assert_allclose(found, expected, rtol=0, atol=7e-7)
    middle = (x > -5) & (x < 0)
    np.testing.assert_allclose(found[middle], expected[middle], rtol=8e-6)


def test_gelu_in_few_operations_far_away():
    x = np.float32([-np.inf, -3e38, -1e4, -20.0, -0.0, 0.0, 20.0, 1e4, 3e38, np.inf, np.nan])
    found = np.asarray(jax.jit(gelu_in_few_operations)(x))
    np.testing.assert_array_equal(found, np.maximum(x, 0.0))


def test_swiglu_in_few_operations_is_as_exact():
    gate = np.linspace(-40, 40, 2001, dtype=np.float32)
    value = np.random.default_rng(0).normal(size=2001).astype(np.float32)
    found = jax.jit(swiglu_in_few_operations)(gate, value)
    expected = exact_silu(gate.astype(np.float64)) * value
    # The power to which 2 is raised is rounded, which at -40 is 5e-6 of the result.
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=1e-5)


def test_swiglu_in_few_operations_far_away():
    gate = np.float32([-3e38, -1e4, -200.0, -0.0, 0.0, 200.0, 1e4, 3e38, np.inf])
    value = np.where(gate > 0, np.float32(1), np.float32(10))  # -3e38 times 10 is no float32.
    found = jax.jit(swiglu_in_few_operations)(gate, value)
    np.testing.assert_array_equal(found, np.maximum(gate, 0.0))


X, KERNEL, BIAS = jnp.zeros((3, 4)), jnp.zeros((4, 5)), jnp.zeros(5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, KERNEL.T), {}, r"x must be \[\*b i\] and its kernel \[i o\], not \(3, 4\)"),
        ((X[0, 0], KERNEL), {}, r"x must be \[\*b i\]"),
        ((X, KERNEL[None]), {}, r"x must be \[\*b i\]"),
        ((X.astype(jnp.bfloat16), KERNEL), {}, "both the same, not bfloat16 and float32"),
        ((X.astype(int), KERNEL.astype(int)), {}, "must be float32, bfloat16 or float16"),
        ((X, KERNEL, BIAS[:4]), {}, r"bias must be \(5,\), not \(4,\)"),
        ((X, KERNEL), {"activation": "relu"}, "activation='relu' is unknown"),
        ((X, KERNEL), {"activation": "swiglu"}, "halves the columns, not 5 of them"),
        ((X, KERNEL), {"implementation": "triton"}, "implementation='triton' is unknown"),
        ((X, KERNEL), {"implementation": "xla", "interpret": True}, "'xla' is no kernel"),
    ],
)
def test_called_wrongly(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        linear(*arguments, **options)


# However few rows there are.
ALWAYS = {"linear.min_tiles_per_multiprocessor": 0}
CANNOT = [
    ("cpu", None, "bfloat16", (256, 256), "is no NVIDIA GPU of the Hopper generation"),
    ("gpu", "8.0", "bfloat16", (256, 256), "is no NVIDIA GPU of the Hopper generation"),
    ("gpu", "9.0", "float32", (256, 256), "float32 is not supported"),
    ("gpu", "9.0", "bfloat16", (320, 256), "a kernel of 320 x 256 is not supported"),
    ("gpu", "9.0", "bfloat16", (256, 320), r"multiples of 256 and of 256"),
]


@pytest.mark.parametrize(("backend", "capability", "dtype", "sizes", "reason"), CANNOT)
def test_what_the_kernel_cannot_do_goes_to_xla(
    pretend_device, monkeypatch, backend, capability, dtype, sizes, reason
):
    pretend_device(backend, capability)
    monkeypatch.setattr(mosaic_gpu_call, "is_supported", lambda: True)
    arguments = draw(7, 8, *sizes, dtype)
    with pytest.raises(NotImplementedError, match=f"mosaic_gpu: .*{reason}.*; use implementation"):
        linear(*arguments, implementation="mosaic_gpu")
    with tuned.override(ALWAYS):
        assert_right(linear(*arguments), arguments, None, roundings=2)


def test_an_old_jax_goes_to_xla(pretend_device, monkeypatch):
    pretend_device("gpu", "9.0")
    monkeypatch.setattr(mosaic_gpu_call, "is_supported", lambda: False)
    arguments = draw(8, 8, 256, 256)
    with pytest.raises(NotImplementedError, match=r"is older than 0\.11"):
        linear(*arguments, implementation="mosaic_gpu")
    with tuned.override(ALWAYS):
        assert_right(linear(*arguments), arguments, None, roundings=2)


@pytest.mark.parametrize(
    "options",
    [{"implementation": "xla"}, pytest.param(SIMULATED, marks=pytest.mark.new_jax)],
    ids=str,
)
def test_no_rows(options):
    x, kernel, bias = draw(10, 0, 256, 256)
    assert linear(x, kernel, bias, **options).shape == (0, 256)


@pytest.mark.parametrize(
    ("rows", "out_dim", "chosen"),
    [
        # 132 multiprocessors: tiles of 128 rows and 256 columns for 16 rounds.
        (16776, 4096, "mosaic_gpu"),
        (16768, 4096, "xla"),
        (67464, 1024, "mosaic_gpu"),
        (16896, 1024, "xla"),
        (68700, 4096, "xla"),  # would have to be padded
        (68704, 4096, "mosaic_gpu"),
    ],
)
def test_what_is_chosen(pretend_device, monkeypatch, rows, out_dim, chosen):
    pretend_device("gpu", "9.0")
    monkeypatch.setattr(mosaic_gpu_call, "is_supported", lambda: True)
    monkeypatch.setattr("pallas_kernels.devices.multiprocessors", lambda: 132)
    x = jax.ShapeDtypeStruct((2, rows // 2, 1024), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((1024, out_dim), jnp.bfloat16)
    call = LinearCall(x=x, kernel=kernel, bias=None, activation=None, precision=None)
    assert OPERATION.choose(call).backend.name == chosen
    # A name is not asked whether it pays off.
    assert OPERATION.choose(call, implementation="mosaic_gpu").backend.name == "mosaic_gpu"


@pytest.mark.new_jax
@pytest.mark.parametrize(
    ("rows", "activation", "copies"), [(4224, "gelu", 0), (4221, "gelu", 1), (4224, "swiglu", 0)]
)
def test_becomes_one_kernel_on_a_gpu(pretend_h100, rows, activation, copies):
    x = jax.ShapeDtypeStruct((rows, 1024), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((1024, 4096), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((4096,), jnp.float32)
    run = functools.partial(linear, activation=activation, implementation="mosaic_gpu")
    with pretend_h100():
        text = jax.jit(run).trace(x, kernel, bias).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("mosaic_gpu_v2") == 1
    assert text.count("stablehlo.pad") == text.count("stablehlo.slice") == copies
    # The columns of the kernel, and the numbers of its bias.
    assert text.count("stablehlo.transpose") == (2 if activation == "swiglu" else 0)
    assert "stablehlo.dot_general" not in text and "stablehlo.multiply" not in text


@pytest.mark.gpu
@pytest.mark.new_jax
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("rows", "in_dim", "out_dim", "activation"),
    [
        (17600, 1024, 4096, "gelu"),
        (17600, 1024, 1024, None),
        (4221, 2304, 512, "gelu"),
        (17600, 1536, 8192, "swiglu"),
    ],
)
def test_the_kernel_on_a_gpu_is_as_good_as_xla(
    relative_error, dtype, rows, in_dim, out_dim, activation
):
    arguments = draw(9, rows, in_dim, out_dim, dtype)
    wide = [a.astype(jnp.float32) for a in arguments]
    exact = jax.jit(functools.partial(xla_linear, activation=activation, precision="highest"))(
        *wide
    )
    run = lambda name: linear(*arguments, activation=activation, implementation=name)
    found, plain = run("mosaic_gpu"), run("xla")
    assert relative_error(found, exact) <= relative_error(plain, exact)
    # A product of two rounded numbers is off by a share of itself, too.
    allowed = 0.05 + (0.02 * np.abs(exact) if activation == "swiglu" else 0.0)
    assert np.all(np.abs(np.asarray(found, np.float32) - exact) <= allowed)
    for _ in range(10):
        assert jnp.array_equal(run("mosaic_gpu"), found)


@pytest.mark.gpu
@pytest.mark.new_jax
def test_more_than_2_to_the_31_numbers():
    """The same rows over and over, 2.25e9 results: the last ones are as the first."""
    few, kernel, bias = draw(11, 1024, 256, 1024)

    @jax.jit
    def count_equal(few):
        x = jnp.tile(few, (2150, 1))
        out = linear(x, kernel, bias, implementation="mosaic_gpu").reshape(2150, 1024, 1024)
        return jnp.sum(jax.vmap(lambda rows: jnp.all(rows == out[0]))(out))

    assert count_equal(few) == 2150
