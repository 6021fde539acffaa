"""`infer` and `plan`: one scene, by the four steps of every reconstruction."""

import warnings
from typing import Any

import tqdm

from vggt_jax.pipeline.inputs import load, read
from vggt_jax.pipeline.options import Options, takes
from vggt_jax.pipeline.plan import Plan, plan_scene
from vggt_jax.pipeline.run import run, with_more_keys
from vggt_jax.scene.reconstruction import Reconstruction


@takes(Options)
def infer(images: Any, options: Options) -> Reconstruction:
    """Reconstructs the scene that photographs show.

    Args:
        images: a folder, a list of paths, PIL images or arrays; a video; or one array
            [s height width 3]. See `load_images`.
        options: keyword arguments, which are the fields of `Options`.

    Returns:
        The reconstruction, in NumPy arrays without scene axis.

    Raises:
        InputError: photographs or options cannot be used, a query point lies outside the first
            frame, or the scene does not fit into the memory.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """
    model = load(options)
    inputs = read(images, model, options)
    while True:
        plan = plan_scene(inputs, model, options)
        with tqdm.tqdm(
            total=plan.num_frames,
            desc="frames",
            unit="frame",
            disable=not (options.progress and plan.streamed),
        ) as bar:
            advance = lambda num, bar=bar: bar.update(num - bar.n)
            result = run(inputs, model, plan, options, done=advance)
        if (more := with_more_keys(result, plan, options, say=warnings.warn)) is None:
            return result
        options = more


@takes(Options)
def plan(images: Any, options: Options) -> Plan:
    """What `infer` would run for these photographs: attention, padding, memory, time.

    Reads the model and the photographs, and compiles nothing.

    Args:
        images, options: as for `infer`; a scene that does not fit is planned, too.

    Raises:
        InputError: photographs or options cannot be used.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """

    model = load(options)
    inputs = read(images, model, options)
    return plan_scene(inputs, model, options, say=lambda message: None, refuse=False)
