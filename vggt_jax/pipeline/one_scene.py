"""`infer` and `plan`: one scene, by the four steps of every reconstruction."""

import contextlib
import dataclasses
import warnings
from typing import Any

import tqdm

from vggt_jax.errors import InputWarning
from vggt_jax.images.parts import ImageParts
from vggt_jax.images.video import VideoFrames
from vggt_jax.models.base import SceneModel
from vggt_jax.pipeline.inputs import load, read
from vggt_jax.pipeline.options import Options, takes
from vggt_jax.pipeline.plan import Plan, plan_scene
from vggt_jax.pipeline.run import reconstructed
from vggt_jax.pipeline.windows.run import WindowNews, first_window, infer_in_windows
from vggt_jax.scene.reconstruction import Reconstruction


@takes(Options)
def infer(images: Any, options: Options) -> Reconstruction:
    """Reconstructs the scene that photographs show.

    Args:
        images: a folder, a list of paths, PIL images or arrays; a video; or one array
            [s height width 3]. See `load_images`.
        options: keyword arguments, which are the fields of `Options`.

    Returns:
        The reconstruction, in NumPy arrays without scene axis; of a scene in windows, large ones
        are maps of a file. Where its `warning` says that it is probably none, that is a Python
        warning (`InputWarning`), too.

    Raises:
        InputError: photographs or options cannot be used, a query point lies outside the first
            frame, or the scene does not fit into the memory.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """
    model = load(options)
    if options.window is not None:
        parts = image_parts(images, options)
        if len(parts) > options.window:
            return warned_of(_in_windows(parts, model, options))
        images, options = unread(parts, images, options)
    inputs = read(images, model, options)
    return warned_of(
        reconstructed(inputs, model, options, say=warnings.warn, progress=options.progress)
    )


def warned_of(recon: Reconstruction) -> Reconstruction:
    """The scene, after a Python warning where it is not to be relied on (`recon.warning`)."""
    if recon.warning:
        warnings.warn(InputWarning(recon.warning), stacklevel=4)
    return recon


def image_parts(images: Any, options: Options) -> ImageParts:
    """Images as windows read them.

    Raises:
        InputError: they cannot be used.
    """
    return ImageParts(
        images,
        fps=options.fps,
        frames=options.frames,
        pattern=options.pattern,
        recursive=options.recursive,
        progress=options.progress,
    )


def unread(parts: ImageParts, images: Any, options: Options) -> tuple[Any, Options]:
    """Images and options for a scene that is reconstructed at once after all.

    Frames of a video are not chosen again.
    """
    options = options.without_windows()
    if not isinstance(parts.sources, VideoFrames):
        return images, options
    return parts.sources, dataclasses.replace(options, fps=None, frames=None)


def _in_windows(parts: ImageParts, model: SceneModel, options: Options) -> Reconstruction:
    with contextlib.ExitStack() as stack:
        bars: dict[str, tqdm.tqdm] = {}

        def show(news: WindowNews) -> None:
            if news.doing not in bars:
                bar = tqdm.tqdm(total=news.total, desc=news.doing, disable=not options.progress)
                bars[news.doing] = stack.enter_context(bar)
            bar = bars[news.doing]
            bar.update(news.done - bar.n)

        return infer_in_windows(parts, model, options, news=show)


@takes(Options)
def plan(images: Any, options: Options) -> Plan:
    """What `infer` would run for these photographs: attention, padding, memory, time.

    Reads the model and the photographs, and compiles nothing. Of a scene in windows it is the plan
    of one of them.

    Args:
        images, options: as for `infer`; a scene that does not fit is planned, too.

    Raises:
        InputError: photographs or options cannot be used.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """

    model = load(options)
    if options.window is not None:
        parts = image_parts(images, options)
        if len(parts) > options.window:
            inputs = first_window(parts, model, options)
            return plan_scene(inputs, model, options, say=lambda message: None, refuse=False)
        images, options = unread(parts, images, options)
    inputs = read(images, model, options)
    return plan_scene(inputs, model, options, say=lambda message: None, refuse=False)
