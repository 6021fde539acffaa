"""Points of a scene, cut by frame and by confidence into chunks that never change.

Moving the slider of confidence, or choosing frames, switches chunks on and off: a browser gets
every point once and then only the names of chunks. A chunk holds the points of one frame between
two steps of the slider.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from vggt_jax import geometry
from vggt_jax.errors import InputError
from vggt_jax.host import with_numpy
from vggt_jax.scene.confidence import (
    PointSource,
    confidence_limits,
    confidence_of,
    percentile_thresholds,
    point_sources,
    points_of,
    usable_pixels,
)
from vggt_jax.scene.reconstruction import Reconstruction

# Steps of the slider in percent. Each divides 100 and 25, the share that is left out unless told.
STEPS = (1.0, 2.5, 5.0, 12.5, 25.0)
# So many chunks a browser draws without effort: each is one call to its graphics driver.
MOST_CHUNKS = 2500


@dataclass(frozen=True, kw_only=True, eq=False)
class PointLayers:
    """Points in the order of frames and, within a frame, of layers; see `cut_points`.

    A point of layer `i` is shown while the slider stands at `percentiles[i]` or below.

    Attributes:
      points: world coordinates, all finite.
      colors: RGB.
      ends: where in `points` each frame's layers end, cumulated over frames and layers.
      percentiles: the positions of the slider, from 0 to 100.
      thresholds: the smallest confidence that is shown at each.
      candidates: how many points there were before some were drawn for their number.
    """

    points: Float32[np.ndarray, "m 3"]
    colors: UInt8[np.ndarray, "m 3"]
    ends: Int[np.ndarray, "s layers"]
    percentiles: Float[np.ndarray, " layers"]
    thresholds: Float[np.ndarray, " layers"]
    candidates: int

    @property
    def step(self) -> float:
        """Percent between two positions of the slider."""
        return float(self.percentiles[1])

    def layer_of(self, percentile: float) -> int:
        """The first layer that is shown at this percentile, which is rounded to a step."""
        return int(np.clip(round(percentile / self.step), 0, len(self.percentiles) - 1))

    def chunk(self, frame: int, layer: int) -> slice:
        """Where in `points` the points of a frame and a layer lie."""
        end = int(self.ends[frame, layer])
        before = frame * self.ends.shape[1] + layer - 1
        return slice(int(self.ends.ravel()[before]) if before >= 0 else 0, end)

    def shown(self, percentile: float, frames: Iterable[int]) -> Bool[np.ndarray, " m"]:
        """Which points a setting shows."""
        mask = np.zeros(len(self.points), bool)
        first = self.layer_of(percentile)
        for frame in frames:
            mask[self.chunk(frame, first).start : self.ends[frame, -1]] = True
        return mask


def cut_points(
    recon: Reconstruction,
    *,
    source: PointSource,
    min_confidence: float | None = None,
    hide_edges: bool = False,
    max_points: int = 1_000_000,
    seed: int = 0,
) -> PointLayers:
    """The points of a scene, cut into layers.

    What is no usable pixel by `confidence.usable_pixels` is left out first, and points that are not
    finite; percentiles are taken over the rest: at each step of the slider the same points are
    shown as `export.scene_points` selects (drawn alike if there are more than `max_points`).

    Args:
      recon: one scene, without scene axis.
      source: "depth", unprojected with the cameras, or "head", the point map.
      min_confidence: what a confidence must exceed; None is the default of the model, see
        `confidence.confidence_limits`.
      hide_edges: whether to leave out points at jumps of depth, see `geometry.depth_edges`.
      max_points: at most so many, drawn without replacement from all.
      seed: of that draw.

    Raises:
      InputError: the reconstruction has no such points, max_points is below 1 or min_confidence
        below 0.
    """
    if max_points < 1:
        raise InputError(f"{max_points=} must be at least 1")
    if source not in point_sources(recon):
        raise InputError(
            f"the reconstruction has no points from {source!r}, only from "
            f"{', '.join(point_sources(recon)) or 'nothing'}"
        )
    _, smallest = confidence_limits(recon.confidence_kind, min_confidence=min_confidence)
    edges = depth_edges(recon) if hide_edges else None
    points, confidence = points_of(recon, source), confidence_of(recon, source)
    usable = usable_pixels(recon, source, min_confidence=smallest, depth_edges=edges)
    usable &= np.isfinite(points).all(axis=-1)
    num_frames = len(points)
    step = next((x for x in STEPS if num_frames * (100 / x + 1) <= MOST_CHUNKS), STEPS[-1])
    percentiles = np.linspace(0, 100, round(100 / step) + 1)
    candidates = np.flatnonzero(usable)
    if not len(candidates):
        thresholds = np.zeros(len(percentiles))
    else:
        of_candidates = confidence.ravel()[candidates]
        found = percentile_thresholds(of_candidates, percentiles)
        thresholds = np.asarray(found, np.float64)
    chosen = candidates
    if len(candidates) > max_points:
        generator = np.random.default_rng(seed)
        chosen = generator.choice(candidates, max_points, replace=False, shuffle=False)
    frame = chosen // confidence[0].size
    layer = np.searchsorted(thresholds, confidence.ravel()[chosen], side="right") - 1
    chunk = frame * len(percentiles) + layer
    order = np.argsort(chunk, kind="stable")
    counts = np.bincount(chunk, minlength=num_frames * len(percentiles))
    chosen = chosen[order]
    return PointLayers(
        points=points.reshape(-1, 3)[chosen].astype(np.float32),
        colors=_as_bytes(np.asarray(recon.images).reshape(-1, 3)[chosen]),
        ends=np.cumsum(counts).reshape(num_frames, len(percentiles)),
        percentiles=percentiles,
        thresholds=thresholds,
        candidates=len(candidates),
    )


def depth_edges(recon: Reconstruction) -> Bool[np.ndarray, "s height width"]:
    """Edges of depth: the model's own, or those of its depth.

    Raises:
      InputError: the reconstruction has no depth.
    """
    if recon.depth_edges is not None:
        return np.asarray(recon.depth_edges)
    if recon.depth is None:
        raise InputError("edges of depth need a reconstruction with depth")
    return with_numpy(geometry.depth_edges, recon.depth)


def _as_bytes(colors: np.ndarray) -> UInt8[np.ndarray, "..."]:
    if colors.dtype == np.uint8:
        return colors
    return np.round(np.clip(colors, 0, 1) * 255).astype(np.uint8)
