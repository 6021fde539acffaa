"""Many scenes: batches of them through one compiled program, results on disk scene by scene."""

import collections
import contextlib
import dataclasses
import functools
import operator
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import jax
import tqdm

from vggt_jax.errors import InputError, InputWarning
from vggt_jax.files.addresses import AddressError
from vggt_jax.models.base import SceneModel
from vggt_jax.pipeline.inputs import SceneInputs, check_model, load, read
from vggt_jax.pipeline.memory import free_memory, is_out_of_memory
from vggt_jax.pipeline.options import Options, takes
from vggt_jax.pipeline.origin import fingerprint, provenance_of
from vggt_jax.pipeline.placing import Devices, chosen_devices, on_host, sent_to_host
from vggt_jax.pipeline.plan import Plan, plan_scene
from vggt_jax.pipeline.reconstruct import reconstruct
from vggt_jax.pipeline.remote_scenes import on_this_machine
from vggt_jax.pipeline.resuming import ElsewhereError, Record, record_of
from vggt_jax.pipeline.run import batch_arguments, finish, program_for, scene_arguments
from vggt_jax.pipeline.stores import Held, Store, scenes_and_store
from vggt_jax.pipeline.workers import read_ahead, share_out
from vggt_jax.scene.provenance import Provenance
from vggt_jax.scene.reconstruction import Reconstruction

