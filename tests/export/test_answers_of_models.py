"""What models that answer in metres say of a scene, through every format and into the viewer."""

import dataclasses
import json

import numpy as np
import pytest
import trimesh

import vggt_jax
from vggt_jax.export.format import format_names
from vggt_jax.scene.results import write_reconstruction
from vggt_jax.viewer.layers import cut_points, point_sources


@pytest.fixture(params=[vggt_jax.MapAnything, vggt_jax.Pi3X])
def answer(request, make_room):
    """The room as such a model answers: edges marked, points of its own, one unit beside depth's."""
    model = request.param
    room = make_room("pad", pixel_centre=model.pixel_centre)
    kind = model.traits.confidence_kind
    confidence = room.recon.depth_confidence - (kind == "sigmoid")
    edges = np.random.default_rng(3).random(confidence.shape) < 0.2
    recon = dataclasses.replace(
        room.recon,
        depth_confidence=confidence,
        world_points=room.recon.points_from_depth() + np.float32([1, 0, 0]),
        world_points_confidence=confidence,
        depth_edges=edges,
        confidence_kind=kind,
        length_unit=model.traits.length_unit,
        best_points=model.point_sources.fget(None)[0],
    )
    assert recon.length_unit == "metres"
    kept = room.valid & ~edges & (confidence > (0.1 if kind == "sigmoid" else 0))
    if kind != "sigmoid":  # The least confident quarter of what is left.
        kept &= confidence >= np.percentile(confidence[kept], 25, method="lower")
    return room, recon, kept


def test_files_and_the_viewer_show_the_points_that_it_is_best_at(tmp_path, answer):
    room, recon, kept = answer
    write_reconstruction(tmp_path / "out", recon)
    recon = vggt_jax.load_reconstruction(tmp_path / "out")
    expected = recon.world_points[kept]
    vggt_jax.export_reconstruction(recon, tmp_path / "points.ply", format="ply")
    np.testing.assert_allclose(trimesh.load(tmp_path / "points.ply").vertices, expected, rtol=1e-5)

    layers = cut_points(recon, source=point_sources(recon)[0], hide_edges=True)
    percentile = 25 if recon.confidence_kind == "one_plus_exp" else 0
    shown = layers.points[layers.shown(percentile, range(len(kept)))]
    in_order = lambda points: points[np.lexsort(points.T)]
    np.testing.assert_allclose(in_order(shown), in_order(expected), rtol=1e-6)


def test_every_format_takes_it(tmp_path, answer):
    room, recon, kept = answer
    for name in format_names():
        if name == "mesh":  # Of surfaces, by Open3D, in a test of its own.
            continue
        options = {"max_points": 500} if name != "colmap" else {}
        if name in ("colmap", "nerfstudio"):
            options |= {"images": room.folder}
        out = tmp_path / (name if "images" in options else f"scene.{name}")
        vggt_jax.export_reconstruction(recon, out, format=name, **options)
    frames = json.loads((tmp_path / "nerfstudio" / "transforms.json").read_text())["frames"]
    assert len(frames) == len(recon.images)
    # The cameras of the truth, whose principal points lie in the photographs.
    found = {x["file_path"].rpartition("/")[2]: (x["cx"], x["cy"]) for x in frames}
    for name, matrix in zip(recon.names, room.intrinsics, strict=True):
        np.testing.assert_allclose(found[name], matrix[:2, 2], atol=1e-3)
    geometry = trimesh.load(tmp_path / "scene.glb").geometry.values()
    assert 500 in [len(x.vertices) for x in geometry] and kept.sum() > 500
