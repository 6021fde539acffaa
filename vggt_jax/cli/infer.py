"""`vggt-jax infer`."""

import dataclasses
from typing import Annotated

import tyro

from vggt_jax.cli.attending import OptionalPath, OptionalText
from vggt_jax.cli.exporting import FORMATS, exports_of_results
from vggt_jax.cli.generated import Flag
from vggt_jax.cli.printed import Json, print_outcome
from vggt_jax.cli.scene import Scene
from vggt_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Infer(Scene):
    """Reconstruct the scene of photographs, or of a video, into files.

    Writes predictions.npz (all arrays), points.ply (coloured point cloud), cameras.json,
    overview.png, depth_pictures/*.png and, with query points, track_pictures/*.png.

        vggt-jax infer photographs/ --model facebook/VGGT-1B --out scene
        vggt-jax infer photographs/ --model facebook/VGGT-1B --out scene --export colmap glb
        vggt-jax infer clip.mp4 --frames 50 --masks masks/ --model yyfz233/Pi3 --out scene
        vggt-jax infer photographs/ --sparse-ratio 0.75 --plan
    """

    out: OptionalPath = None
    """Folder to write."""
    export: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar=f"{{{','.join(FORMATS)}}} ...", help_behavior_hint=""),
    ] = ()
    """Also write the scene in these formats, to OUT/scene.glb, OUT/colmap and so on, the
    photographs beside them; `vggt-jax export` has more options."""
    max_points: int = 2_000_000
    """Most points in the cloud."""
    overwrite: Flag = False
    """Replace the results of an earlier run in the output folder."""
    server: OptionalText = None
    """Address of a `vggt-jax serve`, such as http://127.0.0.1:8000, that does the work. --model is
    then one that it offers, by default its first."""
    plan: Flag = False
    """Print what would run, how much memory it takes and how long, and stop."""
    json: Json = False

    def run(self) -> None:
        from vggt_jax.cli.reconstruct_files import print_plan, reconstruct_files

        if self.max_points < 1:
            raise InputError(f"--max-points={self.max_points} must be at least 1")
        if self.plan and self.server is not None:
            raise InputError("--plan is of this machine; leave out --server")
        if self.plan:
            print_plan(self)
            return
        if self.out is None:
            raise InputError("name a folder to write with --out")
        exports = exports_of_results(
            self, self.out, self.export, max_points=self.max_points, overwrite=self.overwrite
        )
        text, outcome = reconstruct_files(
            self, self.out, exports, max_points=self.max_points, overwrite=self.overwrite
        )
        print_outcome(self, text, outcome)
