"""What `vggt-jax export` and `vggt-jax infer --export` have in common."""

import dataclasses
from pathlib import Path
from typing import Any

from vggt_jax.cli.scene import Scene
from vggt_jax.errors import InputError
from vggt_jax.export.format import ExportOptions, FolderFormat, format_named, format_names
from vggt_jax.export.reconstruction import ExportReport

_FILES = {"mesh": "mesh.ply"}
FORMATS = {name: format_named(name).description for name in format_names()}


def photographs_beside(scene: Scene, format: str) -> Path | tuple[Path, ...] | None:
    """The photographs that are reconstructed now, where a format has a place for them."""
    from vggt_jax.images.video import is_video

    if "images" not in format_named(format).options:
        return None
    paths = scene.paths()
    is_one = scene.changed("fps", "frames") or is_video(paths[0]) or paths[0].is_dir()
    return paths[0] if is_one else paths


def exports_of_results(
    scene: Scene, out: Path, formats: tuple[str, ...], *, max_points: int, overwrite: bool
) -> dict[Path, ExportOptions]:
    """Exports into the folder of results that `vggt-jax infer` writes, by their places: files are
    called scene.NAME or mesh.ply, folders NAME.

    Raises:
        InputError: a format is named twice, or options cannot be used with it.
    """
    if len(set(formats)) < len(formats):
        raise InputError(f"--export {' '.join(formats)}: names a format twice")
    exports = {}
    for name in formats:
        is_folder = isinstance(format_named(name), FolderFormat)
        taken = ("points", *(("images",) if is_folder else ()))
        given: dict[str, Any] = {
            "points": scene.point_source(),
            "images": photographs_beside(scene, name),
        }
        options = ExportOptions(
            format=name,
            confidence_percentile=scene.confidence_percentile,
            min_confidence=scene.min_confidence,
            max_points=None if name == "colmap" else max_points,
            overwrite=overwrite,
            **{x: given[x] for x in taken if x in format_named(name).options},
        )
        place = out / (name if is_folder else _FILES.get(name, f"scene.{name}"))
        options.check_place(place)
        exports[place] = options
    return exports


def as_json(report: ExportReport) -> dict[str, Any]:
    """A report as JSON can hold it."""
    errors = {
        name: None if value is None else dataclasses.asdict(value)
        for name in ("errors", "errors_before_adjustment")
        for value in [getattr(report, name)]
    }
    return {
        "format": report.format,
        "path": str(report.path),
        "frames": report.num_frames,
        "points": report.num_points,
        **errors,
        "notes": list(report.notes),
    }
