"""`pallas_call` on the Triton backend, without the warning that people can do nothing about.

Since JAX 0.11, lowering a kernel through Triton warns that this backend is deprecated
(docs/kernels.md says what that means for this package). The warning is given while a program that
calls a kernel is compiled, in the middle of code of other people, for whom it reads as theirs. So a
kernel call is wrapped in a primitive whose lowering hides this one warning.
"""

import functools
import warnings

import jax
from jax.core import ShapedArray
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def triton_call(kernel, *, num_warps, num_stages, interpret, **pallas_options):
    """`pl.pallas_call(kernel, **pallas_options)` for Triton; with `interpret`, on any device."""
    call = pl.pallas_call(
        kernel,
        compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=num_stages),
        interpret=interpret,
        **pallas_options,
    )
    return call if interpret else functools.partial(_quietly_p.bind, call=call)


_quietly_p = Primitive("triton_kernel")
_quietly_p.multiple_results = True


@_quietly_p.def_abstract_eval
def _abstract_eval(*avals, call):
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    outs = jax.eval_shape(call, *shapes)
    return [ShapedArray(out.shape, out.dtype) for out in outs]


@_quietly_p.def_impl
def _run_eagerly(*args, call):
    return jax.jit(functools.partial(_quietly_p.bind, call=call))(*args)


def _lower(ctx, *args, call):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
        return mlir.lower_fun(call, multiple_results=True)(ctx, *args)


def _batch(args, axes, *, call):
    outs = _quietly_p.bind(*args, call=jax.vmap(call, in_axes=tuple(axes)))
    return outs, [0] * len(outs)


mlir.register_lowering(_quietly_p, _lower)
batching.primitive_batchers[_quietly_p] = _batch
