"""Models to begin with: small sizes, and parameters from which training starts well."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vggt_jax.models.loading import abstract_model, named_parameters
from vggt_jax.models.vggt.config import VGGTConfig
from vggt_jax.models.vggt.model import VGGT

_SPECIAL_STD = 0.5  # of camera and register tokens; patch tokens have a deviation of 1
_POSITION_AMPLITUDE = 0.5
_POSITION_OMEGA = 100.0  # longest over shortest wavelength, for grids of tens of patches
# Layers whose output is to be small at first: predictions start at their middle (depth 1, no turn).
_SMALL = ("output_conv2_2", "modulation")
_SMALL_STD = 0.02
# Cameras start unturned, with fields of view of this many radians, about those of phones. Fields of
# view pass a ReLU: one that starts below 0 in all frames has no gradient and may stay there.
_FIELD_OF_VIEW = 1.1
_POSE_STD = 0.003


def small_config() -> VGGTConfig:
    """The size of a model to train where no other is named: 10.1 million parameters.

    The table of positions is for 224 pixels and is resized to others, once and for all where a
    model is made ready for one size (scripts/package_model.py).

    Its kernels in bfloat16 stay below 20 MiB. Narrow and deep, because finding what two pictures
    share takes several turns of looking around.
    """
    return VGGTConfig(
        img_size=224,
        embed_dim=192,
        num_heads=3,
        depth=7,
        vit_depth=3,
        vit_num_heads=3,
        num_register_tokens=3,
        mlp_ratio=3.0,
        camera_trunk_depth=1,
        camera_num_heads=6,
        dpt_features=48,
        dpt_out_channels=(32, 64, 128, 128),
        dpt_layers=(2, 4, 5, 6),
        enable_track=False,
        pixel_centre=0.5,
    )


def initial_model(config: VGGTConfig, key: Array) -> VGGT:
    """A model to train from scratch.

    `VGGT(config)` starts as the official code does, which continues from a trained encoder: narrow
    kernels, LayerScale of 0.01 and special tokens of 1e-6 keep the trunk silent at first. Here
    kernels keep the variance (1 / inputs; those that end a residual branch are narrower, by the
    root of the number of branches), LayerScale is 1, special tokens are as large as others,
    the position table begins with sines and cosines, and cameras start unturned, 63 degrees wide.
    """
    abstract = abstract_vggt(config)
    leaves, treedef = jax.tree.flatten(abstract)
    values = [
        _draw(name, leaf.shape, config, jax.random.fold_in(key, i))
        for i, (name, leaf) in enumerate(zip(named_parameters(abstract), leaves, strict=True))
    ]
    return jax.tree.unflatten(treedef, values)


def abstract_vggt(config: VGGTConfig) -> VGGT:
    """The model of a configuration, with shapes and types in place of parameters."""
    return cast(VGGT, abstract_model(config))


def _draw(name: str, shape: tuple[int, ...], config: VGGTConfig, key: Array) -> Array:
    owner, _, last = name.rpartition(".")
    normal = lambda std: std * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)
    if last in ("scale", "ls1", "ls2"):
        return jnp.ones(shape, jnp.float32)
    if name == "camera_head.pose_branch.fc2.bias":
        start = [0.0] * 6 + [1.0] + [_FIELD_OF_VIEW] * 2  # translation, quaternion, fields of view
        # Every iteration adds it once.
        return jnp.array(start, jnp.float32) / config.camera_iters
    if last == "bias" or last == "empty_pose_tokens":
        return jnp.zeros(shape, jnp.float32)
    if last == "kernel":
        if owner.endswith("pose_branch.fc2"):
            return normal(_POSE_STD)
        if owner.endswith(_SMALL):
            return normal(_SMALL_STD)
        std = _inputs(owner, shape) ** -0.5
        if owner.endswith(("attn.proj", "mlp.fc2")) and "blocks" in owner:
            branches = 2 * (config.vit_depth if "encoder" in owner else 2 * config.depth)
            std *= branches**-0.5
        return normal(std)
    if name == "encoder.pos_embed":
        return _position_table(config)
    if name in ("camera_token", "register_token"):
        return _SPECIAL_STD * jax.random.normal(key, shape, jnp.float32)
    return 0.02 * jax.random.normal(key, shape, jnp.float32)  # tokens of encoder and tracker


def _inputs(owner: str, shape: tuple[int, ...]) -> int:
    """How many numbers each output is a sum of."""
    if "resize_0" in owner or "resize_1" in owner:
        return shape[0]  # [i kh kw o], every output pixel from one input pixel
    return int(np.prod(shape[-4:-1])) if len(shape) == 4 else shape[-2]


def _position_table(config: VGGTConfig) -> Array:
    """A row of zeros for the class token, then sines and cosines of y and x of every patch."""
    side, dim = config.img_size // config.patch_size, config.embed_dim
    num = -(-dim // 4)
    omega = _POSITION_OMEGA ** -(np.arange(num) / num)
    y, x = np.divmod(np.arange(side * side), side)
    angles = [np.multiply.outer(at, omega) for at in (y, x)]
    waves = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=-1)
    table = _POSITION_AMPLITUDE * np.concatenate([np.zeros((1, waves.shape[1])), waves])
    return jnp.asarray(table[:, :dim], jnp.float32)
