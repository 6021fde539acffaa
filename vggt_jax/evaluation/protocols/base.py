"""What a protocol is, and what it compares."""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from vggt_jax.evaluation.protocols.frames import Choice
from vggt_jax.evaluation.protocols.poses import Relative
from vggt_jax.evaluation.protocols.resizing import Intrinsics, Resizing

Aggregate = Literal["pairs", "categories", "sequences"]
"""How sequences become one number: "pairs", the mean over all pairs of all sequences; "categories",
that of each category and then the mean over categories; "sequences", the mean over sequences."""


ALL = 0
"""A number of frames that stands for all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairScore:
    """RRA, RTA and AUC of all pairs of frames.

    Attributes:
        relative: in whose coordinates translations are measured.
        with_ate: whether the trajectory is scored, too: `ate`, in units of the largest distance of
            a true camera from their middle (Tanks & Temples).
    """

    relative: Relative
    with_ate: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrajectoryScore:
    """ATE and RPE after a similarity.

    Attributes:
        poses: "world_from_camera", or "camera_from_world", whose translations are no positions
            (FastVGGT's evaluation on ScanNet).
        align_origin: whether first poses are brought together after that.
        clouds: whether depth is compared, too, as FastVGGT does: `chamfer_sum`.
        min_confidence: points of a lower confidence are left out of clouds, if the model's
            confidence is not bounded by 1.
    """

    poses: Literal["world_from_camera", "camera_from_world"] = "world_from_camera"
    align_origin: bool = False
    clouds: bool = False
    min_confidence: float = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloudScore:
    """Accuracy, completeness, chamfer and normal consistency of point maps.

    Attributes:
        alignment: "umeyama", the best similarity between the points of the same pixels; "medians",
            see `clouds.aligned_by_medians`, of which only a central square is scored.
        icp_distance: of ICP after that, in units of the data set; None for none.
        observed: whether the rules of DTU's own tool apply: clouds thinned, within the observed
            volume, distances above 20 mm left out, truth above the table.
    """

    alignment: Literal["umeyama", "medians"]
    icp_distance: float | None
    observed: bool = False


Score = PairScore | TrajectoryScore | CloudScore


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """Numbers that somebody published.

    Attributes:
        model: such as "VGGT".
        metrics: by the names of ours, in our units; shares are in [0, 1].
        source: paper or page, and where in it.
        attention: how the model attended.
        sparsity: the share of blocks left out; None where it is not said.
        count: of frames, where the protocol has a choice of it; `ALL` for all of a sequence.
        exact: False where the number was read off a figure, or comes from memory of a paper.
    """

    model: str
    metrics: tuple[tuple[str, float], ...]
    source: str
    attention: str = "dense"
    sparsity: float | None = 0.0
    count: int | None = None
    exact: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a data set is evaluated: everything that decides a number but the model and the data.

    Attributes:
        name, dataset: by which `protocol_for` finds it.
        frames: which are taken.
        resizing: how they come to the model.
        score: what is compared.
        aggregate: how sequences become one number.
        intrinsics: how true intrinsics follow the resizing, where depth is unprojected.
        longest_depth: true depth beyond counts as unknown, in units of the data set.
        shortest_depth: so does depth below.
        whole_pixels: whether depth is unprojected as if principal points of the data set counted
            from the centre of the first pixel, which they do not; the published code is half a
            pixel off so.
        erode: by how many pixels a side the data set's masks shrink, which then count; 0 for no
            masks.
        drop_lost: whether frames without a pose are left out before others are counted.
        opened: options that the data set is opened with.
        only: names of the sequences, or of categories, that are taken; empty for all.
        first: categories whose sequences come before all others, in this order: a random draw
            depends on those before it.
        left_out: names of sequences that the published numbers are without.
        source: whose code or text this follows.
        notes: what could not be settled, or differs from the source.
        published: numbers to compare with.
    """

    name: str
    dataset: str
    frames: Choice
    resizing: Resizing
    score: Score
    aggregate: Aggregate
    intrinsics: Intrinsics = "exact"
    longest_depth: float | None = None
    shortest_depth: float = 1e-4
    whole_pixels: bool = False
    erode: int = 0
    drop_lost: bool = False
    opened: tuple[tuple[str, Any], ...] = ()
    only: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    source: str
    notes: tuple[str, ...] = ()
    published: tuple[Published, ...] = dataclasses.field(default=(), repr=False)

    @property
    def needs_depth(self) -> bool:
        """Whether true depth is compared."""
        is_cloud = isinstance(self.score, CloudScore)
        return is_cloud or (isinstance(self.score, TrajectoryScore) and self.score.clouds)

    def to_dict(self) -> dict[str, Any]:
        """What a result carries: all of it but published numbers, as JSON-ready values."""
        return {
            field.name: _to_json(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "published"
        }


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {x.name: _to_json(getattr(value, x.name)) for x in dataclasses.fields(value)}
        return {"kind": type(value).__name__} | fields
    if isinstance(value, tuple | list):
        return [_to_json(part) for part in value]
    return value


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What is known of the frames of a sequence that were chosen, in pixels that the model sees.

    Attributes:
        camera_from_world: OpenCV axes; NaN where the pose of a frame is not known.
        points: [s height width 3] in world coordinates, in the unit of the data set; None without
            depth.
        valid: where they mean something.
        scan: of the scene (`datasets.base.Scan`), where a protocol compares with it.
    """

    camera_from_world: Float[np.ndarray, "s 3 4"]
    points: Float[np.ndarray, "s height width 3"] | None = None
    valid: Bool[np.ndarray, "s height width"] | None = None
    scan: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What a model says of the same frames, in any world and at any scale.

    Attributes:
        points: [s height width 3] in world coordinates.
        confidence: of the points, if there is one.
        bounded_confidence: whether it lies in [0, 1].
    """

    camera_from_world: Float[np.ndarray, "s 3 4"] | None
    points: Float[np.ndarray, "s height width 3"] | None = None
    confidence: Float[np.ndarray, "s height width"] | None = None
    bounded_confidence: bool = True
