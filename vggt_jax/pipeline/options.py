"""How scenes are reconstructed: every option, once, with its default and what it must satisfy."""

import dataclasses
import functools
import inspect
import math
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, get_args, overload

import numpy as np
from jax.typing import ArrayLike, DTypeLike

from vggt_jax.errors import InputError
from vggt_jax.images.files import as_patterns
from vggt_jax.images.loading import Mode
from vggt_jax.images.masks import Background
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models.base import CameraSource, SceneModel
from vggt_jax.pipeline.placing import Devices, chosen_devices
from vggt_jax.pipeline.windows.spans import check_window
from vggt_jax.scene import calibration
from vggt_jax.scene.priors import KINDS, PriorKind, Priors
from vggt_jax.trunk.attention.plan import attention_of

_NOT_OF_RESULTS = (
    "model", "pad_frames", "devices", "window_folder", "memory_check", "progress"
)  # fmt: skip

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """How photographs become a scene; the keyword arguments of `infer` and `plan`.

    An option that the command line takes by itself is a field here and nowhere else.

    Raises:
        InputError: a value cannot be, or two say the same in different ways.
    """

    model: SceneModel | str | os.PathLike | None = None
    """A model, or what `load_model` takes; load it once if you call this often. None is the small
    model that ships with the package, and is said once."""
    config: str | os.PathLike | None = None
    """JSON configuration of an official checkpoint that is not of a released size."""
    attention: SceneAttention | str | os.PathLike = Dense()
    """How the tokens of all frames attend to each other: `Dense()`, or `Sampled(...)`,
    `BlockSparse(...)` or an `AttentionPlan` (or its file) for many photographs; with few tokens it
    warns and is dense (their `min_tokens`). "auto" samples where that is faster than dense, the
    model that ships by its own plan, and says what it took."""
    max_error: float | None = None
    """Sample more keys until the sampling error (`AttentionStats.error`, the mean over heads) of no
    layer is above this. Each try is a run, with four times the keys for half the error."""
    mode: Mode | None = None
    """How photographs come to size: crop keeps the width and cuts tall ones, pad keeps everything
    and fills with white, budget stretches all to one size of about the shape of the first, area and
    cover cut all to one size of about their mean shape, longest makes the longer side of each as
    long and cuts all to the smallest. Needed only if their shapes differ; otherwise the model's
    own, which its checkpoint names, or crop (VGGT), budget (Pi3), cover (MapAnything) or longest
    (Depth Anything 3)."""
    size: int | tuple[int, int] | None = None
    """Side in pixels to resize to, a multiple of the patch size; with budget and area, the side of
    the square of as many pixels; with longest, the longer side, of any length. By default the
    model's own: 518 for VGGT-1B, 255,000 pixels for Pi3, 504 for Depth Anything 3, and for models
    trained here what their checkpoint says."""
    fps: float | None = None
    """Of a video, frames to take a second, each the sharpest around its place; 1 by default."""
    frames: int | None = None
    """Of a video, how many frames to take in all, instead of --fps."""
    pattern: str | Sequence[str] = ()
    """Of a folder, the photographs to take, such as '*.color.png'; with ! before it, what to leave
    out, such as '!*_mask.png'. May be repeated."""
    recursive: bool = False
    """Of a folder, take the photographs of all folders in it, too."""
    stretch: bool = False
    """Stretch the range of grey that the photographs use to all of it, the same for all of a scene:
    for cameras of 12 bits in 16, thermal ones, and floats."""
    reference: int | str = 0
    """For VGGT, the photograph whose camera is the world, by index or name. The model sees it
    first; results are in the order given."""
    query_points: ArrayLike | Sequence | None = None
    """[m 2] pixels (x, y) of the reference frame, after resizing, to follow through all frames."""
    query_pixels: ArrayLike | Sequence | None = None
    """The same in the pixels of the reference photograph, instead of `query_points`."""
    masks: Any = None
    """Which pixels may be used, such as a folder of masks; see `vggt_jax.masks.load_masks`."""
    background: Background | Collection[Background] = ()
    """What to leave out by its colour: "white", "black", "sky"."""
    mask_edges: bool = False
    """Leave out points at jumps of depth for VGGT, too, as it is always done for Pi3."""
    multiview_confidence: bool = False
    """In place of the predicted confidences, the share of the views that see a point which agree on
    its depth: slow for many frames, and best in metres; see `scene.view_agreement`."""
    focal: float | None = None
    """Known focal length in pixels of the photographs, the principal point in their middle."""
    intrinsics: ArrayLike | str | os.PathLike | None = None
    """Known ones, [3 3] or [s 3 3] in the pixels of the photographs, or a file like cameras.json
    with those of each, in place of the predicted ones; see `with_intrinsics`."""
    known_distance: tuple[int | str, int | str, float] | None = None
    """(a, b, length): how far the cameras of two photographs (by index or name) are from each
    other. The scene comes in these units."""
    known_depth: tuple[int | str, float, float, float] | None = None
    """(photograph, x, y, depth): how far along the viewing axis lies what this pixel of a
    photograph (by index or name) shows. The scene comes in these units."""
    priors: Priors | str | os.PathLike | None = None
    """What is already known, for a model that takes it: in the pixels of the model's frames, or a
    file or folder that tells it of photographs by their names, see `read_priors`."""
    use: tuple[PriorKind, ...] = ()
    """Which of what is known to tell the model: poses, intrinsics, depth; all by default."""
    metric: bool = False
    """The lengths of what is known are metres, where its file does not say so itself."""
    camera_source: CameraSource = "head"
    """Where cameras come from: head, the model's own for cameras, or rays, those that fit best to
    the rays of pixels which Depth Anything 3 predicts: principal points are predicted then, too."""
    compute_dtype: DTypeLike | None = None
    """Of matrix products; by default bfloat16 on a GPU and float32 elsewhere."""
    pad_frames: bool = True
    """Pad the frames to one of few numbers, at most a sixteenth more and none up to 32, so that
    scenes of similar length share a compiled program. Padding changes no result."""
    devices: Devices = None
    """How many devices divide the frames of a scene between them, or which; the model is copied to
    each, and values are those of one device but for rounding. By default one."""
    window: int | None = None
    """Reconstruct a scene of more frames than this in overlapping windows of so many, joined into
    one: for more frames than fit, or than the model is good for; see docs/windows.md."""
    overlap: int | None = None
    """Frames that neighbouring windows share, by which they are joined; a third of a window by
    default."""
    loop_closure: bool = False
    """Of a scene in windows, find places that were seen before, and close the loops."""
    window_folder: str | os.PathLike | None = None
    """Where windows lie until the scene is whole, for a run that is killed to go on there; a
    temporary folder by default."""
    memory_check: bool = True
    """Refuse to start if the estimate exceeds the free memory."""
    progress: bool = False
    """Show progress bars, of photographs that are read, and of frames that are done if there are
    many (64 of 518x518)."""

    def __post_init__(self):
        for name in ("background", "use"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))
        object.__setattr__(self, "pattern", as_patterns(self.pattern))
        if unknown := [x for x in self.background if x not in get_args(Background)]:
            known = ", ".join(get_args(Background))
            raise InputError(f"background={unknown[0]!r} is unknown; use some of {known}")
        if self.camera_source not in get_args(CameraSource):
            known = ", ".join(get_args(CameraSource))
            raise InputError(f"camera_source={self.camera_source!r} is unknown; use one of {known}")
        for one, other in (
            ("focal", "intrinsics"),
            ("known_distance", "known_depth"),
            ("query_points", "query_pixels"),
        ):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise InputError(f"{one} and {other} say the same in two ways; give one of them")
        if self.attention != "auto":
            object.__setattr__(self, "attention", attention_of(self.attention))
        if self.max_error is not None and not 0 < self.max_error < math.inf:
            raise InputError(f"max_error={self.max_error:g} must be positive")
        if self.focal is not None and not 0 < self.focal < math.inf:
            raise InputError(f"focal={self.focal:g} must be positive")
        for name in ("known_distance", "known_depth"):
            value = getattr(self, name)
            if value is not None and not 0 < float(value[-1]) < math.inf:
                raise InputError(f"{name}={value} must end in a positive length")
        if unknown := [kind for kind in self.use if kind not in KINDS]:
            raise InputError(f"use={unknown[0]!r} is unknown; use some of {', '.join(KINDS)}")
        for name in ("use", "metric"):
            if getattr(self, name) and self.priors is None:
                raise InputError(f"{name}={getattr(self, name)} is said of priors; give some")
        self._check_windows()
        chosen_devices(self.devices)
        if self.config is not None and not isinstance(self.model, str | os.PathLike):
            raise InputError(f"config={self.config} is for an official checkpoint; name its model")
        if isinstance(self.intrinsics, str | os.PathLike) and "{scene}" not in str(self.intrinsics):
            calibration.intrinsics_by_name(self.intrinsics)

    def _check_windows(self) -> None:
        if self.window is None:
            for name in ("overlap", "loop_closure", "window_folder"):
                if getattr(self, name) not in (None, False):
                    raise InputError(f"{name}={getattr(self, name)} is of windows; give window")
            return
        assert self.shared is not None
        check_window(self.window, self.shared)
        if self.priors is not None:
            raise InputError(
                f"priors cannot be used with window={self.window}: each window has a world of its "
                "own; leave one out"
            )

    @property
    def shared(self) -> int | None:
        """How many frames neighbouring windows share; None without windows."""
        if self.window is None:
            return None
        return max(self.window // 3, 1) if self.overlap is None else self.overlap

    def without_windows(self) -> "Options":
        """These options for frames that are reconstructed at once."""
        return dataclasses.replace(
            self, window=None, overlap=None, loop_closure=False, window_folder=None
        )

    @property
    def scene_attention(self) -> SceneAttention:
        """`attention` as a value, on the default device."""
        return attention_of(self.attention)

    def of_scene(self, name: str) -> "Options":
        """These options for one of many scenes: its name in place of "{scene}" in paths, and no
        progress of its own."""
        paths = {
            field: Path(str(value).replace("{scene}", name))
            for field in ("masks", "intrinsics", "priors")
            if isinstance(value := getattr(self, field), str | os.PathLike)
        }
        return dataclasses.replace(self, progress=False, **paths)

    def of_results(self) -> dict[str, Any]:
        """Those that change a result, by name, as JSON: two runs that agree give the same files."""
        as_text = {
            field.name: _as_json(getattr(self, field.name))
            for field in dataclasses.fields(Options)
            if field.name not in _NOT_OF_RESULTS
        }
        compute_dtype = self.compute_dtype and np.dtype(self.compute_dtype).name
        attention = repr(self.scene_attention)
        if self.attention == "auto":  # Which a model may share out over its layers.
            attention = f"auto: {attention}"
        return as_text | {"compute_dtype": compute_dtype, "attention": attention}


def _as_json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, Priors):
        return value.fingerprint()
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    if isinstance(value, Collection):
        return [_as_json(part) for part in value]
    return repr(value)


class _Decorator(Protocol[P]):
    @overload
    def __call__(self, function: Callable[[A, Any], R], /) -> Callable[Concatenate[A, P], R]: ...
    @overload
    def __call__(
        self, function: Callable[[A, B, Any], R], /
    ) -> Callable[Concatenate[A, B, P], R]: ...
    def __call__(self, function: Callable[..., R], /) -> Callable[..., R]: ...


def takes(kind: Callable[P, Any]) -> _Decorator[P]:
    """Makes a function whose last argument is options one with the options as keyword arguments.

    Args:
        kind: `Options`, or a class derived from it.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        signature = inspect.signature(function)
        *given, _ = signature.parameters.values()
        names = [parameter.name for parameter in given]

        @functools.wraps(function)
        def call(*args, **fields):
            if len(args) > len(names):
                raise TypeError(
                    f"{function.__name__}() takes {', '.join(names)} by place, and options by name"
                )
            by_name = {name: fields.pop(name) for name in names[len(args) :] if name in fields}
            make: Callable[..., Any] = kind
            return function(*args, **by_name, options=make(**fields))

        options = inspect.signature(kind).parameters.values()
        call.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
            parameters=[*given, *options]
        )
        return call

    return decorate  # pyright: ignore[reportReturnType]
