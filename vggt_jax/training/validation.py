"""How good a model is while it trains: one number for cameras, one for depth."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vggt_jax.evaluation import auc_at, depth_metrics, pair_errors
from vggt_jax.geometry import camera_from_pose_encoding
from vggt_jax.models.vggt.outputs import VGGTOutput
from vggt_jax.training.normalization import Targets


def scene_metrics(output: VGGTOutput, targets: Targets) -> dict[str, Float[Array, ""]]:
    """`auc30` and `abs_rel` (after the median scale) of what the model has heads for, means over
    scenes; scenes without valid pixels are left out of `abs_rel`."""
    found = {}
    height, width = targets.depth.shape[-2:]
    if output.pose_enc is not None and output.pose_enc.shape[1] > 1:
        cameras = (
            camera_from_pose_encoding(encoding, (height, width))[0]
            for encoding in (output.pose_enc, targets.pose_enc)
        )
        found["auc30"] = jnp.mean(auc_at(pair_errors(*cameras), 30))
    if output.depth is not None:
        errors = depth_metrics(output.depth[..., 0], targets.depth, targets.valid)
        found["abs_rel"] = jnp.nanmean(errors.abs_rel)
    return found
