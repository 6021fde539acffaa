"""Times a linear layer with its activation by XLA and by the kernel of `pallas_kernels.linear`.

    python scripts/bench_linear.py --out docs/benchmarks/linear_h100.jsonl

One JSON line for each number of frames of 1376 tokens and each layer: the first one of an MLP, 1024
to 4096 with GELU or 1536 to 8192 with SwiGLU, and one of queries, keys or values, 1024 to 1024.
Milliseconds are medians of three series, timed in turn; `product` is XLA's alone, without bias and
activation. Errors are relative, against float32.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
from bench_model import describe_jax, report, time_series

from pallas_kernels import linear

TOKENS = 1376
LAYERS = {
    "mlp": (1024, 4096, "gelu"),
    "swiglu": (1536, 8192, "swiglu"),
    "value": (1024, 1024, None),
}
ROWS_CHECKED = 4096


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 2, 4, 8, 16, 50, 100])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, help="file to append JSON lines to")
    args = parser.parse_args()
    for frames in args.frames:
        for layer in args.layers:
            report(run(layer, frames, args.repeats), args.out)


def run(layer: str, frames: int, repeats: int) -> dict:
    in_dim, out_dim, activation = LAYERS[layer]
    rows = frames * TOKENS
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (rows, in_dim), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (in_dim, out_dim)) * in_dim**-0.5
    kernel = kernel.astype(jnp.bfloat16)
    bias = 0.3 * jax.random.normal(keys[2], (out_dim,))
    whole = lambda name: lambda *xs: linear(*xs, activation=activation, implementation=name)
    ways = {name: jax.jit(whole(name)) for name in ("xla", "mosaic_gpu")}
    few = x[:ROWS_CHECKED]
    exact = linear(
        *(y.astype(jnp.float32) for y in (few, kernel, bias)),
        activation=activation,
        precision=jax.lax.Precision.HIGHEST,
    )
    errors = {name: relative_error(way(few, kernel, bias), exact) for name, way in ways.items()}
    ways["product"] = jax.jit(lambda x, kernel, bias: linear(x, kernel, implementation="xla"))
    times = {name: [] for name in ways}
    for name in [*ways, *ways]:
        times[name].append(time_series(functools.partial(ways[name], x, kernel, bias), repeats))
    operations = 2 * rows * in_dim * out_dim
    return {
        **describe_jax(),
        "layer": layer,
        "shape": [rows, in_dim, out_dim],
        "ms": {name: [round(t, 4) for t in series] for name, series in times.items()},
        "tflops": {name: round(operations / min(series) / 1e9) for name, series in times.items()},
        "relative_error": {name: float(f"{error:.3g}") for name, error in errors.items()},
    }


def relative_error(found, expected) -> float:
    difference = found.astype(jnp.float32) - expected
    return float(jnp.linalg.norm(difference) / jnp.linalg.norm(expected))


if __name__ == "__main__":
    main()
