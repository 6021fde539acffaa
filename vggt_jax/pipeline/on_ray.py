"""Many scenes on the machines of a Ray cluster: workers of Ray Data that keep the model loaded.

Ray Data brings portions of scenes to workers and starts workers again. What becomes of each scene
stands in a `Ledger`, an actor on the machine of the driver, so that nothing depends on what a lost
machine had in its memory.
"""

import contextlib
import logging
import os
import pickle
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tqdm

from vggt_jax.errors import InputError, InputWarning
from vggt_jax.pipeline.cluster_worker import Setting, Worker
from vggt_jax.pipeline.inputs import say_that_it_is_small
from vggt_jax.pipeline.ledger import Books, Ledger, Portion, run_rounds, shared_out
from vggt_jax.pipeline.many_scenes import ManyScenesOptions, ScenesReport
from vggt_jax.pipeline.remote_scenes import RemoteScene
from vggt_jax.pipeline.stores import FolderStore, Store

_ANSWERS_WITHIN = 20.0  # Seconds: a machine that is alive starts a process in that time.
_LOOK_EVERY = 1.0  # Seconds between looks at the ledger, for the progress bar.


def reconstruct_on_ray(
    scenes: Mapping[str, Any], store: Store, options: ManyScenesOptions
) -> ScenesReport:
    """`reconstruct_scenes` by workers of a Ray cluster: the one that `ray.init` finds or is
    connected to already, or else one of this machine alone.

    Args:
        scenes: photographs by the name of their scene: paths that all machines have, or addresses.
        store: where results go, which all machines reach.
        options: of which `engine` is "ray".

    Raises:
        InputError: Ray is missing, there is no cluster, photographs are given as pixels, or workers
            refuse the model or its options.
        RuntimeError: a worker found a defect; with its traceback.
    """
    ray = import_ray()
    scenes = {name: _for_all_machines(name, images) for name, images in scenes.items()}
    if isinstance(store, FolderStore):
        store = FolderStore(Path(os.path.abspath(store.out)))
    store.compare_settings(options.of_results())  # The workers' model is compared by them.
    skipped, again, failed = store.earlier(scenes, options)
    waiting = {
        name: images
        for name, images in scenes.items()
        if name not in failed and name not in skipped
    }
    if options.model is None:
        say_that_it_is_small()
    with _connected(ray):
        try:
            books = _run(ray, waiting, store, options, len(scenes))
        except ray.exceptions.RayError as error:
            raise InputError(
                f"the Ray cluster was lost ({_one_line(error)}); the same command goes on where "
                "this one ended"
            ) from error
    for text in books.said:
        warnings.warn(InputWarning(text), stacklevel=3)
    return _report(books, skipped, again, failed)


def _run(
    ray: Any,
    waiting: Mapping[str, Any],
    store: Store,
    options: ManyScenesOptions,
    total: int,
) -> Books:
    """The books at the end; `total` counts scenes that have results already, too."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers, resources = shared_out(machines, options.workers)
    ledger = _ledger_of(ray, waiting)
    shared = ray.put(Setting.of(store, options))
    hand_out = lambda shares: _run_round(
        ray, _dataset(ray, shares, waiting, shared, ledger, min(workers, len(shares)), resources)
    )
    if not waiting:  # One worker looks whether the results are those of the model.
        hand_out([Portion(())])
    with _progress(ray, ledger, total, total - len(waiting), options):
        return run_rounds(
            ledger,
            hand_out,
            workers=workers,
            batch_size=options.batch_size,
            retries=options.retries,
            why_lost=lambda machine: _why_lost(ray, machine),
        )


def import_ray() -> Any:
    """Ray with Ray Data.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
        import ray.util.annotations  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"engine='ray' needs {error.name or 'Ray Data'}: pip install 'vggt-jax[ray]', here and "
            "on all machines of the cluster"
        ) from error
    return ray


class LedgerElsewhere:
    """A `Ledger` that is an actor: the same methods."""

    def __init__(self, actor: Any):
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        ray = import_ray()
        return lambda *arguments: ray.get(getattr(self._actor, name).remote(*arguments))

    def __reduce__(self) -> tuple[Any, ...]:
        return LedgerElsewhere, (self._actor,)


class _RayWorker:
    """A `Worker` as Ray Data makes and calls it.

    Args:
        setting: Ray's reference to it, in a list, so that each machine fetches it once.
        ledger: of the run.
    """

    def __init__(self, setting: list[Any], ledger: Any):
        ray = import_ray()
        # What it warns of belongs to whoever started the run. This process is the worker's own.
        warnings.showwarning = lambda message, *others: (
            ledger.say(str(message)) if isinstance(message, InputWarning) else None
        )
        (given,) = ray.get(setting)
        with contextlib.suppress(OSError):  # Where all is named in full, it may be missing.
            os.chdir(given.folder)
        self._worker = Worker(given, ledger, ray.get_runtime_context().get_node_id())

    def __call__(self, table: Any) -> Any:
        """Does the portions of a table, which is returned."""
        for portion in table["portion"]:
            self._worker.do(pickle.loads(portion.as_py()))
        return table


