"""Published evaluations as values: which frames, at which size, compared how."""

from vggt_jax.evaluation.protocols.base import CloudScore as CloudScore
from vggt_jax.evaluation.protocols.base import PairScore as PairScore
from vggt_jax.evaluation.protocols.base import Prediction as Prediction
from vggt_jax.evaluation.protocols.base import Protocol as Protocol
from vggt_jax.evaluation.protocols.base import Published as Published
from vggt_jax.evaluation.protocols.base import TrajectoryScore as TrajectoryScore
from vggt_jax.evaluation.protocols.base import Truth as Truth
from vggt_jax.evaluation.protocols.catalogue import PROTOCOLS as PROTOCOLS
from vggt_jax.evaluation.protocols.catalogue import protocol_for as protocol_for
from vggt_jax.evaluation.protocols.results import aggregated as aggregated
from vggt_jax.evaluation.protocols.scoring import score as score
from vggt_jax.evaluation.protocols.truth import choose as choose
from vggt_jax.evaluation.protocols.truth import read_sample as read_sample
