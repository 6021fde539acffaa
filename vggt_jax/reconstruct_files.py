"""From photographs to files: what `vggt-jax infer` does, step by step with progress and timings."""

import contextlib
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from vggt_jax import export, inference, memory
from vggt_jax.checkpoint import Model, cache_folder, load_model
from vggt_jax.errors import InputError
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.sparse_attention import BlockSparse
from vggt_jax.layers.token_order import TokenOrder
from vggt_jax.outputs import Reconstruction
from vggt_jax.preprocess import Frames, Mode, find_images

# Which points make the cloud: the most confident three quarters (official file: vggt/demo_viser.py), or,
# where confidence is a probability, all above this and not at an edge (official file: pi3/example.py).
_CONFIDENCE_PERCENTILE = 25.0
_SMALLEST_PROBABILITY = 0.1


def reconstruct_files(
    images: tuple[Path, ...],
    model: str,
    out: Path,
    *,
    mode: Mode | None,
    size: int | None,
    query_points: tuple[str, ...],
    points: Literal["depth", "head"] | None,
    confidence_percentile: float | None,
    max_points: int,
    sparse_ratio: float | None,
    cdf_threshold: float | None,
    pool_mode: Literal["avg", "max"],
    token_order: TokenOrder,
    compute_dtype: Literal["float32", "bfloat16"] | None,
    config: Path | None,
    allow_single_image: bool,
    memory_check: bool,
    overwrite: bool,
) -> None:
    """Reconstructs photographs and writes the results, all of them or none; see `cli.Infer`.

    Raises:
        InputError: photographs, options or the output folder cannot be used, or memory is short.
        convert.CheckpointError: the model cannot be loaded.
    """
    if confidence_percentile is not None and not 0 <= confidence_percentile < 100:
        raise InputError(f"--{confidence_percentile=} must lie in [0, 100)".replace("_", "-"))
    if max_points < 1:
        raise InputError(f"--max-points={max_points} must be at least 1")
    attention = Dense()
    if sparse_ratio is not None or cdf_threshold is not None:
        try:
            attention = BlockSparse(
                sparse_ratio=sparse_ratio,
                cdf_threshold=cdf_threshold,
                pool_mode=pool_mode,
                token_order=token_order,
            )
        except ValueError as error:
            raise InputError(f"--{error}".replace("_", "-")) from error
    pixels = [_parse_point(text) for text in query_points]
    _check_photographs(images, out, allow_single_image=allow_single_image)
    with _output_folder(out, overwrite=overwrite) as folder, _Steps(5) as steps:
        with steps("loading the model"):
            # Products in bfloat16 round their operands anyway, so kernels need no more.
            computed_in = Precision.from_compute_dtype(compute_dtype).compute_dtype
            stored_in = jnp.bfloat16 if computed_in == jnp.bfloat16 else None
            network = load_model(model, config=config, dtype=stored_in)
        points = _source_of_points(network, points, model)
        with steps("reading photographs"):
            source = images[0] if len(images) == 1 else list(images)
            frames = inference.read_frames(
                source, model=network, mode=mode, size=size, progress=sys.stderr.isatty()
            )
            tracked = _pixels_of_model(pixels, frames) if pixels else None
            inputs = inference.model_inputs(
                frames, model=network, query_points=tracked, pad_frames=False
            )
        _check_memory(network, frames, len(pixels), compute_dtype, refuse=memory_check)
        try:
            with steps("compiling"):
                _keep_compiled_programs()
                compiled = inference.compile_reconstruct(
                    network, inputs, attention=attention, compute_dtype=compute_dtype
                )
            with steps(f"reconstructing {len(frames.images)} frames"):
                result = inference.cut_to_frames(compiled(network, **inputs), frames)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise InputError(
                f"{len(frames.images)} frames do not fit into the memory of the device; use fewer, "
                "or a smaller --size"
            ) from error
        with steps("writing files"):
            num_points = _write(
                folder,
                result,
                frames,
                points=points,
                confidence_percentile=confidence_percentile,
                max_points=max_points,
            )
    height, width = frames.images.shape[1:3]
    print(f"{len(frames.images)} frames of {width}x{height}, {num_points:,} points -> {out}")
    if (stats := result.attention_stats) is not None:
        print(
            f"attention kept {stats.density.mean():.1%} of the blocks with "
            f"{stats.covered.mean():.1%} of the pooled probability, and saved "
            f"{stats.saved.mean():.1%} of the arithmetic"
        )
    print(steps)


def _parse_point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError as error:
        raise InputError(f"--query-points: {text!r} must be x,y in pixels") from error
    return x, y


def _check_photographs(images: tuple[Path, ...], out: Path, *, allow_single_image: bool) -> None:
    """Finds what is wrong with the choice of photographs, before a model is loaded for them."""
    if not images:
        raise InputError("no images given; name a folder or image files")
    folders = [path for path in images if path.is_dir()]
    if folders and len(images) > 1:
        raise InputError(f"{folders[0]}: is a folder; give one folder, or image files only")
    if folders and out.exists() and out.samefile(folders[0]):
        raise InputError(f"{out}: holds the photographs; choose another --out")
    paths = find_images(folders[0]) if folders else list(images)
    if missing := [path for path in paths if not path.exists()]:
        raise InputError(f"{missing[0]}: no such file")
    if len(paths) == 1 and not allow_single_image:
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


