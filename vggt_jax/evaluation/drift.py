"""How far results are from those of dense attention, for which no truth is needed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vggt_jax.evaluation.cameras import pair_errors

# No pair of cameras counts for more degrees, and no pixel for more than its whole depth.
_MOST_DEGREES = 30.0
_MOST_DEPTH = 1.0
# What depth counts beside cameras.
SHARE_OF_DEPTH = 0.25


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """How far results are from those of dense attention, the mean over scenes; NaN where the model
    predicts no such thing.

    Attributes:
        rotation, translation: the mean angle in degrees between the relative rotations, and between
            the relative translations, of all pairs of frames; none counts for more than 30.
        camera: the mean of the larger of both in each pair.
        depth: the mean of `abs(depth / dense_depth - 1)`, where no pixel counts for more than 1. Of
            a model without depth, the mean distance of points from those of dense attention, as a
            share of their mean distance from their middle.
    """

    rotation: Float[Array | np.ndarray, "*layers"]
    translation: Float[Array | np.ndarray, "*layers"]
    camera: Float[Array | np.ndarray, "*layers"]
    depth: Float[Array | np.ndarray, "*layers"]

    @classmethod
    def mean(cls, drifts: "Sequence[Drift]") -> "Drift":
        """The mean over scenes."""
        return jax.tree.map(lambda *x: np.mean(np.stack(x), axis=0), *drifts)

    def relative_to(self, other: "Drift") -> float:
        """How large it is in units of another: below 1 if better. Depth counts for a quarter."""
        return float(self.combined(lambda name, value: value / max(getattr(other, name), 1e-12)))

    def combined(
        self, scaled: Callable[[str, Any], Any], share_of_depth: float = SHARE_OF_DEPTH
    ) -> Any:
        """The drift of cameras and that of depth as one number, of each layer if they are.

        Args:
            scaled: takes "camera" or "depth" and its drift, and puts it into a unit of both.
            share_of_depth: what depth counts, if there are both.
        """
        parts = {
            name: scaled(name, value)
            for name in ("camera", "depth")
            if not np.isnan(value := getattr(self, name)).any()
        }
        if len(parts) == 1:
            return next(iter(parts.values()))
        return (1 - share_of_depth) * parts["camera"] + share_of_depth * parts["depth"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values, without what the model does not predict."""
        fields = {name: np.asarray(value) for name, value in vars(self).items()}
        rounded = lambda x: np.vectorize(lambda value: float(f"{value:.4g}"))(x).tolist()
        return {x: rounded(y) for x, y in fields.items() if not np.isnan(y).any()}


def drift_between(found: Mapping[str, Array], dense: Mapping[str, Array]) -> Drift:
    """How far results of a scene are from those of dense attention.

    Args:
        found, dense: "cameras" [s 3 4], camera from world, and "depth" [s height width], or else
            "points" [s height width 3], as far as there are such.
    """
    nan = jnp.float32(jnp.nan)
    rotation = translation = camera = depth = nan
    if "cameras" in found:
        errors = pair_errors(found["cameras"], dense["cameras"])
        mean = lambda angle: jnp.mean(jnp.minimum(angle, _MOST_DEGREES))
        rotation, translation = mean(errors.rotation), mean(errors.translation)
        camera = mean(jnp.maximum(errors.rotation, errors.translation))
    # What is not finite is as wrong as can be.
    clipped = lambda x: jnp.mean(jnp.where(x < _MOST_DEPTH, x, _MOST_DEPTH))
    if "depth" in found:
        depth = clipped(jnp.abs(found["depth"] / dense["depth"] - 1))
    elif "points" in found:
        middle = jnp.mean(dense["points"], axis=(0, 1, 2))
        length = lambda x: jnp.linalg.norm(x, axis=-1)
        extent = jnp.mean(length(dense["points"] - middle))
        depth = clipped(length(found["points"] - dense["points"]) / extent)
    return Drift(rotation=rotation, translation=translation, camera=camera, depth=depth)
