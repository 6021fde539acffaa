"""The arrays of goldens of Depth Anything 3 as the project computes them, for check_goldens.py."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vggt_jax.heads.dpt import fuse_levels
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.block import Block
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.vit import IMAGE_MEAN, IMAGE_STD
from vggt_jax.models.da3.cameras import normalised_cameras
from vggt_jax.models.da3.model import DA3
from vggt_jax.models.da3.reference import ReferenceView, balance_scores, reference_view
from vggt_jax.scene.priors import Priors
from vggt_jax.trunk.alternation import TrunkOutput
from vggt_jax.trunk.token_layout import TokenLayout

Arrays = dict[str, np.ndarray]
FLOAT32 = Precision.from_compute_dtype(jnp.float32)
_OPTIONS: dict[str, Any] = {"compute_dtype": jnp.float32}


def compute_da3(model: DA3, case: str, golden: Arrays) -> Arrays:
    """All arrays of a case under the names of its goldens, from which inputs are taken away.

    The first word of a case names the strategy for the reference view, `first` or `middle`, or is
    another for the default. The official code orders views from the reference view on where blocks
    alternate, but for what its heads read.
    """
    images = np.moveaxis(golden.pop("images"), 2, -1)
    if images.min() < 0:  # as the official loader normalises them
        images = (images * np.array(IMAGE_STD) + np.array(IMAGE_MEAN)).astype(np.float32)
    priors = None
    if "extrinsics" in golden:
        given = golden.pop("extrinsics"), golden.pop("intrinsics")
        priors = Priors(camera_from_world=given[0], intrinsics=given[1])
    word = case.partition("_")[0]
    strategy: Any = word if word in ("first", "middle") else "saddle_balanced"
    found = jax.device_get(_run(model, images, priors, strategy))
    if priors is not None or images.shape[1] < 3:
        return found
    # Scene by scene: the reference view, and the others in their order.
    index = found["ref_index"].astype(int)
    order = np.stack([[i, *(j for j in range(images.shape[1]) if j != i)] for i in index])
    for name in found:
        kind, _, number = name.partition("_")
        if kind == "feat" or (kind == "block" and int(number) >= model.config.alt_start - 1):
            found[name] = np.stack(
                [x[places] for x, places in zip(found[name], order, strict=True)]
            )
    return found


@functools.partial(jax.jit, static_argnames="strategy")
def _run(
    model: DA3, images: jax.Array, priors: Priors | None, strategy: ReferenceView
) -> dict[str, Any]:
    layout, start = model.layout(images), model.config.alt_start
    tokens = model.encode(images, **_OPTIONS)
    known: dict[str, Any] = {} if priors is None else {"priors": priors}
    trunk = model.aggregate(
        tokens,
        layout,
        taps=tuple(range(model.num_layers)),
        reference=strategy,
        **known,
        **_OPTIONS,
    )
    found = _encoder(model, images, layout)
    for layer in trunk.layers:
        halves = jnp.split(trunk.tap(layer), 2, axis=-1)
        last = start + 2 * layer + (0 if model.config.begins_with_scene else 1)
        for number, x in zip((last - 1, last), halves, strict=True):
            if number >= start:
                found[f"block_{number}"] = x
                found[f"feat_{number}"] = model.norm(x)[:, :, layout.num_special :]
    if priors is None:
        class_tokens = tokens[:, :, 0]
        found["ref_tokens"] = class_tokens
        found["ref_index"] = reference_view(class_tokens, strategy=strategy)
        found["ref_scores"] = balance_scores(class_tokens, jnp.ones(class_tokens.shape[:2], bool))
    else:
        poses = jnp.asarray(priors.camera_from_world)
        encoding = model.encoding_of_known(priors, layout, None)
        found |= {
            "extrinsics_normalized": normalised_cameras(poses),
            "cam_enc_pose": encoding,
            "cam_enc_normed": model.camera_encoder.embed(encoding, FLOAT32),
            "cam_enc_tokens": model.camera_encoder(encoding, None, FLOAT32),
        }
    found |= _head(model, trunk, layout)
    cameras = model.decode_scene(trunk, layout, **_OPTIONS)
    maps = model.decode_frames(trunk, layout, rays=True, **_OPTIONS)
    return found | {
        "camera_feature": trunk.first_tokens,
        "pose_enc": cameras["pose_enc"],
        "out_extrinsics": cameras["extrinsics"],
        "out_intrinsics": cameras["intrinsics"],
        "out_depth": maps["depth"],
        "out_depth_conf": maps["depth_conf"],
        "head_ray": maps["ray"],
        "head_ray_conf": maps["ray_conf"],
    }


def _encoder(model: DA3, images: jax.Array, layout: TokenLayout) -> dict[str, jax.Array]:
    """Tokens before the first block, and after each of the encoder's."""
    encoder, (b, s) = model.encoder, images.shape[:2]
    mean, std = jnp.array(IMAGE_MEAN), jnp.array(IMAGE_STD)
    x = encoder.embed(((images - mean) / std).reshape(b * s, *images.shape[2:]), FLOAT32)
    number = layout.tokens_per_frame

    def layer(x, block: Block):
        x = block.within_frames(x, None, Dense(), FLOAT32, num_valid=number)
        return x, x

    _, after = jax.lax.scan(layer, x, encoder.blocks)
    by_scene = lambda x: x.reshape(b, s, *x.shape[1:])
    blocks = {f"block_{i}": by_scene(x) for i, x in enumerate(after)}
    patches = lambda x: model.norm(x)[:, :, layout.num_special :]
    features = {f"feat_{i}": patches(blocks[f"block_{i}"]) for i in range(len(blocks))}
    return {"embedded": by_scene(x), **blocks, **features}


def _head(model: DA3, trunk: TrunkOutput, layout: TokenLayout) -> dict[str, jax.Array]:
    """What the dense head computes on its way; maps with their channels first."""
    head, (b, s) = model.head, trunk.kept.shape[:2]
    tapped = model.tapped(trunk.kept, trunk, layout)
    found: dict[str, Any] = {f"tap_{i}": x for i, x in enumerate(tapped)}
    resizes = (head.resize_0, head.resize_1, lambda x, _: x, head.resize_3)
    assert head.norm is not None
    maps: dict[str, Any] = {}
    for i, (x, project, resize) in enumerate(zip(tapped, head.projects, resizes, strict=True)):
        x = project(head.norm(x), FLOAT32).reshape(b * s, layout.rows, layout.columns, -1)
        maps[f"dpt_stage_{i}"] = resize(head.with_position(x, layout), FLOAT32)
    levels = head.pyramid(tapped, layout, FLOAT32)
    blocks = head.refinenet1, head.refinenet2, head.refinenet3, head.refinenet4
    maps["fused_main"] = fuse_levels(blocks, levels, FLOAT32)
    of_rays = head.refinenet1_aux, head.refinenet2_aux, head.refinenet3_aux, head.refinenet4_aux
    maps["fused_aux"] = fuse_levels(of_rays, levels, FLOAT32)
    maps |= {
        "neck_main": head.output_conv1(maps["fused_main"], FLOAT32),
        "neck_aux": head.ray_features(levels, FLOAT32),
        "main_logits": head.depth_map(levels, layout, FLOAT32),
        "aux_logits": head.ray_map(levels, layout, FLOAT32),
    }
    by_scene = lambda x: jnp.moveaxis(x, -1, 1).reshape(b, s, x.shape[-1], *x.shape[1:3])
    return found | {name: by_scene(x) for name, x in maps.items()}