_TOO_LARGE = (
    "does not fit into the memory of the device; choose fewer frames, a smaller size or a smaller "
    "batch_size"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesReport:
    """What became of the scenes, by name.

    Attributes:
        written: reconstructed now.
        skipped: had a result from an earlier run, of the same photographs.
        failed: the reason, for scenes whose photographs cannot be used, or do not fit into the
            memory.
        again: why a scene was reconstructed again, or tried, that had a result from an earlier run.
        elsewhere: being reconstructed by another process at this time.
        twice: of the Ray engine, scenes that were begun more often than once, since the worker that
            had them was lost, and what became of that. Each was written once.
    """

    written: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: Mapping[str, str]
    again: Mapping[str, str] = dataclasses.field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    twice: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ManyScenesOptions(Options):
    """How many scenes are reconstructed; the keyword arguments of `reconstruct_scenes`.

    `masks`, `intrinsics` and `priors` may be paths with "{scene}" in place of a scene's name.

    Raises:
        InputError: a value cannot be, or two say the same in different ways.
    """

    progress: bool = True
    """Show a progress bar with the time that remains."""
    devices: Devices = None
    """How many devices scenes are shared out among, or which: each has a copy of the model, and
    scenes of its own; results are those of one. By default one."""
    batch_size: int = 1
    """Scenes in a batch. More than one pays for scenes of few frames only; scenes of different
    shapes wait in memory until there are enough of a kind."""
    num_readers: int = 2
    """Scenes that are read at a time for each device, by some threads each; as many more are read
    ahead."""
    num_writers: int = 2
    """Scenes that are written at a time, of each device. In the host's memory are these, or one
    batch if that is more, and one batch besides."""

    engine: Literal["local", "ray"] = "local"
    """What does the work: this process, or workers on the machines of a Ray cluster."""
    workers: int | None = None
    """Of the Ray engine, how many workers. By default one for each GPU, or, where there are none,
    one for each machine."""
    retries: int = 3
    """Of the Ray engine, how often a scene is begun again whose worker was lost."""

    def __post_init__(self):
        super().__post_init__()
        if self.engine not in ("local", "ray"):
            raise InputError(f"engine={self.engine!r} is unknown; use local or ray")
        if self.engine == "local" and self.workers is not None:
            raise InputError(f"workers={self.workers} is of engine='ray'; leave it out")
        if self.engine == "ray" and self.devices is not None:
            raise InputError("devices are those of one machine; with engine='ray' give workers")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers={self.workers} must be at least 1")
        if self.retries < 0:
            raise InputError(f"retries={self.retries} must be at least 0")
        counts = ("batch_size", "num_readers", "num_writers")
        if any(getattr(self, name) < 1 for name in counts):
            given = ", ".join(f"{name}={getattr(self, name)}" for name in counts)
            raise InputError(f"{given} must be at least 1")
        if self.window is not None:
            raise InputError("window is of one scene; leave it out, or infer scenes one by one")
        if self.max_error is not None:
            raise InputError("max_error is for one scene: scenes of a batch share their attention")

    def of_scene(self, name: str) -> Options:
        """See `Options`; a scene has one device."""
        return dataclasses.replace(super().of_scene(name), devices=None)


@takes(ManyScenesOptions)
def reconstruct_scenes(
    scenes: str | os.PathLike | Mapping[str, Any],
    out: str | os.PathLike,
    options: ManyScenesOptions,
) -> ScenesReport:
    """Reconstructs many scenes and writes each to `out/NAME/predictions.npz`.

    Scenes of one size, and of numbers of frames that pad to the same, share a compiled program and
    run in batches; padding changes no result. Photographs of the next scenes are read, and results
    of the last ones written, while a batch runs. Scenes of many frames run alone, and their maps
    leave the device in chunks, as in `infer`. Several devices share the scenes out; of the last
    ones the largest begin first, so that all end at about the same time.

    A result appears whole or not at all, so a run that was interrupted or killed is continued by
    calling this again. Scenes with a result are skipped if their photographs, masks, known
    intrinsics and priors have the names, sizes and times that they had; others are reconstructed
    again, and the report says why. The options must be the same. A scene that cannot be
    reconstructed does not end the run. Several processes may work on the same results: each scene
    is done by one of them.

    Args:
        scenes: a folder with a folder of photographs, or a video, for each scene, or photographs by
            name, each as `infer` takes them. What in a folder belongs to no scene is said. Folders
            and videos may be addresses, such as "s3://bucket/scenes".
        out: the folder of results, or its address.
        options: keyword arguments, which are the fields of `ManyScenesOptions`: those of `Options`
            and some more.

    Raises:
        InputError: no scenes, names that cannot be folders, options that cannot be, or `out` is the
            folder of scenes, cannot be written, or holds results of other options; an address
            refuses; or with engine="ray" there is no Ray, or no cluster.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """
    scenes, store = scenes_and_store(scenes, out, options)
    if options.engine == "ray":
        from vggt_jax.pipeline.on_ray import reconstruct_on_ray

        return reconstruct_on_ray(scenes, store, options)
    model = load(options)
    check_model(model, options)
    store.check_settings(options.of_results() | {"model": fingerprint(model)})

    skipped, again, failed = store.earlier(scenes, options)
    waiting = {
        name: images
        for name, images in scenes.items()
        if name not in failed and name not in skipped
    }
    written, elsewhere = set(), []
    with tqdm.tqdm(
        total=len(scenes),
        initial=len(scenes) - len(waiting),
        unit="scene",
        disable=not options.progress,
    ) as bar:

        def done(name):
            written.add(name)
            bar.update()

        def fail(name, error):
            if isinstance(error, ElsewhereError):
                elsewhere.append(name)
            else:
                failed[name] = str(error)
            bar.update()

        run_scenes(model, waiting, store, options, done=done, fail=fail)
    return ScenesReport(
        written=tuple(name for name in scenes if name in written),
        skipped=skipped,
        failed=failed,
        again=again,
        elsewhere=tuple(elsewhere),
    )


def run_scenes(
    model: SceneModel,
    waiting: Mapping[str, Any],
    store: Store,
    options: ManyScenesOptions,
    *,
    done: Callable[[str], None],
    fail: Callable[[str, InputError], None],
) -> None:
    """Reconstructs scenes, reading, computing and writing at the same time.

    Args:
        model: on its device.
        waiting: photographs by the name of their scene.
        store: where results go.
        done, fail: are told the name of each scene when it is written, or why it is not, an
            `ElsewhereError` where another process has it; one call at a time.
    """
    # What is free now, before programs run.
    free = free_memory(model) if options.memory_check else None
    claims: dict[str, Held] = {}
    devices = chosen_devices(options.devices, here=True) or [None]
    telling = threading.RLock()  # Devices have threads of their own.

    def read_scene(name: str) -> "_Scene":
        of_scene = options.of_scene(name)
        claims[name] = store.claim(name, waiting[name], of_scene)
        # Before reading: what changes meanwhile has another state later.
        record = record_of(waiting[name], of_scene)
        with on_this_machine(waiting[name], of_scene) as images:
            inputs = read(images, model, of_scene)
        plan = plan_scene(inputs, model, of_scene, free=free)
        return _Scene(name, of_scene, inputs, plan, record)

    def release(name):
        if claim := claims.pop(name, None):
            claim.release()

    def written(name):
        with telling:
            done(name)
            release(name)

    def failed(name, error):
        with telling:
            fail(name, error)
            release(name)

    with (
        contextlib.ExitStack() as at_the_end,
        _threads(options.num_readers * len(devices)) as readers,
        _threads(options.num_writers * len(devices)) as writers,
    ):
        at_the_end.callback(lambda: [release(name) for name in list(claims)])

        def work(device, batches):
            here = model if device is None else jax.device_put(model, device)
            with _threads(1) as fetcher:
                outbox = _Outbox(
                    model, store, fetcher, writers, options.num_writers, written, failed
                )
                _run_batches(here, batches, options, outbox, failed)

        loaded = read_ahead(
            readers,
            read_scene,
            waiting,
            2 * options.num_readers * len(devices),
            size=lambda scene: scene.inputs.frames.images.size,
        )
        share_out(_batches(loaded, options.batch_size, failed), work, devices)


@dataclasses.dataclass(frozen=True)
class _Scene:
    """A scene that was read."""

    name: str
    options: Options
    inputs: SceneInputs
    plan: Plan
    record: Record

    @property
    def kind(self) -> tuple[Any, ...]:
        """What scenes of a batch have in common."""
        images, points = self.inputs.frames.images, self.inputs.query_points
        of_program = (self.plan.attention, self.plan.padded_frames, self.plan.masks_padding)
        priors = None if self.inputs.priors is None else self.inputs.priors.given
        of_program = (*of_program, None if points is None else len(points), priors)
        return *of_program, images.shape[1:], images.dtype


def _run_batches(
    model: SceneModel,
    batches: Iterator[list["_Scene"]],
    options: ManyScenesOptions,
    outbox: "_Outbox",
    fail: Callable[[str, InputError], None],
) -> None:
    """Reconstructs batches on the device of the model, one after the other, until all of them are
    written."""
    for batch in batches:
        run_batch = functools.partial(_run_if_it_fits, model, batch, options)
        result = run_batch()
        if result is None and outbox.clear_device():  # Others were in its way, perhaps.
            result = run_batch()
        if result is None:
            for scene in batch:
                fail(scene.name, InputError(_TOO_LARGE))
            continue
        outbox.add(batch, result)
        del result
        outbox.make_room()
    outbox.flush()


def _run_if_it_fits(*arguments: Any) -> Reconstruction | None:
    """`_run`; None where it does not fit into the memory of the device."""
    try:
        return _run(*arguments)
    except jax.errors.JaxRuntimeError as error:
        # The error must not be kept: its traceback holds what is on the device.
        if not is_out_of_memory(error):
            raise
        return None


def _run(model: SceneModel, batch: list[_Scene], options: ManyScenesOptions) -> Reconstruction:
    """The batch without its images: still being computed, or streamed to the host."""
    inputs, plan = [scene.inputs for scene in batch], batch[0].plan
    if not plan.streamed:
        arguments = batch_arguments(inputs, plan, options.batch_size)
        static = {"attention": plan.attention, "compute_dtype": options.compute_dtype}
        static["camera_source"] = options.camera_source
        return _reconstruct(model, **jax.device_put(arguments), **static)
    arguments = scene_arguments(inputs[0], plan)
    result = program_for(model, arguments, plan, options)(model, **arguments)
    return jax.tree.map(lambda x: x[None], dataclasses.replace(result, images=None))


@functools.partial(jax.jit, static_argnames=("attention", "compute_dtype", "camera_source"))
def _reconstruct(model, images, num_frames, query_points, priors, **static):
    result = reconstruct(
        model,
        images,
        num_frames=num_frames,
        query_points=query_points,
        priors=priors,
        **static,
    )
    return dataclasses.replace(result, images=None)  # The host has them.


@contextlib.contextmanager
def _threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose waiting work is dropped where an error or Ctrl-C ends the block."""
    pool = ThreadPoolExecutor(number)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(loaded: Iterable[tuple[str, Future]], batch_size: int, fail) -> Iterator[list[_Scene]]:
    """Scenes that fit one program, `batch_size` at a time; then the rest."""
    groups = collections.defaultdict(list)
    for name, future in loaded:
        try:
            scene = future.result()
        except InputError as error:
            fail(name, error)
            continue
        if scene.plan.streamed:
            yield [scene]
            continue
        groups[scene.kind].append(scene)
        if len(groups[scene.kind]) == batch_size:
            yield groups.pop(scene.kind)
    yield from groups.values()


class _Outbox:
    """Batches on their way from the device to the disk: one thread fetches them, others write.

    Two are on the device at most, one that is being computed and one that is being fetched. In the
    host's memory are the scenes that are being written, or a batch if that is more, and the batch
    that was fetched last. Of a GPU's batches that is pinned memory, all of a batch until its last
    scene is written.
    """

    def __init__(
        self,
        model: SceneModel,
        store: Store,
        fetcher: ThreadPoolExecutor,
        writers: ThreadPoolExecutor,
        num_writers: int,
        done: Callable[[str], None],
        fail: Callable[[str, InputError], None],
    ):
        """`done` and `fail` are told the name of each scene that is written, or is not, and why."""
        self._model, self._store = model, store
        self._fetcher, self._writers = fetcher, writers
        self._num_writers, self._done, self._fail = num_writers, done, fail
        self._fetching: collections.deque[tuple[list[str], Future]] = collections.deque()
        self._writing: collections.deque[tuple[list[str], list[Future]]] = collections.deque()

    def add(self, batch: list[_Scene], result: Reconstruction) -> None:
        """Sends off a batch that is still being computed; the caller should not keep its result."""
        names = [scene.name for scene in batch]
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
                for name in names:
                    self._fail(name, InputError(_TOO_LARGE))
            else:
                raise error

    def _wait_for_disk(self) -> None:
        names, futures = self._writing.popleft()
        for name, future in zip(names, futures, strict=True):
            if (why_not := future.result()) is None:
                self._done(name)
            else:
                self._fail(name, why_not)

    def _fetch(self, batch: list[_Scene], result: Reconstruction) -> list[Future]:
        """Waits for a batch, and has its scenes written."""
        # Written from where the device put it.
        result = jax.tree.map(on_host, jax.tree.map(sent_to_host, result))
        return [
            self._writers.submit(
                _write,
                self._store,
                scene,
                jax.tree.map(operator.itemgetter(i), result),
                provenance_of(self._model, scene.plan, scene.options),
            )
            for i, scene in enumerate(batch)
        ]


def _write(
    store: Store, scene: _Scene, result: Reconstruction, made_by: Provenance
) -> InputError | None:
    """Writes a scene; why it has no result, where what is known does not fit what was predicted,
    the place refuses, or another process was faster."""
    try:
        finished = finish(result, scene.inputs, scene.options, made_by)
    except InputError as error:
        return error
    try:
        store.write(scene.name, finished, scene.record)
    except (AddressError, ElsewhereError) as error:
        return error
    if finished.warning:
        warnings.warn(InputWarning(f"{scene.name}: {finished.warning}"), stacklevel=1)
    return None
