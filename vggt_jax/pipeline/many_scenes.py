"""Many scenes: batches of them through one compiled program, results on disk scene by scene."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from jax.typing import DTypeLike

from vggt_jax.errors import InputError
from vggt_jax.files import RESULTS, remove_unfinished, replacing
from vggt_jax.images.files import find_images
from vggt_jax.images.frames import Frames
from vggt_jax.images.resizing import Mode
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models.loading import Model
from vggt_jax.pipeline import one_scene as inference
from vggt_jax.pipeline.memory import check_memory, free_memory, is_out_of_memory
from vggt_jax.pipeline.streaming import is_streamed
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.results import write_reconstruction

_SETTINGS = "settings.json"
_TOO_LARGE = (
    "does not fit into the memory of the device; choose fewer frames, a smaller size or a smaller "
    "batch_size"
)
_NAME = re.compile(r"[\w\-. +()]*[\w\-+()]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesReport:
    """What became of the scenes, by name.

    Attributes:
        written: reconstructed now.
        skipped: had a result from an earlier run.
        failed: the reason, for scenes whose photographs cannot be used, or do not fit into the
            memory.
    """

    written: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: Mapping[str, str]


def reconstruct_scenes(
    scenes: str | os.PathLike | Mapping[str, Any],
    out: str | os.PathLike,
    *,
    model: Model | str | os.PathLike | None = None,
    attention: SceneAttention = Dense(),
    mode: Mode | None = None,
    size: int | tuple[int, int] | None = None,
    compute_dtype: DTypeLike | None = None,
    batch_size: int = 1,
    num_readers: int = 2,
    num_writers: int = 2,
    memory_check: bool = True,
    progress: bool = True,
) -> ScenesReport:
    """Reconstructs many scenes and writes each to `out/NAME/predictions.npz`.

    Scenes of one size, and of numbers of frames that pad to the same (`inference.bucket`), share a
    compiled program and run in batches; padding changes no result. Photographs of the next scenes
    are read, and results of the last ones written, while a batch runs. Scenes of many frames run
    alone, and their maps leave the device in pieces, as in `infer`.

    A result appears whole or not at all, so a run that was interrupted or killed is continued by
    calling this again: scenes with a result are skipped, and the settings must be the same. A scene
    that cannot be reconstructed does not end the run; the report says why.

    Args:
        scenes: a folder with a folder of photographs for each scene, or photographs by name, each
            as `infer` takes them.
        out: the folder of results.
        model, attention, mode, size, compute_dtype: as for `infer`.
        batch_size: scenes in a batch. More than one pays for scenes of few frames only; scenes of
            different shapes wait in memory until there are enough of a kind.
        num_readers: scenes that are read at a time, by some threads each; as many more are read
            ahead.
        num_writers: scenes that are written at a time. In the host's memory are these, or one batch
            if that is more, and one batch besides.
        memory_check: whether to leave out scenes that by the estimate do not fit into the memory.
        progress: whether to show a progress bar with the time that remains.

    Raises:
        InputError: no scenes, names that cannot be folders, or `out` cannot be written or holds
            results of other settings.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """
    if min(batch_size, num_readers, num_writers) < 1:
        raise InputError(f"{batch_size=}, {num_readers=} and {num_writers=} must be at least 1")
    scenes, out = _by_name(scenes), Path(out)
    model = inference.model_of(model)
    inference.check_layers(attention, model)
    settings = {"attention": repr(attention), "mode": mode, "size": size}
    settings |= {"compute_dtype": compute_dtype and np.dtype(compute_dtype).name}
    _check_settings(out, json.loads(json.dumps(settings | {"model": _fingerprint(model)})))

    skipped = tuple(name for name in scenes if (out / name / RESULTS).exists())
    finished = set(skipped)
    waiting = {name: images for name, images in scenes.items() if name not in finished}
    for name in waiting:
        remove_unfinished(out / name / RESULTS)
    written, failed = [], {}
    read = functools.partial(inference.read_frames, model=model, mode=mode, size=size)
    # What is free now, before programs run.
    free = free_memory(model) if memory_check else None

    def attention_of(frames: Frames) -> SceneAttention:
        used = inference.attention_for(attention, model, frames)
        if free is not None:
            _check_memory(model, frames, attention=used, compute_dtype=compute_dtype, free=free)
        return used

    with (
        tqdm.tqdm(
            total=len(scenes), initial=len(skipped), unit="scene", disable=not progress
        ) as bar,
        _threads(num_readers) as readers,
        _threads(num_writers) as writers,
        _threads(1) as fetcher,
    ):

        def done(names):
            written.extend(names)
            bar.update(len(names))

        def fail(names, error):
            failed.update(dict.fromkeys(names, str(error)))
            bar.update(len(names))

        outbox = _Outbox(out, fetcher, writers, num_writers, done, fail)
        loaded = _read_ahead(readers, read, waiting, num_readers)
        for used, batch in _batches(loaded, batch_size, attention_of, fail):
            run = functools.partial(_run_if_it_fits, model, batch, used, batch_size, compute_dtype)
            result = run()
            if result is None and outbox.clear_device():  # Others were in its way, perhaps.
                result = run()
            if result is None:
                fail([name for name, _ in batch], _TOO_LARGE)
                continue
            outbox.add(batch, result)
            del result
            outbox.make_room()
        outbox.flush()
    return ScenesReport(written=tuple(written), skipped=skipped, failed=failed)


def _check_memory(model: Model, frames: Frames, **options: Any) -> None:
    """Raises InputError if by the estimate a scene does not fit."""
    shape = (inference.bucket(len(frames.images)), *frames.images.shape[1:])
    check = check_memory(model, shape, streamed=_runs_alone(frames), **options)
    if check.shortage:
        raise InputError(
            f"{check.shortage}; leave some out, choose a smaller size, or try in spite of this "
            "with memory_check=False"
        )


def _run_if_it_fits(*arguments: Any) -> Reconstruction | None:
    """`_run`; None where it does not fit into the memory of the device."""
    try:
        return _run(*arguments)
    except jax.errors.JaxRuntimeError as error:
        # The error must not be kept: its traceback holds what is on the device.
        if not is_out_of_memory(error):
            raise
        return None


def _run(
    model: Model,
    batch: list[tuple[str, Frames]],
    attention: SceneAttention,
    batch_size: int,
    compute_dtype: DTypeLike | None,
) -> Reconstruction:
    """The batch without its images: still being computed, or streamed to the host."""
    options = {"attention": attention, "compute_dtype": compute_dtype}
    scenes = [frames for _, frames in batch]
    if not _runs_alone(scenes[0]):
        return _reconstruct(model, **jax.device_put(_stack(scenes, batch_size)), **options)
    inputs = inference.model_inputs(scenes[0], model=model)
    result = inference.runner(model, inputs, **options)(model, **inputs)
    return jax.tree.map(lambda x: x[None], dataclasses.replace(result, images=None))


def _runs_alone(frames: Frames) -> bool:
    """Whether a scene is streamed, and so in no batch."""
    num_frames, height, width, _ = frames.images.shape
    return is_streamed(inference.bucket(num_frames), height, width)


@functools.partial(jax.jit, static_argnames=("attention", "compute_dtype"))
def _reconstruct(model, images, num_frames, *, attention, compute_dtype):
    result = inference.reconstruct(
        model, images, num_frames=num_frames, attention=attention, compute_dtype=compute_dtype
    )
    return dataclasses.replace(result, images=None)  # The host has them.


def _by_name(scenes: str | os.PathLike | Mapping[str, Any]) -> dict[str, Any]:
    """The scenes, by names that can be folders."""
    if isinstance(scenes, Mapping):
        scenes = dict(scenes)
    else:
        folder = Path(scenes)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        scenes = {path.name: path for path in sorted(folder.iterdir()) if _holds_images(path)}
        if not scenes:
            raise InputError(f"{folder}: holds no folders of photographs, one for each scene")
    for name in scenes:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name.startswith("."):
            raise InputError(
                f"scene name {name!r} cannot be a folder; use letters, digits, - and _"
            )
    return scenes


def _holds_images(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_dir():
        return False
    try:
        return bool(find_images(path))
    except InputError:
        return False


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Writes the settings, or compares them with those of the results that are there."""
    path = out / _SETTINGS
    if not path.exists():
        with replacing(path) as file:
            file.write(json.dumps(settings, indent=1).encode())
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read; choose another folder") from error
    if changed := [name for name in settings if earlier.get(name) != settings[name]]:
        raise InputError(
            f"{out}: holds results with another {', '.join(changed)}; choose another folder, or "
            f"delete this one to start again"
        )


