"""A model on the sequences of a data set, scored by a protocol."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.base import DataSet
from vggt_jax.evaluation.protocols.base import Prediction, Protocol
from vggt_jax.evaluation.protocols.clouds import Tools
from vggt_jax.evaluation.protocols.results import finite
from vggt_jax.evaluation.protocols.scoring import score
from vggt_jax.evaluation.protocols.truth import best_values, perfect, read_sample
from vggt_jax.models.base import SceneModel
from vggt_jax.pipeline.inputs import read
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.plan import plan_scene
from vggt_jax.pipeline.run import run
from vggt_jax.scene.reconstruction import Reconstruction

PointSource = Literal["depth", "head"]
# By how much the truth may miss its own best values, for float64 rounds.
_ROUNDING = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How sequences are evaluated: what `evaluate_sequence` needs beside the sequence.

    Attributes:
        protocol: which frames, at which size, compared how.
        dataset: opened.
        model: what predicts.
        options: of the reconstruction; `attention`, `camera_source` and `compute_dtype` matter.
        points: where predicted points come from; None for the best that the model has.
        pad_to: scenes of fewer frames are padded to so many, so that they share one program.
        tools: who computes ICP, normals and trajectories.
    """

    protocol: Protocol
    dataset: DataSet
    model: SceneModel
    options: Options
    points: PointSource | None = None
    pad_to: int = 0
    tools: Tools = "own"

    @property
    def point_source(self) -> PointSource | None:
        """Where predicted points come from; None where the protocol compares none.

        Raises:
            InputError: the model has no such points.
        """
        if not self.protocol.needs_depth:
            return None
        sources = self.model.point_sources
        if not sources or (self.points is not None and self.points not in sources):
            has = ", ".join(sources) or "none"
            raise InputError(f"points={self.points}: this model's points come from {has}")
        return self.points or sources[0]


def evaluate_sequence(
    evaluation: Evaluation,
    name: str,
    places: tuple[int, ...],
    *,
    say: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Reads, reconstructs and scores a sequence.

    Args:
        places: of its frames, as `protocols.choose` gives them.
        say: takes why attention is dense although another was asked for.

    Returns:
        JSON-ready values: the sequence and its frames, `metrics`, `sparsity` (the mean share of
        blocks or keys left out), and seconds of the reconstruction.

    Raises:
        InputError: frames or truth are missing, or the scene does not fit into the memory.
    """
    sequence = evaluation.dataset.load(name)
    problems = evaluation.dataset.problems
    sample = read_sample(evaluation.protocol, sequence, places, problems)
    start = time.perf_counter()
    result = _reconstruct(evaluation, sample.images, say)
    seconds = time.perf_counter() - start
    prediction = predicted(result, evaluation.point_source)
    metrics = score(evaluation.protocol, sample.truth, prediction, tools=evaluation.tools)
    stats = result.attention_stats
    return {
        "sequence": name,
        "category": sequence.category,
        "frames": list(sample.names),
        "size": list(sample.images.shape[1:3]),
        "metrics": finite(metrics),
        "sparsity": 0.0 if stats is None else float(f"{1 - np.mean(stats.density):.6g}"),
        "seconds": round(seconds, 3),
    }


def check_truth(
    protocol: Protocol, dataset: DataSet, name: str, places: tuple[int, ...]
) -> dict[str, tuple[float, float]]:
    """Scores the truth of a sequence against itself.

    Returns:
        The metrics that are not as good as can be, each with the value that it should have.

    Raises:
        InputError: frames or truth are missing.
    """
    truth = read_sample(protocol, dataset.load(name), places, dataset.problems).truth
    found = score(protocol, truth, perfect(protocol, truth))
    return {
        metric: (found[metric], best)
        for metric, best in best_values(protocol).items()
        if metric in found and not abs(found[metric] - best) < _ROUNDING
    }


def predicted(result: Reconstruction, source: PointSource | None) -> Prediction:
    """What protocols ask of a reconstruction, without points where there is no source."""
    points = confidence = None
    if source == "depth":
        points, confidence = result.points_from_depth(), result.depth_confidence
    elif source == "head":
        points, confidence = result.world_points, result.world_points_confidence
    as_array = lambda x: None if x is None else np.asarray(x)
    return Prediction(
        camera_from_world=as_array(result.camera_from_world),
        points=as_array(points),
        confidence=as_array(confidence),
        bounded_confidence=result.confidence_kind == "sigmoid",
    )


def _reconstruct(
    evaluation: Evaluation, images: np.ndarray, say: Callable[[str], Any]
) -> Reconstruction:
    model, options = evaluation.model, evaluation.options
    inputs = read(images, model, options)
    plan = plan_scene(inputs, model, options, say=say)
    if evaluation.pad_to:
        padded = max(plan.padded_frames, evaluation.pad_to)
        plan = dataclasses.replace(plan, padded_frames=padded, masks_padding=True)
    return run(inputs, model, plan, options)
