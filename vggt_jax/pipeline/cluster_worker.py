"""What one of many workers does: scenes with a model that stays loaded, and books of them in a
ledger."""

import dataclasses
import os
import time
import traceback
from collections.abc import Mapping
from typing import Any

import jax

import vggt_jax
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.errors import InputError
from vggt_jax.models.origin import Origin, origin_of, remember
from vggt_jax.pipeline.inputs import check_model, load
from vggt_jax.pipeline.ledger import Ending
from vggt_jax.pipeline.many_scenes import ManyScenesOptions, run_scenes
from vggt_jax.pipeline.memory import is_out_of_memory
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.origin import fingerprint
from vggt_jax.pipeline.resuming import ElsewhereError, Record
from vggt_jax.pipeline.stores import Held, Store
from vggt_jax.scene.reconstruction import Reconstruction

_LOCKS_LAST, _PAUSE = 120.0, 1.0  # Seconds; those of NFS last for 90.
_NO_MEMORY, _SMALLER = "memory was exhausted", "choose fewer frames or a smaller size"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all workers are given.

    Attributes:
        store: where results go.
        options: of the run.
        model: one at hand with where it came from, its arrays on the host; None where options name
            it.
        folder: where the run was started, below which relative paths are.
        version: of this package.
    """

    store: Store
    options: ManyScenesOptions
    model: tuple[Any, Origin | None] | None
    folder: str
    version: str = vggt_jax.__version__

    @classmethod
    def of(cls, store: Store, options: ManyScenesOptions) -> "Setting":
        """That of a run which is started here."""
        options, model = dataclasses.replace(options, progress=False), None
        if options.model is not None and not isinstance(options.model, str | os.PathLike):
            model = jax.device_get(options.model), origin_of(options.model)
            options = dataclasses.replace(options, model=None)
        return cls(store, options, model, os.getcwd())


class Worker:
    """Does scenes with the model on its device.

    Args:
        setting: what all workers are given.
        ledger: of the run.
        machine: where it is.
    """

    def __init__(self, setting: Setting, ledger: Any, machine: str):
        self._setting, self._ledger, self._machine = setting, ledger, machine
        try:
            self._model = self._load()
        except (InputError, CheckpointError) as error:
            self._model = None
            ledger.stop("input", str(error))

    def do(self, scenes: Mapping[str, Any]) -> None:
        """Reconstructs scenes, and tells the ledger what became of each."""
        if self._model is None:
            return
        try:
            left = self._run(scenes)
            for name in left:  # One of which needs too much.
                if self._run({name: scenes[name]}):
                    self._ledger.fail(name, f"{_NO_MEMORY}; {_SMALLER}")
        except InputError as error:
            self._ledger.stop("input", str(error))
        except Exception:
            self._ledger.stop("defect", traceback.format_exc())
            raise

    def _load(self) -> Any:
        setting = self._setting
        if setting.version != vggt_jax.__version__:
            raise InputError(
                f"vggt-jax {vggt_jax.__version__} is on a machine of the Ray cluster, and "
                f"{setting.version} here; install the same version everywhere"
            )
        options = setting.options
        if setting.model is None:
            model = load(options)
        else:
            arrays, origin = setting.model
            model = jax.device_put(arrays)
            if origin is not None:
                remember(model, origin)
        check_model(model, options)
        setting.store.check_settings(options.of_results() | {"model": fingerprint(model)})
        return model

    def _run(self, scenes: Mapping[str, Any]) -> list[str]:
        """Runs scenes; those that have no end because memory was exhausted."""
        store = BookedStore(self._setting.store, self._ledger, self._machine)
        ended: set[str] = set()

        def end(name: str, ending: Ending, reason: str = "") -> None:
            ended.add(name)
            if name in store.attempts:
                self._ledger.end(name, store.attempts[name], ending, reason)

        def fail(name: str, error: InputError) -> None:
            if isinstance(error, ElsewhereError):
                end(name, "there" if error.is_done else "elsewhere")
            else:
                end(name, "failed", str(error))

        done = lambda name: end(name, "written")
        try:
            assert self._model is not None
            run_scenes(self._model, scenes, store, self._setting.options, done=done, fail=fail)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not isinstance(error, MemoryError) and not is_out_of_memory(error):
                raise
            left = [name for name in scenes if name not in ended]
            for name in left:
                if name in store.attempts:
                    self._ledger.lose(name, store.attempts[name], _NO_MEMORY)
            return left
        return []


@dataclasses.dataclass(frozen=True)
class BookedStore:
    """A store that asks the ledger before it begins a scene, and before it writes it."""

    store: Store
    ledger: Any
    machine: str
    attempts: dict[str, int] = dataclasses.field(default_factory=dict)

    def check_settings(self, settings: dict[str, Any]) -> None:
        self.store.check_settings(settings)

    def compare_settings(self, settings: dict[str, Any]) -> None:
        self.store.compare_settings(settings)

    def earlier(
        self, scenes: Mapping[str, Any], options: Options
    ) -> tuple[tuple[str, ...], dict[str, str], dict[str, str]]:
        return self.store.earlier(scenes, options)

    def claim(self, name: str, images: Any, options: Options) -> Held:
        attempt = self.ledger.begin(name, self.machine)
        if attempt is None:
            raise ElsewhereError(f"{name}: is not to be done any more")
        self.attempts[name] = attempt
        # A shared disk may keep the lock of a lost machine for a while.
        until = time.monotonic() + (_LOCKS_LAST if attempt > 1 else 0)
        while True:
            try:
                return self.store.claim(name, images, options)
            except ElsewhereError as error:
                if error.is_done or time.monotonic() >= until:
                    raise
            time.sleep(_PAUSE)

    def write(self, name: str, result: Reconstruction, record: Record) -> None:
        if not self.ledger.may_write(name, self.attempts[name]):
            raise ElsewhereError(f"{name}: was given to another worker")
        self.store.write(name, result, record)