def _fingerprint(model: Model) -> str:
    """Tells models apart: a hash of the configuration and of some numbers of every parameter."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for leaf in jax.device_get(_some_numbers(model)):
        digest.update(str(leaf.dtype).encode() + leaf.tobytes())
    return digest.hexdigest()[:16]


@jax.jit
def _some_numbers(model: Model) -> list[jax.Array]:
    """Of every parameter, by one program: a GPU would compile two for each shape."""
    return [leaf.reshape(-1)[:64] for leaf in jax.tree.leaves(model)]


@contextlib.contextmanager
def _threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose waiting work is dropped where an error or Ctrl-C ends the block."""
    pool = ThreadPoolExecutor(number)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _read_ahead(
    readers: ThreadPoolExecutor, read, scenes: dict[str, Any], num_readers: int
) -> Iterator[tuple[str, Future]]:
    """Names and their frames as they will be, in order; a few are being read ahead."""
    queue: collections.deque[tuple[str, Future]] = collections.deque()
    for name, images in scenes.items():
        queue.append((name, readers.submit(read, images)))
        if len(queue) > 2 * num_readers:
            yield queue.popleft()
    yield from queue


def _batches(
    loaded: Iterable[tuple[str, Future]], batch_size: int, attention_of, fail
) -> Iterator[tuple[SceneAttention, list[tuple[str, Frames]]]]:
    """Scenes that fit one program, `batch_size` at a time, with their attention; then the rest."""
    groups = collections.defaultdict(list)
    for name, future in loaded:
        try:
            frames = future.result()
            attention = attention_of(frames)
        except InputError as error:
            fail([name], error)
            continue
        images = frames.images
        if _runs_alone(frames):
            yield attention, [(name, frames)]
            continue
        key = (attention, images.shape[1:], images.dtype, inference.bucket(len(images)))
        groups[key].append((name, frames))
        if len(groups[key]) == batch_size:
            yield attention, groups.pop(key)
    for (attention, *_), batch in groups.items():
        yield attention, batch


