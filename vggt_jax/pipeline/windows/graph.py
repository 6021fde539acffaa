"""Where windows lie in one world, from what is known between pairs of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from vggt_jax.evaluation.alignment import Similarity

# Errors of closures from which on they count less and less: radians, shares of the depth or of the
# scale. At first all count, however far windows have drifted, and in the end a wrong one does not.
_DOUBTFUL = (np.inf, 1.0, 0.3, 0.1, 0.05)
_MOST_STEPS = 30  # With each of these.
_DIFFERENCE = 1e-6  # In the same units.


def compose(outer: Similarity, inner: Similarity) -> Similarity:
    """`outer` after `inner`; arrays of the same leading shape."""
    turned = np.einsum("...ij,...j->...i", outer.rotation, inner.translation)
    return similarity(
        outer.scale * inner.scale,
        outer.rotation @ inner.rotation,
        np.asarray(outer.scale)[..., None] * turned + outer.translation,
    )


def inverse(way: Similarity) -> Similarity:
    """The way back."""
    back = np.swapaxes(way.rotation, -1, -2)
    scale = 1 / np.asarray(way.scale)
    translation = -scale[..., None] * np.einsum("...ij,...j->...i", back, way.translation)
    return similarity(scale, back, translation)


def chained(joins: Sequence[Similarity]) -> Similarity:
    """Where windows lie in the world of the first: each join brings a window into the one before.

    Returns:
        One for each window, stacked; that of the first is the identity.
    """
    found = [similarity(1.0, np.eye(3), np.zeros(3))]
    for one in joins:
        found.append(compose(found[-1], one))
    return stacked(found)


def stacked(similarities: Sequence[Similarity]) -> Similarity:
    """Several as one with a leading axis."""
    scale, rotation, translation = (
        np.stack([np.asarray(getattr(x, name), np.float64) for x in similarities])
        for name in ("scale", "rotation", "translation")
    )
    # A product of many rotations is one but for rounding.
    left, _, right = np.linalg.svd(rotation)
    return similarity(scale, left @ right, translation)


def optimised(
    joins: Sequence[Similarity],
    closures: Mapping[tuple[int, int], Similarity],
    depths: Float[np.ndarray, " n"],
) -> Similarity:
    """Where windows lie, from joins of neighbours and closures between others.

    The least squares of the errors of all of these, by `scipy.optimize.least_squares`: the angle,
    the logarithm of the scale, and the translation as a share of the depth. Errors of closures
    count less the larger they are.

    Args:
        joins: of each window but the first, into the one before.
        closures: by (a, b), from window b into window a.
        depths: what is a usual depth in each window, in its own unit.

    Returns:
        As `chained`.
    """
    start = chained(joins)
    if not closures:
        return start
    n = len(joins) + 1
    pairs = [(i, i + 1) for i in range(n - 1)] + list(closures)
    first, second = np.array(pairs).T
    known = inverse(stacked([*joins, *closures.values()]))
    x = np.zeros(7 * (n - 1))
    is_closure = np.arange(len(pairs)) >= n - 1
    problem = _Problem(start, known, first, second, np.asarray(depths), is_closure)
    for doubtful in _DOUBTFUL:
        x = scipy.optimize.least_squares(
            problem.errors,
            x,
            jac=problem.jacobian,  # pyright: ignore[reportArgumentType]
            args=(doubtful,),
            method="trf",
            tr_solver="lsmr",
            tr_options={"atol": 1e-8, "btol": 1e-8, "maxiter": 4 * n},
            x_scale="jac",
            xtol=1e-6,
            ftol=1e-6,
            max_nfev=_MOST_STEPS,
        ).x
    return problem.moved(x)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What is minimised: errors of pairs as a function of seven numbers for each window but the
    first, a turn, a shift in depths and the logarithm of a scale, from where it starts."""

    start: Similarity
    known: Similarity
    first: np.ndarray
    second: np.ndarray
    depths: np.ndarray
    is_closure: np.ndarray

    def moved(self, x: np.ndarray) -> Similarity:
        """All windows."""
        return self._moved(self._rows(x), np.arange(len(self.depths)))

    def errors(self, x: np.ndarray, doubtful: float) -> np.ndarray:
        """[pairs * 7]."""
        rows = self._rows(x)
        return self._of_pairs(rows[self.first], rows[self.second], doubtful).reshape(-1)

    def jacobian(self, x: np.ndarray, doubtful: float) -> scipy.sparse.csr_array:
        """By differences: the errors of a pair depend on its two windows alone."""
        rows = self._rows(x)
        ends = [rows[self.first], rows[self.second]]
        before = self._of_pairs(ends[0], ends[1], doubtful)
        blocks = np.empty((2, len(self.first), 7, 7))
        for end in range(2):
            for column in range(7):
                changed = [part.copy() for part in ends]
                changed[end][:, column] += _DIFFERENCE
                after = self._of_pairs(changed[0], changed[1], doubtful)
                blocks[end, :, :, column] = (after - before) / _DIFFERENCE
        seven, pair = np.arange(7), np.arange(len(self.first))
        shape = blocks.shape
        window = np.stack([self.first, self.second]) - 1
        row = np.broadcast_to(7 * pair[None, :, None, None] + seven[:, None], shape)
        column = np.broadcast_to(7 * window[..., None, None] + seven, shape)
        kept = column >= 0  # The first window does not move.
        return scipy.sparse.csr_array(
            (blocks[kept], (row[kept], column[kept])), shape=(7 * len(pair), len(x))
        )

    @staticmethod
    def _rows(x: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros((1, 7)), x.reshape(-1, 7)])

    def _moved(self, rows: np.ndarray, which: np.ndarray) -> Similarity:
        scale, rotation = self.start.scale[which], self.start.rotation[which]
        unit = np.asarray(scale) * self.depths[which]
        return similarity(
            scale * np.exp(rows[:, 6]),
            rotation @ Rotation.from_rotvec(rows[:, :3]).as_matrix(),
            self.start.translation[which] + unit[:, None] * rows[:, 3:6],
        )

    def _of_pairs(self, first: np.ndarray, second: np.ndarray, doubtful: float) -> np.ndarray:
        at_first, at_second = self._moved(first, self.first), self._moved(second, self.second)
        wrong = compose(self.known, compose(inverse(at_first), at_second))
        error = np.concatenate([
            Rotation.from_matrix(np.asarray(wrong.rotation)).as_rotvec(),
            np.asarray(wrong.translation) / self.depths[self.second][:, None],
            np.log(np.asarray(wrong.scale))[:, None],
        ], axis=1)  # fmt: skip
        if np.isfinite(doubtful):
            # Cauchy's loss of the length of an error, as a factor of it.
            size = np.linalg.norm(error, axis=1, keepdims=True) / doubtful
            factor = np.sqrt(np.log1p(size**2)) / np.maximum(size, 1e-9)
            factor = np.where(self.is_closure[:, None] & (size > 1e-6), factor, 1.0)
            error = factor * error
        return error


def similarity(scale: Any, rotation: Any, translation: Any) -> Similarity:
    """One of NumPy arrays in float64."""
    return Similarity(scale=scale, rotation=rotation, translation=translation)
