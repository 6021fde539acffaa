"""The losses of VGGT: cameras, depth and points (arXiv:2503.11651, section 3.4), and one of pairs.

Weights and details that the paper leaves open are those of the official `training/loss.py` and its
default configuration. Two differ: every mean is over a scene first and then over scenes, so that
devices can average what they found, whatever their masks; and no quantile of the worst pixels is
left out: rendered depth has no outliers, and points of photographs are cleaned before. The loss of
pairs of cameras is this project's own: what is measured afterwards are relative poses, and near
cameras have small relative translations, whose direction an absolute error of each camera hardly
teaches.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vggt_jax import geometry
from vggt_jax.models.vggt.outputs import VGGTOutput
from vggt_jax.training.normalization import Targets

_MAX_TRANSLATION_ERROR = 100.0  # official file: training/loss.py, camera_loss_single
_MAX_GRADIENT_ERROR = 100.0  # official file: training/loss.py, gradient_loss
_HUBER_DELTA = 0.1  # where the quadratic part ends, in units of the encoding
# Nearer cameras than this, in units of the scene, count less for the direction between them.
_FULL_BASELINE = 0.2
_SMALL_BASELINE = 0.01  # keeps the gradient of a predicted direction bounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossWeights:
    """How the parts add up."""

    camera: float = 5.0
    """Weight of the cameras."""
    depth: float = 1.0
    """Weight of depth: confidence, plain and gradient term."""
    points: float = 1.0
    """Weight of the point map, likewise."""
    pairs: float = 0.0
    """Weight of relative poses: rotation and direction between the cameras of every pair of frames,
    both about in radians. Not in the paper; the project's own model was trained with 1."""
    translation: float = 1.0
    """Of the translation within the camera loss."""
    rotation: float = 1.0
    """Of the quaternion within the camera loss."""
    field_of_view: float = 0.5
    """Of the fields of view within the camera loss."""
    iteration_decay: float = 0.6
    """What each earlier iteration of the camera head counts of the next one."""
    confidence: float = 0.2
    """Of the logarithm that keeps confidences up; the paper's alpha."""
    gradient: float = 1.0
    """Of the gradient term within depth and points."""
    camera_error: Literal["l1", "huber"] = "l1"
    """Absolute error (official code) or Huber's (paper)."""


def losses(
    output: VGGTOutput, targets: Targets, weights: LossWeights
) -> dict[str, Float[Array, ""]]:
    """The parts of the loss and their weighted sum, all finite for finite predictions.

    What the model has no head for is left out.

    Returns:
        `total`, the weighted sum; `translation`, `rotation`, `field_of_view` and their sum
        `camera`; `pair_rotation` and `pair_direction`; `X_confidence`, `X_error` and `X_gradient`
        for X of `depth` and `points`. A scene
        without valid pixels adds 0 to each.
    """
    parts = {}
    total = jnp.float32(0)
    if output.pose_enc_list is not None:
        parts |= camera_losses(output.pose_enc_list, targets, weights)
        total += weights.camera * parts["camera"]
        if output.pose_enc_list.shape[2] > 1:
            pairs = pair_losses(output.pose_enc_list[-1], targets)
            parts |= pairs
            total += weights.pairs * (pairs["pair_rotation"] + pairs["pair_direction"])
    maps = {
        "depth": (output.depth, output.depth_conf, targets.depth[..., None], weights.depth),
        "points": (
            output.world_points,
            output.world_points_conf,
            targets.world_points,
            weights.points,
        ),
    }
    for name, (values, confidence, truth, weight) in maps.items():
        if values is None or confidence is None:
            continue
        found = map_losses(values, confidence, truth, targets.valid, weights.confidence)
        parts |= {f"{name}_{part}": value for part, value in found.items()}
        total += weight * (
            found["confidence"] + found["error"] + weights.gradient * found["gradient"]
        )
    return parts | {"total": total}


def camera_losses(
    encodings: Float[Array, "i b s 9"], targets: Targets, weights: LossWeights
) -> dict[str, Float[Array, ""]]:
    """Errors of the pose encodings, averaged over iterations with decreasing weight.

    Quaternions are compared as they are, without a choice of sign: the truth has a scalar that is
    not negative. Scenes without valid points do not count, since their scale is unknown.
    """
    difference = jnp.abs(encodings - targets.pose_enc[None])  # [i b s 9]
    if weights.camera_error == "huber":
        inside = 0.5 * difference**2 / _HUBER_DELTA
        difference = jnp.where(difference < _HUBER_DELTA, inside, difference - 0.5 * _HUBER_DELTA)
    num = encodings.shape[0]
    decay = weights.iteration_decay ** jnp.arange(num - 1, -1, -1, dtype=jnp.float32) / num

    def mean(part):  # [i b s k]
        of_scene = jnp.einsum("i,ib->b", decay, jnp.mean(part, axis=(2, 3)))
        return jnp.mean(jnp.where(targets.has_points, of_scene, 0.0))

    parts = {
        "translation": mean(jnp.minimum(difference[..., :3], _MAX_TRANSLATION_ERROR)),
        "rotation": mean(difference[..., 3:7]),
        "field_of_view": mean(difference[..., 7:]),
    }
    weighted = (getattr(weights, name) * value for name, value in parts.items())
    camera = jnp.asarray(sum(weighted))
    return parts | {"camera": camera}


