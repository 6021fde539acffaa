"""How good a model is while it trains: one number for cameras, one for depth."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vggt_jax import geometry
from vggt_jax.outputs import VGGTOutput
from vggt_jax.training.normalization import Targets

_MAX_DEGREES = 30


def scene_metrics(output: VGGTOutput, targets: Targets) -> dict[str, Float[Array, ""]]:
    """`auc30` and `abs_rel` of what the model has heads for, means over scenes."""
    found = {}
    if output.pose_enc is not None and output.pose_enc.shape[1] > 1:
        found["auc30"] = jnp.mean(pose_auc(output.pose_enc, targets.pose_enc))
    if output.depth is not None:
        found["abs_rel"] = jnp.mean(
            absolute_relative_error(output.depth[..., 0], targets.depth, targets.valid)
        )
    return found


def pose_auc(predicted: Float[Array, "b s 9"], true: Float[Array, "b s 9"]) -> Float[Array, " b"]:
    """AUC@30 over all pairs of frames: the mean of the shares of pairs whose error is below 1, 2,
    ..., 30 degrees.

    The error of a pair is the larger of the angle between relative rotations and the angle between
    directions of relative translations, whose sign does not count.
    """
    first, second = np.triu_indices(true.shape[1], 1)

    def relative(encoding):
        rotation = geometry.matrix_from_quaternion(encoding[..., 3:7])
        one, other = rotation[:, first], rotation[:, second]
        turned = jnp.sum(other[..., :, None, :] * one[..., None, :, :], axis=-1)  # other @ one^T
        moved = jnp.sum(turned * encoding[:, first, None, :3], axis=-1)
        return turned, encoding[:, second, :3] - moved

    (rotation, translation), (true_rotation, true_translation) = map(relative, (predicted, true))
    cosine = (jnp.sum(rotation * true_rotation, axis=(-2, -1)) - 1) / 2
    rotation_error = jnp.degrees(jnp.arccos(jnp.clip(cosine, -1.0, 1.0)))
    lengths = jnp.linalg.norm(translation, axis=-1) * jnp.linalg.norm(true_translation, axis=-1)
    cosine = jnp.abs(jnp.sum(translation * true_translation, axis=-1))
    cosine /= jnp.maximum(lengths, 1e-12)
    translation_error = jnp.degrees(jnp.arccos(jnp.clip(cosine, 0.0, 1.0)))
    error = jnp.maximum(rotation_error, translation_error)  # [b, pairs]
    thresholds = jnp.arange(1, _MAX_DEGREES + 1)
    return jnp.mean(error[..., None] < thresholds, axis=(1, 2))


def absolute_relative_error(
    predicted: Float[Array, "b s height width"],
    true: Float[Array, "b s height width"],
    valid: Bool[Array, "b s height width"],
) -> Float[Array, " b"]:
    """Mean of `|predicted - true| / true` after one scale for each scene, the median of ratios.

    A scene without valid pixels gives 0.
    """
    flat = lambda x: x.reshape(x.shape[0], -1)
    predicted, true, valid = flat(predicted), flat(true), flat(valid)
    ratio = jnp.where(valid, true / jnp.maximum(predicted, 1e-12), jnp.nan)
    scale = jnp.nan_to_num(jnp.nanmedian(ratio, axis=1, keepdims=True))
    error = jnp.abs(scale * predicted - true) / jnp.where(valid, true, 1.0)
    count = jnp.maximum(jnp.sum(valid, axis=1), 1)
    return jnp.sum(jnp.where(valid, error, 0.0), axis=1) / count
