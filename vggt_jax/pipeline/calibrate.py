"""`calibrate`: how many keys each layer shall sample, from what sampling does to the results."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.typing import DTypeLike
from jaxtyping import Int

from vggt_jax.errors import InputError
from vggt_jax.evaluation.drift import Drift, drift_between
from vggt_jax.images.loading import Mode
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models.base import SceneModel
from vggt_jax.models.origin import origin_of
from vggt_jax.pipeline.calibration_report import CalibrationReport
from vggt_jax.pipeline.inputs import SceneInputs, load, read
from vggt_jax.pipeline.key_budgets import STEP, key_budgets
from vggt_jax.pipeline.memory import check_memory, out_of_memory_is_an_input_error
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.plan import Plan, plan_scene
from vggt_jax.pipeline.reconstruct import reconstruct
from vggt_jax.pipeline.run import scene_arguments
from vggt_jax.trunk.attention.choice import LayerChoice
from vggt_jax.trunk.attention.plan import AttentionPlan
from vggt_jax.trunk.attention.sampled import MOST_KEYS, Sampled


def calibrate(
    scenes: Any,
    *,
    num_keys: int = 4096,
    seed: int = 0,
    sample_special_queries: bool | None = None,
    min_tokens: int = AttentionPlan.min_tokens,
    model: SceneModel | str | os.PathLike | None = None,
    config: str | os.PathLike | None = None,
    mode: Mode | None = None,
    size: int | tuple[int, int] | None = None,
    fps: float | None = None,
    frames: int | None = None,
    reference: int | str = 0,
    compute_dtype: DTypeLike | None = None,
    memory_check: bool = True,
    progress: bool = False,
) -> tuple[AttentionPlan, CalibrationReport]:
    """Finds how many keys each layer of the trunk shall sample, of so many a layer on average.

    It needs photographs alone, no truth. Scenes are reconstructed by dense attention, and then with
    one layer after the other sampled to `num_keys`. How far that moves cameras and depth is the
    drift of the layer, and its number of keys goes with the root of it (`key_budgets`). Then all
    layers are sampled, by these numbers and alike, which costs as much, and the better is chosen.

    Scenes of one shape share two programs, of which each layer's turn is data.

    Args:
        scenes: a list of scenes, each as `infer` takes it: a folder, a video, an array
            [s height width 3], a list of files. A folder, file or array alone is one scene.
        num_keys: the mean over layers, a multiple of 64 below the number of patches of each scene.
        seed, sample_special_queries: of the samples, see `Sampled`.
        min_tokens: of the plan: scenes of fewer tokens run dense.
        model, config, mode, size, fps, frames, reference, compute_dtype, memory_check: see
            `Options`.
        progress: show a progress bar.

    Returns:
        The plan, and what was measured. Where the budgets give a layer as many keys as there are
        patches, it is dense in scenes of this size, and in longer ones has that many keys.

    Raises:
        InputError: photographs or options cannot be used; a scene has fewer than three frames, or
            too few patches or tokens for a sample; a scene does not fit into the memory.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """
    options = Options(
        model=model,
        config=config,
        mode=mode,
        size=size,
        fps=fps,
        frames=frames,
        reference=reference,
        compute_dtype=compute_dtype,
        memory_check=memory_check,
        progress=progress,
    )
    if num_keys < STEP or num_keys % STEP:
        raise InputError(f"num_keys={num_keys} must be a multiple of {STEP}")
    try:
        sampled = Sampled(
            num_keys=num_keys,
            seed=seed,
            min_tokens=0,
            sample_special_queries=sample_special_queries,
        )
        alike = AttentionPlan(layers=(Dense(),), min_tokens=min_tokens)
    except ValueError as error:
        raise InputError(str(error)) from error
    scenes = _list_of_scenes(scenes)
    model = load(options)
    if not {"cameras", "depth", "points"} & model.predicts:
        raise InputError("this model predicts neither cameras nor depth nor points to calibrate by")
    depth = model.num_layers
    alike = dataclasses.replace(alike, layers=(sampled,) * depth)
    measured = [
        _Scene.of(read(scene, model, options), model, options, alike, name=_name(scene, i))
        for i, scene in enumerate(scenes)
    ]
    num_runs = len(measured) * (depth + 3)
    with tqdm.tqdm(total=num_runs, unit="run", disable=not progress) as bar:
        by_scene = [scene.drift_of_layers(sampled, bar) for scene in measured]
        drifts = Drift.mean(by_scene)
        layers = jax.tree.map(lambda x: x[:-1], drifts)
        most = min(MOST_KEYS, *(scene.num_patches for scene in measured))
        keys = key_budgets(layers, num_keys, most=most)
        by_layer = dataclasses.replace(
            alike, layers=tuple(dataclasses.replace(sampled, num_keys=x) for x in keys)
        )
        of_alike = jax.tree.map(lambda x: x[-1], drifts)
        of_whole = of_alike
        if by_layer != alike:
            of_whole = Drift.mean([scene.drift(by_layer.layers, bar) for scene in measured])
        bar.update(num_runs - bar.n)
    report = CalibrationReport(
        num_keys=num_keys,
        num_frames=tuple(len(x.inputs.frames.images) for x in measured),
        num_patches=tuple(x.num_patches for x in measured),
        size=tuple(x.plan.size for x in measured),
        layers=layers,
        keys=keys,
        by_layer=of_whole,
        alike=of_alike,
        checksum=None if (origin := origin_of(model)) is None else origin.checksum,
    )
    return by_layer if report.is_better_by_layer else alike, report


def _list_of_scenes(scenes: Any) -> Sequence[Any]:
    if isinstance(scenes, str | os.PathLike) or hasattr(scenes, "ndim"):
        return [scenes]
    if not isinstance(scenes, Sequence) or not len(scenes):
        raise InputError("scenes must be a list of scenes, each a folder, video or array of frames")
    return scenes


_drift_between = jax.jit(drift_between)


def _name(scene: Any, place: int) -> str:
    """What messages call a scene."""
    return os.fspath(scene) if isinstance(scene, str | os.PathLike) else f"scene {place}"


@dataclasses.dataclass(kw_only=True)
class _Scene:
    """A scene, and what dense attention makes of it."""

    inputs: SceneInputs
    plan: Plan
    model: SceneModel
    compute_dtype: DTypeLike | None
    num_patches: int
    dense: Any = None

    @classmethod
    def of(
        cls,
        inputs: SceneInputs,
        model: SceneModel,
        options: Options,
        alike: AttentionPlan,
        *,
        name: str,
    ) -> "_Scene":
        num_frames, height, width, _ = inputs.frames.images.shape
        frames = f"{name}: {num_frames} frames of {width}x{height}"
        if num_frames < 3:
            raise InputError(
                f"{frames}, but to calibrate takes three or more of each scene, which is a folder, "
                "a video, an array or a list of files"
            )
        patch = model.config.patch_size
        per_frame = (height // patch) * (width // patch)
        size = {
            "num_tokens": num_frames * (per_frame + model.config.num_special_tokens),
            "num_patches": num_frames * per_frame,
        }
        if why := alike.why_dense(**size):
            raise InputError(
                f"{frames} have {why.partition(':')[0]}, so that attention would be dense; take "
                "more frames or a larger size, or lower this number"
            )
        # Two values, of which the one that takes more memory counts.
        both = (Dense(), *alike.layers[1:])
        options = dataclasses.replace(options, attention=AttentionPlan(layers=both, min_tokens=0))
        plan = plan_scene(inputs, model, options, say=lambda message: None, refuse=False)
        memory = check_memory(
            model,
            (plan.padded_frames, height, width, 3),
            compute_dtype=options.compute_dtype,
            attention=plan.attention,
        )
        plan = dataclasses.replace(plan, streamed=False, memory=memory)
        if options.memory_check:
            plan.check_memory()
        return cls(
            inputs=inputs,
            plan=plan,
            model=model,
            compute_dtype=options.compute_dtype,
            num_patches=size["num_patches"],
        )

    def drift_of_layers(self, sampled: Sampled, bar: tqdm.tqdm) -> Drift:
        """With each layer alone sampled, and at the end with all of them."""
        depth = self.model.num_layers
        run = self._runner((Dense(), sampled))
        bar.set_description("dense")
        self.dense = run(np.zeros(depth, np.int32))
        bar.update()
        choices = {f"layer {layer} alone": np.eye(depth)[layer] for layer in range(depth)}
        drifts = []
        for name, choice in (choices | {"all layers alike": np.ones(depth)}).items():
            bar.set_description(name)
            found = run(choice.astype(np.int32))
            drifts.append(jax.device_get(_drift_between(found, self.dense)))
            bar.update()
        self.dense = jax.device_get(self.dense)
        return jax.tree.map(lambda *x: np.stack(x).astype(np.float64), *drifts)

    def drift(self, layers: tuple[SceneAttention, ...], bar: tqdm.tqdm) -> Drift:
        """With these values of the layers."""
        bar.set_description("keys by layer")
        values = tuple(dict.fromkeys(layers))
        run = self._runner(values)
        choice = np.array([values.index(value) for value in layers], np.int32)
        drift = jax.device_get(_drift_between(run(choice), jax.device_put(self.dense)))
        bar.update()
        return jax.tree.map(np.float64, drift)

    def _runner(
        self, values: tuple[SceneAttention, ...]
    ) -> Callable[[Int[np.ndarray, " depth"]], Any]:
        num_frames = len(self.inputs.frames.images)
        arguments = jax.device_put(scene_arguments(self.inputs, self.plan))

        def run(choice):
            with out_of_memory_is_an_input_error(num_frames, "a smaller size"):
                found = _predict(
                    self.model,
                    arguments,
                    jnp.asarray(choice),
                    values=values,
                    compute_dtype=self.compute_dtype,
                )
                return jax.block_until_ready(jax.tree.map(lambda x: x[:num_frames], found))

        return run


@functools.partial(jax.jit, static_argnames=("values", "compute_dtype"))
def _predict(model, arguments, of_layer, *, values, compute_dtype):
    """Cameras, and depth or else points; what else the model predicts is not computed."""
    recon = reconstruct(
        model,
        **arguments,
        attention=LayerChoice(values=values, of_layer=of_layer),
        compute_dtype=compute_dtype,
    )
    points = recon.world_points if recon.depth is None else None
    found = {"cameras": recon.camera_from_world, "depth": recon.depth, "points": points}
    return {name: value for name, value in found.items() if value is not None}
