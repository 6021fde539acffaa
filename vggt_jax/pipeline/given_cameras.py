"""Known cameras put in place of predicted ones, of a model whose depth is to come in their unit.

Official files: depth_anything_3/api.py, depth_anything_3/utils/pose_align.py.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from vggt_jax import geometry
from vggt_jax.evaluation import Similarity, umeyama
from vggt_jax.host import with_numpy
from vggt_jax.scene.priors import Priors
from vggt_jax.scene.reconstruction import Reconstruction

# Of so many cameras on, those that were predicted badly are left out of the alignment.
_FEWEST_TO_LEAVE_OUT = 10
_NUM_DRAWS = 10
_SEED = 42


def with_given_cameras(recon: Reconstruction, priors: Priors) -> Reconstruction:
    """The scene with known cameras in place of the predicted ones, and depth in their unit.

    Depth is divided by the scale of the similarity that brings the known positions closest to the
    predicted ones; a single camera has none, and its depth stays as it is.

    Args:
        recon: of one scene, in NumPy arrays.
        priors: with poses and intrinsics of all its frames, in this order, as `Priors.checked`
            gives them.
    """
    assert priors.camera_from_world is not None and priors.intrinsics is not None
    given = np.asarray(priors.camera_from_world, np.float32)[:, :3]
    scale = 1.0
    if recon.camera_from_world is not None:
        centres = lambda cameras: with_numpy(geometry.camera_positions, cameras)
        scale = float(_similarity(centres(given), centres(recon.camera_from_world)).scale)
    scale = scale if scale > 0 else 1.0  # Where all cameras are predicted at one place.
    return dataclasses.replace(
        recon,
        camera_from_world=given,
        intrinsics=np.asarray(priors.intrinsics, np.float32),
        depth=None if recon.depth is None else recon.depth / np.float32(scale),
        pixel_centre=0.5,
        length_unit="metres" if np.asarray(priors.metric) else "given",
    )


def _similarity(given: Float[np.ndarray, "s 3"], predicted: Float[np.ndarray, "s 3"]) -> Similarity:
    """From given positions to predicted ones.

    Of many cameras, the best of ten fits to half of them counts: that by which the most of all
    cameras are near, at most as far as half of them are from the nearest predicted one where all
    are fitted. It is fitted again to those. The draws are the same every time.
    """
    num = len(given)
    everyone = np.ones((1, num), bool)
    if num < _FEWEST_TO_LEAVE_OUT:
        return _fit(given, predicted, everyone)[0]
    aligned = _aligned(_fit(given, predicted, everyone)[0], given)
    distances = np.linalg.norm(aligned[:, None] - predicted, axis=-1)
    threshold = np.median(distances.min(axis=1))
    random, draws = np.random.default_rng(_SEED), np.zeros((_NUM_DRAWS, num), bool)
    for draw in draws:
        draw[random.choice(num, size=(num + 1) // 2, replace=False)] = True
    best, best_score, kept = None, (-1, -np.inf), everyone
    for fit in _fit(given, predicted, draws):
        errors = np.linalg.norm(_aligned(fit, given) - predicted, axis=-1)
        near = errors <= threshold
        score = int(near.sum()), -float(errors[near].mean()) if near.any() else -np.inf
        if best is None or score > best_score:
            best, best_score, kept = fit, score, near[None]
    assert best is not None
    return _fit(given, predicted, kept)[0] if kept.sum() >= 3 else best


def _fit(
    given: Float[np.ndarray, "s 3"],
    predicted: Float[np.ndarray, "s 3"],
    used: Bool[np.ndarray, "d s"],
) -> list[Similarity]:
    """The best similarity for each choice of cameras."""
    shape = (len(used), *given.shape)
    found = with_numpy(
        umeyama, np.broadcast_to(given, shape), np.broadcast_to(predicted, shape), used
    )
    pick = lambda i: Similarity(
        scale=found.scale[i], rotation=found.rotation[i], translation=found.translation[i]
    )
    return [pick(i) for i in range(len(used))]


def _aligned(fit: Similarity, points: Float[np.ndarray, "s 3"]) -> Float[np.ndarray, "s 3"]:
    """Points of the source in coordinates of the target."""
    return with_numpy(_apply, fit.scale, fit.rotation, fit.translation, points)


def _apply(scale, rotation, translation, points):
    return Similarity(scale=scale, rotation=rotation, translation=translation).apply(points)
