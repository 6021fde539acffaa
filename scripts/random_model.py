"""A model with random weights, at once: for benchmarks, and for trying the whole way without
trained weights.

    python scripts/random_model.py DESTINATION [--config FILE.json]
"""

import argparse

import jax
import jax.numpy as jnp
from flax import nnx

import vggt_jax

_NOISE = 2**22  # numbers drawn; larger parameters repeat them


def random_model(config: vggt_jax.VGGTConfig, *, seed: int = 0) -> vggt_jax.VGGT:
    """Like `VGGT(config, rngs=...)`, without the minute that compiling so many generators takes."""
    noise = 0.02 * jax.random.normal(jax.random.key(seed), (_NOISE,))

    def fill(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        if name.endswith(".scale"):
            return jnp.ones(leaf.shape)
        if name.endswith((".ls1", ".ls2")):
            return jnp.full(leaf.shape, 1.0 if name.startswith("encoder.") else 0.01)
        return jnp.resize(noise, leaf.shape)

    model = jax.eval_shape(lambda: vggt_jax.VGGT(config, rngs=nnx.Rngs(0)))
    return jax.tree_util.tree_map_with_path(fill, model)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("destination", help="folder to make, or FILE.safetensors")
    parser.add_argument("--config", help="JSON configuration; VGGT-1B without it")
    args = parser.parse_args()
    make = vggt_jax.VGGTConfig
    config = make.from_json(args.config) if args.config else make.vggt_1b()
    vggt_jax.save_model(random_model(config), args.destination)


if __name__ == "__main__":
    main()
