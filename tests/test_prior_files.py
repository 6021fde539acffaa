"""Files that tell of photographs: every form gives the same cameras, in the pixels of the frames."""

import json
import math
import os
import re
import struct

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

import vggt_jax
from vggt_jax import InputError
from vggt_jax.export.cameras_json import write_cameras
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.prior_files import _ByEndOfPath, read_priors
from vggt_jax.pipeline.resuming import record_of
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.results import write_reconstruction

S, WIDTH, HEIGHT = 3, 90, 67


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three, of which one lies in a folder of its own."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(1)
    paths = []
    for i in range(S):
        path = folder / ("more" if i == 1 else "") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def frames(photographs):
    """Resized to 70 x 42, by other factors across than down."""
    found = vggt_jax.load_images(photographs, mode="budget", size=56)
    assert found.images.shape == (S, 42, 70, 3)
    return found


@pytest.fixture(scope="module")
def cameras():
    """camera_from_world [s 4 4], and intrinsics [s 3 3] in the pixels of the photographs."""
    poses = np.tile(np.eye(4), (S, 1, 1))
    poses[:, :3, :3] = Rotation.random(S, random_state=2).as_matrix()
    poses[:, :3, 3] = np.random.default_rng(3).normal(size=(S, 3))
    intrinsics = np.tile(np.array([[80, 0, 44.0], [0, 78, 30], [0, 0, 1]]), (S, 1, 1))
    intrinsics[2, 0, 0] = 100
    return poses, intrinsics


@pytest.fixture(scope="module")
def scene(frames, cameras):
    """Results with these cameras and some depth."""
    poses, intrinsics = cameras
    model = np.stack(
        [t.intrinsics_to_model(k) for t, k in zip(frames.transforms, intrinsics, strict=True)]
    )
    return Reconstruction(
        images=frames.images,
        camera_from_world=poses[:, :3].astype(np.float32),
        intrinsics=model.astype(np.float32),
        depth=np.random.default_rng(4).uniform(1, 9, (S, 42, 70)).astype(np.float32),
        depth_confidence=np.full((S, 42, 70), 0.9, np.float32),
        confidence_kind="sigmoid",
        pixel_centre=0.5,
        length_unit="metres",
        names=frames.names,
        transforms=frames.transforms,
    )


def assert_cameras(priors, frames, cameras, known=(True, True, True)):
    poses, intrinsics = cameras
    known = np.array(known)
    np.testing.assert_array_equal(priors.poses_known, known)
    np.testing.assert_allclose(priors.camera_from_world[known], poses[known], atol=2e-6)
    pairs = zip(frames.transforms, intrinsics, strict=True)
    expected = np.stack([t.intrinsics_to_model(k) for t, k in pairs])
    np.testing.assert_allclose(priors.intrinsics[known], expected[known], rtol=1e-5)


def write_transforms(path, frames, cameras, **of_all):
    poses, intrinsics = cameras
    documents = []
    for name, pose, k in zip(frames.names, poses, intrinsics, strict=True):
        world_from_camera = np.linalg.inv(pose) @ np.diag([1, -1, -1, 1])
        documents.append(
            {
                "file_path": f"images/{name}",
                "transform_matrix": world_from_camera.tolist(),
                **dict(
                    zip(("fl_x", "fl_y", "cx", "cy"), k[[0, 1, 0, 1], [0, 1, 2, 2]], strict=True)
                ),
            }
        )
    path.write_text(json.dumps({"w": WIDTH, "h": HEIGHT, **of_all, "frames": documents}))


def test_our_own_results(tmp_path, scene, frames, cameras):
    write_reconstruction(tmp_path, scene)
    priors = read_priors(tmp_path, frames)
    assert_cameras(priors, frames, cameras)
    np.testing.assert_array_equal(priors.depth, scene.depth)
    assert priors.metric is True
    # Frames of another size see the same camera, and the depth of the nearest pixel.
    assert read_priors(tmp_path, frames, use=["depth"]).given == ("depth",)


