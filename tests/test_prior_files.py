"""Files that tell of photographs: every form gives the same cameras, in the pixels of the frames."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

import vggt_jax
from vggt_jax import InputError
from vggt_jax.export.cameras_json import write_cameras
from vggt_jax.pipeline.prior_files import read_priors
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


@pytest.mark.parametrize("form", ["bin", "txt"])
def test_colmap_models(tmp_path, frames, cameras, form):
    pycolmap = pytest.importorskip("pycolmap")
    poses, intrinsics = cameras
    model = pycolmap.Reconstruction()
    for i, name in enumerate(frames.names):
        params = list(intrinsics[i][[0, 1, 0, 1], [0, 1, 2, 2]])
        # Of photographs twice as large, which the frames are resized from as well.
        camera = pycolmap.Camera(
            model="PINHOLE",
            width=2 * WIDTH,
            height=2 * HEIGHT,
            params=[2 * x for x in params],
            camera_id=i + 1,
        )
        model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=name, camera_id=i + 1, image_id=i + 1)
        rigid = pycolmap.Rigid3d(
            pycolmap.Rotation3d(poses[i, :3, :3]), poses[i, :3, 3].reshape(3, 1)
        )
        model.add_image_with_trivial_frame(image, rigid)
    folder = tmp_path / "sparse" / "0"
    folder.mkdir(parents=True)
    (model.write_binary if form == "bin" else model.write_text)(folder)
    for given in (tmp_path, folder, folder / f"cameras.{form}"):
        assert_cameras(read_priors(given, frames), frames, cameras)


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
    with pytest.raises(InputError, match="is no JSON"):
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
