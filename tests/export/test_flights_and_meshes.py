"""Videos of points, meshes, and GLB files that stand upright."""

import dataclasses
import json

import numpy as np
import pytest
import trimesh

from vggt_jax import InputError, Reconstruction, export_reconstruction
from vggt_jax.export.fly_through import draw_points, fly_through, write_fly_through
from vggt_jax.export.glb import GLTF_FROM_OPENCV, upright

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def test_near_points_hide_far_ones():
    points = np.array([[0, 0, 2.0], [0, 0, 1.0], [0, 0, -1.0], [0.5, 0, 2.0]])
    colors = np.array([GREEN, RED, GREEN, GREEN], np.uint8)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        picture = draw_points(np.eye(3, 4), 40.0, (20, 30), points[order], colors[order], 3)
        assert tuple(picture[10, 15]) == RED and tuple(picture[9, 14]) == RED
        assert tuple(picture[10, 25]) == GREEN and tuple(picture[0, 0]) == WHITE
        assert (picture != 255).any(-1).sum() == 2 * 9
    nearer = draw_points(np.eye(3, 4), 40.0, (20, 30), points, colors, 1, nearest=1.5)
    assert tuple(nearer[10, 15]) == GREEN


@pytest.mark.parametrize("path", ["orbit", "cameras"])
def test_a_flight_sees_the_scene_all_along(make_room, path):
    room = make_room("pad")
    points = room.recon.points_from_depth()[room.valid]
    colors = room.recon.images[room.valid]
    pictures = list(fly_through(room.recon, points, colors, path=path, frames=5, size=(48, 64)))
    assert len(pictures) == 5 and pictures[0].shape == (48, 64, 3)
    for picture in pictures:
        assert (picture != 255).any(-1).mean() > 0.3
    assert any((a != b).any() for a, b in zip(pictures, pictures[1:], strict=False))


def test_a_flight_along_cameras_begins_at_the_first():
    rng = np.random.default_rng(4)
    height, width = 20, 30
    images = rng.integers(0, 255, (2, height, width, 3), np.uint8)
    matrix = np.array([[40, 0, width / 2], [0, 40, height / 2], [0, 0, 1]], np.float32)
    poses = np.tile(np.eye(3, 4, dtype=np.float32), (2, 1, 1))
    poses[1, 0, 3] = -1.0
    recon = Reconstruction(
        images=images,
        camera_from_world=poses,
        intrinsics=np.stack([matrix, matrix]),
        depth=np.full((2, height, width), 3.0, np.float32),
        depth_confidence=np.ones((2, height, width), np.float32),
        pixel_centre=0.5,
    )
    points, colors = recon.points_from_depth()[0].reshape(-1, 3), images[0].reshape(-1, 3)
    options = {"path": "cameras", "frames": 3, "size": (height, width), "point_size": 1}
    first, _, last = fly_through(recon, points, colors, **options)
    np.testing.assert_array_equal(first, images[0])
    assert (last == 255).all(-1).mean() > 0.3  # A third of the wall lies outside of the second.


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"path": "spiral"}, "orbit, cameras"),
        ({"size": (47, 64)}, "even"),
        ({"point_size": 0}, "50"),
    ],
)
def test_flights_that_cannot_be(make_room, options, part):
    room = make_room("pad")
    points = room.recon.points_from_depth()[room.valid]
    with pytest.raises(InputError, match=part):
        next(fly_through(room.recon, points, room.recon.images[room.valid], **options))


