"""Writes the mean of the weights of models that were trained from the same one.

    python scripts/average_models.py runs/a/model.safetensors runs/b/model.safetensors \\
        --out runs/mean/model.safetensors

Runs that begin at the same weights and differ in scenes or settings end near enough to each other
for their mean to be a model, often a better one than each (arXiv:2203.05482). Evaluate it: nothing
here says whether it is.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax.numpy as jnp

import vggt_jax
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.errors import InputError
from vggt_jax.models.loading import named_parameters
from vggt_jax.training.loop import export_model


def mean_of(paths: list[pathlib.Path], out: pathlib.Path) -> None:
    """Writes the mean, kernels in bfloat16.

    Raises:
        InputError: the models differ in kind or size.
        CheckpointError: one cannot be read.
    """
    first = vggt_jax.load_model(paths[0])
    total = {name: x.astype(jnp.float32) for name, x in named_parameters(first).items()}
    for path in paths[1:]:
        model = vggt_jax.load_model(path)
        if type(model) is not type(first) or model.config != first.config:
            raise InputError(f"{path}: another kind or size of model than {paths[0]}")
        parameters = named_parameters(model)
        total = {name: x + parameters[name].astype(jnp.float32) for name, x in total.items()}
    export_model(first, {name: x / len(paths) for name, x in total.items()}, out)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=pathlib.Path, nargs="+", help="checkpoints of ours")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    try:
        mean_of(args.models, args.out)
    except (InputError, CheckpointError) as error:
        print(f"average_models: error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"wrote {args.out}, the mean of {len(args.models)} models")


if __name__ == "__main__":
    main()
