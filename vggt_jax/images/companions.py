"""What goes with photographs and is none: masks, depth, normals, labels; files about them."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath

# Words in names of files, as data sets and programs that estimate them write them.
_OF_PHOTOGRAPHS = frozenset(
    "color colors colour colours rgb image img photo frame original jpg jpeg png tif tiff".split()
)
_OF_OTHERS = frozenset(
    "albedo alpha annotation annotations conf confidence depth depthmap depths disp disparity edge "
    "edges flow groundtruth gt heatmap heatmaps infrared instance instances ir label labels mask "
    "masks matte mattes metallic normal normals occlusion panoptic roughness seg segm segmentation "
    "semantic semantics silhouette silhouettes specular thumb thumbnail thumbnails trimap trimaps "
    "uncertainty".split()
)

# What programs write about all photographs of a folder: `vggt-jax infer`, nerfstudio and NeRF,
# LLFF, and COLMAP, models of several versions, in text and binary, and its project.
_OF_A_FOLDER = (
    "cameras.json",
    "transforms.json",
    "transforms_*.json",
    "poses_bounds.npy",
    *(
        f"{name}.{ending}"
        for name in ("cameras", "images", "points3d", "frames", "rigs")
        for ending in ("txt", "bin")
    ),
    "database.db*",
    "project.ini",
)


def is_about_photographs(name: str, photographs: Iterable[str]) -> bool:
    """Whether a file that is no picture tells about photographs beside it: where their cameras
    are, or notes to one of them, such as `a.xmp`, `a.jpg.json` or `frame-01.pose.txt` with
    `frame-01.color.png`."""
    if any(fnmatch.fnmatchcase(name.casefold(), pattern) for pattern in _OF_A_FOLDER):
        return True
    of_photographs = {start for other in photographs for start in _without_endings(other)}
    return not of_photographs.isdisjoint(_without_endings(name))


def _without_endings(name: str) -> list[str]:
    """A name without its last ending, its last two, and so on."""
    parts = name.casefold().split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts))]


def found_among(names: Sequence[str], matches: Callable[[str, Sequence[str]], bool]) -> str | None:
    """What to say where some of the images of a folder go with others of them; None if none do.

    `frame-01.depth.png` goes with `frame-01.color.png`, `a_mask.png` with `a.jpg`, `depth01.png`
    with `frame01.jpg`, `r_0_normal_0001.png` with `r_0.png`; a word alone says nothing.

    Args:
        names: of the files.
        matches: `files.matches`, to prove the pattern that is proposed.
    """
    parts = {name: _parts(PurePath(name).stem) for name in names}
    keys = {name: tuple(x for x in parts[name] if x not in _OF_PHOTOGRAPHS) for name in names}
    word = {name: next((x for x in parts[name] if x in _OF_OTHERS), None) for name in names}
    photographs = [name for name in names if word[name] is None]
    by_key = {keys[name]: name for name in reversed(photographs)}
    pairs = {}
    folded = {name.casefold(): name for name in reversed(names)}
    for name in names:
        # COLMAP's name of a mask: that of the whole file with another ending behind it.
        if (stem := PurePath(name).stem.casefold()) in folded:
            pairs[name] = folded[stem]
        if name in pairs or (of := word[name]) is None:
            continue
        at = parts[name].index(of)
        without = tuple(x for x in keys[name] if x != of)
        before = tuple(x for x in parts[name][:at] if x not in _OF_PHOTOGRAPHS)
        partner = by_key.get(without) or (before and by_key.get(before))
        if partner:
            pairs[name] = partner
    if not pairs:
        return None
    first, partner = next(iter(pairs.items()))
    patterns = _patterns(names, set(pairs), {of for name in pairs if (of := word[name])}, matches)
    how = " and ".join(f"pattern={pattern!r}" for pattern in patterns)
    return (
        f"{len(pairs)} of {len(names)} images go with others, as {first} with {partner}, and are "
        f"no photographs; take the photographs with {how}, or move the others"
    )


def _parts(stem: str) -> list[str]:
    """The words and numbers of a name."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    return re.findall(r"[0-9]+|[^\W\d_]+", spaced.casefold())


def _patterns(
    names: Sequence[str],
    others: set[str],
    words: set[str],
    matches: Callable[[str, Sequence[str]], bool],
) -> list[str]:
    """The fewest patterns that take all names but the others."""
    wanted = {name for name in names if name not in others}

    def does(patterns: list[str]) -> bool:
        return {name for name in names if matches(name, patterns)} == wanted

    # What the photographs alone have in common, then what the others have.
    for proposed, most in (
        ({f"*{PurePath(name).suffix}" for name in wanted}, 3),
        ({f"*{_end(name)}" for name in wanted}, 1),
        ({f"{_beginning(name)}*" for name in wanted}, 1),
        ({f"!*{_end(name)}" for name in others}, 3),
        ({f"!*{_as_written(word, others)}*" for word in words}, 5),
    ):
        if len(proposed) <= most and does(sorted(proposed)):
            return sorted(proposed)
    return sorted("!" + re.sub(r"([][*?])", r"[\1]", name) for name in others)


def _end(name: str) -> str:
    """What follows the last number or name: `.color.png`, `_mask.png`, `.jpg`."""
    ending = re.search(r"(?<=.)([-_. ][^\W\d_]+|(?<=\d)[^\W\d_]+)?\.[^.]+$", name)
    return ending[0] if ending else name


def _beginning(name: str) -> str:
    """The letters that a name begins with."""
    found = re.match(r"[^\W\d_]*", name)
    return found[0] if found else ""


def _as_written(word: str, names: set[str]) -> str:
    for name in sorted(names):
        if (at := name.casefold().find(word)) >= 0:
            return name[at : at + len(word)]
    return word
