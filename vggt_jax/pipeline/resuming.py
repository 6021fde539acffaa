"""What many scenes were reconstructed from and with, so that a later run sees which results
hold."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.files import RESULTS, Claim, read_json, remove_leftovers, replacing
from vggt_jax.images.files import files_below, scene_folder
from vggt_jax.images.kinds import is_picture
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.prior_formats import files_of
from vggt_jax.pipeline.remote_scenes import RemoteScene
from vggt_jax.scene.results import made_from

Record = dict[str, list[Any]]
"""By name of what was read: size and time of the last change of a file, or a hash of an array."""

_NAMED_AT_MOST = 3
SETTINGS = "settings.json"


class ElsewhereError(InputError):
    """Another process reconstructs a scene, or has just done so.

    Attributes:
        is_done: whether its result is there, and holds.
    """

    def __init__(self, message: str, *, is_done: bool = False):
        super().__init__(message)
        self.is_done = is_done


def claimed(folder: Path, images: Any, options: Options) -> Claim:
    """The sole right to write a scene's results.

    Raises:
        ElsewhereError: another process has it, or has just written them.
    """
    try:
        claim = Claim.of(Path(os.path.realpath(folder)))
    except InputError as error:
        raise ElsewhereError(str(error)) from error
    result = folder / RESULTS
    if os.path.lexists(result) and why_again(result, images, options) is None:
        claim.release()
        raise ElsewhereError(f"{result}: was written by another process just now", is_done=True)
    return claim


def earlier_results(
    scenes: Mapping[str, Any], out: Path, options: Options
) -> tuple[tuple[str, ...], dict[str, str], dict[str, str]]:
    """Which scenes have a result that holds, why others have one that does not, and why some cannot
    have any. What dead processes left is removed."""
    remove_leftovers(out)
    skipped, again, failed = [], {}, {}
    for name, images in scenes.items():
        result = out / name / RESULTS
        remove_leftovers(result.parent)
        if not os.path.lexists(result):
            continue
        try:
            why = why_again(result, images, options.of_scene(name))
        except InputError as error:
            failed[name] = str(error)
            continue
        if why is None:
            skipped.append(name)
        else:
            again[name] = why
    return tuple(skipped), again, failed


def check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Writes the settings, or compares them with those of the results that are there."""
    path = out / SETTINGS
    if not path.exists():
        with replacing(path) as file:
            file.write(json.dumps(settings, indent=1).encode())
    # Also what was just written: another process may have written its own meanwhile.
    compare_settings(read_json(path), settings, out)


def compare_settings(earlier: Any, settings: dict[str, Any], out: Any) -> None:
    """Compares settings with what a file in the folder of results holds.

    Raises:
        InputError: results there are of other options.
    """
    if not isinstance(earlier, dict):
        raise InputError(f"{out}/{SETTINGS}: holds no settings by name; choose another folder")
    # What an earlier version did not write down had its default.
    settings_of_defaults = Options().of_results()
    if changed := [
        name
        for name, value in settings.items()
        if earlier.get(name, settings_of_defaults.get(name)) != value
    ]:
        raise InputError(
            f"{out}: holds results with another {', '.join(changed)}; choose another folder, or "
            f"delete this one to start again"
        )


def record_of(images: Any, options: Options) -> Record:
    """What a reconstruction of these photographs would read, without reading it.

    Args:
        images: of one scene, as `infer` takes them.
        options: for this scene; masks, intrinsics and priors may be files, too.
    """
    found = {}
    for kind, source in (
        ("images", images),
        ("masks", options.masks),
        ("intrinsics", options.intrinsics),
    ):
        for name, state in _states(source).items():
            found[f"{kind}/{name}"] = state
    if isinstance(options.priors, str | os.PathLike):  # Values belong to the settings.
        path = Path(options.priors)
        for file in files_of(path):
            found[f"priors/{os.path.relpath(file, path.parent)}"] = _state(file)
    return found


def why_again(result: Path, images: Any, options: Options) -> str | None:
    """Why a scene has to be reconstructed again though it has a result; None where the result
    holds.

    Args:
        result: the file of the result.
        images, options: as for `record_of`.

    Raises:
        InputError: what lies there is no result of ours.
    """
    try:
        record = made_from(result)
    except InputError as error:
        if result.is_dir() or "did not write it" in str(error):
            raise
        return "its result is damaged or was not finished"
    return why_not_of(record, record_of(images, options))


def why_not_of(record: Record | None, now: Record) -> str | None:
    """Why a result was made of other photographs; None where it was not, or nothing is known."""
    # Of what `infer` wrote, or a version that did not keep this, nothing is known.
    return None if record is None else _difference(record, now)


def _difference(earlier: Record, now: Record) -> str | None:
    changes = {
        "added": [name for name in now if name not in earlier],
        "removed": [name for name in earlier if name not in now],
        "changed": [name for name in now if name in earlier and now[name] != earlier[name]],
    }
    parts = []
    for what, names in changes.items():
        shown = ", ".join(name.partition("/")[2] for name in names[:_NAMED_AT_MOST])
        more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
        kinds = {name.partition("/")[0] for name in names}
        kind = "photographs" if kinds == {"images"} else " and ".join(sorted(kinds))
        if names:
            parts.append(f"{kind} were {what} since: {shown}{more}")
    return "; ".join(parts) or None


def _states(source: Any) -> dict[str, list[Any]]:
    """Sizes and times of the files that a source names, or hashes of what it holds."""
    if source is None:
        return {}
    if isinstance(source, RemoteScene):
        return source.states()
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_dir():
            return {path.name: _state(path)}
        files = scene_folder(path).images
        if not files:  # A folder of folders, such as those of masks.
            files = [file for file in files_below(path) if is_picture(file)]
        return {file.relative_to(path).as_posix(): _state(file) for file in files}
    if isinstance(source, Mapping):
        return {
            f"{key}/{name}": x
            for key, value in source.items()
            for name, x in _states(value).items()
        }
    if isinstance(source, Sequence):
        parts = [(i, part) for i, part in enumerate(source)]
        return {f"{i}/{name}": x for i, part in parts for name, x in _states(part).items()}
    pixels = np.ascontiguousarray(source)
    digest = (
        hashlib.sha256(pixels.reshape(-1).view(np.uint8).data) if pixels.dtype != object else None
    )
    return {"array": [list(pixels.shape), pixels.dtype.name, digest and digest.hexdigest()[:16]]}


def _state(path: Path) -> list[Any]:
    try:
        found = path.stat()
    except OSError:
        return [None, None]
    return [found.st_size, found.st_mtime_ns]
