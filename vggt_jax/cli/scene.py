"""Photographs, and how to reconstruct them: the options of every command that takes photographs."""

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tqdm
import tyro

from vggt_jax import weights
from vggt_jax.cli.attending import Attending, OptionalFloat, OptionalPath, OptionalText
from vggt_jax.cli.generated import Flag, options_of, taken
from vggt_jax.errors import InputError
from vggt_jax.files import RESULTS
from vggt_jax.images.files import as_patterns, scene_folder
from vggt_jax.images.frames import Frames
from vggt_jax.images.masks import Background
from vggt_jax.pipeline.options import Options
from vggt_jax.scene import calibration

PointSource = Annotated[
    Literal["depth", "head"] | None, tyro.conf.arg(metavar="{depth,head}", help_behavior_hint="")
]
# Spellings of the official scripts, and what they are called here.
SPELLINGS = {
    "image-dir": "image-folder",
    "scene-dir": "image-folder",
    "data-path": "image-folder",
    "ckpt": "model",
    "checkpoint": "model",
    "mask-white-bg": "mask-white",
    "mask-black-bg": "mask-black",
    "output": "out",
    "output-dir": "out",
    "output-path": "out",
    "save-path": "out",
    "conf-threshold": "confidence-percentile",
    "conf-thres": "confidence-percentile",
    "conf-thres-value": "min-confidence",
    "conf-thresh": "min-confidence",
    "depth-conf-thresh": "min-confidence",
    "camera-type": "camera-model",
    "use-ba": "bundle-adjustment",
    "max-reproj-error": "max-reprojection-error",
    "vis-thresh": "min-visibility",
}


# Fields of `Options` that are text on the command line, or several options.
WRITTEN_OTHERWISE = (
    "attention",
    "query_points",
    "query_pixels",
    "background",
    "intrinsics",
    "known_distance",
    "known_depth",
    "progress",
)

# Options of a scene that apply to results of an earlier run, too.
_FOR_RESULTS = (
    "sources",
    "image_folder",
    "quiet",
    "masks",
    "mask_white",
    "mask_black",
    "mask_sky",
    "mask_edges",
    "multiview_confidence",
    "focal",
    "intrinsics",
    "known_distance",
    "known_depth",
    "points",
    "use_point_map",
    "confidence_percentile",
    "min_confidence",
)


def in_our_spelling(argv: Sequence[str]) -> list[str]:
    """Arguments with the options of the official scripts under their names here."""
    result = []
    for i, argument in enumerate(argv):
        if argument == "--":
            return [*result, *argv[i:]]
        if argument.startswith("--"):
            name, *value = argument[2:].split("=", 1)
            name = name.replace("_", "-")
            argument = "=".join([f"--{SPELLINGS.get(name, name)}", *value])
        result.append(argument)
    return result


