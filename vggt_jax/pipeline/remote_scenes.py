"""Scenes at addresses: which there are, and their photographs on this machine while they are
read."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from vggt_jax.errors import InputError
from vggt_jax.files.addresses import Address, Entry, address_of, local_path, why_no_file_name
from vggt_jax.images.files import natural_key, scene_folder
from vggt_jax.images.kinds import is_picture, kind_of
from vggt_jax.images.video import is_video
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.scenes import named, say_what_is_left_out

_AT_A_TIME = 8  # Files that are downloaded for one scene.
_NOWHERE = Path(os.devnull)  # Below it there are no files, so that names alone count.
_BEGINNING = 64  # Bytes by which a file is told that has an unknown name.


@dataclasses.dataclass(frozen=True)
class RemoteScene:
    """A folder of photographs, or a video, at an address.

    Attributes:
        address: of the folder or the video.
        entries: the files of the folder; of a video that one, with no name.
    """

    address: Address
    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        return str(self.address)

    @property
    def is_video(self) -> bool:
        return len(self.entries) == 1 and not self.entries[0].name

    def states(self) -> dict[str, list[Any]]:
        """Sizes and versions by name, as resuming compares them."""
        if self.is_video:
            return {self.address.name: _state(self.entries[0])}
        pictures = [x for x in self.entries if is_picture(Path(x.name)) and _is_visible(x.name)]
        for folder in ("", "images/"):
            inside = [x for x in pictures if _is_directly_in(folder, x.name)]
            if inside:
                return {x.name.removeprefix(folder): _state(x) for x in inside}
        return {x.name: _state(x) for x in pictures}

    @contextlib.contextmanager
    def staged(self, options: Options) -> Iterator[Path]:
        """A copy on this machine: the photographs that will be read, and names of what will not.

        Yields:
            The folder, or the video. It is removed at the end of the block, and messages of errors
            in it name the address.

        Raises:
            InputError: the address refuses, or names there can be none of files.
        """
        with tempfile.TemporaryDirectory(prefix="vggt-jax-") as temporary:
            place = Path(temporary) / self.address.name
            with _named_as(str(place), str(self)):
                if self.is_video:
                    self.address.download("", place)
                else:
                    self._stage_folder(place, options)
                yield place

    def _stage_folder(self, place: Path, options: Options) -> None:
        place.mkdir()
        for entry in self.entries:
            if why := why_no_file_name(entry.name):
                raise InputError(f"{self}: {why}; rename it")
            path = place / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            kind = None if is_picture(path) else kind_of(path)
            if kind and kind[0] == "other file" and (entry.size or 0) > 0:
                # Which may be a picture under another name.
                path.write_bytes(self.address.beginning(entry.name, _BEGINNING))
        found = scene_folder(place, options.pattern, recursive=options.recursive)
        names = [image.relative_to(place).as_posix() for image in found.images]
        with ThreadPoolExecutor(_AT_A_TIME) as threads:
            list(threads.map(lambda name: self.address.download(name, place / name), names))


def remote_scenes(address: Address, *, recursive: bool = False) -> dict[str, RemoteScene]:
    """The scenes of a folder at an address, by the rules of `scenes_by_name`.

    Warns:
        InputWarning: something in the folder belongs to no scene.

    Raises:
        InputError: the address refuses, or there are no scenes.
    """
    entries = [entry for entry in address.entries() if not entry.name.startswith(".")]
    if not entries:
        raise InputError(f"{address}: no such folder, or there is nothing in it")
    if not entries[0].name:
        raise InputError(f"{address}: is a file; give the folder that holds folders of photographs")
    folders: dict[str, list[Entry]] = {}
    files: dict[str, Entry] = {}
    for entry in entries:
        top, _, rest = entry.name.partition("/")
        if rest:
            folders.setdefault(top, []).append(dataclasses.replace(entry, name=rest))
        else:
            files[entry.name] = entry
    found: dict[Path, RemoteScene] = {}
    for name in sorted({*folders, *files}, key=lambda name: natural_key(Path(name))):
        if name in folders and _holds_pictures(folders[name], recursive):
            found[Path(name)] = RemoteScene(address.below(name), tuple(folders[name]))
        elif name in files and is_video(Path(name)):
            video = dataclasses.replace(files[name], name="")
            found[Path(name)] = RemoteScene(address.below(name), (video,))
    others = {*folders, *files} - {path.name for path in found}
    other_folders = [_NOWHERE / name for name in folders if name in others]
    other_files = [_NOWHERE / name for name in files if name in others - {*folders}]
    say_what_is_left_out(address, len(found), other_folders, other_files)
    names = named([path for path in found if path.name in folders], list(found))
    return {name: found[path] for name, path in names.items()}


def sources_of(scenes: Mapping[str, Any]) -> dict[str, Any]:
    """Photographs by name, in which addresses have become scenes there, and file:// paths.

    Raises:
        InputError: an address refuses, or there is nothing.
    """
    return {name: _source(images) for name, images in scenes.items()}


def _source(images: Any) -> Any:
    if isinstance(images, list | tuple) and any(address_of(x, "photograph") for x in images):
        raise InputError(f"{images[0]}: name the folder of photographs at an address, not each")
    if not isinstance(images, str | os.PathLike):
        return images
    if (address := address_of(images, "folder of photographs")) is None:
        return local_path(images)
    entries = address.entries()
    if not entries:
        raise InputError(f"{address}: no such folder, or there is nothing in it")
    return RemoteScene(address, tuple(entries))


@contextlib.contextmanager
def on_this_machine(images: Any, options: Options) -> Iterator[Any]:
    """What photographs are read from: a copy where they are at an address.

    Raises:
        InputError: the address refuses.
    """
    if not isinstance(images, RemoteScene):
        yield images
        return
    with images.staged(options) as place:
        yield place


@contextlib.contextmanager
def _named_as(place: str, shown: str) -> Iterator[None]:
    """Errors of input with an address in the place of a path."""
    try:
        yield
    except InputError as error:
        if place not in str(error):
            raise
        raise type(error)(str(error).replace(place, shown)) from error


def _holds_pictures(inside: list[Entry], recursive: bool) -> bool:
    """Whether a folder is one of a scene, by the names in it."""
    places = ("", "images/")
    return any(
        _could_be_picture(Path(PurePosixPath(x.name).name))
        for x in inside
        if recursive or any(_is_directly_in(place, x.name) for place in places)
    )


def _could_be_picture(name: Path) -> bool:
    if is_picture(name):
        return True
    kind = kind_of(_NOWHERE / name)
    return kind is not None and kind[0] != "other file"


def _is_directly_in(folder: str, name: str) -> bool:
    return name.startswith(folder) and "/" not in name[len(folder) :]


def _is_visible(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))


def _state(entry: Entry) -> list[Any]:
    return [entry.size, entry.version]
