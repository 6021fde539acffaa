"""`vggt-jax infer`."""

import dataclasses
from pathlib import Path

from vggt_jax.cli.scene import Flag, Scene
from vggt_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Infer(Scene):
    """Reconstruct the scene of photographs, or of a video, into files.

    Writes predictions.npz (all arrays), points.ply (coloured point cloud), cameras.json,
    overview.png, depth_pictures/*.png and, with query points, track_pictures/*.png.

        vggt-jax infer photographs/ --model facebook/VGGT-1B --out scene
        vggt-jax infer clip.mp4 --frames 50 --masks masks/ --model yyfz233/Pi3 --out scene
    """

    out: Path
    """Folder to write."""
    max_points: int = 2_000_000
    """Most points in the cloud."""
    overwrite: Flag = False
    """Replace the results of an earlier run in the output folder."""

    def run(self) -> None:
        from vggt_jax.cli.reconstruct_files import reconstruct_files

        if self.max_points < 1:
            raise InputError(f"--max-points={self.max_points} must be at least 1")
        reconstruct_files(
            self,
            self.out,
            max_points=self.max_points,
            overwrite=self.overwrite,
        )
