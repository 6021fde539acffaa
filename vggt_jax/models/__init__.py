"""The models, a folder each; converting their official checkpoints; adding another model."""

from vggt_jax.models.base import ModelConfig as ModelConfig
from vggt_jax.models.base import ModelFamily as ModelFamily
from vggt_jax.models.base import ModelTraits as ModelTraits
from vggt_jax.models.base import SceneModel as SceneModel
from vggt_jax.models.config import ConfigFields as ConfigFields
from vggt_jax.models.conversion import convert as convert
from vggt_jax.models.conversion import load_official as load_official
from vggt_jax.models.conversion import native_shapes as native_shapes
from vggt_jax.models.parts import EncoderSpec as EncoderSpec
from vggt_jax.models.parts import TrunkSpec as TrunkSpec
from vggt_jax.models.registry import register as register
from vggt_jax.models.trunk_model import TrunkModel as TrunkModel
