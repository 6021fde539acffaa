"""`vggt-jax export`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vggt_jax.cli.exporting import FORMATS, as_json, photographs_beside
from vggt_jax.cli.generated import options_of
from vggt_jax.cli.printed import Json, print_outcome
from vggt_jax.cli.scene import Scene
from vggt_jax.errors import InputError
from vggt_jax.export.format import (
    OPTIONS_OF_EVERY_FORMAT,
    ExportOptions,
    format_named,
    formats_with,
)
from vggt_jax.files import check_not_input
from vggt_jax.images.frames import Frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand(Scene):
    """What `vggt-jax export` does; `Export` has the options of exports besides."""

    if TYPE_CHECKING:
        format: str
        images: Path | None
        tracks: str

    out: Path
    """File or folder to write."""
    json: Json = False

    def run(self) -> None:
        from vggt_jax.cli.reconstruct_files import read_or_reconstruct
        from vggt_jax.export import write_export

        # What is wrong shows before the long work.
        self.check_of_results()
        options = self._options()
        sources = self.paths() if self.results() is None else self.named()
        photographs = () if self.images is None else (self.images,)
        check_not_input(self.out, self.inputs((*sources, *photographs)))
        options.check_place(self.out)
        report = write_export(read_or_reconstruct(self), self.out, options)
        print_outcome(self, str(report), as_json(report))

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
        return None if is_result else photographs_beside(self, self.format)


def _with_formats(name: str, text: str) -> str:
    """The help of an option, which names the formats that it is for."""
    is_general = name in OPTIONS_OF_EVERY_FORMAT
    return f"{text}." if is_general else f"{text} ({', '.join(formats_with(name))})."


@dataclasses.dataclass(frozen=True, kw_only=True)
@options_of(ExportOptions, as_types={"images": Path | None}, describe=_with_formats)
class Export(ExportCommand):
    """Write a scene for other programs: a folder of results, or photographs, reconstructed first.

    vggt-jax export scene/ --format glb --out scene.glb
    vggt-jax export scene/ --format colmap --images photographs/ --out colmap
    vggt-jax export photographs/ --model facebook/VGGT-1B --format nerfstudio --out nerf
    """

    format: Annotated[
        str,
        tyro.conf.arg(
            metavar=f"{{{','.join(FORMATS)}}}",
            help="; ".join(f"{name}: {what}" for name, what in FORMATS.items()) + ".",
        ),
    ]