def test_the_command_writes_a_video(tmp_path, make_room):
    av = pytest.importorskip("av", reason="needs PyAV")
    from vggt_jax import cli

    make_room("pad").recon.save(tmp_path / "scene")
    out = tmp_path / "fly.mp4"
    args = [
        "render",
        str(tmp_path / "scene"),
        "--out",
        str(out),
        "--seconds",
        "0.4",
        "--rate",
        "10",
    ]
    args += ["--height", "48", "--width", "64", "--quiet"]
    assert cli.main(args) == 0
    with av.open(str(out)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 4 and frames[0].shape == (48, 64, 3)
    assert cli.main(args) == 2 and cli.main([*args, "--overwrite"]) == 0
    (tmp_path / "mine.mp4").write_text("mine")
    args[3] = str(tmp_path / "mine.mp4")
    assert cli.main([*args, "--overwrite"]) == 2
    assert (tmp_path / "mine.mp4").read_text() == "mine"
    with pytest.raises(ZeroDivisionError):
        write_fly_through(tmp_path / "half.mp4", iter([frames[0], 1 // 0]))
    assert not (tmp_path / "half.mp4").exists()


def tilted(angle):
    """World_from_camera turned around the viewing axis of cameras that look along z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


@pytest.mark.parametrize("angle", [0.0, 0.4, 2.5])
def test_glb_stands_upright_however_the_world_lies(tmp_path, make_room, angle):
    room = make_room("pad")
    turn = np.eye(4)
    turn[:3, :3] = tilted(angle)
    poses = np.concatenate([room.recon.camera_from_world, np.tile([[[0, 0, 0, 1]]], (4, 1, 1))], 1)
    poses = (poses @ np.linalg.inv(turn))[:, :3].astype(np.float32)
    recon = dataclasses.replace(room.recon, camera_from_world=poses)
    export_reconstruction(recon, tmp_path / "a.glb", format="glb")
    scene = trimesh.load(tmp_path / "a.glb")
    nodes = [name for name in scene.graph.nodes_geometry if name.startswith("camera_")]
    ups = np.stack([scene.graph[name][0][:3, 1] for name in nodes])
    backs = np.stack([scene.graph[name][0][:3, 2] for name in nodes])
    assert len(nodes) == 4 and (ups[:, 1] > 0.9).all() and backs[:, 2].mean() > 0.8
    data = (tmp_path / "a.glb").read_bytes()
    document = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    back = np.linalg.inv(document["extras"]["gltf_from_world"])[:3, :3]
    cloud = scene.geometry["points"].vertices @ back.T
    expected = recon.points_from_depth()[room.valid]
    np.testing.assert_allclose(cloud.min(0), expected.min(0), atol=0.3)
    np.testing.assert_allclose(cloud.max(0), expected.max(0), atol=0.3)


def test_a_world_without_cameras_is_turned_half_around():
    np.testing.assert_array_equal(upright(None), GLTF_FROM_OPENCV)
    np.testing.assert_array_equal(upright(np.full((2, 3, 4), np.nan)), GLTF_FROM_OPENCV)
    np.testing.assert_allclose(upright(np.eye(3, 4)[None]), GLTF_FROM_OPENCV, atol=1e-12)


def test_a_mesh_lies_on_the_surfaces(tmp_path, make_room):
    try:
        import open3d  # noqa: F401
    except (ImportError, OSError):
        pytest.skip("needs Open3D, and the libraries that it needs")
    room = make_room("identity", pixel_centre=0.0)
    report = export_reconstruction(
        room.recon, tmp_path / "a.ply", format="mesh", voxel_size=0.05, confidence_percentile=0
    )
    mesh = trimesh.load(tmp_path / "a.ply")
    assert report.num_points == len(mesh.vertices) > 1000 and len(mesh.faces) > 1000
    points = room.recon.points_from_depth().reshape(-1, 3)
    # Walls of the room are where its vertices lie, to a part of a voxel.
    from scipy.spatial import cKDTree

    distance, _ = cKDTree(points).query(mesh.vertices)
    assert np.median(distance) < 0.03 and np.percentile(distance, 95) < 0.1
    export_reconstruction(room.recon, tmp_path / "a.ply", format="mesh", overwrite=True)


def test_a_mesh_says_what_it_needs(tmp_path, make_room, monkeypatch):
    import importlib

    def missing(name):
        raise ModuleNotFoundError("no open3d", name="open3d")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"vggt-jax\[mesh\]"):
        export_reconstruction(make_room("pad").recon, tmp_path / "a.ply", format="mesh")
