"""VGGT and π³ in JAX: photographs in; cameras, depth, point maps and tracks out.

Names are imported when they are first used, so that `import vggt_jax` takes no time, and the
command line can answer Ctrl-C while JAX is being imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggt_jax.checkpoints.errors import CheckpointError as CheckpointError
    from vggt_jax.errors import InputError as InputError
    from vggt_jax.errors import InputWarning as InputWarning
    from vggt_jax.export import ExportReport as ExportReport
    from vggt_jax.export import export_reconstruction as export_reconstruction
    from vggt_jax.images.frames import Frames as Frames
    from vggt_jax.images.loading import load_images as load_images
    from vggt_jax.images.video import choose_frames as choose_frames
    from vggt_jax.layers.attention import Dense as Dense
    from vggt_jax.layers.scene_attention import AttentionStats as AttentionStats
    from vggt_jax.models.da3.config import DA3Config as DA3Config
    from vggt_jax.models.da3.model import DA3 as DA3
    from vggt_jax.models.da3.outputs import DA3Output as DA3Output
    from vggt_jax.models.loading import load_model as load_model
    from vggt_jax.models.loading import save_model as save_model
    from vggt_jax.models.mapanything.config import MapAnythingConfig as MapAnythingConfig
    from vggt_jax.models.mapanything.model import MapAnything as MapAnything
    from vggt_jax.models.mapanything.outputs import MapAnythingOutput as MapAnythingOutput
    from vggt_jax.models.pi3.config import Pi3Config as Pi3Config
    from vggt_jax.models.pi3.model import Pi3 as Pi3
    from vggt_jax.models.pi3.outputs import Pi3Output as Pi3Output
    from vggt_jax.models.pi3x.config import Pi3XConfig as Pi3XConfig
    from vggt_jax.models.pi3x.model import Pi3X as Pi3X
    from vggt_jax.models.pi3x.outputs import Pi3XOutput as Pi3XOutput
    from vggt_jax.models.vggt.config import VGGTConfig as VGGTConfig
    from vggt_jax.models.vggt.model import VGGT as VGGT
    from vggt_jax.models.vggt.outputs import VGGTOutput as VGGTOutput
    from vggt_jax.pipeline.calibrate import calibrate as calibrate
    from vggt_jax.pipeline.calibration_report import CalibrationReport as CalibrationReport
    from vggt_jax.pipeline.many_scenes import ScenesReport as ScenesReport
    from vggt_jax.pipeline.many_scenes import reconstruct_scenes as reconstruct_scenes
    from vggt_jax.pipeline.one_scene import infer as infer
    from vggt_jax.pipeline.one_scene import plan as plan
    from vggt_jax.pipeline.options import Options as Options
    from vggt_jax.pipeline.plan import Plan as Plan
    from vggt_jax.pipeline.prior_files import read_priors as read_priors
    from vggt_jax.pipeline.reconstruct import reconstruct as reconstruct
    from vggt_jax.pipeline.stablehlo import export_stablehlo as export_stablehlo
    from vggt_jax.scene.calibration import scale_to_depth as scale_to_depth
    from vggt_jax.scene.calibration import scale_to_distance as scale_to_distance
    from vggt_jax.scene.calibration import with_intrinsics as with_intrinsics
    from vggt_jax.scene.masking import with_mask as with_mask
    from vggt_jax.scene.priors import Priors as Priors
    from vggt_jax.scene.reconstruction import Reconstruction as Reconstruction
    from vggt_jax.scene.results import load_reconstruction as load_reconstruction
    from vggt_jax.scene.self_agreement import self_agreement as self_agreement
    from vggt_jax.scene.view_agreement import multiview_confidence as multiview_confidence
    from vggt_jax.scene.view_agreement import (
        with_multiview_confidence as with_multiview_confidence,
    )
    from vggt_jax.trunk.attention.block_sparse import BlockSparse as BlockSparse
    from vggt_jax.trunk.attention.plan import AttentionPlan as AttentionPlan
    from vggt_jax.trunk.attention.sampled import Sampled as Sampled
    from vggt_jax.viewer import view as view

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "checkpoints.errors",
    "InputError": "errors",
    "InputWarning": "errors",
    "ExportReport": "export",
    "export_reconstruction": "export",
    "Frames": "images.frames",
    "load_images": "images.loading",
    "choose_frames": "images.video",
    "Dense": "layers.attention",
    "AttentionStats": "layers.scene_attention",
    "load_model": "models.loading",
    "save_model": "models.loading",
    "DA3Config": "models.da3.config",
    "DA3": "models.da3.model",
    "DA3Output": "models.da3.outputs",
    "MapAnythingConfig": "models.mapanything.config",
    "MapAnything": "models.mapanything.model",
    "MapAnythingOutput": "models.mapanything.outputs",
    "Pi3Config": "models.pi3.config",
    "Pi3": "models.pi3.model",
    "Pi3Output": "models.pi3.outputs",
    "Pi3XConfig": "models.pi3x.config",
    "Pi3X": "models.pi3x.model",
    "Pi3XOutput": "models.pi3x.outputs",
    "VGGTConfig": "models.vggt.config",
    "VGGT": "models.vggt.model",
    "VGGTOutput": "models.vggt.outputs",
    "calibrate": "pipeline.calibrate",
    "CalibrationReport": "pipeline.calibration_report",
    "ScenesReport": "pipeline.many_scenes",
    "reconstruct_scenes": "pipeline.many_scenes",
    "infer": "pipeline.one_scene",
    "plan": "pipeline.one_scene",
    "Options": "pipeline.options",
    "Plan": "pipeline.plan",
    "read_priors": "pipeline.prior_files",
    "reconstruct": "pipeline.reconstruct",
    "export_stablehlo": "pipeline.stablehlo",
    "scale_to_depth": "scene.calibration",
    "scale_to_distance": "scene.calibration",
    "with_intrinsics": "scene.calibration",
    "with_mask": "scene.masking",
    "Priors": "scene.priors",
    "Reconstruction": "scene.reconstruction",
    "load_reconstruction": "scene.results",
    "self_agreement": "scene.self_agreement",
    "multiview_confidence": "scene.view_agreement",
    "with_multiview_confidence": "scene.view_agreement",
    "BlockSparse": "trunk.attention.block_sparse",
    "AttentionPlan": "trunk.attention.plan",
    "Sampled": "trunk.attention.sampled",
    "view": "viewer",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"vggt_jax.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    try:  # A part of the package, such as `vggt_jax.scene`.
        return importlib.import_module(f"vggt_jax.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"vggt_jax.{name}":
            raise
        raise AttributeError(f"module 'vggt_jax' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
