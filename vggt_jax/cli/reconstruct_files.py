"""From photographs to files: what `vggt-jax infer` does, step by step with progress and timings."""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from vggt_jax.cli.exporting import as_json
from vggt_jax.cli.on_server import on_server
from vggt_jax.cli.printed import print_outcome
from vggt_jax.cli.programs import keep_compiled_programs
from vggt_jax.cli.scene import Scene
from vggt_jax.cli.steps import Steps
from vggt_jax.errors import InputError, printable
from vggt_jax.export.folder import FILES, write_scene
from vggt_jax.export.format import ExportOptions
from vggt_jax.export.reconstruction import write_export
from vggt_jax.files import check_not_input, output_folder
from vggt_jax.images.files import as_patterns, checked_file, photographs
from vggt_jax.images.frames import Frames
from vggt_jax.images.kinds import is_picture
from vggt_jax.images.parts import ImageParts
from vggt_jax.images.video import is_video
from vggt_jax.layers.scene_attention import AttentionStats
from vggt_jax.models.base import SceneModel
from vggt_jax.pipeline import inputs as scene_inputs
from vggt_jax.pipeline.memory import out_of_memory_is_an_input_error
from vggt_jax.pipeline.one_scene import image_parts, unread, warned_of
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.plan import Plan, plan_scene
from vggt_jax.pipeline.run import prepare, with_known, with_more_keys
from vggt_jax.pipeline.timing import said_duration, why_slower
from vggt_jax.pipeline.windows.run import first_window, infer_in_windows
from vggt_jax.pipeline.windows.store import WindowStore
from vggt_jax.scene.confidence import PointSource
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.results import is_large, load_reconstruction

_LONG = 15.0  # Seconds from which on it is said how long work on a CPU will take.


def reconstruct_files(
    scene: Scene,
    out: Path,
    exports: Mapping[Path, ExportOptions],
    *,
    max_points: int,
    overwrite: bool,
) -> tuple[str, dict[str, Any]]:
    """Reconstructs photographs and writes the results, all of them or none; see `cli.infer.Infer`.

    Args:
        exports: what to write once the results are there, by its place.

    Returns:
        What was done, for people and as JSON.

    Raises:
        InputError: photographs, options or the output folder cannot be used, or memory is short.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """
    scene.check_of_results()
    options = scene.options()
    paths = _checked_photographs(scene)
    folders = {
        path if path.is_dir() else path.parent
        for path in paths
        if path.is_dir() or is_picture(path)
    }
    if out.exists() and any(out.samefile(folder) for folder in folders):
        raise InputError(f"{out}: holds the photographs; choose another --out")
    inputs = scene.inputs(paths)
    check_not_input(out, inputs)
    options, windows = _with_window_folder(options, out)
    writing = output_folder(out, overwrite=overwrite, stale=FILES, inputs=inputs)
    with writing as folder, Steps(5 + len(exports), quiet=scene.quiet) as steps:
        if (server := getattr(scene, "server", None)) is not None:
            result, points = on_server(server, scene, options, paths, steps)
        else:
            result, points = _reconstruct(scene, options, paths, steps, tuple(exports.values()))
        warned_of(result)
        with steps("writing files"):
            num_points = write_scene(
                folder,
                result,
                say=_warn,
                points=points,
                confidence_percentile=scene.confidence_percentile,
                min_confidence=scene.min_confidence,
                max_points=max_points,
            )
    if windows is not None:
        WindowStore.opened(windows).remove()
    reports = []
    with steps:
        for place, export in exports.items():
            with steps(f"writing {export.format}"):
                reports.append(write_export(result, place, export))
    num_frames, height, width, _ = result.images.shape
    lines = [printable(f"{num_frames} frames of {width}x{height}, {num_points:,} points -> {out}")]
    lines += map(str, reports)
    outcome: dict[str, Any] = {
        "out": str(out),
        "frames": num_frames,
        "width": width,
        "height": height,
        "points": num_points,
        "attention": None,
        "warning": result.warning or None,
        "provenance": result.provenance.to_dict(),
        "exports": [as_json(report) for report in reports],
        "seconds": steps.seconds,
    }
    if (stats := result.attention_stats) is not None:
        outcome["attention"], text = _of_attention(stats)
        lines.append(text)
    return "\n".join([*lines, str(steps)]), outcome


