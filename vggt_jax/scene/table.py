"""What `predictions.npz` may hold: a table of names, shapes and types, against which files are
checked.

Anybody can have edited or damaged a file, so that nothing in it is believed before it is checked,
and nothing is read that is not in the table.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.layers.scene_attention import AttentionStats
from vggt_jax.scene.reconstruction import LengthUnit, PointSource

_LONGEST_SIDE = 10**6  # Pixels of a photograph.
_FLOATS, _BOOL, _INTEGERS, _TEXT, _BYTES = "f", "b", "iu", "U", "u"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array: its axes by name or length, the kinds of its type as NumPy letters them, and what
    has to be there beside it."""

    axes: tuple[str | int, ...]
    kinds: str
    with_it: tuple[str, ...] = ()


_PIXELS = ("s", "height", "width")
_OF_STATS = tuple(f"attention_{field.name}" for field in dataclasses.fields(AttentionStats))
_LATER = ("attention_error",)  # Missing in files of earlier versions.

TABLE: Mapping[str, Entry] = {
    "schema_version": Entry((), _INTEGERS),
    "images": Entry((*_PIXELS, 3), _FLOATS + "u"),
    "camera_from_world": Entry(("s", 3, 4), _FLOATS),
    "intrinsics": Entry(("s", 3, 3), _FLOATS),
    "depth": Entry(_PIXELS, _FLOATS, ("depth_confidence",)),
    "depth_confidence": Entry(_PIXELS, _FLOATS),
    "depth_edges": Entry(_PIXELS, _BOOL),
    "mask": Entry(_PIXELS, _BOOL),
    "world_points": Entry((*_PIXELS, 3), _FLOATS, ("world_points_confidence",)),
    "world_points_confidence": Entry(_PIXELS, _FLOATS),
    "tracks": Entry(("s", "points", 2), _FLOATS, ("track_visibility", "track_confidence")),
    "track_visibility": Entry(("s", "points"), _FLOATS),
    "track_confidence": Entry(("s", "points"), _FLOATS),
    **{
        name: Entry(("layers", "heads"), _FLOATS, tuple(x for x in _OF_STATS if x not in _LATER))
        for name in _OF_STATS
    },
    # No rows where a scene has no names, or nobody resized it.
    "names": Entry(("named",), _TEXT),
    "original_sizes": Entry(("resized", 2), _INTEGERS),
    "model_from_original": Entry(("resized", 4), _FLOATS),
    "content": Entry(("resized", 4), _INTEGERS),
    "confidence_kind": Entry((), _TEXT),
    "pixel_centre": Entry((), _FLOATS),
    "length_unit": Entry((), _TEXT),
    "best_points": Entry((), _TEXT),
    "provenance": Entry(("characters",), _BYTES),
    "made_from": Entry(("bytes",), _BYTES),
}
"""By name; `write_reconstruction` writes some more, which follow from these and are not read."""

_NEEDED = (
    "images", "names", "confidence_kind", "pixel_centre", "original_sizes", "model_from_original",
    "content",
)  # fmt: skip
_CONFIDENCE_KINDS = ("one_plus_exp", "sigmoid")
_AGAIN = "run infer again"

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]
"""Shape and type by name."""


