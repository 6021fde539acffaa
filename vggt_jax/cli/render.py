"""`vggt-jax render`."""

import dataclasses
from pathlib import Path
from typing import Literal

from vggt_jax.cli.attending import OptionalInt
from vggt_jax.cli.generated import Flag
from vggt_jax.cli.printed import Json, print_outcome
from vggt_jax.cli.scene import Scene
from vggt_jax.errors import InputError, printable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Render(Scene):
    """Write a video of a flight around a scene: a folder of results, or photographs, reconstructed
    first.

        vggt-jax render scene/ --out fly.mp4
        vggt-jax render scene/ --path cameras --seconds 8 --out along.mp4
    """

    out: Path
    """The video to write, such as fly.mp4."""
    path: Literal["orbit", "cameras"] = "orbit"
    """orbit: to and fro around the middle of the points; cameras: from one camera to the next."""
    seconds: float = 6.0
    """How long it is."""
    rate: int = 30
    """Pictures a second."""
    height: int = 720
    """Of the video, in pixels; even."""
    width: int = 1280
    """Of the video, in pixels; even."""
    point_size: OptionalInt = None
    """Side of a point in pixels; by default one that closes most gaps."""
    max_points: int = 1_000_000
    """Most points to draw."""
    overwrite: Flag = False
    """Replace the video."""
    json: Json = False

    def run(self) -> None:
        import tqdm

        from vggt_jax.cli.reconstruct_files import read_or_reconstruct
        from vggt_jax.export.fly_through import fly_through, write_fly_through
        from vggt_jax.export.points import scene_points
        from vggt_jax.files import check_file, check_not_input

        frames = round(self.seconds * self.rate)
        if not (0 < self.seconds < 3600 and self.rate >= 1 and self.max_points >= 1):
            raise InputError(
                f"--seconds {self.seconds:g}, --rate {self.rate} and --max-points "
                f"{self.max_points} must be positive"
            )
        self.check_of_results()
        sources = self.paths() if self.results() is None else self.named()
        check_not_input(self.out, self.inputs(sources))
        check_file(self.out, overwrite=self.overwrite, mark=_MARK)
        recon = read_or_reconstruct(self)
        points, colors = scene_points(
            recon,
            points=self.point_source(),
            confidence_percentile=self.confidence_percentile,
            min_confidence=self.min_confidence,
            max_points=self.max_points,
        )
        pictures = fly_through(
            recon,
            points,
            colors,
            path=self.path,
            frames=max(1, frames),
            size=(self.height, self.width),
            point_size=self.point_size,
        )
        bar = tqdm.tqdm(pictures, total=frames, unit="picture", disable=self.quiet or None)
        count = write_fly_through(self.out, iter(bar), fps=self.rate, comment=str(recon.provenance))
        text = printable(f"{count} pictures of {len(points):,} points -> {self.out}")
        print_outcome(self, text, {"out": str(self.out), "frames": count, "points": len(points)})


_MARK = b"ftyp"  # How every MP4 begins.
