"""The oracle of selection: sort everything."""

import numpy as np


def select_by_sorting(scores, num_kept, probability=None):
    """Which blocks the rule keeps, for scores [... kb]; all in float64. See `row.keep_blocks`."""
    scores = np.asarray(scores, np.float64)
    masses = np.exp(scores - scores.max(-1, keepdims=True))
    order = np.argsort(-scores, axis=-1, kind="stable")
    cumulative = np.cumsum(np.take_along_axis(masses, order, -1), -1) / masses.sum(
        -1, keepdims=True
    )
    count = np.maximum(num_kept, 1)
    if probability is not None:
        count = np.maximum(count, (cumulative <= probability).sum(-1, keepdims=True))
    kept = np.zeros(scores.shape, bool)
    np.put_along_axis(kept, order, np.arange(scores.shape[-1]) < count, -1)
    return kept
