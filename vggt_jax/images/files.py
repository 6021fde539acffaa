"""Which files of a folder are photographs, in which order, what they are called, and what is left
out: nothing is, without a word."""

import dataclasses
import fnmatch
import functools
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vggt_jax.errors import InputError, printable
from vggt_jax.files import OVERVIEW, RESULTS
from vggt_jax.images import companions
from vggt_jax.images.kinds import OTHER_FILE, is_picture, kind_of

_PICTURES_OF_RESULTS = ("depth_pictures", "track_pictures")
# What is no photograph and no reason to take a folder for one of a scene.
_NO_PICTURES = (OTHER_FILE[0], "hidden file", "folder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """What a folder holds.

    Attributes:
        path: the folder.
        pattern: which of its files were asked for.
        images: those that are read as photographs, in natural order (2 before 10).
        left_out: names of the other files by kind, and the way out for the kind.
    """

    path: Path
    pattern: tuple[str, ...]
    images: tuple[Path, ...]
    left_out: dict[tuple[str, str], tuple[str, ...]]

    @property
    def holds_pictures(self) -> bool:
        """Whether there are photographs, or files that could have been some."""
        return bool(self.images) or any(kind not in _NO_PICTURES for kind, _ in self.left_out)

    def said_of_left_out(self, *, about_photographs: bool = True) -> str:
        """One sentence on what is not read, by kind; empty if there is nothing.

        Args:
            about_photographs: whether to speak of files about the photographs, too: cameras, a
                program's project, notes to each of them.
        """
        left_out = self.left_out
        if not about_photographs:
            beside = [path.name for path in self.images]
            is_news = lambda name: not companions.is_about_photographs(name, beside)
            left_out = dict(left_out)
            for kind in left_out.keys() & {OTHER_FILE}:
                left_out[kind] = tuple(filter(is_news, left_out[kind]))
        return "; ".join(
            f"{counted(len(names), kind)} ({listed(names)}){way_out and f': {way_out}'}"
            for (kind, way_out), names in left_out.items()
            if names
        )

    def message(self) -> str:
        """What to tell somebody whose photographs are read from here; empty if all files are, or
        are about those that are."""
        left_out = self.said_of_left_out(about_photographs=False)
        read = counted(len(self.images), "image")
        return left_out and f"{self.path}: {read} read, and left out: {left_out}"


def list_folder(
    folder: str | os.PathLike, pattern: str | Sequence[str] = (), *, recursive: bool = False
) -> Folder:
    """Sorts the files of a folder into photographs and what is left out, by kind.

    Subfolders are searched only with `recursive`, hidden ones never. Endings of names count in any
    case. `overview.png` beside `predictions.npz`, and pictures of depth there, are what `vggt-jax
    infer` wrote.

    Args:
        folder: the folder.
        pattern: see `matches`; what does not match is not spoken of. One with a slash is compared
            with the path in the folder, others with the name.
        recursive: whether to take the files of all folders in it, too.

    Raises:
        InputError: the folder does not exist or cannot be read.
    """
    folder, pattern = Path(folder), as_patterns(pattern)
    try:
        if recursive:
            by_path = lambda path: [natural_key(Path(x)) for x in path.relative_to(folder).parts]
            entries = sorted(files_below(folder), key=by_path)
        else:
            entries = sorted(folder.iterdir(), key=natural_key)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{shortened(folder)}: the folder cannot be read ({why})") from error
    is_ours = any(path.name == RESULTS for path in entries)
    own = {RESULTS, OVERVIEW, "points.ply", "cameras.json", *_PICTURES_OF_RESULTS}
    images: list[Path] = []
    left_out: dict[tuple[str, str], list[str]] = {}
    for path in entries:
        if is_ours and path.name in own:
            continue
        if path.is_dir():
            kind = ("folder", "folders in it are not searched; recursive=True does")
            if path.name.startswith(".") or pattern or not _holds_pictures(path):
                continue
        elif not _is_asked_for(path.relative_to(folder), pattern):
            continue
        elif path.name.startswith("."):
            # What macOS leaves beside each file on disks of other systems is no picture.
            if path.name.startswith("._") or not is_picture(path):
                continue
            kind = ("hidden file", "")
        elif not _is_readable(path):
            kind = ("pipe or device", "")
        elif is_picture(path):
            images.append(path)
            continue
        elif (found := kind_of(path)) is None:
            continue
        else:
            kind = found
        left_out.setdefault(kind, []).append(path.name)
    return Folder(
        path=folder,
        pattern=pattern,
        images=tuple(images),
        left_out={kind: tuple(names) for kind, names in left_out.items()},
    )


def scene_folder(
    folder: str | os.PathLike, pattern: str | Sequence[str] = (), *, recursive: bool = False
) -> Folder:
    """What the folder of a scene holds; what its folder `images` does if it has no images itself.

    Raises:
        InputError: it cannot be read.
    """
    found = list_folder(folder, pattern, recursive=recursive)
    inner = found.path / "images"
    if found.images or recursive or not inner.is_dir():
        return found
    of_inner = list_folder(inner, pattern)
    return of_inner if of_inner.images or not found.holds_pictures else found


def photographs(
    folder: str | os.PathLike, pattern: str | Sequence[str] = (), *, recursive: bool = False
) -> Folder:
    """`scene_folder`, whose images can be used.

    Raises:
        InputError: it cannot be read, holds no photographs, or holds masks, depth or others that go
            with photographs beside them.
    """
    found = scene_folder(folder, pattern, recursive=recursive)
    if not found.images:
        raise InputError(f"{found.path}: {_why_empty(found)}")
    if message := companions.found_among([path.name for path in found.images], matches):
        raise InputError(f"{found.path}: {message}")
    return found


def find_images(folder: str | os.PathLike, pattern: str | Sequence[str] = ()) -> list[Path]:
    """The photographs of a folder in natural order (2 before 10); see `photographs`.

    Raises:
        InputError: as there.
    """
    return list(photographs(folder, pattern).images)


def as_patterns(pattern: str | Sequence[str] | None) -> tuple[str, ...]:
    """One pattern or several, as several.

    Raises:
        InputError: one is empty.
    """
    patterns = (pattern,) if isinstance(pattern, str) else tuple(pattern or ())
    if any(not isinstance(one, str) or not one.removeprefix("!") for one in patterns):
        raise InputError(f"pattern={pattern!r} must be like '*.jpg', or '!*_mask.png' to leave out")
    return patterns


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file is asked for: by one of the patterns, and by none with "!" before it left out.

    Patterns are those of shells (`*`, `?`, `[abc]`), and the form of accented letters is all one.
    """
    name = composed(name)
    is_like = lambda pattern: fnmatch.fnmatchcase(name, composed(pattern))
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return (not wanted or any(map(is_like, wanted))) and not any(map(is_like, unwanted))


def _is_asked_for(path: Path, patterns: Sequence[str]) -> bool:
    """`matches` of a path in a folder: patterns with a slash are of the path, others of the
    name."""
    of_path = [pattern for pattern in patterns if "/" in pattern]
    of_name = [pattern for pattern in patterns if "/" not in pattern]
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    found = [(path.as_posix(), of_path), (path.name, of_name)]
    is_wanted = not wanted or any(
        matches(name, [pattern])
        for name, some in found
        for pattern in some
        if not pattern.startswith("!")
    )
    return is_wanted and all(
        matches(name, [pattern]) for name, some in found for pattern in some if pattern[0] == "!"
    )


def composed(name: str) -> str:
    """A name with its accents in one form: what looks the same is the same."""
    return unicodedata.normalize("NFC", name)


def counted(number: int, kind: str) -> str:
    """ "1 video", "3 videos"; "2 pictures in a format that is not read"."""
    noun, *rest = re.split(r"(?= in | under | without | or )", kind, maxsplit=1)
    plural = f"{noun}{'s' if number != 1 else ''}{''.join(rest)}"
    return f"{number} {plural.replace('pipes or device', 'pipes or devices')}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(map(printable, names[:most]))}{more}"


def checked_file(path: str | os.PathLike) -> Path:
    """A path from which a file can be read to its end.

    Raises:
        InputError: there is no such file; it is a folder, pipe or device; or no name of a file.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:  # Too long; a NUL; no permission for its folder.
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{shortened(path)}: cannot be read ({why})") from error
    if stat.S_ISDIR(mode):
        raise InputError(
            f"{path}: a folder inside a list of images; pass the folder alone or list its files"
        )
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is a pipe or a device and no file; save it to a file first")
    return path


def shortened(path: Path) -> str:
    """A path for a message, its middle left out if it is very long."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-40:]}"


def _is_readable(path: Path) -> bool:
    """Whether reading a file ends: a missing target of a link is left to the error of reading."""
    return path.is_file() or not path.exists()


def _holds_pictures(folder: Path) -> bool:
    try:
        return any(is_picture(path) and not path.name.startswith(".") for path in folder.iterdir())
    except OSError:
        return False


def _why_empty(found: Folder) -> str:
    """What to say of a folder without photographs."""
    kinds = {kind: names for (kind, _), names in found.left_out.items()}
    if found.pattern:
        everything = list_folder(found.path)
        asked = " ".join(found.pattern)
        there = [path.name for path in everything.images]
        what = f"its images are called {listed(there)}" if there else _why_empty(everything)
        return f"no image matches pattern={asked!r}; {what}"
    left_out = found.said_of_left_out()
    holds = f"; it holds {left_out}" if left_out else " and nothing else that could be some"
    videos = kinds.get("video", ())
    if len(videos) == 1 and len(kinds) == 1:
        video = found.path / videos[0]
        return f"no images in this folder, but a video; give the video itself: {video}"
    if videos:
        holds += (
            "; give one video, or reconstruct each as a scene with `vggt-jax batch` or "
            "reconstruct_scenes"
        )
    elif kinds.get("folder"):
        holds += (
            "; give one of the folders, or reconstruct each as a scene with `vggt-jax batch` or "
            "reconstruct_scenes"
        )
    return f"no images in this folder{holds}"


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sorts names so that 2 comes before 10."""
    parts = re.split(r"([0-9]+)", composed(path.name).casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def short_names(paths: Sequence[Path]) -> list[str]:
    """File names, with as many parent folders as tell different paths apart."""
    different, names = set(paths), {}
    longest = max((len(path.parts) for path in paths), default=1)
    for depth in range(1, max(1, longest) + 1):
        names = {path: "/".join(path.parts[-depth:]) for path in different}
        if len(set(names.values())) == len(different):
            break
    return [names[path] for path in paths]


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones, through links too, each folder once.

    Raises:
        OSError: the folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        state = os.stat(here)
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        for path in sorted(here.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                waiting.append(path)
            else:
                yield path


class ByName:
    """Files by name, where the form of accented letters is all one.

    A name that is there as it is comes first, then one that only looks the same.
    """

    def __init__(self, names: Iterable[str]):
        self._names = list(names)

    @functools.cached_property
    def _indices(self) -> dict[str, int]:
        looks_like = {composed(name): i for i, name in reversed(list(enumerate(self._names)))}
        return looks_like | {name: i for i, name in reversed(list(enumerate(self._names)))}

    def index(self, name: str) -> int | None:
        """The index of a name; None where there is none."""
        found = self._indices.get(name)
        return self._indices.get(composed(name)) if found is None else found