def _pixels_of_model(pixels: list[tuple[float, float]], frames: Frames) -> np.ndarray:
    """Points of the first photograph in pixels of its frame."""
    transform = frames.transforms[0]
    height, width = transform.original_size
    for x, y in pixels:
        # Integers are pixel centres: the image reaches half a pixel beyond the first and the last.
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise InputError(
                f"--query-points {x:g},{y:g} lies outside {frames.names[0]}, which is {width} wide "
                f"and {height} high"
            )
    return transform.pixels_to_model(pixels)


def _check_memory(network, frames: Frames, num_points: int, compute_dtype, *, refuse: bool) -> None:
    """Prints the estimate and refuses what cannot fit."""
    height, width = frames.images.shape[1:3]
    weights = memory.weight_bytes(network)

    def estimate(num_frames: int) -> memory.MemoryEstimate:
        return memory.estimate_memory(
            network.config,
            weights=weights,
            num_frames=num_frames,
            height=height,
            width=width,
            num_query_points=num_points,
            compute_dtype=compute_dtype,
        )

    num_frames = len(frames.images)
    needed = estimate(num_frames)
    # What is free now does not hold the weights, which are on the device already.
    free = memory.available_memory()
    free = None if free is None else free + weights
    device = jax.devices()[0].device_kind
    of = "" if free is None else f" of {memory.gib(free)} GiB on {device}"
    tqdm.tqdm.write(f"memory: about {needed}{of}", file=sys.stderr)
    if refuse and free is not None and needed.total > free:
        fitting = num_frames - 1
        while fitting and estimate(fitting).total > free:
            fitting -= 1
        fit = f"about {fitting} frames fit: use fewer or" if fitting else "not even one fits: use"
        raise InputError(
            f"{num_frames} frames of {width}x{height} need about {memory.gib(needed.total)} GiB "
            f"and {device} has {memory.gib(free)} GiB; {fit} a smaller --size, or try in spite of "
            "this with --no-memory-check"
        )


def _keep_compiled_programs() -> None:
    """Keeps compiled programs of a GPU on disk, unless the user chose a place."""
    if jax.default_backend() == "gpu" and jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))


def _write(
    folder: Path,
    result: Reconstruction,
    frames: Frames,
    *,
    points: Literal["depth", "head"] | None,
    confidence_percentile: float | None,
    max_points: int,
) -> int:
    """Writes all files and returns how many points the cloud has."""
    valid = frames.valid_mask()
    is_probability = result.confidence_kind == "sigmoid"
    if confidence_percentile is None:
        confidence_percentile = 0.0 if is_probability else _CONFIDENCE_PERCENTILE
    arrays = inference.prediction_arrays(result, frames)
    export.write_predictions(folder / "predictions.npz", arrays)
    if result.camera_from_world is not None:
        export.write_cameras(
            folder / "cameras.json",
            names=frames.names,
            transforms=frames.transforms,
            camera_from_world=result.camera_from_world,
            intrinsics=result.intrinsics,
        )
    export.write_scene_pictures(folder, result, valid)
    if points is None:
        return 0
    if points == "depth":
        cloud = result.points_from_depth(), result.depth_confidence
    else:
        cloud = result.world_points, result.world_points_confidence
    usable = valid if result.depth_edges is None else valid & ~result.depth_edges
    if is_probability:
        usable = usable & (cloud[1] > _SMALLEST_PROBABILITY)
    if not usable.any():
        tqdm.tqdm.write(
            f"warning: every point lies at an edge of depth or has a confidence of "
            f"{_SMALLEST_PROBABILITY} or less, so that the cloud holds them all",
            file=sys.stderr,
        )
        usable = valid
    selected, colors = export.select_points(
        *cloud,
        frames.images,
        confidence_percentile=confidence_percentile,
        mask=usable,
        max_points=max_points,
    )
    export.write_point_cloud(folder / "points.ply", selected, colors)
    return len(selected)


@contextlib.contextmanager
def _output_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` to write into, whose contents move to `out` when all went well."""
    partial = None
    try:
        with _writing(out):
            if os.path.lexists(out) and not out.is_dir():
                raise InputError(f"{out}: exists and is no folder; choose another --out")
            is_new = not out.is_dir() or not any(out.iterdir())
            if not is_new and not overwrite:
                raise InputError(
                    f"{out}: is not empty; choose another --out, or replace with --overwrite"
                )
            # In the nearest folder that exists: what cannot be written shows before the long work.
            parent = next(folder for folder in out.absolute().parents if folder.exists())
            partial = parent / f".vggt-jax-{secrets.token_hex(4)}.partial"
            partial.mkdir()
        yield partial
        with _writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            if is_new:
                os.replace(partial, out)
                return
            for path in partial.iterdir():
                if (out / path.name).is_dir():
                    shutil.rmtree(out / path.name)
                os.replace(path, out / path.name)
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from error


class _Steps:
    """A progress bar over named steps, and how long each took."""

    def __init__(self, total: int):
        self._bar = tqdm.tqdm(total=total, bar_format="{n}/{total} {desc} {elapsed}", disable=None)
        self._seconds: dict[str, float] = {}

    def __enter__(self) -> "_Steps":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._bar.set_description_str(name)
        finished = threading.Event()

        def tick():
            while not finished.wait(0.5):
                self._bar.refresh()

        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            finished.set()
            ticker.join()
        self._seconds[name] = time.perf_counter() - start
        self._bar.update()

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())