def _with_window_folder(options: Options, out: Path) -> tuple[Options, Path | None]:
    """Options with a place for windows beside the results, and that place, if nobody named one."""
    if options.window is None or options.window_folder is not None:
        return options, None
    beside = out.with_name(f"{out.name}.windows")
    return dataclasses.replace(options, window_folder=beside), beside


def _of_attention(stats: AttentionStats) -> tuple[dict[str, float], str]:
    """What attention over all frames did, as JSON and for people."""
    means = {name: float(np.mean(getattr(stats, name))) for name in ("density", "covered", "saved")}
    kept = f"saw {means['density']:.1%} of the keys"
    if not np.isnan(stats.covered).any():  # Of a sample it is not measured.
        kept = (
            f"kept {means['density']:.1%} of the blocks with {means['covered']:.1%} of "
            "the pooled probability"
        )
    error = np.nanmax(np.mean(stats.error, axis=-1)) if (stats.error > 0).any() else 0
    kept += f" with a sampling error of up to {error:.2g}" if error > 0 else ""
    text = f"attention {kept}, and saved {means['saved']:.1%} of the arithmetic"
    return means | {"error": float(error)}, text


def print_plan(scene: Scene) -> None:
    """Prints what would run, and runs nothing.

    Raises:
        InputError: photographs or options cannot be used.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """
    scene.check_of_results()
    options, paths = scene.options(), _checked_photographs(scene)
    with Steps(2, quiet=scene.quiet) as steps:
        model, inputs, _ = _load_and_read(scene, options, paths, steps)
        if isinstance(inputs, ImageParts):
            inputs = first_window(inputs, model, options)
    plan = plan_scene(inputs, model, options, say=lambda message: None, refuse=False)
    print_outcome(scene, str(plan), plan.to_dict())


def read_or_reconstruct(scene: Scene) -> Reconstruction:
    """The scene of a folder of results, or of photographs, which are reconstructed now.

    Raises:
        InputError: results, photographs or options cannot be used, or memory is short.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """
    scene.check_of_results()
    options = scene.options()
    if (results := scene.results()) is None:
        paths = _checked_photographs(scene)
        with Steps(4, quiet=scene.quiet) as steps:
            result, _ = _reconstruct(scene, options, paths, steps)
        scene.say(str(steps))
        return result
    if len(scene.sources) > 1:
        raise InputError(f"{results}: holds results; give one folder of results alone")
    if changed := scene.changed_for_photographs():
        raise InputError(
            f"{results}: holds results, for which --{changed[0].replace('_', '-')} comes too late; "
            "leave it out, or give the photographs"
        )
    recon = load_reconstruction(results, memory_map=is_large(results))
    images = np.asarray(recon.images)
    frames = Frames(images=images, names=recon.names, transforms=recon.transforms)
    scene.check_of_frames(frames)
    return with_known(recon, scene_inputs.of_frames(frames, options), options)


def _reconstruct(
    scene: Scene,
    options: Options,
    paths: tuple[Path, ...],
    steps: Steps,
    exports: Sequence[ExportOptions] = (),
) -> tuple[Reconstruction, PointSource | None]:
    """Reconstructs photographs in four steps.

    Args:
        exports: what will be written, to find out early what is wrong with it.

    Returns:
        The scene, and where its points come from.

    Raises:
        InputError: photographs or options cannot be used, or memory is short.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """
    model, inputs, points = _load_and_read(scene, options, paths, steps)
    if isinstance(inputs, ImageParts):
        keep_compiled_programs()
        with steps(f"reconstructing {len(inputs)} frames in windows") as say:
            tell = lambda news: say(f"{news.doing}: {news.done} of {news.total} done")
            result = infer_in_windows(inputs, model, options, say=scene.say, news=tell)
            return result, points
    for export in exports:
        export.check_frames(inputs.frames)
    if (missed := why_slower()) is not None:
        _warn(f"warning: {missed}")
    while True:
        plan = plan_scene(inputs, model, options, say=scene.say, refuse=False)
        result = _run_plan(scene, model, inputs, plan, options, steps)
        if (more := with_more_keys(result, plan, options, say=scene.say)) is None:
            return result, points
        options = more


