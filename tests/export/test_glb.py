"""GLB, read again with trimesh and with nothing but json."""

import json
import struct

import numpy as np
import pytest
import trimesh

from vggt_jax import InputError, export_reconstruction
from vggt_jax.export.glb import upright, write_glb

# glTF: y up, z towards the viewer.
TURN = np.diag([1.0, -1.0, -1.0, 1.0])


def poses(room):
    matrices = np.tile(np.eye(4), (len(room.sizes), 1, 1))
    matrices[:, :3] = room.camera_from_world
    return np.linalg.inv(matrices)


@pytest.mark.parametrize("mode", ["crop", "pad", "identity"])
def test_points_and_cameras_come_back(tmp_path, make_room, mode):
    room = make_room(mode)
    path = tmp_path / "scene.glb"
    report = export_reconstruction(
        room.recon, path, format="glb", confidence_percentile=0, camera_size=0.5
    )
    assert report.num_points == room.valid.sum() and report.num_frames == len(room.sizes)
    scene = trimesh.load(path)
    cloud = scene.geometry["points"]
    turn = upright(room.recon.camera_from_world)
    expected = room.recon.points_from_depth()[room.valid] @ turn[:3, :3].T
    np.testing.assert_allclose(cloud.vertices, expected, rtol=1e-5, atol=1e-5)
    for i, pose in enumerate(poses(room)):
        matrix, name = scene.graph.get(f"camera_view_{i}")
        np.testing.assert_allclose(matrix, turn @ pose @ TURN, rtol=0, atol=1e-5)
        pyramid = scene.geometry[name]
        in_world = trimesh.transform_points(pyramid.vertices, matrix) @ turn[:3, :3]
        in_camera = in_world @ room.camera_from_world[i, :, :3].T + room.camera_from_world[i, :, 3]
        tip = np.abs(in_camera).max(axis=1) < 1e-5
        base = in_camera[~tip]
        assert tip.any()
        np.testing.assert_allclose(base[:, 2], 0.5, rtol=1e-5)
        # The base is the photograph: its corners are projected onto the corners.
        pixels = base @ room.intrinsics[i].T
        pixels = pixels[:, :2] / pixels[:, 2:]
        height, width = room.sizes[i]
        # The rays keep their pixels, so that corners are where the true camera has them.
        found = {tuple(row) for row in np.round(pixels).astype(int)}
        assert found == {(0, 0), (width, 0), (width, height), (0, height)}
        np.testing.assert_allclose(pixels, np.round(pixels), atol=2e-3)


def test_the_file_says_what_gltf_says(tmp_path, make_room):
    path = tmp_path / "scene.glb"
    export_reconstruction(make_room().recon, path, format="glb", max_points=17)
    data = path.read_bytes()
    magic, version, length, size, kind = struct.unpack("<4sIIII", data[:20])
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), 0x4E4F534A)
    content = json.loads(data[20 : 20 + size])
    assert {node["name"] for node in content["nodes"]} >= {"points", "camera_view_0"}
    (points,) = [mesh for mesh in content["meshes"] if mesh["name"] == "points"]
    assert points["primitives"][0]["mode"] == 0  # POINTS
    accessor = content["accessors"][points["primitives"][0]["attributes"]["POSITION"]]
    assert accessor["count"] == 17


def test_colours_are_linear(tmp_path):
    """As glTF 2.0 has COLOR_0; IEC 61966-2-1 says what linear is."""
    colors = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    colors[:, 1] = 255 - colors[:, 0]
    path = tmp_path / "points.glb"
    write_glb(path, np.arange(768, dtype=np.float32).reshape(256, 3), colors, None)
    data = path.read_bytes()
    (size,) = struct.unpack("<I", data[12:16])
    content = json.loads(data[20 : 20 + size])
    accessor = content["accessors"][content["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    assert (accessor["componentType"], accessor["type"]) == (5126, "VEC3")
    assert "normalized" not in accessor and accessor["count"] == 256
    view = content["bufferViews"][accessor["bufferView"]]
    assert view["byteLength"] == 256 * 12
    start = 20 + size + 8 + view["byteOffset"]
    values = np.frombuffer(data, "<f4", 256 * 3, start).reshape(256, 3)
    srgb = colors / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(values, linear, rtol=1e-6)
    read = trimesh.load(path).geometry["points"].colors
    np.testing.assert_allclose(read[:, :3], linear * 255, rtol=0, atol=1)


def test_without_cameras_and_of_a_suitable_size(tmp_path, make_room):
    recon = make_room().recon
    report = export_reconstruction(recon, tmp_path / "a.glb", format="glb", cameras=False)
    assert report.num_frames == 0 and list(trimesh.load(tmp_path / "a.glb").geometry) == ["points"]
    export_reconstruction(recon, tmp_path / "b.glb", format="glb")
    length = np.ptp(trimesh.load(tmp_path / "b.glb").geometry["camera_view_0"].vertices[:, 2])
    assert 0.05 < length < 0.5  # In a room of 6 x 4 x 7.


def test_the_same_bytes_twice(tmp_path, make_room):
    recon = make_room().recon
    for name in ("a.glb", "b.glb"):
        export_reconstruction(recon, tmp_path / name, format="glb")
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()


@pytest.mark.parametrize("size", [0, -1.0, float("nan"), float("inf")])
def test_sizes_of_cameras(tmp_path, make_room, size):
    with pytest.raises(InputError, match="camera_size"):
        export_reconstruction(make_room().recon, tmp_path / "a.glb", format="glb", camera_size=size)
