"""`linear`: what was asked for, checked and handed to the implementation for it."""

import functools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import devices, mosaic_gpu_call
from pallas_kernels.arguments import DTYPES, check_implementation, check_interpret
from pallas_kernels.blocks import count_blocks
from pallas_kernels.matmul import xla
from pallas_kernels.matmul.config import MIN_ROUNDS, STAGES, TILE_K, TILE_M, TILE_N
from pallas_kernels.mosaic_gpu_call import align

Implementation = Literal["mosaic_gpu", "xla"]
Activation = Literal["gelu"]


def linear(
    x: Float[Array, "*b i"],
    kernel: Float[Array, "i o"],
    bias: Float[Array, " o"] | None = None,
    *,
    activation: Activation | None = None,
    precision: jax.lax.Precision | None = None,
    implementation: Implementation | None = None,
    interpret: bool = False,
) -> Float[Array, "*b o"]:
    """`activation(x @ kernel + bias)`, sums in float32.

    `jax.vmap` and `jax.grad` work; what is differentiated is "xla" altogether.

    Args:
        x, kernel: float32, bfloat16 or float16, both of one type, which the result has too.
        bias: added to every row, in any float type; None for none.
        activation: "gelu", the exact one, or None.
        precision: of float32 products; 16-bit products accumulate in float32.
        implementation: "mosaic_gpu" (a Pallas kernel for Hopper GPUs in which the activation costs
            no pass through memory: bfloat16 and float16, `i` and `o` multiples of 256), "xla" (any
            device), or None for the kernel where it can do this here, rows are enough to fill the
            GPU, and 8 divides their number, since others have to be copied. A name means that one
            or an error. "mosaic_gpu" rounds sums with their bias; "xla" rounds before, too.
        interpret: simulate the kernel on any device, slowly.

    Raises:
        ValueError: arguments that no implementation could make sense of.
        NotImplementedError: the implementation named cannot do this here.
    """
    if implementation is None and interpret:
        implementation = "mosaic_gpu"
    _check_arguments(x, kernel, bias, activation, implementation, interpret)
    if _choose_implementation(implementation, x, kernel, interpret) == "xla":
        return xla.linear(x, kernel, bias, activation, precision)
    bias = jnp.zeros(kernel.shape[1], jnp.float32) if bias is None else bias
    return _run_kernel(activation, interpret, x, kernel, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run_kernel(activation, interpret, x, kernel, bias):
    from pallas_kernels.matmul import mosaic_gpu

    rows = x.reshape(-1, x.shape[-1])
    bias = bias.astype(jnp.float32)
    out = mosaic_gpu.linear(rows, kernel, bias, activation, interpret=interpret)
    return out.reshape(*x.shape[:-1], kernel.shape[1])


def _forward(activation, interpret, *arrays):
    # What is differentiated is XLA's altogether: the derivative of an activation needs the product,
    # which would be computed twice.
    compute = lambda x, kernel, bias: xla.linear(x, kernel, bias, activation, None)
    return jax.vjp(compute, *arrays)


def _backward(activation, interpret, pull_back, cotangent):
    return pull_back(cotangent)


_run_kernel.defvjp(_forward, _backward)


def _check_arguments(x, kernel, bias, activation, implementation, interpret):
    if kernel.ndim != 2 or x.ndim < 1 or x.shape[-1] != kernel.shape[0]:
        raise ValueError(f"x must be [*b i] and its kernel [i o], not {x.shape} and {kernel.shape}")
    if x.dtype not in DTYPES or kernel.dtype != x.dtype:
        raise ValueError(
            f"x and kernel must be float32, bfloat16 or float16, both the same, not {x.dtype} and "
            f"{kernel.dtype}"
        )
    if bias is not None and jnp.shape(bias) != kernel.shape[1:]:
        raise ValueError(f"bias must be {kernel.shape[1:]}, not {jnp.shape(bias)}")
    if activation not in (None, *get_args(Activation)):
        raise ValueError(f"{activation=} is unknown; use 'gelu' or None")
    check_implementation(implementation, get_args(Implementation))
    check_interpret(interpret, implementation, ("mosaic_gpu",))


def _choose_implementation(implementation, x, kernel, interpret):
    """The implementation that runs this. A name is that one or an error."""
    if implementation == "xla":
        return implementation
    in_dim, out_dim = kernel.shape
    obstacle = _obstacle(in_dim, out_dim, x.dtype, interpret)
    if implementation is None:
        is_best = obstacle is None and _fills_device(math.prod(x.shape[:-1]), out_dim)
        return "mosaic_gpu" if is_best else "xla"
    if obstacle is not None:
        raise NotImplementedError(f"mosaic_gpu: {obstacle}; use implementation='xla' or None")
    return implementation


def _fills_device(num_rows, out_dim) -> bool:
    tiles = count_blocks(num_rows, TILE_M) * (out_dim // TILE_N)
    return align(num_rows) == num_rows and tiles >= MIN_ROUNDS * devices.multiprocessors()


def _obstacle(in_dim, out_dim, dtype, interpret):
    """Why the kernel cannot do this here; None if it can."""
    if obstacle := mosaic_gpu_call.obstacle(interpret=interpret):
        return obstacle
    if dtype == jnp.float32:
        return "float32 is not supported (bfloat16, float16)"
    if in_dim % (STAGES * TILE_K) or out_dim % TILE_N:
        multiples = f"multiples of {STAGES * TILE_K} and of {TILE_N}"
        return f"a kernel of {in_dim} x {out_dim} is not supported ({multiples})"
    return None
