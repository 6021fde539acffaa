"""How many keys each layer samples, by the drift that sampling it causes."""

import numpy as np

from vggt_jax.evaluation.drift import SHARE_OF_DEPTH, Drift

STEP = 64
"""Numbers of keys are multiples of this, a tile of the kernels."""
# The fewest keys of a layer, as a share of the mean.
_FLOOR = 1 / 8


def key_budgets(
    drift: Drift,
    num_keys: int,
    *,
    most: int,
    power: float = 0.5,
    share_of_depth: float = SHARE_OF_DEPTH,
    floor: float = _FLOOR,
) -> tuple[int, ...]:
    """Numbers of keys by layer, in proportion to a power of the drift of each layer alone.

    The drifts of cameras and of depth count as shares of their sums over layers. What a layer would
    get beyond `most` goes to the others.

    Args:
        drift: of each layer.
        num_keys: the mean over layers.
        most: patches of a scene; what is above is rounded up to whole steps of 64.
        share_of_depth: what depth counts beside cameras, if there are both.
        floor: the least of a layer, as a share of the mean.
    """
    of_sum = lambda name, value: value / max(float(np.sum(value)), 1e-30)
    weights = np.asarray(drift.combined(of_sum, share_of_depth), np.float64) ** power
    weights = np.maximum(weights, 1e-9 * max(weights.max(), 1e-9))
    depth = len(weights)
    total = depth * num_keys // STEP
    least, most = max(1.0, floor * num_keys / STEP), -(-most // STEP)
    shares = lambda scale: np.clip(scale * weights, least, most)
    # The scale at which they sum up to the total, by bisection of its logarithm.
    low, high = np.log(least / weights.max()), np.log(most / weights.min())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if shares(np.exp(middle)).sum() < total else (low, middle)
    wanted = shares(np.exp(high))
    steps = np.floor(wanted + 1e-6).astype(int)
    # What rounding left over goes to those that lost most by it.
    for layer in np.argsort(steps - wanted, kind="stable")[: max(0, total - steps.sum())]:
        steps[layer] += 1
    return tuple((STEP * np.minimum(steps, most)).tolist())
