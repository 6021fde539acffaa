"""Where attention over all frames looks, and what each part of a model costs and is worth."""

from vggt_jax.analysis.attention import Matches as Matches
from vggt_jax.analysis.attention import attention_stats as attention_stats
from vggt_jax.analysis.attention import observe as observe
from vggt_jax.analysis.attention import sharpest_layer as sharpest_layer
from vggt_jax.analysis.attention import strongest_matches as strongest_matches
from vggt_jax.analysis.dropping import Dropped as Dropped
from vggt_jax.analysis.dropping import drop_layers as drop_layers
from vggt_jax.analysis.dropping import dropped_layers as dropped_layers
from vggt_jax.analysis.dropping import without_layers as without_layers
from vggt_jax.analysis.observed import Observation as Observation
from vggt_jax.analysis.observed import Observed as Observed
from vggt_jax.analysis.runtime import Runtime as Runtime
from vggt_jax.analysis.runtime import time_parts as time_parts