def pair_losses(encodings: Float[Array, "b s 9"], targets: Targets) -> dict[str, Float[Array, ""]]:
    """How far the relative poses of all pairs of frames are off.

    `pair_rotation`: the chord between rotations, for small angles the angle in radians.
    `pair_direction`: the chord between unit vectors to the second camera, in coordinates of the
    first; cameras nearer than a fifth of the scene's unit count in proportion. Means over pairs,
    then scenes; scenes without valid points count 0.
    """
    pairs = np.triu_indices(encodings.shape[1], k=1)
    first, second = (frames.astype(np.int32) for frames in pairs)

    def relative(encoding):
        translation, rotation = (
            encoding[..., :3],
            geometry.matrix_from_quaternion(encoding[..., 3:7]),
        )
        dot = lambda subscripts, *x: jnp.einsum(subscripts, *x, precision=jax.lax.Precision.HIGHEST)
        turned = dot("bpij,bpkj->bpik", rotation[:, second], rotation[:, first])
        # The second camera stands at -R2^T t2; in coordinates of the first, at t1 - R1 R2^T t2.
        to_second = translation[:, first] - dot("bpji,bpj->bpi", turned, translation[:, second])
        return turned, to_second

    (turned, to_second), (true_turned, true_to_second) = map(
        relative, map(jnp.asarray, (encodings, targets.pose_enc))
    )
    chord = _length((turned - true_turned).reshape(*turned.shape[:2], 9)) / 2**0.5
    baseline = _length(true_to_second)
    true_direction = true_to_second / jnp.maximum(baseline, _SMALL_BASELINE)[..., None]
    length = jnp.sqrt(jnp.sum(to_second**2, axis=-1, keepdims=True) + _SMALL_BASELINE**2)
    weight = jnp.minimum(baseline / _FULL_BASELINE, 1.0)
    mean = lambda x: jnp.mean(jnp.where(targets.has_points, jnp.mean(x, axis=1), 0.0))
    return {
        "pair_rotation": mean(chord),
        "pair_direction": mean(weight * _length(to_second / length - true_direction)),
    }


def map_losses(
    values: Float[Array, "b s height width c"],
    confidence: Float[Array, "b s height width"],
    truth: Float[Array, "b s height width c"],
    valid: Bool[Array, "b s height width"],
    alpha: float,
) -> dict[str, Float[Array, ""]]:
    """Losses of a map: `error`, the mean distance; `confidence`, the mean of
    `confidence * distance - alpha * log(confidence)`; and `gradient`, see `gradient_loss`.
    """
    error = jnp.where(valid[..., None], values - truth, 0.0)
    distance = _length(error)
    count = jnp.maximum(jnp.sum(valid, axis=(1, 2, 3), dtype=jnp.int32), 1).astype(jnp.float32)
    mean = lambda x: jnp.mean(jnp.sum(jnp.where(valid, x, 0.0), axis=(1, 2, 3)) / count)
    # What a pixel that does not count holds must not reach the gradient either.
    confidence = jnp.where(valid, confidence, 1.0)
    return {
        "confidence": mean(confidence * distance - alpha * jnp.log(confidence)),
        "error": mean(distance),
        "gradient": gradient_loss(error, valid),
    }


def gradient_loss(
    error: Float[Array, "b s height width c"],
    valid: Bool[Array, "b s height width"],
    *,
    num_scales: int = 4,
) -> Float[Array, ""]:
    """How much the error changes between neighbouring valid pixels, at several scales.

    At each scale, which takes every first, second, fourth, ... pixel, the absolute differences to
    the right and lower neighbours are summed and divided by the number of valid values.

    Args:
        error: prediction minus truth; 0 where not valid.
    """
    total = jnp.float32(0)
    for scale in range(num_scales):
        step = 2**scale
        e, v = error[:, :, ::step, ::step], valid[:, :, ::step, ::step, None]
        across = jnp.where(v[:, :, :, 1:] & v[:, :, :, :-1], e[:, :, :, 1:] - e[:, :, :, :-1], 0.0)
        down = jnp.where(v[:, :, 1:] & v[:, :, :-1], e[:, :, 1:] - e[:, :, :-1], 0.0)
        clipped = lambda x: jnp.minimum(jnp.abs(x), _MAX_GRADIENT_ERROR)
        of_scene = jnp.sum(clipped(across), (1, 2, 3, 4)) + jnp.sum(clipped(down), (1, 2, 3, 4))
        count = jnp.sum(v, axis=(1, 2, 3, 4), dtype=jnp.int32) * error.shape[-1]
        total += jnp.mean(of_scene / jnp.maximum(count, 1).astype(jnp.float32))
    return total / num_scales


def _length(x: Float[Array, "*b c"]) -> Float[Array, "*b"]:
    """Euclidean length with a gradient of 0 at 0."""
    if x.shape[-1] == 1:
        return jnp.abs(x[..., 0])
    square = jnp.sum(x * x, axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