@dataclasses.dataclass(frozen=True, kw_only=True)
@options_of(
    Options,
    leave_out=("attention", "query_pixels", "background", "progress"),
    as_types={
        "config": Path | None,
        "size": int | None,
        "reference": str,
        "pattern": tyro.conf.UseAppendAction[tuple[str, ...]],
        "compute_dtype": Literal["float32", "bfloat16"] | None,
        "devices": int | None,
        "window_folder": Path | None,
    },
)
class Scene(Attending):
    """Photographs or a video, and how to reconstruct the scene that they show.

    Fields of `Options` that it does not have itself are added to it.
    """

    if TYPE_CHECKING:
        pattern: tuple[str, ...]
        recursive: bool

    sources: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="[PATH ...]", help_behavior_hint=""),
    ] = ()
    """A folder, image files in the order to use, or a video."""
    image_folder: OptionalPath = None
    """The same as naming one folder or video. A folder without photographs that has a folder images
    stands for that one."""
    model: OptionalText = None
    """Checkpoint: ours, an official .safetensors or .pt, or a hub name such as facebook/VGGT-1B or
    yyfz233/Pi3. By default the small model that ships with the project, for trying things out."""
    masks: OptionalPath = None
    """Folder of masks, one for each photograph and of the same name (a.jpg: a.png or a.jpg.png).
    White is used, black left out."""
    mask_white: Flag = False
    """Leave out white background."""
    mask_black: Flag = False
    """Leave out black background."""
    mask_sky: Flag = False
    """Leave out what has the colour of sky, from the upper edge down; for scenes outdoors."""
    intrinsics: OptionalText = None
    """Known intrinsics: fx,fy,cx,cy in pixels of the photographs, or a file like cameras.json with
    those of each."""
    priors: OptionalPath = None
    """What is already known, for a model that takes it, such as Pi3X: a folder of results or its
    cameras.json, a COLMAP model, a transforms.json of nerfstudio, or an .npz file of arrays."""
    use: Annotated[
        tuple[Literal["poses", "intrinsics", "depth"], ...], tyro.conf.arg(help_behavior_hint="")
    ] = ()
    """Which of what is known to tell the model; all by default."""
    known_distance: OptionalText = None
    """A,B,LENGTH: how far the cameras of two photographs (by index or name) are from each other.
    The scene comes in these units."""
    known_depth: OptionalText = None
    """PHOTOGRAPH,X,Y,DEPTH: how far along the viewing axis lies what this pixel of a photograph (by
    index or name) shows. The scene comes in these units."""
    query_points: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A point x,y of the first photograph (or of --reference), in its own pixels, to track through
    all; may be repeated."""
    points: PointSource = None
    """Make points from depth and cameras, which is VGGT's default and more accurate, or from the
    model's point head, which is so for Pi3."""
    use_point_map: Flag = False
    """The same as --points head."""
    confidence_percentile: OptionalFloat = None
    """Leave out this percentage of the points, the least confident; by default 25 for VGGT, or
    0 with --min-confidence, and 0 for Pi3."""
    min_confidence: OptionalFloat = None
    """Leave out points with a confidence not above this. Its scale is the model's: from 1 without
    bound for VGGT, where nothing is left out by default, and [0, 1] for Pi3, where it is 0.1."""
    allow_single_image: Flag = False
    """Reconstruct a single photograph, which the models were not trained for."""
    quiet: Flag = False
    """Print nothing but warnings and errors."""

    def results(self) -> Path | None:
        """The folder of results, or file in it, that was named; None if photographs were.

        Raises:
            InputError: nothing was named, or in both ways.
        """
        path = self.named()[0]
        return path if path.name == RESULTS or (path / RESULTS).is_file() else None

    def paths(self) -> tuple[Path, ...]:
        """The photographs that were named: one folder, one video, or image files.

        Raises:
            InputError: nothing was, or in both ways.
        """
        paths = self.named()
        if len(paths) == 1 and os.path.isdir(paths[0]):
            found = scene_folder(paths[0], as_patterns(self.pattern), recursive=self.recursive)
            return (found.path,)
        return paths

    def named(self) -> tuple[Path, ...]:
        """The paths that were named.

        Raises:
            InputError: none were, or in both ways.
        """
        if self.image_folder is not None and self.sources:
            raise InputError(
                f"photographs are named twice, {self.sources[0]} and --image-folder "
                f"{self.image_folder}; name them once"
            )
        paths = self.sources if self.image_folder is None else (self.image_folder,)
        if not paths:
            raise InputError("no images given; name a folder, a video or image files")
        return paths

    def inputs(self, sources: Sequence[Path]) -> list[Path]:
        """Every file and folder that is read, as far as it exists: photographs or results, and what
        options name."""
        names = ("model", "config", "masks", "intrinsics", "priors", "attention")
        others = (vars(self).get(name) for name in names)
        named = (Path(path) for path in others if path not in (None, "dense", "auto"))
        paths = [*sources, *named]
        return [path for path in paths if os.path.lexists(path)]

    def options(self) -> Options:
        """How photographs are reconstructed.

        Raises:
            InputError: a value cannot be, or two contradict each other.
        """
        attention = self.scene_attention()
        pixels = [_numbers("query-points", text, "x,y") for text in self.query_points]
        chosen: dict[Background, bool] = {
            "white": self.mask_white,
            "black": self.mask_black,
            "sky": self.mask_sky,
        }
        background: tuple[Background, ...] = tuple(
            name for name, is_chosen in chosen.items() if is_chosen
        )
        return Options(
            **taken(self, Options, *WRITTEN_OTHERWISE),
            attention=attention,
            query_pixels=pixels or None,
            background=background,
            intrinsics=_intrinsics(self.intrinsics),
            known_distance=_known_distance(self.known_distance),
            known_depth=_known_depth(self.known_depth),
            progress=sys.stderr.isatty() and not self.quiet,
        )

    def say(self, message: str) -> None:
        """Tells a person what happens, on the stream of errors, unless they want it quiet."""
        if not self.quiet:
            tqdm.tqdm.write(message, file=sys.stderr)

    def point_source(self) -> Literal["depth", "head"] | None:
        """Where points shall come from; None for the best that the model has.

        Raises:
            InputError: two options contradict each other.
        """
        if self.use_point_map and self.points == "depth":
            raise InputError("--use-point-map contradicts --points depth; give one of them")
        return "head" if self.use_point_map else self.points

    @property
    def model_name(self) -> str:
        """What messages call the model."""
        return weights.NAME if self.model is None else self.model

    def check_of_results(self) -> None:
        """Finds what is wrong with the options that apply to results as well.

        Raises:
            InputError: something is.
        """
        self.point_source()
        percentile = self.confidence_percentile
        if percentile is not None and not 0 <= percentile < 100:
            raise InputError(f"--confidence-percentile={percentile:g} must lie in [0, 100)")
        if self.min_confidence is not None and not self.min_confidence >= 0:
            raise InputError(f"--min-confidence={self.min_confidence:g} must be at least 0")

    def check_of_frames(self, frames: Frames) -> None:
        """Finds what is wrong with other options once photographs are read.

        Raises:
            InputError: something is.
        """
        del frames

    def changed_for_photographs(self) -> list[str]:
        """The options with a value that only a reconstruction could honour."""
        return [name for name in self.changed() if name not in _FOR_RESULTS]

    def changed(self, *names: str) -> list[str]:
        """The options among these, or among all of a scene, that have no default value."""
        fields = {field.name: field.default for field in dataclasses.fields(Scene)}
        return [name for name in names or fields if getattr(self, name) != fields[name]]