def _for_all_machines(name: str, images: Any) -> Any:
    """Photographs as workers elsewhere find them."""
    if isinstance(images, RemoteScene):
        return images
    if isinstance(images, str | os.PathLike):
        return Path(os.path.abspath(images))
    if isinstance(images, list | tuple) and all(isinstance(x, str | os.PathLike) for x in images):
        return [Path(os.path.abspath(x)) for x in images]
    raise InputError(
        f"{name}: engine='ray' takes photographs by their paths or addresses, not {type(images)}; "
        "save them to files first"
    )


@contextlib.contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """A connection to a cluster, which ends with the block if it was not there before."""
    if ray.is_initialized():
        yield
        return
    try:
        _find_cluster()
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS")
        where = f"at RAY_ADDRESS={address}" if address else "on this machine"
        raise InputError(
            f"there is no Ray cluster {where} ({_one_line(error)}); start one with "
            "`ray start --head`"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _find_cluster() -> None:
    """Asks whether anybody is at RAY_ADDRESS: Ray would try for minutes.

    Raises:
        OSError: nobody is.
    """
    host, _, port = os.environ.get("RAY_ADDRESS", "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_WITHIN).close()


def _ledger_of(ray: Any, names: Mapping[str, Any]) -> Any:
    """A ledger on this machine, whose loss ends the run anyway."""
    here = _on_machine(ray.get_runtime_context().get_node_id())
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Ledger)
    return LedgerElsewhere(actor.remote(list(names)))


def _on_machine(machine: str) -> Any:
    from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
        NodeAffinitySchedulingStrategy,
    )

    return NodeAffinitySchedulingStrategy(machine, soft=False)


def _dataset(
    ray: Any,
    shares: Sequence[Portion],
    scenes: Mapping[str, Any],
    setting: Any,
    ledger: Any,
    workers: int,
    resources: Mapping[str, float],
) -> Any:
    """One row for each portion, and workers that do them."""
    rows = [
        {"portion": pickle.dumps({name: scenes[name] for name in share.names})} for share in shares
    ]
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # The ledger knows what a lost worker had. Ray would wait for that worker to come back.
    context.max_errored_blocks = -1
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        # Of `max_task_retries`, for which there is no other way yet.
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _RayWorker,
            fn_constructor_kwargs={"setting": [setting], "ledger": ledger},
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers),
            max_task_retries=0,
            **resources,
        )


def _run_round(ray: Any, dataset: Any) -> str | None:
    """Has all portions done; what Ray says that ended it early."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # Lost workers are told of in the report.
    try:
        for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            pass
    except ray.exceptions.RayError as error:
        return _one_line(error)
    finally:
        logger.setLevel(level)
    return None


def _one_line(error: Exception) -> str:
    """The end of what an error says, where the reason stands."""
    return " ".join(str(error).split())[-500:]


def _why_lost(ray: Any, machine: str) -> str:
    """What became of a worker, by whether its machine still answers: Ray takes a while to see."""
    there = _on_machine(machine)
    answer = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_answer).remote()
    try:
        ray.get(answer, timeout=_ANSWERS_WITHIN)
    except ray.exceptions.RayError:
        return "its machine was lost"
    return "its process ended (it ran out of memory, perhaps; the logs of Ray say more)"


def _answer() -> None:
    """What a machine that is alive can do."""


@contextlib.contextmanager
def _progress(
    ray: Any, ledger: Any, total: int, done_before: int, options: ManyScenesOptions
) -> Iterator[None]:
    """A progress bar that follows the ledger while the block runs."""
    if not options.progress:
        yield
        return
    over = threading.Event()
    with tqdm.tqdm(total=total, initial=done_before, unit="scene") as bar:

        def look() -> None:
            with contextlib.suppress(ray.exceptions.RayError):  # Others notice it, too.
                while not over.wait(_LOOK_EVERY):
                    bar.update(done_before + ledger.num_ended() - bar.n)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
            bar.update(done_before + ledger.num_ended() - bar.n)
        finally:
            over.set()
            watcher.join()


def _report(
    books: Books, skipped: tuple[str, ...], again: dict[str, str], failed: dict[str, str]
) -> ScenesReport:
    by_ending = lambda *endings: tuple(
        name for name, (ending, _) in books.endings.items() if ending in endings
    )
    reasons = {name: books.endings[name][1] for name in by_ending("failed")}
    return ScenesReport(
        written=by_ending("written"),
        skipped=skipped,
        failed=failed | reasons,
        again=again,
        elsewhere=by_ending("elsewhere", "there"),
        twice=dict(books.twice),
    )