def test_our_cameras_json(tmp_path, scene, frames, cameras):
    path = tmp_path / "cameras.json"
    names = ("names", "transforms", "camera_from_world", "intrinsics", "pixel_centre")
    write_cameras(path, **{name: getattr(scene, name) for name in names})
    for given in (path, tmp_path):
        assert_cameras(read_priors(given, frames), frames, cameras)
    document = json.loads(path.read_text())
    assert document["length_unit"] == "arbitrary"
    document["frames"][1] |= {"intrinsics_original": None, "camera_from_world": None}
    path.write_text(json.dumps(document))
    priors = read_priors(path, frames)
    assert_cameras(priors, frames, cameras, known=(True, False, True))
    np.testing.assert_array_equal(priors.intrinsics_known, [True, False, True])


def write_colmap(folder, frames, cameras, form="bin", camera_model="PINHOLE", more=()):
    """A model of photographs twice as large, which the frames are resized from as well."""
    pycolmap = pytest.importorskip("pycolmap")
    poses, intrinsics = cameras
    model = pycolmap.Reconstruction()
    for i, name in enumerate(frames.names):
        params = list(intrinsics[i][[0, 1, 0, 1], [0, 1, 2, 2]])
        camera = pycolmap.Camera(
            model=camera_model,
            width=2 * WIDTH,
            height=2 * HEIGHT,
            params=[2 * x for x in params] + list(more),
            camera_id=i + 1,
        )
        model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=name, camera_id=i + 1, image_id=i + 1)
        rigid = pycolmap.Rigid3d(
            pycolmap.Rotation3d(poses[i, :3, :3]), poses[i, :3, 3].reshape(3, 1)
        )
        model.add_image_with_trivial_frame(image, rigid)
    model.add_point3D(np.ones(3), pycolmap.Track())
    folder.mkdir(parents=True)
    (model.write_binary if form == "bin" else model.write_text)(folder)


@pytest.mark.parametrize("form", ["bin", "txt"])
def test_colmap_models(tmp_path, frames, cameras, form):
    folder = tmp_path / "sparse" / "0"
    write_colmap(folder, frames, cameras, form)
    for given in (tmp_path, folder, folder / f"cameras.{form}"):
        assert_cameras(read_priors(given, frames), frames, cameras)


