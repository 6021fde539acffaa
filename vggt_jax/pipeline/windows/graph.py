"""Where windows lie in one world, from what is known between pairs of them."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.optimize
import scipy.sparse
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from vggt_jax.evaluation.alignment import Similarity

# Errors of closures from which on they count less and less: radians, shares of the depth or of the
# scale. At first all count, however far windows have drifted, and in the end a wrong one does not.
_DOUBTFUL = (np.inf, 1.0, 0.3, 0.1, 0.05)


def compose(outer: Similarity, inner: Similarity) -> Similarity:
    """`outer` after `inner`; arrays of the same leading shape."""
    turned = np.einsum("...ij,...j->...i", outer.rotation, inner.translation)
    return _similarity(
        outer.scale * inner.scale,
        outer.rotation @ inner.rotation,
        np.asarray(outer.scale)[..., None] * turned + outer.translation,
    )


def inverse(similarity: Similarity) -> Similarity:
    """The way back."""
    back = np.swapaxes(similarity.rotation, -1, -2)
    scale = 1 / np.asarray(similarity.scale)
    translation = -scale[..., None] * np.einsum("...ij,...j->...i", back, similarity.translation)
    return _similarity(scale, back, translation)


def chained(joins: Sequence[Similarity]) -> Similarity:
    """Where windows lie in the world of the first: each join brings a window into the one before.

    Returns:
        One for each window, stacked; that of the first is the identity.
    """
    found = [_similarity(1.0, np.eye(3), np.zeros(3))]
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
    return _similarity(scale, left @ right, translation)


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
    touched = _touched(first, second, n)
    x = np.zeros(7 * (n - 1))
    problem = _Problem(
        start, known, first, second, np.asarray(depths), np.arange(len(pairs)) >= n - 1
    )
    for doubtful in _DOUBTFUL:
        x = scipy.optimize.least_squares(
            problem.errors,
            x,
            args=(doubtful,),
            jac_sparsity=touched,
            method="trf",
            tr_solver="lsmr",
            tr_options={"atol": 1e-10, "btol": 1e-10, "maxiter": 20 * n},
            x_scale="jac",
            xtol=1e-9,
            ftol=1e-9,
            gtol=1e-12,
            max_nfev=50,
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
        x = np.concatenate([np.zeros((1, 7)), x.reshape(-1, 7)])
        unit = np.asarray(self.start.scale) * self.depths
        return _similarity(
            self.start.scale * np.exp(x[:, 6]),
            self.start.rotation @ Rotation.from_rotvec(x[:, :3]).as_matrix(),
            self.start.translation + unit[:, None] * x[:, 3:6],
        )

    def errors(self, x: np.ndarray, doubtful: float) -> np.ndarray:
        at = self.moved(x)
        take = lambda which: _similarity(at.scale[which], at.rotation[which], at.translation[which])
        wrong = compose(self.known, compose(inverse(take(self.first)), take(self.second)))
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
        return error.reshape(-1)


def _touched(first: np.ndarray, second: np.ndarray, n: int) -> scipy.sparse.csr_array:
    """Which numbers of windows the errors of pairs depend on."""
    pair = np.arange(len(first))
    rows, columns = np.concatenate([pair, pair]), np.concatenate([first, second]) - 1
    kept = columns >= 0  # The first window does not move.
    ones = np.ones(kept.sum())
    pattern = scipy.sparse.coo_array((ones, (rows[kept], columns[kept])), shape=(len(first), n - 1))
    return scipy.sparse.csr_array(scipy.sparse.kron(pattern, np.ones((7, 7))))


def _similarity(scale, rotation, translation) -> Similarity:
    return Similarity(scale=scale, rotation=rotation, translation=translation)  # pyright: ignore[reportArgumentType]
