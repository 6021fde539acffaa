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
from vggt_jax.checkpoint import cache_folder, load_model
from vggt_jax.errors import InputError
from vggt_jax.layers.precision import Precision
from vggt_jax.outputs import Reconstruction
from vggt_jax.preprocess import Frames


def reconstruct_files(
    images: tuple[Path, ...],
    model: str,
    out: Path,
    *,
    mode: Literal["crop", "pad"] | None,
    size: int | None,
    query_points: tuple[str, ...],
    points: Literal["depth", "head"],
    confidence_percentile: float,
    max_points: int,
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
    if not 0 <= confidence_percentile < 100:
        raise InputError(f"--{confidence_percentile=} must lie in [0, 100)".replace("_", "-"))
    if max_points < 1:
        raise InputError(f"--max-points={max_points} must be at least 1")
    pixels = [_parse_point(text) for text in query_points]
    steps = _Steps(5)
    with _output_folder(out, overwrite=overwrite) as folder:
        with steps("loading the model"):
            # Products in bfloat16 round their operands anyway, so kernels need no more.
            computed_in = Precision.from_compute_dtype(compute_dtype).compute_dtype
            stored_in = jnp.bfloat16 if computed_in == jnp.bfloat16 else None
            network = load_model(model, config=config, dtype=stored_in)
        if query_points and network.track_head is None:
            raise InputError(f"{model}: has no track head, so --query-points cannot be followed")
        with steps("reading photographs"):
            source = images[0] if len(images) == 1 else list(images)
            frames = inference.read_frames(source, model=network, mode=mode, size=size)
            if len(frames.images) == 1 and not allow_single_image:
                raise InputError(
                    f"{frames.names[0]}: one image is no scene; give two or more photographs, or "
                    "--allow-single-image (the models were not trained for it)"
                )
            tracked = frames.transforms[0].pixels_to_model(pixels) if pixels else None
            inputs = inference.model_inputs(frames, query_points=tracked, pad_frames=False)
        _check_memory(network, frames, len(pixels), compute_dtype, refuse=memory_check)
        try:
            with steps("compiling"):
                _keep_compiled_programs()
                compiled = inference.compile_reconstruct(
                    network, inputs, compute_dtype=compute_dtype
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
                from_depth=points == "depth",
                confidence_percentile=confidence_percentile,
                max_points=max_points,
            )
    height, width = frames.images.shape[1:3]
    print(f"{len(frames.images)} frames of {width}x{height}, {num_points:,} points -> {out}")
    print(steps)


def _parse_point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError as error:
        raise InputError(f"--query-points: {text!r} must be x,y in pixels") from error
    return x, y


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
    print(f"memory: about {needed}{of}", file=sys.stderr)
    if refuse and free is not None and needed.total > free:
        fitting = num_frames
        while fitting > 1 and estimate(fitting).total > free:
            fitting -= 1
        raise InputError(
            f"{num_frames} frames of {width}x{height} need about {memory.gib(needed.total)} GiB "
            f"and {device} has {memory.gib(free)} GiB; about {fitting} frames fit. Use fewer "
            "frames or a smaller --size, or try in spite of this with --no-memory-check"
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
    from_depth: bool,
    confidence_percentile: float,
    max_points: int,
) -> int:
    """Writes all files and returns how many points the cloud has."""
    valid = frames.valid_mask()
    arrays = {
        name: value
        for name, value in vars(result).items()
        if isinstance(value, np.ndarray) and name != "images"
    }
    arrays |= {"images": frames.images, "names": np.array(frames.names), "valid": valid}
    if result.tracks is not None:
        arrays["tracks_in_photographs"] = result.tracks_in_photographs()
    export.write_predictions(folder / "predictions.npz", arrays)
    if result.camera_from_world is not None:
        export.write_cameras(
            folder / "cameras.json",
            names=frames.names,
            transforms=frames.transforms,
            camera_from_world=result.camera_from_world,
            intrinsics=result.intrinsics,
        )
    if result.depth is not None:
        export.write_depth_pictures(folder / "depth", result.depth, frames.names, valid)
        export.write_overview(folder / "overview.png", frames.images, result.depth, valid)
    has_depth_points = result.depth is not None and result.camera_from_world is not None
    if from_depth and has_depth_points:
        cloud = np.asarray(result.points_from_depth()), result.depth_confidence
    elif result.world_points is not None:
        cloud = result.world_points, result.world_points_confidence
    else:
        return 0
    points, colors = export.select_points(
        *cloud,
        frames.images,
        confidence_percentile=confidence_percentile,
        mask=valid,
        max_points=max_points,
    )
    export.write_point_cloud(folder / "points.ply", points, colors)
    return len(points)


@contextlib.contextmanager
def _output_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` to write into, whose contents move to `out` when all went well."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: exists and is no folder; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"{out}: is not empty; choose another --out, or replace with --overwrite")
    # Inside the nearest folder that exists: what cannot be written shows before the long work.
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    partial = parent / f".vggt-jax-{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir()
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from error
    try:
        yield partial
        out.mkdir(parents=True, exist_ok=True)
        for path in partial.iterdir():
            if (out / path.name).is_dir():
                shutil.rmtree(out / path.name)
            os.replace(path, out / path.name)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Steps:
    """A progress bar over named steps, and how long each took."""

    def __init__(self, total: int):
        self._bar = tqdm.tqdm(total=total, bar_format="{n}/{total} {desc} {elapsed}", disable=None)
        self._seconds: dict[str, float] = {}

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
            self._seconds[name] = time.perf_counter() - start
            self._bar.update()
        finally:
            finished.set()
            ticker.join()
            if name not in self._seconds or len(self._seconds) == self._bar.total:
                self._bar.close()

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())
