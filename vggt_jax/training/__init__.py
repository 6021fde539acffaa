"""Training of VGGT: losses, optimiser, the step that renders and learns, checkpoints, validation.

`scripts/train.py` is the command around it.
"""

from vggt_jax.training.initialization import initial_model as initial_model
from vggt_jax.training.initialization import small_config as small_config
from vggt_jax.training.loop import train as train
from vggt_jax.training.losses import LossWeights as LossWeights
from vggt_jax.training.losses import losses as losses
from vggt_jax.training.normalization import Targets as Targets
from vggt_jax.training.normalization import normalize_scenes as normalize_scenes
from vggt_jax.training.optimizer import OptimizerSettings as OptimizerSettings
from vggt_jax.training.predict import Execution as Execution
from vggt_jax.training.predict import predict as predict
from vggt_jax.training.settings import TrainSettings as TrainSettings
from vggt_jax.training.variants import Variant as Variant
