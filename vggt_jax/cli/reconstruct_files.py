"""From photographs to files: what `vggt-jax infer` does, step by step with progress and timings."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from vggt_jax import export, weights
from vggt_jax.cli.scene import Scene
from vggt_jax.errors import InputError
from vggt_jax.files import OVERVIEW, RESULTS, output_folder
from vggt_jax.images.files import EXTENSIONS, find_images
from vggt_jax.images.frames import Frames
from vggt_jax.layers.precision import Precision
from vggt_jax.models.loading import Model, cache_folder, load_model
from vggt_jax.pipeline import memory
from vggt_jax.pipeline import one_scene as inference
from vggt_jax.pipeline.streaming import is_streamed
from vggt_jax.scene.confidence import (
    allowed_pixels,
    confidence_limits,
    confidence_of,
    points_of,
    usable_pixels,
)
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.results import load_reconstruction, write_reconstruction

# What a run may write.
_RESULTS = (
    RESULTS,
    "points.ply",
    "cameras.json",
    OVERVIEW,
    "depth_pictures",
    "track_pictures",
)


def reconstruct_files(
    scene: Scene,
    out: Path,
    *,
    max_points: int,
    overwrite: bool,
) -> None:
    """Reconstructs photographs and writes the results, all of them or none; see `cli.infer.Infer`.

    Raises:
        InputError: photographs, options or the output folder cannot be used, or memory is short.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """
    scene.check()
    paths = scene.paths()
    _check_photographs(paths, allow_single_image=scene.allow_single_image)
    folders = {
        path if path.is_dir() else path.parent
        for path in paths
        if path.is_dir() or path.suffix.lower() in EXTENSIONS
    }
    if out.exists() and any(out.samefile(folder) for folder in folders):
        raise InputError(f"{out}: holds the photographs; choose another --out")
    with output_folder(out, overwrite=overwrite, stale=_RESULTS) as folder, Steps(5) as steps:
        result, frames, points = reconstruct_photographs(scene, steps)
        with steps("writing files"):
            num_points = _write(
                folder,
                result,
                frames,
                points=points,
                confidence_percentile=scene.confidence_percentile,
                min_confidence=scene.min_confidence,
                max_points=max_points,
            )
    height, width = frames.images.shape[1:3]
    print(f"{len(frames.images)} frames of {width}x{height}, {num_points:,} points -> {out}")
    if (stats := result.attention_stats) is not None:
        kept = f"saw {stats.density.mean():.1%} of the keys"
        if not np.isnan(stats.covered).any():  # Of a sample it is not measured.
            kept = (
                f"kept {stats.density.mean():.1%} of the blocks with {stats.covered.mean():.1%} of "
                "the pooled probability"
            )
        print(f"attention {kept}, and saved {stats.saved.mean():.1%} of the arithmetic")
    print(steps)


def read_or_reconstruct(scene: Scene) -> Reconstruction:
    """The scene of a folder of results, or of photographs, which are reconstructed now.

    Raises:
        InputError: results, photographs or options cannot be used, or memory is short.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """
    if (results := scene.results()) is None:
        with Steps(4) as steps:
            result, _, _ = reconstruct_photographs(scene, steps)
        print(steps)
        return result
    scene.check_of_results()
    if len(scene.sources) > 1:
        raise InputError(f"{results}: holds results; give one folder of results alone")
    if changed := scene.changed_for_photographs():
        raise InputError(
            f"{results}: holds results, for which --{changed[0].replace('_', '-')} comes too late; "
            "leave it out, or give the photographs"
        )
    recon = load_reconstruction(results)
    images = np.asarray(recon.images)
    frames = Frames(images=images, names=recon.names, transforms=recon.transforms)
    scene.check_of_frames(frames)
    mask = inference.usable_mask(frames, scene.masks, scene.background())
    intrinsics = scene.known_intrinsics(frames)
    recon = inference.with_known(
        recon, intrinsics=intrinsics, mask=mask, mask_edges=scene.mask_edges
    )
    return scene.scaled(recon)


def reconstruct_photographs(
    scene: Scene, steps: "Steps"
) -> tuple[Reconstruction, Frames, Literal["depth", "head"] | None]:
    """Reconstructs photographs in four steps.

    Returns:
        The scene, its frames, and where its points come from.

    Raises:
        InputError: photographs or options cannot be used, or memory is short.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """
    scene.check()
    paths = scene.paths()
    first_path, is_alone = paths[0], len(paths) == 1
    _check_photographs(paths, allow_single_image=scene.allow_single_image)
    if scene.changed("fps", "frames") and (not is_alone or first_path.is_dir()):
        raise InputError("--fps and --frames are for a video; name one file, or leave them out")
    compute_dtype, pixels = scene.compute_dtype, scene.pixels()
    if scene.model is None:
        print(weights.SAID_WITHOUT_MODEL, file=sys.stderr)
    with steps("loading the model"):
        # Products in bfloat16 round their operands anyway, so kernels need no more.
        computed_in = Precision.from_compute_dtype(compute_dtype).compute_dtype
        stored_in = jnp.bfloat16 if computed_in == jnp.bfloat16 else None
        network = load_model(scene.model, config=scene.config, dtype=stored_in)
    points = _source_of_points(network, scene.point_source(), scene.model_name)
    if scene.mask_edges and "depth" not in network.point_sources:
        raise InputError(f"{scene.model_name}: predicts no depth for --mask-edges; leave it out")
    _check_heads(network, scene)
    with steps("reading photographs"):
        frames = inference.read_frames(
            first_path if is_alone else list(paths),
            model=network,
            mode=scene.mode,
            size=scene.size,
            fps=scene.fps,
            frames=scene.frames,
            progress=sys.stderr.isatty(),
        )
        if len(frames.images) == 1 and not scene.allow_single_image:
            raise InputError(
                f"{first_path}: one frame is no scene; take more with --frames or --fps, or "
                "--allow-single-image (the models were not trained for it)"
            )
        scene.check_of_frames(frames)
        first = inference.reference_index(scene.reference, frames, network)
        mask = inference.usable_mask(frames, scene.masks, scene.background())
        intrinsics = scene.known_intrinsics(frames)
        tracked = _pixels_of_model(pixels, frames, first) if pixels else None
        inputs = inference.model_inputs(
            inference.with_first(frames, first),
            model=network,
            query_points=tracked,
            pad_frames=False,
        )
    to_stderr = lambda message: print(message, file=sys.stderr)
    attention = inference.attention_for(scene.attention(), network, frames, say=to_stderr)
    check_memory(
        network,
        frames.images.shape,
        num_query_points=len(pixels),
        compute_dtype=compute_dtype,
        attention=attention,
        streamed=is_streamed(*frames.images.shape[:3]),
        refuse=scene.memory_check,
    )
    try:
        with steps("compiling"):
            _keep_compiled_programs()
            run = inference.runner(
                network, inputs, attention=attention, compute_dtype=compute_dtype, compiled=True
            )
        with steps(f"reconstructing {len(frames.images)} frames") as say:
            result = run(network, **inputs, done=lambda num: say(f"{num} done"))
            result = inference.cut_to_frames(result, frames, first=first)
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_out_of_memory(error):
            raise
        raise InputError(
            f"{len(frames.images)} frames do not fit into the memory of the device; use fewer, "
            "or a smaller --size"
        ) from error
    result = inference.with_known(
        result, intrinsics=intrinsics, mask=mask, mask_edges=scene.mask_edges
    )
    return scene.scaled(result), frames, points


def _check_photographs(images: tuple[Path, ...], *, allow_single_image: bool) -> None:
    """Finds what is wrong with the choice of photographs, before a model is loaded for them."""
    folders = [path for path in images if path.is_dir()]
    if folders and len(images) > 1:
        raise InputError(f"{folders[0]}: is a folder; give one folder, or image files only")
    paths = find_images(folders[0]) if folders else list(images)
    if missing := [path for path in paths if not path.exists()]:
        raise InputError(f"{missing[0]}: no such file")
    is_image = paths[0].suffix.lower() in EXTENSIONS
    if len(paths) == 1 and is_image and not allow_single_image:
        raise InputError(
            f"{paths[0]}: one image is no scene; give two or more photographs, or "
            "--allow-single-image (the models were not trained for it)"
        )


def _source_of_points(
    network: Model, points: Literal["depth", "head"] | None, model: str
) -> Literal["depth", "head"] | None:
    """Where the point cloud comes from: what was asked for, or the best that the model has."""
    possible = network.point_sources
    if points is not None and points not in possible:
        raise InputError(
            f"{model}: has no heads for --points {points}, only for {', '.join(possible) or 'none'}"
        )
    return points or next(iter(possible), None)


def _check_heads(network: Model, scene: Scene) -> None:
    """Checks that a model predicts what a known length is compared with."""
    for option, what in (("known_distance", "cameras"), ("known_depth", "depth")):
        if scene.changed(option) and what not in network.predicts:
            name = f"--{option.replace('_', '-')}"
            raise InputError(f"{scene.model_name}: predicts no {what} for {name}; leave it out")


def _pixels_of_model(pixels: list[tuple[float, float]], frames: Frames, first: int) -> np.ndarray:
    """Points of the reference photograph in pixels of its frame."""
    transform = frames.transforms[first]
    height, width = transform.original_size
    for x, y in pixels:
        # Integers are pixel centres: the image reaches half a pixel beyond the first and the last.
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise InputError(
                f"--query-points {x:g},{y:g} lies outside {frames.names[first]}, which is {width} "
                f"wide and {height} high"
            )
    return transform.pixels_to_model(pixels)


def check_memory(network: Model, shape: tuple[int, ...], *, refuse: bool, **options) -> None:
    """Prints the estimate for frames of this shape and refuses what cannot fit.

    Args:
        options: of `memory.check_memory`.

    Raises:
        InputError: it does not fit.
    """
    check = memory.check_memory(network, shape, **options)
    tqdm.tqdm.write(f"memory: {check}", file=sys.stderr)
    if refuse and check.shortage:
        fewer = " fewer or" if check.fitting else ""
        raise InputError(
            f"{check.shortage}: use{fewer} a smaller --size, or try in spite of this with "
            "--no-memory-check"
        )


def _keep_compiled_programs() -> None:
    """Keeps compiled programs of a GPU on disk, unless the user chose a place."""
    if jax.default_backend() == "gpu" and jax.config.read("jax_compilation_cache_dir") is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))


def _write(
    folder: Path,
    result: Reconstruction,
    frames: Frames,
    *,
    points: Literal["depth", "head"] | None,
    confidence_percentile: float | None,
    min_confidence: float | None,
    max_points: int,
) -> int:
    """Writes all files and returns how many points the cloud has."""
    allowed = allowed_pixels(result)
    percentile, smallest = confidence_limits(
        result.confidence_kind,
        confidence_percentile=confidence_percentile,
        min_confidence=min_confidence,
    )
    write_reconstruction(folder, result)
    if result.camera_from_world is not None:
        export.write_cameras(
            folder / "cameras.json",
            names=frames.names,
            transforms=frames.transforms,
            camera_from_world=np.asarray(result.camera_from_world),
            intrinsics=None if result.intrinsics is None else np.asarray(result.intrinsics),
            pixel_centre=result.pixel_centre,
        )
    export.write_scene_pictures(folder, result, allowed)
    if points is None:
        return 0
    usable = usable_pixels(result, points, min_confidence=smallest, depth_edges=result.depth_edges)
    if min_confidence is not None and not usable.any():
        tqdm.tqdm.write(
            f"warning: no point has a confidence above --min-confidence {min_confidence:g}, so "
            "that there is no points.ply",
            file=sys.stderr,
        )
        return 0
    if not usable.any():
        tqdm.tqdm.write(
            f"warning: every point lies at an edge of depth or has a confidence of {smallest:g} or "
            "less, so that the cloud holds them all",
            file=sys.stderr,
        )
        usable = allowed
    selected, colors = export.select_points(
        points_of(result, points),
        confidence_of(result, points),
        frames.images,
        confidence_percentile=percentile,
        mask=usable,
        max_points=max_points,
    )
    export.write_point_cloud(folder / "points.ply", selected, colors)
    return len(selected)


class Steps:
    """A progress bar over named steps, and how long each took."""

    def __init__(self, total: int):
        self._bar = tqdm.tqdm(total=total, bar_format="{n}/{total} {desc} {elapsed}", disable=None)
        self._seconds: dict[str, float] = {}

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[Callable[[str], None]]:
        """A step; what it yields takes news of how far it is."""
        self._bar.set_description_str(name)
        finished = threading.Event()

        def tick():
            while not finished.wait(0.5):
                self._bar.refresh()

        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        start = time.perf_counter()
        try:
            yield lambda news: self._bar.set_description_str(f"{name}: {news}")
        finally:
            finished.set()
            ticker.join()
        self._seconds[name] = time.perf_counter() - start
        self._bar.update()

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())