@pytest.mark.parametrize("part", ["cameras", "images", "points3D", "rigs", "frames"])
def test_models_that_are_cut_are_refused(tmp_path, frames, cameras, part):
    """Which pycolmap reads as if they were whole, or for ever."""
    write_colmap(tmp_path / "0", frames, cameras)
    path = tmp_path / "0" / f"{part}.bin"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-5], whole[:9], struct.pack("<Q", 2**60) + whole[8:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{part}.bin: is cut or damaged"):
            read_priors(tmp_path / "0", frames)
    path.unlink()
    with pytest.raises(InputError, match="COLMAP model|tells cameras"):
        read_priors(tmp_path / "0", frames)


def test_names_and_models_of_cameras_that_cannot_be(tmp_path, frames, cameras):
    write_colmap(tmp_path / "0", frames, cameras)
    files = {name: tmp_path / "0" / f"{name}.bin" for name in ("images", "cameras")}
    images, models = (path.read_bytes() for path in files.values())
    files["images"].write_bytes(images.replace(b"2.png", b"\xff.png"))
    with pytest.raises(InputError, match="the name of a photograph is no UTF-8"):
        read_priors(tmp_path / "0", frames)
    start = images.index(b"2.png")
    files["images"].write_bytes(images[:start] + b"2" * 5000)
    with pytest.raises(InputError, match="the name of a photograph has no end"):
        read_priors(tmp_path / "0", frames)
    files["images"].write_bytes(images)
    files["cameras"].write_bytes(models[:12] + struct.pack("<i", 99) + models[16:])
    with pytest.raises(InputError, match="a camera of model 99"):
        read_priors(tmp_path / "0", frames)


def test_a_fisheye_without_further_numbers_is_no_pinhole(tmp_path, frames, cameras):
    write_colmap(tmp_path / "0", frames, cameras, "bin", "OPENCV_FISHEYE", (0, 0, 0, 0))
    priors = read_priors(tmp_path / "0", frames, use=["intrinsics"])
    assert priors.given == ("rays",)
    # Equidistant: the angle from the axis is the distance from the principal point.
    frame, row, column = 2, 3, 66
    x, y, _ = priors.rays[frame, row, column]
    bent = np.array([x, y]) * np.arctan(np.hypot(x, y)) / np.hypot(x, y)
    place = (cameras[1][frame] @ [*bent, 1])[:2] * [70 / 90, 42 / 67]
    np.testing.assert_allclose(place, [column + 0.5, row + 0.5], atol=1e-4)


def test_nerfstudio(tmp_path, frames, cameras):
    write_transforms(tmp_path / "transforms.json", frames, cameras, k1=0.0)
    for given in (tmp_path, tmp_path / "transforms.json"):
        assert_cameras(read_priors(given, frames), frames, cameras)
    poses = read_priors(tmp_path, frames, use=["poses"])
    assert poses.given == ("poses",) and poses.metric is False


def test_depth_of_nerfstudio_is_in_millimetres(tmp_path, frames, cameras):
    path = tmp_path / "transforms.json"
    write_transforms(path, frames, cameras)
    document = json.loads(path.read_text())
    values = np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(values).save(tmp_path / "0.png")
    np.save(tmp_path / "2.npy", values / np.float32(8))
    document["frames"][0]["depth_file_path"] = "0.png"
    document["frames"][2]["depth_file_path"] = "2.npy"
    path.write_text(json.dumps(document))
    priors = read_priors(path, frames)
    np.testing.assert_array_equal(priors.depth_known, [True, False, True])
    rows, columns = (np.arange(42) * 67 // 42)[[5, 40]], (np.arange(70) * 90 // 70)[[3, 69]]
    np.testing.assert_allclose(
        priors.depth[0][[5, 40], [3, 69]], 1e-3 * values[rows, columns], rtol=1e-6
    )
    np.testing.assert_allclose(priors.depth[2][[5, 40], [3, 69]], values[rows, columns] / 8)


def test_cameras_that_distort_become_rays(tmp_path, frames, cameras):
    pytest.importorskip("pycolmap")
    poses, intrinsics = cameras
    write_transforms(tmp_path / "transforms.json", frames, cameras, k1=0.1, p2=-0.02)
    priors = read_priors(tmp_path, frames, use=["intrinsics"])
    assert priors.given == ("rays",)
    row, column, frame = 7, 61, 2
    x, y, z = priors.rays[frame, row, column]
    # OpenCV's model, from the ray to the pixel whose centre the ray meets.
    r2 = x * x + y * y
    bent = np.array(
        [
            x * (1 + 0.1 * r2) - 0.02 * (r2 + 2 * x * x),
            y * (1 + 0.1 * r2) - 0.04 * x * y,
            1,
        ]
    )
    place = (intrinsics[frame] @ bent)[:2] * [70 / 90, 42 / 67]
    assert z == 1
    np.testing.assert_allclose(place, [column + 0.5, row + 0.5], atol=1e-4)


def test_arrays_as_the_official_loader_takes_them(tmp_path, golden):
    arrays = golden("pi3x_geometry")
    path = tmp_path / "photograph.png"
    Image.fromarray(arrays["photograph"]).save(path)
    frames = vggt_jax.load_images([path], mode="budget", size=56)
    np.testing.assert_array_equal(frames.images[0], np.moveaxis(arrays["frame"], 0, -1))
    pose = np.array([[[0, 0, 1, 3], [1, 0, 0, 4], [0, 1, 0, 5], [0, 0, 0, 1.0]]])
    given = {"intrinsics": arrays["intrinsics"][None], "depths": arrays["depth"][None]}
    np.savez(tmp_path / "known.npz", **given, poses=pose)
    priors = read_priors(tmp_path / "known.npz", frames)
    np.testing.assert_allclose(priors.intrinsics[0], arrays["frame_intrinsics"], rtol=1e-6)
    np.testing.assert_array_equal(priors.depth[0], arrays["frame_depth"])
    np.testing.assert_allclose(priors.camera_from_world[0], np.linalg.inv(pose[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_path": "images/other.png"}, "knows none of the photographs (0.png"),
        ({"transform_matrix": [[1, 2], [3, 4]]}, "must be like nerfstudio's transforms.json"),
        ({"w": 67, "h": 90}, "a camera is of images of 67x90, and the photograph has 90x67"),
        ({"camera_model": "PANORAMA"}, "camera_model 'PANORAMA' has no rays"),
        ({"depth_file_path": "none.png"}, "none.png: cannot be read as a map of depth"),
        ({"depth_file_path": "../" * 3000}, "cannot be read as a map of depth"),
        ({"depth_file_path": "/dev/zero"}, "/dev/zero: cannot be read as a map of depth"),
        ({"depth_file_path": "transforms.json"}, "cannot be read as a map of depth (not an image"),
        ({"file_path": 3}, "3 is no name of a photograph"),
        ({"transform_matrix": [[10**400] * 4] * 4}, "must be like nerfstudio's transforms.json"),
        ({"transform_matrix": [[0] * 4] * 4}, "must be like nerfstudio's transforms.json"),
        ({"transform_matrix": np.diag([1, 1, 1e300, 1]).tolist()}, "must be a rotation"),
        ({"w": 0}, "images of 0x67 pixels"),
        ({"w": math.inf}, "must be like nerfstudio's transforms.json"),
        ({"fl_x": -80}, "focal lengths of -80"),
        ({"fl_x": 1e308}, "intrinsics must be finite"),
    ],
)
def test_what_is_wrong_in_a_file_is_told(tmp_path, frames, cameras, change, message):
    path = tmp_path / "transforms.json"
    write_transforms(path, frames, cameras)
    document = json.loads(path.read_text())
    document["frames"] = [document["frames"][0] | change]
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=re.escape(message)):
        read_priors(path, frames)


def test_other_files_are_refused(tmp_path, frames):
    with pytest.raises(InputError, match="no such file or folder"):
        read_priors(tmp_path / "none", frames)
    with pytest.raises(InputError, match="holds nothing that tells cameras"):
        read_priors(tmp_path, frames)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="not a file of cameras in JSON"):
        read_priors(tmp_path / "a.json", frames)
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match="is no file that tells cameras"):
        read_priors(tmp_path / "a.txt", frames)
    np.savez(tmp_path / "a.npz", intrinsics=np.tile(np.eye(3), (2, 1, 1)))
    with pytest.raises(InputError, match="arrays of 2 photographs, and there are 3"):
        read_priors(tmp_path / "a.npz", frames)


def test_names_that_could_be_two_photographs_are_refused(tmp_path, frames, cameras):
    path = tmp_path / "transforms.json"
    write_transforms(path, frames, cameras)
    document = json.loads(path.read_text())
    document["frames"].append(document["frames"][0] | {"file_path": "left/0.png"})
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="2 photographs of the name 0.png in different folders"):
        read_priors(path, frames)