def _intrinsics(text: str | None) -> np.ndarray | str | None:
    """A file, or a matrix from four numbers."""
    if text is None or Path(text).is_file() or "{scene}" in text:
        return text
    form = "fx,fy,cx,cy, or a file that exists"
    focal_x, focal_y, x, y = numbers = _numbers("intrinsics", text, form)
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"--intrinsics {text}: all four must be finite")
    if not min(focal_x, focal_y) > 0:
        raise InputError(f"--intrinsics {text}: focal lengths must be positive")
    return calibration.pinhole((focal_x, focal_y), (x, y))


def _known_distance(text: str | None) -> tuple[str, str, float] | None:
    if text is None:
        return None
    first, second, length = _split("known-distance", text, "A,B,LENGTH")
    (distance,) = _numbers("known-distance", length, "LENGTH", positive=True)
    return first, second, distance


def _known_depth(text: str | None) -> tuple[str, float, float, float] | None:
    if text is None:
        return None
    frame, of_x, of_y, length = _split("known-depth", text, "PHOTOGRAPH,X,Y,DEPTH")
    x, y = _numbers("known-depth", f"{of_x},{of_y}", "X,Y")
    (depth,) = _numbers("known-depth", length, "DEPTH", positive=True)
    return frame, x, y, depth


def _split(option: str, text: str, form: str) -> list[str]:
    parts = text.split(",")
    if len(parts) != form.count(",") + 1:
        raise InputError(f"--{option}: {text!r} must be {form}")
    return parts


def _numbers(option: str, text: str, form: str, *, positive: bool = False) -> tuple[float, ...]:
    numbers: tuple[float, ...] = ()
    with contextlib.suppress(ValueError):
        numbers = tuple(map(float, text.split(",")))
    # In "fx,fy,cx,cy, or a file" the words behind a space are no numbers.
    if len(numbers) != form.partition(", ")[0].count(",") + 1:
        what = f"{form} in pixels" if form in ("x,y", "X,Y") else form
        raise InputError(f"--{option}: {text!r} must be {what}")
    if positive and any(not 0 < number < float("inf") for number in numbers):
        raise InputError(f"--{option}: {form} {text} must be positive")
    return numbers
