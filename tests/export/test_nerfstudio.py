"""nerfstudio: transforms.json read with json, and the points beside it with trimesh."""

import json

import numpy as np
import pytest
import trimesh
from PIL import Image

from vggt_jax import export_reconstruction


@pytest.mark.parametrize("pixel_centre", [0.0, 0.5])
@pytest.mark.parametrize("mode", ["crop", "pad", "identity"])
def test_cameras_and_points_come_back(tmp_path, make_room, mode, pixel_centre):
    room = make_room(mode, pixel_centre=pixel_centre)
    out = tmp_path / "out"
    report = export_reconstruction(
        room.recon, out, format="nerfstudio", images=room.folder, confidence_percentile=0
    )
    transforms = json.loads((out / "transforms.json").read_text())
    assert transforms["camera_model"] == "OPENCV"
    np.testing.assert_array_equal(transforms["applied_transform"], np.eye(4)[:3])
    assert len(transforms["frames"]) == len(room.sizes) == report.num_frames
    for i, frame in enumerate(transforms["frames"]):
        height, width = room.sizes[i]
        assert (frame["h"], frame["w"]) == (height, width)
        with Image.open(out / frame["file_path"]) as image:
            assert image.size == (width, height)
        (fx, _, cx), (_, fy, cy), _ = room.intrinsics[i]
        found = [frame[name] for name in ("fl_x", "fl_y", "cx", "cy")]
        np.testing.assert_allclose(found, [fx, fy, cx, cy], rtol=1e-5)
        # OpenGL's camera: what is ahead has a negative z, and what is above a positive y.
        camera_from_world = np.linalg.inv(np.array(frame["transform_matrix"]))
        expected = np.diag([1, -1, -1]) @ room.camera_from_world[i]
        np.testing.assert_allclose(camera_from_world[:3], expected, rtol=0, atol=1e-5)
    cloud = trimesh.load(out / transforms["ply_file_path"])
    expected = room.recon.points_from_depth()[room.valid]
    np.testing.assert_allclose(cloud.vertices, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(cloud.colors[:, :3], room.recon.images[room.valid])
    # A point through its frame's camera, as a program that knows nothing of OpenCV would do it.
    frame = transforms["frames"][1]
    world_from_camera = np.array(frame["transform_matrix"])
    y, x = np.argwhere(room.valid[1])[100]
    point = np.append(room.recon.points_from_depth()[1, y, x], 1.0)
    right, up, back, _ = np.linalg.inv(world_from_camera) @ point
    pixel = (
        frame["cx"] + frame["fl_x"] * right / -back,
        frame["cy"] + frame["fl_y"] * -up / -back,
    )
    original = room.recon.transforms[1].pixels_to_original((x, y)) + 0.5
    np.testing.assert_allclose(pixel, original, atol=1e-3)


def test_the_same_bytes_twice(tmp_path, make_room, contents):
    room = make_room()
    for name in ("a", "b"):
        export_reconstruction(room.recon, tmp_path / name, format="nerfstudio", images=room.folder)
    first = contents(tmp_path / "a")
    assert first == contents(tmp_path / "b")
    images = [f"images/view {i}.png" for i in range(4)]
    assert sorted(first) == [".vggt-jax.json", *images, "points.ply", "transforms.json"]