@pytest.mark.parametrize(
    ("names", "name", "expected"),
    [
        (["images/a.png", "b.png"], "a.png", "images/a.png"),
        (["images/left/0.png", "images/right/0.png"], "left/0.png", "images/left/0.png"),
        (["0.png", "left/0.png"], "more/left/0.png", "left/0.png"),
        (["./train/r_0", "./train/r_1"], "r_1.png", "./train/r_1"),
        (["scene\\images\\0.jpg"], "0.jpg", "scene\\images\\0.jpg"),
        (["cafe\u0301.png"], "caf\u00e9.png", "cafe\u0301.png"),
        (["a.png"], "a.jpg", None),
        ([], "a.jpg", None),
    ],
)
def test_photographs_are_found_by_the_end_of_their_path(names, name, expected):
    assert _ByEndOfPath(names).find(name) == expected


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"poses": np.zeros((S, 4, 4))}, "which can be inverted"),
        ({"poses": np.float64(3)}, r"poses is float64 of shape \[\]"),
        ({"depth": np.ones((S, 4, 5), complex)}, "depth is complex128"),
        ({"depth": np.ones((S, 0, 5))}, r"depth is float64 of shape \[3, 0, 5\]"),
        ({"intrinsics": np.array(["a"] * S)}, "intrinsics is str"),
        ({"intrinsics": np.full((S, 3, 3), 1e300)}, "known.npz: priors: intrinsics must be"),
        ({"metric": np.ones(3), "poses": np.ones((S, 4, 4))}, "metric is float64"),
        ({"other": np.ones(3)}, "must hold intrinsics, camera_from_world"),
    ],
)
def test_arrays_of_other_shapes_types_and_values(tmp_path, frames, arrays, message):
    np.savez(tmp_path / "known.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_priors(tmp_path / "known.npz", frames)


def test_what_is_read_is_bounded_and_no_pipe(tmp_path, frames, cameras):
    path = tmp_path / "transforms.json"
    write_transforms(path, frames, cameras)
    document = json.loads(path.read_text())
    os.mkfifo(tmp_path / "pipe.npy")
    header = b"\x93NUMPY\x01\0" + struct.pack("<H", 80)
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    (tmp_path / "claims.npy").write_bytes(header + text.ljust(79) + b"\n")
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    (tmp_path / "empty.npy").touch()
    for name, message in (
        ("pipe.npy", "is a pipe"),
        ("claims.npy", "has not the bytes"),
        ("text.npy", "has numbers of shape"),
        ("empty.npy", "damaged"),
    ):
        document["frames"][0]["depth_file_path"] = name
        path.write_text(json.dumps(document))
        with pytest.raises(InputError, match=f"{name}.*{message}"):
            read_priors(path, frames)
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deep"):
        read_priors(tmp_path, frames)
    path.write_text('{"frames": [3]}')
    with pytest.raises(InputError, match="must be like cameras.json"):
        read_priors(tmp_path, frames)
    with pytest.raises(InputError, match="is empty"):
        read_priors("", frames)
    for name in ("a.npz", "a.npy"):
        (tmp_path / name).write_bytes(b"no archive")
        with pytest.raises(InputError, match="is no .npz file|is no file that tells"):
            read_priors(tmp_path / name, frames)


def test_a_photograph_is_named_once(tmp_path, frames, cameras):
    path = tmp_path / "transforms.json"
    write_transforms(path, frames, cameras)
    document = json.loads(path.read_text())
    document["frames"].append(document["frames"][0])
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="names the photograph images/0.png twice"):
        read_priors(path, frames)


def test_a_resumed_run_sees_that_what_is_known_changed(tmp_path, frames, cameras):
    path = tmp_path / "transforms.json"
    write_transforms(path, frames, cameras)
    document = json.loads(path.read_text())
    document["frames"][0]["depth_file_path"] = "depth/0.npy"
    path.write_text(json.dumps(document))
    record = lambda: record_of(tmp_path, Options(priors=tmp_path))
    first = record()
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth" / "0.npy", np.ones((3, 4)))
    second = record()
    write_transforms(path, frames, cameras, k1=0.1)
    third = record()
    assert first != second != third and set(first) == set(second)
    write_colmap(tmp_path / "sparse" / "0", frames, cameras)
    path.unlink()
    assert len(record()) == 5