def _stack(scenes: list[Frames], batch_size: int) -> dict[str, Any]:
    """The frames of a batch, padded; a batch that lacks scenes repeats its last."""
    counts = [len(frames.images) for frames in scenes]
    padded = inference.bucket(counts[0])
    first = scenes[0].images
    images = np.zeros((batch_size, padded, *first.shape[1:]), first.dtype)
    for i in range(batch_size):
        frames = scenes[min(i, len(scenes) - 1)].images
        images[i, : len(frames)] = frames
    counts += counts[-1:] * (batch_size - len(counts))
    is_masked = inference.is_shared(padded)
    return {"images": images, "num_frames": np.array(counts, np.int32) if is_masked else None}


class _Outbox:
    """Batches on their way from the device to the disk: one thread fetches them, others write.

    Two are on the device at most, one that is being computed and one that is being fetched. In the
    host's memory are the scenes that are being written, or a batch if that is more, and the batch
    that was fetched last.
    """

    def __init__(
        self,
        out: Path,
        fetcher: ThreadPoolExecutor,
        writers: ThreadPoolExecutor,
        num_writers: int,
        done: Callable[[list[str]], None],
        fail: Callable[[list[str], str], None],
    ):
        """`done` and `fail` are told the names of scenes that are written, or do not fit memory."""
        self._out, self._fetcher, self._writers = out, fetcher, writers
        self._num_writers, self._done, self._fail = num_writers, done, fail
        self._fetching: collections.deque[tuple[list[str], Future]] = collections.deque()
        self._writing: collections.deque[tuple[list[str], list[Future]]] = collections.deque()

    def add(self, batch: list[tuple[str, Frames]], result: Reconstruction) -> None:
        """Sends off a batch that is still being computed; the caller should not keep its result."""
        names = [name for name, _ in batch]
        self._fetching.append((names, self._fetcher.submit(self._fetch, batch, result)))

    def make_room(self) -> None:
        """Waits until one batch more may run."""
        self._wait_for_device(1)
        scenes = lambda: sum(len(names) for names, _ in self._writing)
        while len(self._writing) > 1 and scenes() > self._num_writers:
            self._wait_for_disk()

    def clear_device(self) -> bool:
        """Waits until no batch is on the device. Whether there was one."""
        any_there = bool(self._fetching)
        self._wait_for_device(0)
        return any_there

    def flush(self) -> None:
        """Waits until everything is written."""
        self._wait_for_device(0)
        while self._writing:
            self._wait_for_disk()

    def _wait_for_device(self, most: int) -> None:
        while len(self._fetching) > most:
            names, future = self._fetching.popleft()
            # Not raised here: its traceback would keep what is on the device.
            error = future.exception()
            if error is None:
                self._writing.append((names, future.result()))
            elif is_out_of_memory(error):
                self._fail(names, _TOO_LARGE)
            else:
                raise error

    def _wait_for_disk(self) -> None:
        names, futures = self._writing.popleft()
        for future in futures:
            future.result()
        self._done(names)

    def _fetch(self, batch: list[tuple[str, Frames]], result: Reconstruction) -> list[Future]:
        """Waits for a batch, and has its scenes written."""
        result = jax.device_get(result)
        return [
            self._writers.submit(
                _write, self._out / name, jax.tree.map(operator.itemgetter(i), result), frames
            )
            for i, (name, frames) in enumerate(batch)
        ]


def _write(folder: Path, scene: Reconstruction, frames: Frames) -> None:
    write_reconstruction(folder, inference.cut_to_frames(scene, frames))
