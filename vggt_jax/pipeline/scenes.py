"""Which scenes there are: folders of photographs and videos in a folder, or photographs by name."""

import collections
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vggt_jax.errors import InputError, InputWarning
from vggt_jax.images.files import (
    composed,
    counted,
    listed,
    natural_key,
    scene_folder,
)
from vggt_jax.images.kinds import is_picture, kind_of
from vggt_jax.images.video import is_video

_LONGEST_NAME = 255  # Bytes of a name in file systems.


def scenes_by_name(
    scenes: str | os.PathLike | Mapping[str, Any], *, recursive: bool = False
) -> dict[str, Any]:
    """The scenes, by names that can be folders.

    Args:
        scenes: a folder with a folder of photographs (or one with a folder `images` in it), or a
            video, for each scene; or photographs by name. A folder that holds pictures or videos
            which cannot be used is a scene, too, and fails with the reason.
        recursive: whether photographs may lie in folders of the folder of a scene.

    Warns:
        InputWarning: something in the folder belongs to no scene.

    Raises:
        InputError: there is no such folder, it holds no scenes, or a name can be no folder.
    """
    if isinstance(scenes, Mapping):
        for name in scenes:
            if not _can_be_folder(name):
                raise InputError(
                    f"scene name {name!r} cannot be a folder; it may have no slash, not begin with "
                    f"a dot, and not be longer than {_LONGEST_NAME} bytes"
                )
        return dict(scenes)
    folder = Path(scenes)
    if not os.fspath(scenes) or not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder")
    try:
        entries = sorted(folder.iterdir(), key=natural_key)
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read ({error.strerror})") from error
    visible = [path for path in entries if not path.name.startswith(".")]
    found = [path for path in visible if _is_scene(path, recursive)]
    others = [path for path in visible if path not in set(found)]
    other_folders = [path for path in others if path.is_dir()]
    other_files = [path for path in others if not path.is_dir()]
    say_what_is_left_out(folder, len(found), other_folders, other_files)
    return named([path for path in found if path.is_dir()], found)


def say_what_is_left_out(
    source: object, num_found: int, folders: Sequence[Path], files: Sequence[Path]
) -> None:
    """Warns of what is no scene where scenes are looked for.

    Args:
        source: what messages call the place.
        folders, files: there, and no scenes.

    Raises:
        InputError: there are no scenes.
    """
    message = _of_others(folders, files)
    if not num_found:
        raise InputError(f"{source}: {_why_none(files, message)}")
    if message:
        text = f"{source}: {counted(num_found, 'scene')}, and left out: {message}"
        warnings.warn(InputWarning(text), stacklevel=4)


def named(folders: Collection[Path], found: Sequence[Path]) -> dict[str, Path]:
    """Folders by their names, videos by theirs without the ending where that is one alone.

    Args:
        folders: those of what was found that are folders.
        found: folders and videos.
    """
    folders = set(folders)
    names = [path.name if path in folders else path.stem for path in found]
    alike = collections.Counter(composed(name) for name in names)
    return {
        path.name if alike[composed(name)] > 1 else name: path
        for name, path in zip(names, found, strict=True)
    }


def _can_be_folder(name: Any) -> bool:
    return (
        isinstance(name, str)
        and not name.startswith(".")
        and 0 < len(os.fsencode(name)) <= _LONGEST_NAME
        and not {"/", "\0", os.sep} & set(name)
    )


def _is_scene(path: Path, recursive: bool) -> bool:
    if not path.is_dir():
        return is_video(path)
    try:
        return scene_folder(path, recursive=recursive).holds_pictures
    except InputError:  # No permission, perhaps: that scene fails.
        return True


def _of_others(folders: Sequence[Path], files: Sequence[Path]) -> str:
    """What of a folder of scenes belongs to none, by kind."""
    by_kind: dict[str, list[str]] = {}
    if folders:
        by_kind["folder without photographs"] = [path.name for path in folders]
    for path in files:
        if is_picture(path):
            kind = "image in no folder of a scene"
        elif (found := kind_of(path)) is None:
            continue
        else:
            kind = found[0]
        by_kind.setdefault(kind, []).append(path.name)
    return "; ".join(
        f"{counted(len(names), kind)} ({listed(names)})" for kind, names in by_kind.items()
    )


def _why_none(files: Sequence[Path], message: str) -> str:
    """Why a folder holds no scenes, from its files and what `_of_others` says."""
    if any(map(is_picture, files)):
        return (
            f"holds photographs itself ({message}) and so is one scene; use `vggt-jax infer` or "
            "infer for it, or give the folder that holds it"
        )
    holds = f"; it holds {message}" if message else ""
    return f"holds no folders of photographs and no videos, one for each scene{holds}"
