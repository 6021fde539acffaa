"""Folders at addresses, such as s3://bucket/scenes, through fsspec."""

import contextlib
import dataclasses
import functools
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from vggt_jax.errors import InputError

# Two letters or more, since one is a drive of Windows.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_COLLAPSED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")
# Where an object that is being uploaded is not seen before it is whole. Elsewhere it is uploaded
# under another name first.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl"}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
# What tells versions of a file apart, the best first, by the names of different file systems.
_VERSIONS = (
    "ETag", "etag", "md5Hash", "content_md5", "generation", "checksum", "LastModified",
    "last_modified", "updated", "mtime", "modified", "created",
)  # fmt: skip
_LONGEST_NAME = 255  # Bytes.


class AddressError(InputError):
    """An address that refuses, or answers with something else than what was asked for."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file at an address.

    Attributes:
        name: its path below the address, with slashes.
        size: in bytes; None where the address does not say.
        version: changes when the file does; None where the address does not say.
    """

    name: str
    size: int | None
    version: str | None


@dataclasses.dataclass(frozen=True)
class Address:
    """A folder at an address.

    All methods raise `AddressError` where the address refuses. Names are paths below it.

    Attributes:
        url: as fsspec takes it.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._place.rstrip("/").rpartition("/")[2] or "scenes"

    @property
    def _place(self) -> str:
        """The part of the address that is about a path in it: behind what only caches."""
        parts = self.url.split("::")
        return next((part for part in parts if "://" in part), parts[-1])

    def below(self, name: str) -> "Address":
        """A folder in this one."""
        parts = self.url.split("::")
        parts[parts.index(self._place)] = f"{self._place.rstrip('/')}/{name}"
        return Address("::".join(parts))

    def entries(self) -> list[Entry]:
        """All files below; none if there is no such folder; itself, named "", if it is a file."""
        with self._asking() as (system, root):
            system.invalidate_cache()
            found = system.find(root, detail=True)
            if not found:  # Which also is what some answer that refuse; this one says why.
                with contextlib.suppress(FileNotFoundError):
                    system.ls(root)
            names = {path: _relative(path, root) for path in sorted(found)}
            return [
                _entry(found[path], name)
                for path, name in names.items()
                if name or path == root  # Others stand for folders.
            ]

    def entry(self, name: str) -> Entry | None:
        """A file as it is now; None if there is none."""
        with self._asking() as (system, root):
            system.invalidate_cache()
            path = _joined(root, name)
            try:
                return _entry(system.info(path), name)
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes:
        """The bytes of a small file."""
        with self._asking() as (system, root):
            return system.cat_file(_joined(root, name))

    def beginning(self, name: str, num_bytes: int) -> bytes:
        """The first bytes of a file."""
        with self._asking() as (system, root):
            return system.cat_file(_joined(root, name), start=0, end=num_bytes)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """A file to read parts of."""
        with (
            self._asking() as (system, root),
            system.open(_joined(root, name), "rb", block_size=2**16) as file,
        ):
            yield file

    def download(self, name: str, path: Path) -> None:
        """Copies a file to a path, whose folder exists. "" is what the address itself names."""
        with self._asking() as (system, root):
            system.get_file(_joined(root, name), os.fspath(path))

    def upload(self, path: Path, name: str) -> None:
        """Copies a file here, where it appears whole or not at all; an older one is replaced."""
        with self._asking() as (system, root):
            target = _joined(root, name)
            if _protocols(system) & _OBJECT_STORES:
                system.put_file(os.fspath(path), target)
                return
            folder = target.rpartition("/")[0]
            system.makedirs(folder, exist_ok=True)
            beside = f"{folder}/.vggt-jax-{secrets.token_hex(6)}.tmp"
            try:
                system.put_file(os.fspath(path), beside)
                system.mv(beside, target)
            except BaseException:
                with contextlib.suppress(Exception):
                    system.rm_file(beside)
                raise

    @contextlib.contextmanager
    def _asking(self) -> Iterator[tuple[Any, str]]:
        """The file system and the path of the address in it; errors become ours."""
        try:
            yield _file_system(self.url)
        except InputError:
            raise
        except ImportError as error:
            raise AddressError(f"{self.url}: {_what_to_install(self.url, error)}") from error
        except Exception as error:  # Libraries behind addresses share no other base class.
            why = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, FileNotFoundError):
                why = "there is no such file or folder"
            elif isinstance(error, PermissionError):
                why = f"permission denied ({why})"
            raise AddressError(f"{self.url}: the address cannot be used: {why}") from error


def address_of(place: Any, what: str) -> Address | None:
    """The address that a place is; None for a path of this machine, which `local_path` gives.

    Args:
        place: as somebody gave it.
        what: what messages call it.

    Raises:
        InputError: it is an address that `pathlib` has taken apart.
    """
    if isinstance(place, PurePath) and _COLLAPSED.match(str(place)) and not os.path.exists(place):
        raise InputError(
            f"{place}: this {what} looks like an address that lost a slash as a path; addresses "
            "are given as text, and only scenes and results of many scenes may be some"
        )
    if not isinstance(place, str) or not _ADDRESS.match(place) or _is_local(place):
        return None
    return Address(place)


def local_path(place: str | os.PathLike) -> str | os.PathLike:
    """A path of this machine, which file://, local:// and nothing before it name."""
    if isinstance(place, str) and _is_local(place):
        return place.partition("://")[2]
    return place


def why_no_file_name(name: str) -> str | None:
    """Why a path below an address cannot be one below a folder of this machine; None if it can."""
    for part in name.split("/"):
        if part in ("", ".", "..") or "\0" in part or os.sep in part or "\\" in part:
            return f"{name!r} is no path that a folder can hold"
        if len(os.fsencode(part)) > _LONGEST_NAME:
            return f"{name[:60]!r}... is longer than the {_LONGEST_NAME} bytes of a file name"
    return None


def _is_local(place: str) -> bool:
    return place.startswith(("file://", "local://")) and "::" not in place


@functools.lru_cache(maxsize=64)
def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise AddressError(
            f"{url}: addresses need fsspec; install it with: pip install fsspec"
        ) from error
    system, path = fsspec.core.url_to_fs(url)
    return system, path.rstrip("/")


def _what_to_install(url: str, error: ImportError) -> str:
    protocol = url.rsplit("::", maxsplit=1)[-1].partition("://")[0]
    if protocol in _EXTRAS:
        return f"is read by another package: pip install 'vggt-jax[{_EXTRAS[protocol]}]'"
    return f"is read by another package: {' '.join(str(error).split())}"


def _protocols(system: Any) -> set[str]:
    protocol = system.protocol
    return {protocol} if isinstance(protocol, str) else set(protocol)


def _joined(root: str, name: str) -> str:
    return f"{root}/{name}" if name else root


def _relative(path: str, root: str) -> str:
    """A path below a root; "" for the root itself, and for objects that stand for folders."""
    inside = path.removeprefix(root)
    return "" if inside.endswith("/") else inside.lstrip("/")


def _entry(info: dict[str, Any], name: str) -> Entry:
    version = next((str(info[key]) for key in _VERSIONS if info.get(key) is not None), None)
    return Entry(name, info.get("size"), version)
