"""A model with random weights, at once: for benchmarks, and for trying the whole way without
trained weights.

    python scripts/random_model.py DESTINATION [--model vggt|pi3] [--config FILE.json]
"""

import argparse

import jax
import jax.numpy as jnp

import vggt_jax
from vggt_jax.layers.vit import IMAGE_MEAN, IMAGE_STD
from vggt_jax.models.base import ModelConfig, SceneModel
from vggt_jax.models.loading import abstract_model
from vggt_jax.models.registry import families

_NOISE = 2**22  # numbers drawn; larger parameters repeat them


def released_config(model: str) -> ModelConfig:
    """The configuration of the released model of this name; "da3-base" is that of a size."""
    family, _, size = model.partition("-")
    config = families()[family].config
    return getattr(config, size)() if size else config.from_dict({})


def random_model(config: ModelConfig, *, seed: int = 0) -> SceneModel:
    """Like `VGGT(config, rngs=...)` and its like, without the minute of compilation that so many
    generators take."""
    noise = 0.02 * jax.random.normal(jax.random.key(seed), (_NOISE,))

    colors = {"image_mean": IMAGE_MEAN, "image_std": IMAGE_STD}

    def fill(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        if name in colors:
            return jnp.array(colors[name])
        if name.endswith(".scale"):
            return jnp.ones(leaf.shape)
        if name.endswith((".ls1", ".ls2")):
            return jnp.full(leaf.shape, 1.0 if name.startswith("encoder.") else 0.01)
        return jnp.resize(noise, leaf.shape)

    return jax.tree_util.tree_map_with_path(fill, abstract_model(config))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("destination", help="folder to make, or FILE.safetensors")
    parser.add_argument("--model", choices=families(), default="vggt")
    parser.add_argument("--config", help="JSON configuration; the released size without it")
    args = parser.parse_args()
    config = released_config(args.model)
    if args.config:
        config = type(config).from_json(args.config)
    vggt_jax.save_model(random_model(config), args.destination)


if __name__ == "__main__":
    main()