def check_shapes(found: Shapes, file: str) -> None:
    """Checks what is in a file before it is read.

    Args:
        found: of the arrays that are in the table.
        file: its name, for messages.

    Raises:
        InputError: an array is missing, or of another shape or type.
    """
    if missing := [name for name in _NEEDED if name not in found]:
        raise InputError(
            f"{file}: lacks {', '.join(missing)}, so that `vggt-jax infer` did not write it, or an "
            f"earlier version of it did; {_AGAIN}"
        )
    sizes: dict[str, int] = {}
    for name, entry in TABLE.items():
        if name not in found:
            continue
        shape, dtype = found[name]
        of_type = dtype.kind in entry.kinds and dtype.fields is None
        if name in ("images", "made_from", "provenance") and dtype.kind == "u":
            of_type = dtype.itemsize == 1
        if len(shape) != len(entry.axes) or not of_type:
            raise _not_as_written(file, name, shape, dtype, entry, sizes)
        for axis, length in zip(entry.axes, shape, strict=True):
            if length != (axis if isinstance(axis, int) else sizes.setdefault(axis, length)):
                raise _not_as_written(file, name, shape, dtype, entry, sizes)
        if 0 in shape and name == "images":
            raise InputError(f"{file}: holds no frames; {_AGAIN}")
        for needed in entry.with_it:
            if needed not in found:
                raise InputError(f"{file}: has {name} and lacks {needed}; {_AGAIN}")
    # Points come from both together.
    if "depth" in found and "camera_from_world" in found and "intrinsics" not in found:
        raise InputError(f"{file}: has depth and cameras and lacks intrinsics; {_AGAIN}")
    for axis, name in (("named", "names"), ("resized", "original_sizes")):
        if sizes[axis] not in (0, sizes["s"]):
            raise InputError(f"{file}: {name} is not that of {sizes['s']} frames; {_AGAIN}")


def check_values(arrays: Mapping[str, np.ndarray], file: str) -> None:
    """Checks the values on which the meaning of others depends.

    Raises:
        InputError: one cannot be.
    """
    kind = str(arrays["confidence_kind"])
    if kind not in _CONFIDENCE_KINDS:
        raise InputError(
            f"{file}: confidence_kind={kind[:40]!r} must be one of {', '.join(_CONFIDENCE_KINDS)}; "
            f"{_AGAIN}"
        )
    for name, known in (("length_unit", LengthUnit), ("best_points", PointSource)):
        if name in arrays and (value := str(arrays[name])) not in get_args(known):
            names = ", ".join(get_args(known))
            raise InputError(f"{file}: {name}={value[:40]!r} must be one of {names}; {_AGAIN}")
    if not 0 <= arrays["pixel_centre"] < 1:
        raise InputError(
            f"{file}: pixel_centre={arrays['pixel_centre']} must lie in [0, 1); {_AGAIN}"
        )
    _, height, width, _ = arrays["images"].shape
    sizes, scales = arrays["original_sizes"], arrays["model_from_original"]
    top, bottom, left, right = arrays["content"].T
    is_right = {
        "original_sizes": (sizes >= 1) & (sizes <= _LONGEST_SIDE),
        "model_from_original": np.isfinite(scales) & ((scales > 0) | [False, False, True, True]),
        "content": (0 <= top) & (top < bottom) & (bottom <= height)
        & (0 <= left) & (left < right) & (right <= width),
    }  # fmt: skip
    for name, rows in is_right.items():
        if not rows.all():
            raise InputError(f"{file}: {name} holds values that no frame can have; {_AGAIN}")


def _not_as_written(
    file: str,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    entry: Entry,
    sizes: Mapping[str, int],
) -> InputError:
    frames = sizes.get("s", 0)
    by_frame = len(shape) == len(entry.axes) > 0 and entry.axes[0] in ("s", "named", "resized")
    if by_frame and shape[0] != frames and dtype.kind in entry.kinds and dtype.fields is None:
        return InputError(f"{file}: {name} is not that of {frames} frames; {_AGAIN}")
    axes = ", ".join(str(sizes.get(x, x) if isinstance(x, str) else x) for x in entry.axes)
    kinds: dict[str, Any] = {
        "f": "floating-point numbers", "u": "bytes", "b": "booleans", "iu": "integers", "U": "text"
    }  # fmt: skip
    wanted = kinds.get(entry.kinds, "numbers")
    return InputError(
        f"{file}: {name} is {dtype.name} of shape {list(shape)}, and must be {wanted} of shape "
        f"[{axes}]; {_AGAIN}"
    )
