"""`vggt-jax frames`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tqdm
import tyro

from vggt_jax.cli.attending import OptionalFloat, OptionalInt
from vggt_jax.cli.generated import Flag
from vggt_jax.cli.printed import Json, print_outcome
from vggt_jax.errors import printable


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractFrames:
    """Write the sharpest frames of a video as photographs, evenly spread over its length.

    vggt-jax frames clip.mp4 --out frames
    vggt-jax frames clip.mp4 --frames 50 --format jpg --out frames
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO")]
    """Any file that PyAV (FFmpeg) reads."""
    out: Path
    """Folder to write, a file for each frame, with its number among all frames of the video:
    clip_000123.png."""
    fps: OptionalFloat = None
    """Frames to take a second; 1 by default."""
    frames: OptionalInt = None
    """How many frames to take in all, instead of --fps."""
    format: Literal["png", "jpg"] = "png"
    """png keeps every pixel as it was decoded; jpg is a tenth of the size."""
    overwrite: Flag = False
    """Replace the frames of an earlier run in the output folder."""
    quiet: Flag = False
    """Print nothing but warnings and errors."""
    json: Json = False

    def run(self) -> None:
        from vggt_jax.files import check_not_input, output_folder
        from vggt_jax.images.video import choose_frames

        check_not_input(self.out, [self.source])
        # Frames of an earlier run that this one does not take again.
        stale = [path.name for path in self.out.glob("*_*.[pj][np]g")]
        with output_folder(
            self.out, overwrite=self.overwrite, stale=stale, inputs=[self.source]
        ) as folder:
            chosen = choose_frames(
                self.source, fps=self.fps, frames=self.frames, progress=not self.quiet
            )
            images = tqdm.tqdm(
                chosen.images(), total=len(chosen.names), unit="frame", disable=self.quiet or None
            )
            for name, image in zip(chosen.names, images, strict=True):
                settings: dict[str, Any] = {"quality": 95} if self.format == "jpg" else {}
                image.save(folder / f"{name}.{self.format}", **settings)
        names = [f"{name}.{self.format}" for name in chosen.names]
        frames = [
            {"name": name, "index": index, "seconds": time}
            for name, index, time in zip(names, chosen.indices, chosen.times, strict=True)
        ]
        text = printable(f"{len(names)} frames of {self.source} -> {self.out}")
        print_outcome(self, text, {"out": str(self.out), "frames": frames})
