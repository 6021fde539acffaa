"""`vggt-jax infer`."""

import dataclasses
from pathlib import Path

from vggt_jax.cli.scene import Flag, OptionalFloat, Scene
from vggt_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Infer(Scene):
    """Reconstruct the scene of photographs, or of a video, into files.

    Writes predictions.npz (all arrays), points.ply (coloured point cloud), cameras.json,
    overview.png and depth_pictures/*.png.

        vggt-jax infer photographs/ --model facebook/VGGT-1B --out scene
        vggt-jax infer clip.mp4 --frames 50 --masks masks/ --model yyfz233/Pi3 --out scene
    """

    out: Path
    """Folder to write."""
    confidence_percentile: OptionalFloat = None
    """Leave out this percentage of the points, the least confident; by default 25 for VGGT, or
    0 with --min-confidence, and 0 for Pi3."""
    min_confidence: OptionalFloat = None
    """Leave out points with a confidence not above this. Its scale is the model's: from 1 without bound for
    VGGT, where nothing is left out by default, and [0, 1] for Pi3, where it is 0.1."""
    max_points: int = 2_000_000
    """Most points in the cloud."""
    overwrite: Flag = False
    """Replace the results of an earlier run in the output folder."""

    def run(self) -> None:
        from vggt_jax.cli.reconstruct_files import reconstruct_files

        percentile = self.confidence_percentile
        if percentile is not None and not 0 <= percentile < 100:
            raise InputError(f"--confidence-percentile={percentile} must lie in [0, 100)")
        if self.max_points < 1:
            raise InputError(f"--max-points={self.max_points} must be at least 1")
        if self.min_confidence is not None and not self.min_confidence >= 0:
            raise InputError(f"--min-confidence={self.min_confidence} must be at least 0")
        reconstruct_files(
            self,
            self.out,
            confidence_percentile=percentile,
            min_confidence=self.min_confidence,
            max_points=self.max_points,
            overwrite=self.overwrite,
        )
