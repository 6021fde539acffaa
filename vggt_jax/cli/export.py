"""`vggt-jax export`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vggt_jax.cli.generated import Flag
from vggt_jax.cli.scene import OptionalFloat, OptionalInt, OptionalPath, Scene
from vggt_jax.errors import InputError
from vggt_jax.images.frames import Frames

if TYPE_CHECKING:
    from vggt_jax.export import ExportOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Scene):
    """Write a scene for other programs: a folder of results, or photographs, reconstructed first.

    vggt-jax export scene/ --format glb --out scene.glb
    vggt-jax export scene/ --format colmap --images photographs/ --out colmap
    vggt-jax export photographs/ --model facebook/VGGT-1B --format nerfstudio --out nerf
    """

    format: Literal["ply", "glb", "colmap", "nerfstudio"]
    """ply: a file of points. glb: a file of points and cameras. colmap: a folder with sparse/0 and
    images. nerfstudio: a folder with transforms.json, points.ply and images."""
    out: Path
    """File (ply, glb) or folder (colmap, nerfstudio) to write."""
    images: OptionalPath = None
    """Folder of the photographs, or the video, to put beside the scene (colmap, nerfstudio), if
    results are exported."""
    max_points: OptionalInt = None
    """Most points; by default 2,000,000, and 100,000 for colmap."""
    cameras: bool = True
    """Draw the cameras (glb)."""
    camera_size: OptionalFloat = None
    """Length of a drawn camera in the units of the scene (glb); by default one that suits it."""
    tracks: Literal["depth", "head"] = "depth"
    """Tracks from depth, checked in both directions, or from the track head, for which photographs
    must have been reconstructed with --query-points (colmap)."""
    camera_model: Literal["PINHOLE", "SIMPLE_PINHOLE"] = "PINHOLE"
    """Two focal lengths or one (colmap)."""
    shared_camera: Flag = False
    """One camera for all photographs (colmap)."""
    bundle_adjustment: Flag = False
    """Refine poses, focal lengths and points with pycolmap (colmap)."""
    depth_tolerance: float = 0.03
    """Share by which depths may differ in a track (colmap, tracks from depth)."""
    max_reprojection_error: float = 2.0
    """Pixels of the model by which a track may miss what it was seen at (colmap)."""
    min_track_length: int = 2
    """Photographs that must see a point (colmap)."""
    min_visibility: float = 0.2
    """What visibility and confidence of a track must exceed (colmap, tracks from the head)."""
    overwrite: Flag = False
    """Replace an earlier export."""

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

    def _options(self) -> "ExportOptions":
        from vggt_jax.export import ExportOptions

        from_head = self.format == "colmap" and self.tracks == "head"
        if from_head and self.results() is None and not self.query_points:
            raise InputError(
                "--tracks head: needs --query-points to track through the photographs; give them, "
                "or take tracks from depth"
            )
        return ExportOptions(
            format=self.format,
            images=self._photographs(),
            points=self.point_source(),
            confidence_percentile=self.confidence_percentile,
            min_confidence=self.min_confidence,
            max_points=self.max_points,
            cameras=self.cameras,
            camera_size=self.camera_size,
            tracks=self.tracks,
            camera_model=self.camera_model,
            shared_camera=self.shared_camera,
            bundle_adjustment=self.bundle_adjustment,
            depth_tolerance=self.depth_tolerance,
            max_reprojection_error=self.max_reprojection_error,
            min_track_length=self.min_track_length,
            min_visibility=self.min_visibility,
            overwrite=self.overwrite,
        )

    def _photographs(self) -> Path | tuple[Path, ...] | None:
        """What to put beside the scene, where that is of use."""
        from vggt_jax.images.video import is_video

        is_result = self.results() is not None
        if self.images is not None:
            if not is_result:
                raise InputError(
                    f"--images {self.images}: is for results, and {self.paths()[0]} is "
                    "reconstructed now; leave it out"
                )
            if self.format in ("ply", "glb"):
                raise InputError(
                    f"--images {self.images}: {self.format} has no place for "
                    "photographs; leave it out"
                )
            return self.images
        if self.format in ("ply", "glb") or is_result:
            return None
        paths = self.paths()
        is_one = self.changed("fps", "frames") or is_video(paths[0]) or paths[0].is_dir()
        return paths[0] if is_one else paths
