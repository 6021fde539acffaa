"""`vggt-jax export`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from vggt_jax.cli.generated import Flag
from vggt_jax.cli.scene import OptionalFloat, OptionalInt, OptionalPath, Scene
from vggt_jax.errors import InputError
from vggt_jax.export.format import (
    OPTIONS_OF_EVERY_FORMAT,
    ExportOptions,
    format_named,
    format_names,
    formats_with,
)
from vggt_jax.export.images import Images
from vggt_jax.images.frames import Frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand(Scene):
    """Write a scene for other programs: a folder of results, or photographs, reconstructed first.

    vggt-jax export scene/ --format glb --out scene.glb
    vggt-jax export scene/ --format colmap --images photographs/ --out colmap
    vggt-jax export photographs/ --model facebook/VGGT-1B --format nerfstudio --out nerf
    """

    if TYPE_CHECKING:  # `Export` has these and all the others, made from `ExportOptions`.
        format: str
        images: Path | None
        tracks: str

    out: Path
    """File or folder to write."""

    def run(self) -> None:
        from vggt_jax.cli.reconstruct_files import read_or_reconstruct
        from vggt_jax.export import write_export

        # What is wrong shows before the long work.
        self.check_of_results()
        options = self._options()
        options.check_place(self.out)
        print(write_export(read_or_reconstruct(self), self.out, options))

    def check_of_frames(self, frames: Frames) -> None:
        super().check_of_frames(frames)
        self._options().check_frames(frames)

    def _options(self) -> ExportOptions:
        if (
            self.format in formats_with("tracks")
            and self.tracks == "head"
            and self.results() is None
            and not self.query_points
        ):
            raise InputError(
                "--tracks head: needs --query-points to track through the photographs; give them, "
                "or take tracks from depth"
            )
        options = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(ExportOptions)
        }
        return ExportOptions(
            **options | {"images": self._photographs(), "points": self.point_source()}
        )

    def _photographs(self) -> Path | tuple[Path, ...] | None:
        """What to put beside the scene, where that is of use."""
        from vggt_jax.images.video import is_video

        has_place = "images" in format_named(self.format).options
        is_result = self.results() is not None
        if self.images is not None:
            if not is_result:
                raise InputError(
                    f"--images {self.images}: is for results, and {self.paths()[0]} is "
                    "reconstructed now; leave it out"
                )
            if not has_place:
                raise InputError(
                    f"--images {self.images}: {self.format} has no place for "
                    "photographs; leave it out"
                )
            return self.images
        if not has_place or is_result:
            return None
        paths = self.paths()
        is_one = self.changed("fps", "frames") or is_video(paths[0]) or paths[0].is_dir()
        return paths[0] if is_one else paths


def _fields() -> list[tuple[str, Any, Any]]:
    """The annotated options of exports, as fields of a command."""
    formats = {name: format_named(name).description for name in format_names()}
    choice = tyro.conf.arg(
        metavar=f"{{{','.join(formats)}}}",
        help="; ".join(f"{name}: {what}" for name, what in formats.items()) + ".",
    )
    fields: list[tuple[str, Any, Any]] = [("format", Annotated[str, choice], dataclasses.field())]
    hints = get_type_hints(ExportOptions, include_extras=True)
    for field in dataclasses.fields(ExportOptions):
        if get_origin(hints[field.name]) is not Annotated:
            continue
        kind, text = get_args(hints[field.name])
        if field.name not in OPTIONS_OF_EVERY_FORMAT:
            text = f"{text} ({', '.join(formats_with(field.name))})"
        # A union or a switch is shown as all commands show it.
        shown = {
            Images | None: OptionalPath,
            int | None: OptionalInt,
            float | None: OptionalFloat,
        }.get(kind, Flag if field.default is False else kind)
        arg = tyro.conf.arg(help=f"{text}.")
        fields.append((field.name, Annotated[shown, arg], dataclasses.field(default=field.default)))
    return fields


if TYPE_CHECKING:
    Export = ExportCommand
else:
    Export = dataclasses.make_dataclass(
        "Export", _fields(), bases=(ExportCommand,), frozen=True, kw_only=True
    )
    Export.__doc__ = ExportCommand.__doc__
