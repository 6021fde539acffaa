"""Where the results of many scenes go: a folder of this machine, or one at an address."""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from vggt_jax.errors import InputError
from vggt_jax.files import RESULTS, check_not_input, checked_path
from vggt_jax.files.addresses import Address, AddressError, Entry, address_of, local_path
from vggt_jax.files.claims import Claim
from vggt_jax.files.documents import parse_json
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.remote_scenes import RemoteScene, remote_scenes, sources_of
from vggt_jax.pipeline.resuming import (
    SETTINGS,
    ElsewhereError,
    Record,
    check_settings,
    claimed,
    compare_settings,
    earlier_results,
    record_of,
    why_not_of,
)
from vggt_jax.pipeline.scenes import scenes_by_name
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.results import made_from_opened, write_reconstruction

_AT_A_TIME = 16  # Results that are looked at, at an address.


class Held(Protocol):
    """The right to write a scene's results."""

    def release(self) -> None: ...


class Store(Protocol):
    """A place of results, `NAME/predictions.npz` for each scene."""

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Writes the settings, or compares them with those of the results that are there.

        Raises:
            InputError: they differ, or the place cannot be used.
        """
        ...

    def compare_settings(self, settings: dict[str, Any]) -> None:
        """The same without writing: where there are no results yet, nothing is compared.

        Raises:
            InputError: they differ, or the place cannot be used.
        """
        ...

    def earlier(
        self, scenes: Mapping[str, Any], options: Options
    ) -> tuple[tuple[str, ...], dict[str, str], dict[str, str]]:
        """See `earlier_results`."""
        ...

    def claim(self, name: str, images: Any, options: Options) -> Held:
        """Takes the right to write a scene.

        Raises:
            ElsewhereError: another process has it, or has just written the scene.
            AddressError: the place refuses.
        """
        ...

    def write(self, name: str, result: Reconstruction, record: Record) -> None:
        """Writes a scene, whole or not at all.

        Raises:
            ElsewhereError: another process has written it meanwhile.
            AddressError: the place refuses.
        """
        ...


@dataclasses.dataclass(frozen=True)
class FolderStore:
    """A folder of this machine, or one that machines share."""

    out: Path

    def check_settings(self, settings: dict[str, Any]) -> None:
        check_settings(self.out, settings)

    def compare_settings(self, settings: dict[str, Any]) -> None:
        if (self.out / SETTINGS).exists():
            check_settings(self.out, settings)

    def earlier(
        self, scenes: Mapping[str, Any], options: Options
    ) -> tuple[tuple[str, ...], dict[str, str], dict[str, str]]:
        return earlier_results(scenes, self.out, options)

    def claim(self, name: str, images: Any, options: Options) -> Held:
        return _HeldFolder(claimed(self.out / name, images, options))

    def write(self, name: str, result: Reconstruction, record: Record) -> None:
        write_reconstruction(self.out / name, result, made_from=record)


@dataclasses.dataclass(frozen=True)
class _HeldFolder:
    claim: Claim

    def release(self) -> None:
        self.claim.release()
        with contextlib.suppress(OSError):
            self.claim.out.rmdir()  # Of a scene without a result.


@dataclasses.dataclass(frozen=True)
class AddressStore:
    """A folder at an address, where nothing can be locked.

    A scene whose result another process wrote while this one computed is left as it is.

    Attributes:
        address: the folder.
        seen: by name of a scene, its result as it was when this process began, or claimed it.
    """

    address: Address
    seen: dict[str, Entry | None] = dataclasses.field(default_factory=dict)

    def check_settings(self, settings: dict[str, Any]) -> None:
        if self.address.entry(SETTINGS) is None:
            self._upload(SETTINGS, json.dumps(settings, indent=1).encode())
        self.compare_settings(settings)

    def compare_settings(self, settings: dict[str, Any]) -> None:
        if self.address.entry(SETTINGS) is not None:
            shown = f"{self.address}/{SETTINGS}"
            earlier = parse_json(self.address.read(SETTINGS), shown, error=InputError)
            compare_settings(earlier, settings, self.address)

    def earlier(
        self, scenes: Mapping[str, Any], options: Options
    ) -> tuple[tuple[str, ...], dict[str, str], dict[str, str]]:
        files = {entry.name: entry for entry in self.address.entries()}
        there = [name for name in scenes if f"{name}/{RESULTS}" in files]
        self.seen.update({name: files[f"{name}/{RESULTS}"] for name in there})

        def look(name: str) -> str | InputError | None:
            try:
                return self._why_again(name, scenes[name], options.of_scene(name))
            except InputError as error:
                return error

        with ThreadPoolExecutor(_AT_A_TIME) as threads:
            found = dict(zip(there, threads.map(look, there), strict=True))
        skipped = tuple(name for name, why in found.items() if why is None)
        again = {name: why for name, why in found.items() if isinstance(why, str)}
        failed = {name: str(why) for name, why in found.items() if isinstance(why, InputError)}
        return skipped, again, failed

    def claim(self, name: str, images: Any, options: Options) -> Held:
        self._check_unchanged(name, lambda: record_of(images, options))
        return _NothingHeld()

    def write(self, name: str, result: Reconstruction, record: Record) -> None:
        with tempfile.TemporaryDirectory(prefix="vggt-jax-") as folder:
            write_reconstruction(folder, result, made_from=record)
            self._check_unchanged(name, lambda: record)
            self.address.upload(Path(folder) / RESULTS, f"{name}/{RESULTS}")

    def _check_unchanged(self, name: str, record: Callable[[], Record]) -> None:
        """Finds that another process has written a scene.

        Raises:
            ElsewhereError: it has, from these photographs.
        """
        found = self.address.entry(f"{name}/{RESULTS}")
        if found is None or found == self.seen.get(name):
            return
        self.seen[name] = found
        if why_not_of(self._record(name), record()) is None:
            raise ElsewhereError(
                f"{self.address}/{name}/{RESULTS}: was written by another process just now",
                is_done=True,
            )

    def _why_again(self, name: str, images: Any, options: Options) -> str | None:
        try:
            record = self._record(name)
        except AddressError:
            raise
        except InputError:
            return "its result is damaged"
        return why_not_of(record, record_of(images, options))

    def _record(self, name: str) -> Record | None:
        path = f"{name}/{RESULTS}"
        with self.address.opened(path) as file:
            return made_from_opened(file, f"{self.address}/{path}")

    def _upload(self, name: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="vggt-jax-") as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            self.address.upload(path, name)


class _NothingHeld:
    def release(self) -> None:
        pass


def scenes_and_store(
    scenes: str | os.PathLike | Mapping[str, Any], out: str | os.PathLike, options: Options
) -> tuple[dict[str, Any], Store]:
    """Photographs by name of their scene, and the place of results, each on this machine or at an
    address.

    Raises:
        InputError: no scenes, names that cannot be folders, `out` is the folder of scenes, or an
            address refuses.
    """
    store: AddressStore | FolderStore
    if address := address_of(out, "folder of results"):
        store = AddressStore(address)
    else:
        store = FolderStore(checked_path(local_path(out), "folder of results"))
    if isinstance(scenes, Mapping):
        found = sources_of(scenes_by_name(scenes))
    elif source := address_of(scenes, "folder of scenes"):
        _check_not_read(store, source)
        found = dict(remote_scenes(source, recursive=options.recursive))
    else:
        folder = checked_path(local_path(scenes), "folder of scenes")
        _check_not_read(store, folder)
        found = scenes_by_name(folder, recursive=options.recursive)
    for name, images in found.items():
        if isinstance(images, RemoteScene):
            _check_not_read(store, images.address, name)
        elif isinstance(images, str | os.PathLike):
            _check_not_read(store, images, name)
    return found, store


def _check_not_read(
    store: AddressStore | FolderStore, read: Address | str | os.PathLike, name: str | None = None
) -> None:
    """Checks that the folder of results, or that of a scene in it, is none that is read."""
    if isinstance(store, FolderStore):
        if not isinstance(read, Address):
            check_not_input(store.out if name is None else store.out / name, [read])
        return
    out = store.address if name is None else store.address.below(name)
    if isinstance(read, Address) and out.url.rstrip("/") == read.url.rstrip("/"):
        raise InputError(f"{out}: is what this command reads; choose another --out")