def _run_plan(
    scene: Scene,
    model: SceneModel,
    inputs: scene_inputs.SceneInputs,
    plan: Plan,
    options: Options,
    steps: Steps,
) -> Reconstruction:
    """Checks memory, compiles and runs.

    Raises:
        InputError: memory is short.
    """
    scene.say(f"memory: {plan.memory}")
    if jax.default_backend() == "cpu" and (seconds := plan.seconds or 0) > _LONG:
        scene.say(f"time: {said_duration(seconds)} on this machine, compiling aside")
    if options.memory_check:
        plan.check_memory()
    with out_of_memory_is_an_input_error(plan.num_frames, "a smaller --size"):
        with steps("compiling"):
            keep_compiled_programs()
            run = prepare(inputs, model, plan, options, compile_now=True)
        with steps(f"reconstructing {plan.num_frames} frames") as say:
            return run(lambda num: say(f"{num} done"))


def _load_and_read(
    scene: Scene, options: Options, paths: tuple[Path, ...], steps: Steps
) -> tuple[SceneModel, scene_inputs.SceneInputs | ImageParts, PointSource | None]:
    """The model, the photographs, which are not read yet if they go through windows, and where
    points come from."""
    first_path, is_alone = paths[0], len(paths) == 1
    if scene.changed("fps", "frames") and (not is_alone or first_path.is_dir()):
        raise InputError("--fps and --frames are for a video; name one file, or leave them out")
    with steps("loading the model"):
        model = scene_inputs.load(options)
    points = _source_of_points(model, scene.point_source(), scene.model_name)
    with steps("reading photographs"):
        images = first_path if is_alone else list(paths)
        if options.window is not None:
            parts = image_parts(images, options)
            if len(parts) > options.window:
                return model, parts, points
            images, options = unread(parts, images, options)
        inputs = scene_inputs.read(images, model, options)
        if len(inputs.frames.images) == 1 and not scene.allow_single_image:
            raise InputError(
                f"{first_path}: one frame is no scene; take more with --frames or --fps, or "
                "--allow-single-image (the models were not trained for it)"
            )
        scene.check_of_frames(inputs.frames)
    return model, inputs, points


def _warn(message: str) -> None:
    """Says what a person should know whether or not they want it quiet."""
    tqdm.tqdm.write(f"vggt-jax: {message}", file=sys.stderr)


def _checked_photographs(scene: Scene) -> tuple[Path, ...]:
    """The photographs that were named.

    Raises:
        InputError: something is wrong with them that shows before a model is loaded.
    """
    images = scene.paths()
    folders = [path for path in images if os.path.isdir(path)]
    if folders and len(images) > 1:
        raise InputError(f"{folders[0]}: is a folder; give one folder, or image files only")
    paths: Sequence[Path] = images
    left_out = ""
    if folders:
        found = photographs(folders[0], as_patterns(scene.pattern), recursive=scene.recursive)
        paths, left_out = found.images, found.said_of_left_out()
    elif scene.pattern:
        raise InputError("--pattern is for a folder of photographs; leave it out")
    elif scene.recursive:
        raise InputError("--recursive is for a folder of photographs; leave it out")
    for path in paths:
        checked_file(path)
    first = next(iter(paths))
    is_image = not is_video(first) and not scene.changed("fps", "frames")
    if len(paths) == 1 and is_image and not scene.allow_single_image:
        raise InputError(
            f"{first}: one image is no scene; give two or more photographs, or "
            "--allow-single-image (the models were not trained for it)"
            + (f"; beside it lie {left_out}" if left_out else "")
        )
    return images


def _source_of_points(
    model: SceneModel, points: PointSource | None, model_name: str
) -> PointSource | None:
    """Where the point cloud comes from: what was asked for, or the best that the model has."""
    possible = model.point_sources
    if points is not None and points not in possible:
        raise InputError(
            f"{model_name}: has no heads for --points {points}, only for "
            f"{', '.join(possible) or 'none'}"
        )
    return points or next(iter(possible), None)
