"""Makes a trained checkpoint the one that ships with the package.

    python scripts/package_model.py runs/small/model.safetensors --image-size 112
    python scripts/package_model.py runs/wide/model.safetensors --image-size 224 --int8 \
        --resize-mode area

Sets the size that photographs are resized to and how, resamples the position table to it (exactly
what the encoder does at that size), and writes kernels in bfloat16, or in eight bits. Its results
warn of themselves once scripts/calibrate_confidence.py has measured it.
"""

import argparse
import dataclasses
import pathlib
import sys
from typing import get_args

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax.numpy as jnp

import vggt_jax
from vggt_jax.images.resizing import Mode
from vggt_jax.layers.vit import resize_position_table
from vggt_jax.models.loading import abstract_model, named_parameters
from vggt_jax.training.loop import export_model
from vggt_jax.training.state import with_named
from vggt_jax.weights import small_model_path


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="checkpoint of training")
    parser.add_argument(
        "--image-size",
        type=int,
        required=True,
        help="side of the squares that it was trained with, in pixels; of several shapes, of a "
        "square of as many pixels as most had",
    )
    parser.add_argument(
        "--resize-mode",
        choices=get_args(Mode),
        default="crop",
        help="how photographs come to that size where the user does not say (load_images)",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=small_model_path(),
        help="by default its place in the package",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="store kernels in eight bits, with a scale for each output channel",
    )
    args = parser.parse_args()
    model = vggt_jax.load_model(args.model)
    config = dataclasses.replace(
        model.config, img_size=args.image_size, resize_mode=args.resize_mode
    )
    side = args.image_size // config.patch_size
    params = named_parameters(model)
    table = params["encoder.pos_embed"].astype(jnp.float32)
    patches = resize_position_table(table[1:], side, side)
    params["encoder.pos_embed"] = jnp.concatenate([table[:1], patches])
    if args.int8:
        kernels = [name for name in params if name.endswith(".kernel")]
        model = with_named(abstract_model(config), params)
        vggt_jax.save_model(model, args.out, overwrite=True, int8=kernels)
    else:
        export_model(abstract_model(config), params, args.out)
    print(f"wrote {args.out} ({args.out.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
