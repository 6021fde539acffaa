"""Metrics of cameras, depth and points: pure functions of arrays, for `jax.jit` and `jax.vmap`."""

from vggt_jax.evaluation.alignment import Similarity as Similarity
from vggt_jax.evaluation.alignment import least_squares_scale as least_squares_scale
from vggt_jax.evaluation.alignment import (
    least_squares_scale_and_shift as least_squares_scale_and_shift,
)
from vggt_jax.evaluation.alignment import median_scale as median_scale
from vggt_jax.evaluation.alignment import umeyama as umeyama
from vggt_jax.evaluation.cameras import PairErrors as PairErrors
from vggt_jax.evaluation.cameras import TrajectoryErrors as TrajectoryErrors
from vggt_jax.evaluation.cameras import accuracy_at as accuracy_at
from vggt_jax.evaluation.cameras import auc_at as auc_at
from vggt_jax.evaluation.cameras import pair_errors as pair_errors
from vggt_jax.evaluation.cameras import trajectory_errors as trajectory_errors
from vggt_jax.evaluation.depth import DepthMetrics as DepthMetrics
from vggt_jax.evaluation.depth import align_depth as align_depth
from vggt_jax.evaluation.depth import depth_metrics as depth_metrics
from vggt_jax.evaluation.drift import Drift as Drift
from vggt_jax.evaluation.drift import drift_between as drift_between
from vggt_jax.evaluation.points import PointMetrics as PointMetrics
from vggt_jax.evaluation.points import nearest_neighbours as nearest_neighbours
from vggt_jax.evaluation.points import normals_from_point_map as normals_from_point_map
from vggt_jax.evaluation.points import point_metrics as point_metrics
from vggt_jax.evaluation.scene import SceneTruth as SceneTruth
from vggt_jax.evaluation.scene import scene_metrics as scene_metrics
