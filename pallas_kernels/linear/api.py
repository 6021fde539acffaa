"""`linear`: its arguments, checked, and its backends."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import mosaic_gpu_call
from pallas_kernels.arguments import DTYPES
from pallas_kernels.linear.call import LinearCall
from pallas_kernels.operation import Backend, Operation

Activation = Literal["gelu", "swiglu"]

OPERATION = Operation(
    name="linear",
    backends=[
        Backend(
            name="mosaic_gpu",
            module="pallas_kernels.linear.mosaic_gpu",
            device=mosaic_gpu_call.unsupported_because,
        ),
        Backend(name="xla", module="pallas_kernels.linear.xla"),
    ],
    # The derivative of an activation needs the product, which would be computed twice.
    gradient="xla",
)


def linear(
    x: Float[Array, "*b i"],
    kernel: Float[Array, "i o"],
    bias: Float[Array, " o"] | None = None,
    *,
    activation: Activation | None = None,
    precision: jax.lax.Precision | None = None,
    implementation: str | None = None,
    interpret: bool = False,
) -> Float[Array, "*b out"]:
    """`activation(x @ kernel + bias)`, sums in float32; `out` is `o`, or half of it with "swiglu".

    `jax.vmap` and `jax.grad` work; what is differentiated is "xla" altogether.

    Args:
        x, kernel: float32, bfloat16 or float16, both of one type, which the result has too.
        bias: added to every row, in any float type; None for none.
        activation: "gelu", the exact one; "swiglu", the first half of the columns after SiLU times
            the second half; or None.
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
    _check_arguments(x, kernel, bias, activation)
    call = LinearCall(x=x, kernel=kernel, bias=bias, activation=activation, precision=precision)
    # Not compiled by itself: what comes before and after joins XLA's product.
    return OPERATION.choose(call, implementation=implementation, interpret=interpret)(call)


def _check_arguments(x, kernel, bias, activation):
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
        raise ValueError(f"{activation=} is unknown; use 'gelu', 'swiglu' or None")
    if activation == "swiglu" and kernel.shape[1] % 2:
        raise ValueError(f"activation='swiglu' halves the columns, not {kernel.shape[1]} of them")
