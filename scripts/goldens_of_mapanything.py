"""The arrays of goldens of MapAnything as the project computes them, for check_goldens.py."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vggt_jax import geometry
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.vit import IMAGE_MEAN, IMAGE_STD
from vggt_jax.models.mapanything import geometric_inputs
from vggt_jax.models.mapanything.geometric_inputs import GeometricInputs
from vggt_jax.models.mapanything.model import MapAnything
from vggt_jax.trunk.alternation import Alternation
from vggt_jax.trunk.frames import encode_frames

Arrays = dict[str, np.ndarray]
FLOAT32 = Precision.from_compute_dtype(jnp.float32)
# What is known of a frame, in official names; `given_NAME` says of which frames.
_OF_FRAMES = (
    "intrinsics", "ray_directions", "depth_z", "camera_poses", "camera_quats", "camera_trans",
)  # fmt: skip


def compute_mapanything(model: MapAnything, case: str, golden: Arrays) -> Arrays:
    """All arrays of a case under the names of its goldens, from which inputs are taken away.

    Cases whose names end in `_noscale` or `_only` hide scales or rays from the model, as official
    `ignore_depth_scale_inputs` and `ignore_pose_scale_inputs`, or `ignore_calibration_inputs`, do.
    Of frames of which an encoder is told nothing, goldens become what is computed here.
    """
    images = np.moveaxis(golden.pop("images"), 2, -1)
    if images.min() < 0:  # as the official loader normalises them
        images = (images * np.array(IMAGE_STD) + np.array(IMAGE_MEAN)).astype(np.float32)
    inputs = {name: golden.pop(name) for name in _OF_FRAMES if name in golden}
    given = {name: golden.pop(name) for name in list(golden) if name.startswith("given_")}
    metric = golden.pop("is_metric_scale", np.ones(len(images))) > 0
    known = _known(
        inputs, given, metric & ("noscale" not in case), images.shape, hides_rays="_only" in case
    )
    found = jax.device_get(_run(model, images, known))
    for name, is_known in found.pop("known").items():
        if name in golden:
            unknown = np.broadcast_to(~is_known, golden[name].shape[:2])
            golden[name][unknown] = found[name][unknown]
    return found


def _known(
    inputs: Arrays, given: Arrays, metric: np.ndarray, shape: tuple[int, ...], *, hides_rays: bool
) -> GeometricInputs:
    """Official inputs: arrays of all frames, and which frames have them."""
    b, s, *size, _ = shape
    nothing = jnp.zeros((b, s), bool)

    def frames(name: str):
        mask = given.get(f"given_{name}", np.zeros(s))
        return jnp.broadcast_to(jnp.asarray(mask > 0), (b, s))

    fields: dict[str, Any] = {}
    if "intrinsics" in inputs or "ray_directions" in inputs:
        rays = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), (b, s, *size, 3))
        if "intrinsics" in inputs:
            matrices = jnp.asarray(inputs["intrinsics"])
            here = frames("intrinsics")[..., None, None]
            # Counted from the centre of the first pixel there, and from its corner here.
            matrices = jnp.where(here, matrices.at[..., :2, 2].add(0.5), jnp.eye(3))
            of_pixels = geometric_inputs.rays_of_pixels(matrices, (size[0], size[1]))
            rays = jnp.where(here[..., None], of_pixels, rays)
        if "ray_directions" in inputs:
            length = np.linalg.norm(inputs["ray_directions"], axis=-1, keepdims=True)
            here = frames("ray_directions")[..., None, None, None]
            rays = jnp.where(here, inputs["ray_directions"] / (length + 1e-8), rays)
        is_known = frames("intrinsics") | frames("ray_directions")
        fields |= {"rays": rays, "rays_known": nothing if hides_rays else is_known}
        if "depth_z" in inputs:
            is_known = frames("depth_z")
            depth = jnp.where(is_known[..., None, None], np.nan_to_num(inputs["depth_z"]), 0.0)
            fields |= {
                "depth": geometric_inputs.depth_along_rays(depth, rays),
                "depth_known": is_known,
                "depth_is_metric": jnp.asarray(metric),
            }
    if "camera_poses" in inputs or "camera_quats" in inputs:
        rotation = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (b, s, 4))
        translation = jnp.zeros((b, s, 3))
        if "camera_poses" in inputs:
            here = frames("camera_poses")[..., None]
            poses = jnp.where(here[..., None], inputs["camera_poses"], jnp.eye(4))
            rotation = jnp.where(
                here, geometry.quaternion_from_matrix(poses[..., :3, :3]), rotation
            )
            translation = jnp.where(here, poses[..., :3, 3], translation)
        if "camera_quats" in inputs:
            here = frames("camera_quats")[..., None]
            rotation = jnp.where(here, inputs["camera_quats"], rotation)
            translation = jnp.where(here, inputs["camera_trans"], translation)
        rotation, translation = geometric_inputs.relative_to_the_first(rotation, translation)
        fields |= {
            "rotation": rotation,
            "translation": translation,
            "poses_known": frames("camera_poses") | frames("camera_quats"),
            "poses_are_metric": jnp.asarray(metric),
        }
    return GeometricInputs(**fields)


@jax.jit
def _run(model: MapAnything, images: jax.Array, known: GeometricInputs) -> dict[str, Any]:
    layout, special = model.layout(images), model.config.num_special_tokens
    options: Any = {"compute_dtype": jnp.float32}
    encoder = jax.tree.map(lambda x: x, model.encoder)
    encoder.keeps_class_token = True  # also of models that make nothing of it
    encoded = encode_frames(encoder, images, layout, dense=Dense(), precision=FLOAT32)
    fused = model.fuse(encoded[:, :, 1 - special :], known, FLOAT32)
    arrays: dict[str, Any] = {"cls_token": encoded[:, :, :1], "patch_tokens": encoded[:, :, 1:]}
    arrays["fused_tokens"] = fused[:, :, special:]
    arrays |= _of_encoders(model, known)
    # Every block. The official sequence has the class token behind the patches.
    alternation = Alternation(global_first=True, has_rope=False)
    turned = lambda x: jnp.concatenate([x[:, :, special:], x[:, :, :special]], axis=2)
    layers = tuple(range(model.num_layers))
    blocks = model.aggregate(fused, layout, taps=layers, alternation=alternation, **options)
    assert blocks.scene_tokens is not None
    for i in layers:
        of_scene, of_frames = map(turned, jnp.split(blocks.tap(i), 2, axis=-1))
        arrays |= {f"block_{2 * i}": of_scene, f"block_{2 * i + 1}": of_frames}
        arrays[f"block_{2 * i}_scale"] = blocks.scene_tokens[:, i]
    trunk = model.aggregate(fused, layout, **options)
    assert trunk.scene_tokens is not None
    taps = [model.norm(trunk.tap(layer)) for layer in model.config.taps]
    names = [*(f"tokens_{i}" for i in model.config.info_sharing_indices), "tokens_final"]
    for name, layer, x in zip(names, model.config.taps, taps, strict=True):
        arrays |= {name: x[:, :, special:], f"{name}_cls": x[:, :, :special]}
        arrays[f"{name}_scale"] = model.norm(trunk.scene_tokens[:, layer])
    channels_first = lambda x: jnp.moveaxis(x, -1, 2)
    tokens = [x[:, :, special:] for x in (fused, *taps)]
    features = model.dense_head.fuse(tokens, layout, FLOAT32)
    features = features.reshape(*images.shape[:2], *features.shape[1:])
    raw, *pose = model.decode_raw(trunk, layout, FLOAT32)
    scale_raw = model.scale_head(model.norm(trunk.scene_tokens[:, -1, 0]), FLOAT32)
    arrays |= {"dpt_features": channels_first(features), "dense_raw": channels_first(raw)}
    arrays |= {"pose_raw": jnp.concatenate(pose, axis=-1), "scale_raw": scale_raw}
    output = model.decode(trunk, layout, **options)
    arrays |= {f"out_{name}": x for name, x in vars(output).items() if x is not None}
    intrinsics = model.scene_fields(vars(output), images.shape[2:4])["intrinsics"]
    arrays |= {"post_intrinsics": intrinsics.at[..., :2, 2].add(-0.5), "post_mask": output.mask}
    return arrays | {"post_camera_poses": output.camera_poses}


def _of_encoders(model: MapAnything, known: GeometricInputs) -> dict[str, Any]:
    """What encoders of known things give, and of which frames they are told something."""
    arrays: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    everywhere = functools.partial(jnp.ones_like, dtype=bool)
    for name, (told, x) in model.encoded_vectors(known, FLOAT32).items():
        # Scales are encoded whether they are added or not.
        is_scale = name.endswith("scale_encoder")
        known_here = known.depth_known if name == "depth_scale_encoder" else everywhere(told)
        arrays[name], masks[name] = x, known_here if is_scale else told
    if known.rays is not None and known.rays_known is not None:
        arrays["ray_dirs_encoder"] = model.ray_dirs_encoder(known.rays, FLOAT32)
        masks["ray_dirs_encoder"] = known.rays_known
    if known.depth is not None:
        normalised = geometric_inputs.log_of_depth(known.depth)
        arrays["depth_encoder"] = model.depth_encoder(normalised[..., None], FLOAT32)
        masks["depth_encoder"] = known.depth_known
    return arrays | {"known": masks}
