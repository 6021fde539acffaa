"""The last step of a reconstruction: programs, and what becomes of their results."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from vggt_jax import geometry
from vggt_jax.errors import InputError
from vggt_jax.host import with_numpy
from vggt_jax.models.base import SceneModel
from vggt_jax.pipeline import reconstruct as programs
from vggt_jax.pipeline.given_cameras import with_given_cameras
from vggt_jax.pipeline.inputs import SceneInputs
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.origin import provenance_of
from vggt_jax.pipeline.placing import fetched, placed
from vggt_jax.pipeline.plan import Plan, plan_scene
from vggt_jax.pipeline.streaming import Stream
from vggt_jax.scene import calibration
from vggt_jax.scene.masking import with_mask
from vggt_jax.scene.provenance import Provenance
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.self_agreement import self_agreement
from vggt_jax.scene.view_agreement import with_multiview_confidence

Program = Callable[..., Reconstruction]
"""Takes a model, arguments of `reconstruct` by name, and `done`, which it calls with the number of
frames that are done."""


def run(
    inputs: SceneInputs,
    model: SceneModel,
    plan: Plan,
    options: Options,
    *,
    done: Callable[[int], object] = lambda num: None,
) -> Reconstruction:
    """Reconstructs one scene.

    Args:
        done: called with the number of frames that are done.

    Returns:
        The scene in NumPy arrays, with everything that is known put into it.

    Raises:
        InputError: what is known of the scene does not fit what was predicted.
    """
    return prepare(inputs, model, plan, options)(done)


def prepare(
    inputs: SceneInputs,
    model: SceneModel,
    plan: Plan,
    options: Options,
    *,
    compile_now: bool = False,
) -> Callable[[Callable[[int], object]], Reconstruction]:
    """`run` up to the point where the device starts; what it returns does the rest, given `done`.

    Args:
        compile_now: whether to compile now; otherwise the first call does, unless one like it has.
    """
    arguments = scene_arguments(inputs, plan)
    program = program_for(model, arguments, plan, options, compile_now=compile_now)

    def call(done: Callable[[int], object]) -> Reconstruction:
        start = time.perf_counter()
        predicted = program(model, **arguments, done=done)
        result = finish(predicted, inputs, options, provenance_of(model, plan, options))
        seconds = round(time.perf_counter() - start, 3)
        made_by = dataclasses.replace(result.provenance, seconds=seconds)
        return dataclasses.replace(result, provenance=made_by)

    return call


def program_for(
    model: SceneModel,
    arguments: dict[str, Any],
    plan: Plan,
    options: Options,
    *,
    compile_now: bool = False,
) -> Program:
    """What reconstructs these `scene_arguments`: in chunks if the plan says so, else at once."""
    static: dict[str, Any] = {
        "attention": plan.attention,
        "compute_dtype": options.compute_dtype,
        "camera_source": options.camera_source,
        "mesh": plan.mesh,
    }
    if plan.streamed:
        return Stream.of(model, arguments, **static, compiled=compile_now)
    if compile_now:
        whole = programs.compile_reconstruct(model, arguments, **static)
    else:
        whole = functools.partial(programs.reconstruct_jit, **static)

    def call(model, *, done=lambda num: None, **arguments):
        model, placed_arguments = placed(plan.mesh, model, arguments)
        result = jax.block_until_ready(whole(model, **placed_arguments))
        done(int(arguments.get("num_frames", len(arguments["images"]))))
        return result

    return call


def reconstructed(
    inputs: SceneInputs,
    model: SceneModel,
    options: Options,
    *,
    say: Callable[[str], None],
    progress: bool = False,
) -> Reconstruction:
    """Plans and runs, again with more keys while `options.max_error` asks for them.

    Args:
        say: takes what is decided, and warnings.
        progress: whether to show how many frames of a streamed scene are done.

    Raises:
        InputError: as `plan_scene` and `run`.
    """
    while True:
        plan = plan_scene(inputs, model, options, say=say)
        with tqdm.tqdm(
            total=plan.num_frames,
            desc="frames",
            unit="frame",
            disable=not (progress and plan.streamed),
        ) as bar:
            advance = lambda num, bar=bar: bar.update(num - bar.n)
            result = run(inputs, model, plan, options, done=advance)
        if (more := with_more_keys(result, plan, options, say=say)) is None:
            return result
        options = more


def with_more_keys(
    result: Reconstruction, plan: Plan, options: Options, *, say: Callable[[str], None]
) -> Options | None:
    """Options that sample more keys, for `options.max_error` to hold; None where it does.

    Args:
        result: of these options and this plan.
        say: takes what is done, or that no more can be.
    """
    if options.max_error is None or (stats := result.attention_stats) is None:
        return None
    errors = np.nan_to_num(np.mean(stats.error, axis=-1))
    if (worst := float(errors.max())) <= options.max_error:
        return None
    # The error falls with the root of their number; a tenth more, for the estimate is one.
    factors = np.maximum(1.1 * (errors / options.max_error) ** 2, 1.0)
    more = plan.attention.with_keys_times(factors.tolist())
    if more == plan.attention:
        say(f"max_error={options.max_error:g} is not reached: {worst:.3g} with {more}")
        return None
    say(f"a sampling error of {worst:.3g}, above max_error={options.max_error:g}: again, {more}")
    return dataclasses.replace(options, attention=more)


def scene_arguments(inputs: SceneInputs, plan: Plan) -> dict[str, Any]:
    """The arguments of `reconstruct` for one scene, padded, the reference frame first."""
    arguments = batch_arguments([inputs], plan, 1)
    given = {name: x for name, x in arguments.items() if x is not None}
    return jax.tree.map(lambda x: x[0], given)


def batch_arguments(scenes: Sequence[SceneInputs], plan: Plan, batch_size: int) -> dict[str, Any]:
    """The arguments of `reconstruct` for scenes that share a program.

    Args:
        plan: of any of them.
        batch_size: a batch that lacks scenes repeats its last.
    """
    scenes = [scenes[min(i, len(scenes) - 1)] for i in range(batch_size)]
    first = scenes[0].ordered_images
    if batch_size == 1 and plan.padded_frames == len(first):
        images = first[None]  # without a copy
    else:
        images = np.zeros((batch_size, plan.padded_frames, *first.shape[1:]), first.dtype)
        for of_scene, scene in zip(images, scenes, strict=True):
            of_scene[: len(scene.frames.images)] = scene.ordered_images
    num_frames = query_points = None
    if plan.masks_padding:
        num_frames = np.array([len(scene.frames.images) for scene in scenes], np.int32)
    if scenes[0].query_points is not None:
        query_points = np.array([scene.query_points for scene in scenes], np.float32)
    priors = None
    if scenes[0].priors is not None:
        priors = jax.tree.map(
            lambda *x: np.stack(x),
            *(
                scene.priors.of_frames(scene.order, padded_to=plan.padded_frames)
                for scene in scenes
                if scene.priors is not None
            ),
        )
    arguments = {"images": images, "num_frames": num_frames, "query_points": query_points}
    return arguments | {"priors": priors}


def finish(
    result: Reconstruction, inputs: SceneInputs, options: Options, made_by: Provenance
) -> Reconstruction:
    """A result of `scene_arguments` as users get it: in the order of the photographs, in NumPy
    arrays of the frames that count, with names and transforms, and `with_known`.

    Args:
        made_by: what made it. How far it agrees with itself is added, if the model was calibrated:
            what it predicted, before anything that is known replaces that.
    """
    predicted = in_order(result, inputs)
    if made_by.least_agreement is not None:
        made_by = dataclasses.replace(made_by, agreement=self_agreement(predicted))
    return with_known(predicted.replace(provenance=made_by), inputs, options)


def in_order(result: Reconstruction, inputs: SceneInputs) -> Reconstruction:
    """NumPy arrays of the valid frames in the order of the photographs, with names and transforms.

    NumPy arrays in the result are not copied where the order stays.
    """
    frames = inputs.frames
    num_frames = len(frames.images)
    places = np.argsort(inputs.order)
    stats = jax.tree.map(np.array, fetched(result.attention_stats))
    per_frame = dataclasses.replace(result, attention_stats=None, images=None)

    def own(x):
        valid = fetched(x)[:num_frames]
        if inputs.reference != 0:
            return valid[places]
        return valid if isinstance(x, np.ndarray) else np.array(valid)

    per_frame = jax.tree.map(own, per_frame)
    return dataclasses.replace(
        per_frame,
        images=frames.images,
        names=frames.names,
        transforms=frames.transforms,
        attention_stats=stats,
    )


def with_known(recon: Reconstruction, inputs: SceneInputs, options: Options) -> Reconstruction:
    """Known cameras, intrinsics, masks, edges of depth, units and confidences put into a scene.

    Raises:
        InputError: the scene has nothing that could be compared with a known length, or no depth to
            have edges.
    """
    if inputs.priors is not None and inputs.keeps_given_cameras:
        recon = with_given_cameras(recon, inputs.priors)
    if inputs.intrinsics is not None:
        recon = calibration.with_intrinsics(recon, inputs.intrinsics)
    if inputs.mask is not None:
        recon = with_mask(recon, inputs.mask)
    if options.mask_edges and recon.depth_edges is None:
        if recon.depth is None:
            raise InputError("this scene has no depth for mask_edges; leave it out")
        edges = with_numpy(geometry.depth_edges, recon.depth)
        recon = dataclasses.replace(recon, depth_edges=np.array(edges))
    if options.known_distance is not None:
        first, second, distance = options.known_distance
        recon = calibration.scale_to_distance(recon, distance, cameras=(first, second))
    if options.known_depth is not None:
        photograph, x, y, depth = options.known_depth
        recon = calibration.scale_to_depth(recon, depth, pixel=(photograph, x, y))
    # Of lengths in their final unit.
    return with_multiview_confidence(recon) if options.multiview_confidence else recon
