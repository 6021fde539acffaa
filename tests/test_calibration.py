"""Known intrinsics and scale, and the choice of the reference frame."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vggt_jax
from vggt_jax import InputError, Reconstruction, geometry
from vggt_jax.export import write_cameras
from vggt_jax.images.loading import load_images
from vggt_jax.scene import calibration

S, HEIGHT, WIDTH = 3, 28, 42


camera_positions = jax.jit(geometry.camera_positions)


def positions(recon):
    return np.asarray(camera_positions(recon.camera_from_world))


@pytest.fixture(scope="module")
def scene():
    """A scene with rotated cameras whose photographs are 100 x 150 pixels."""
    rng = np.random.default_rng(11)
    photographs = list(rng.integers(0, 256, (S, 100, 150, 3), np.uint8))
    frames = load_images(photographs, size=WIDTH)
    rotations = np.asarray(
        geometry.matrix_from_quaternion(jnp.array(rng.normal(size=(S, 4)))), np.float32
    )
    translations = rng.normal(size=(S, 3, 1)).astype(np.float32)
    return Reconstruction(
        images=frames.images,
        camera_from_world=np.concatenate([rotations, translations], -1),
        intrinsics=np.tile(np.float32([[40, 0, 21], [0, 41, 14], [0, 0, 1]]), (S, 1, 1)),
        depth=rng.uniform(1, 5, (S, HEIGHT, WIDTH)).astype(np.float32),
        depth_confidence=rng.random((S, HEIGHT, WIDTH), np.float32),
        world_points=rng.normal(size=(S, HEIGHT, WIDTH, 3)).astype(np.float32),
        names=frames.names,
        transforms=frames.transforms,
    )


def test_known_intrinsics_are_those_of_the_photographs(scene):
    known = np.stack([calibration.pinhole((200.0 + i, 210), (70 - i, 55)) for i in range(S)])
    recon = calibration.with_intrinsics(scene, known)
    for transform, matrix, expected in zip(recon.transforms, recon.intrinsics, known, strict=True):
        np.testing.assert_allclose(transform.intrinsics_to_original(matrix), expected, rtol=1e-6)
    # Every point projects to the centre of its own pixel in its photograph.
    pixels, depth = geometry.project_points(
        *map(
            jnp.asarray,
            (
                recon.points_from_depth().reshape(S, -1, 3),
                recon.camera_from_world,
                known.astype(np.float32),
            ),
        )
    )
    grid = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), -1).reshape(-1, 2)
    for i, transform in enumerate(recon.transforms):
        # Pixels are indices, and `project_points` gives continuous coordinates.
        np.testing.assert_allclose(pixels[i] - 0.5, transform.pixels_to_original(grid), atol=2e-3)
    np.testing.assert_allclose(depth, recon.depth.reshape(S, -1), rtol=1e-4)
    np.testing.assert_array_equal(recon.world_points, scene.world_points)
    one = calibration.with_intrinsics(scene, known[1])
    np.testing.assert_array_equal(one.intrinsics[1], recon.intrinsics[1])


@pytest.mark.parametrize(
    ("intrinsics", "what"),
    [
        (np.eye(4), r"\(4, 4\) must be \[3 3\], or \[3 3 3\]"),
        (np.diag([0.0, 1, 1]), "positive focal"),
        (np.diag([1, np.inf, 1]), "finite"),
        (np.diag([1, 1, 2]), r"\[0, 0, 1\]"),
    ],
)
def test_what_are_no_intrinsics(scene, intrinsics, what):
    with pytest.raises(InputError, match=what):
        calibration.with_intrinsics(scene, intrinsics)


def test_intrinsics_come_from_a_file(tmp_path):
    path = tmp_path / "cameras.json"
    known = [calibration.pinhole(7 + i, (3, 4)) for i in range(3)]
    frames = [
        {"name": f"{i}.png", "intrinsics_original": matrix.tolist()}
        for i, matrix in enumerate(known)
    ]
    frames[1]["intrinsics_original"][0][0] = None
    path.write_text(json.dumps({"frames": frames, "more": 1}))
    found = calibration.read_intrinsics(path, ("2.png", "0.png"))
    np.testing.assert_array_equal(found, [known[2], known[0]])
    with pytest.raises(InputError, match="cameras.json: 1.png: intrinsics must be finite"):
        calibration.read_intrinsics(path, ("1.png",))
    with pytest.raises(InputError, match="has no intrinsics of 5.png"):
        calibration.read_intrinsics(path, ("5.png",))
    for text in (
        '{"frames": [{"name": "0.png"}]}',
        "[]",
        "text",
        '{"frames": [{"name": "a", "intrinsics_original": [1]}]}',
    ):
        path.write_text(text)
        with pytest.raises(InputError, match="must be JSON like cameras.json"):
            calibration.read_intrinsics(path, ("0.png",))
    with pytest.raises(InputError, match="cannot be read"):
        calibration.read_intrinsics(tmp_path / "none.json", ())


@pytest.mark.parametrize("pixel_centre", [0.0, 0.5])
def test_cameras_that_come_back_keep_their_points(tmp_path, scene, pixel_centre):
    recon = dataclasses.replace(scene, pixel_centre=pixel_centre)
    names = ("transforms", "camera_from_world", "intrinsics", "pixel_centre", "names")
    path = tmp_path / "cameras.json"
    write_cameras(path, **{name: getattr(recon, name) for name in names})
    found = calibration.with_intrinsics(recon, calibration.read_intrinsics(path, recon.names))
    assert found.pixel_centre == 0.5
    np.testing.assert_allclose(
        found.points_from_depth(), recon.points_from_depth(), rtol=1e-4, atol=1e-4
    )
    # An earlier file without the field is taken as any calibration is.
    document = json.loads(path.read_text())
    del document["pixel_centre"]
    path.write_text(json.dumps(document))
    read = calibration.read_intrinsics(path, recon.names)
    frames = document["frames"]
    np.testing.assert_array_equal(read, [frame["intrinsics_original"] for frame in frames])
    document["pixel_centre"] = 0.0
    del frames[1]["model_from_original"]
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="with `model_from_original` where the file has"):
        calibration.read_intrinsics(path, recon.names)


def test_bad_intrinsics_are_refused_before_the_work(tiny, monkeypatch):
    monkeypatch.setattr("vggt_jax.pipeline.reconstruct.reconstruct_jit", None)  # Nothing to call.
    images = np.zeros((2, 28, 28, 3), np.uint8)
    with pytest.raises(InputError, match=r"must be \[3 3\], or \[2 3 3\]"):
        vggt_jax.infer(images, model=tiny(), intrinsics=np.eye(4))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, float, int, np.array])
def test_focal_lengths_of_any_kind_of_number(kind):
    one = calibration.pinhole(kind(50), (20, 15))
    np.testing.assert_array_equal(one, [[50, 0, 20], [0, 50, 15], [0, 0, 1]])
    two = calibration.pinhole((kind(50), kind(60)), (kind(20), kind(15)))
    np.testing.assert_array_equal(two, [[50, 0, 20], [0, 60, 15], [0, 0, 1]])


def assert_scaled(recon, scene, factor):
    """Everything of length by this factor, and directions and pixels as they were."""
    np.testing.assert_allclose(recon.depth, factor * scene.depth, rtol=1e-6)
    np.testing.assert_allclose(recon.world_points, factor * scene.world_points, rtol=1e-6)
    np.testing.assert_array_equal(
        recon.camera_from_world[..., :3], scene.camera_from_world[..., :3]
    )
    np.testing.assert_allclose(positions(recon), factor * positions(scene), rtol=1e-4, atol=1e-5)
    points = [x.points_from_depth() for x in (recon, scene)]
    np.testing.assert_allclose(points[0], factor * points[1], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(recon.intrinsics, scene.intrinsics)
    np.testing.assert_array_equal(recon.depth_confidence, scene.depth_confidence)


def test_scale_to_a_distance_of_cameras(scene):
    recon = calibration.scale_to_distance(scene, 1.25, cameras=(0, "0002"))
    where = positions(recon)
    assert np.linalg.norm(where[0] - where[2]) == pytest.approx(1.25, rel=1e-5)
    before = positions(scene)
    assert_scaled(recon, scene, 1.25 / np.linalg.norm(before[0] - before[2]))


def test_scale_to_a_distance_of_pixels(scene):
    # Original pixels of the centres of two pixels of the frames.
    x, y = scene.transforms[1].pixels_to_original([5.0, 9.0])
    end = scene.transforms[2].pixels_to_original([40.0, 27.0])
    pixels = ((1, x, y), ("0002", *end))
    recon = calibration.scale_to_distance(scene, 7.5, pixels=pixels)
    before = scene.points_from_depth()
    assert_scaled(recon, scene, 7.5 / np.linalg.norm(before[1, 9, 5] - before[2, 27, 40]))
    # Without depth, and with depth but no cameras to unproject it.
    for missing in ("depth", "camera_from_world"):
        only_points = dataclasses.replace(scene, **{missing: None})
        recon = calibration.scale_to_distance(only_points, 7.5, pixels=pixels)
        ends = recon.world_points[1, 9, 5], recon.world_points[2, 27, 40]
        assert np.linalg.norm(ends[0] - ends[1]) == pytest.approx(7.5, rel=1e-5)


def test_scale_to_a_depth(scene):
    x, y = scene.transforms[1].pixels_to_original([40.7, 0.4])
    recon = calibration.scale_to_depth(scene, 3.0, pixel=("0001", x, y))
    assert recon.depth[1, 0, 41] == pytest.approx(3.0, rel=1e-6)
    assert_scaled(recon, scene, 3.0 / scene.depth[1, 0, 41])


def test_lengths_that_give_no_scale(scene):
    distance, depth = calibration.scale_to_distance, calibration.scale_to_depth
    masked = vggt_jax.with_mask(scene, np.zeros((S, HEIGHT, WIDTH), bool))
    without = lambda *names: dataclasses.replace(scene, **dict.fromkeys(names))
    ends = ((0, 1, 1), (1, 2, 2))
    for call, what in [
        (lambda: distance(scene, 1.0), "either cameras or pixels"),
        (lambda: distance(scene, 0.0, cameras=(0, 1)), "distance=0.0 must be positive"),
        (lambda: distance(scene, 1.0, cameras=(0, 0)), "is 0.0; choose others"),
        (lambda: distance(scene, 1.0, cameras=(0, 3)), "frame 3 does not exist; .* 0 to 2"),
        (lambda: distance(scene, 1.0, cameras=(0, "x.png")), "'x.png' .0000 to 0002."),
        (lambda: distance(masked, 1.0, pixels=((0, 1, 1), (1, 2, 2))), "is nan; choose others"),
        (lambda: depth(scene, 1.0, pixel=(0, 150, 0)), "lies outside"),
        (lambda: depth(scene, float("inf"), pixel=(0, 0, 0)), "positive and finite"),
        (lambda: depth(dataclasses.replace(scene, depth=None), 1.0, pixel=(0, 0, 0)), "no depth"),
        (lambda: calibration.scaled(scene, -1.0), "factor=-1.0"),
        (lambda: calibration.scaled(scene, 1e39), "factor=1e.39 takes lengths out of the range"),
        (lambda: calibration.scaled(scene, 1e-39), "factor=1e-39 takes lengths out of the range"),
        (lambda: calibration.scaled(scene, 3e38), "factor=3e.38 takes lengths out of the range"),
        (
            lambda: distance(without("depth", "world_points"), 1.0, pixels=ends),
            "depth with cameras",
        ),
        (
            lambda: distance(without("camera_from_world", "world_points"), 1.0, pixels=ends),
            "neither",
        ),
        (lambda: distance(without("intrinsics", "world_points"), 1.0, pixels=ends), "neither"),
        (lambda: distance(without("camera_from_world"), 1.0, cameras=(0, 1)), "no cameras"),
    ]:
        with pytest.raises(InputError, match=what):
            call()


def test_the_reference_is_seen_first_and_results_keep_their_order(tiny, tmp_path):
    images = np.random.default_rng(11).integers(0, 256, (3, 28, 42, 3), np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    points = [[3.0, 4.0], [40.5, 20.25]]
    model = tiny()
    options = dict(model=model, query_points=points)
    recon = vggt_jax.infer(tmp_path, reference="2.png", size=42, **options)
    by_hand = vggt_jax.infer(images[[2, 0, 1]], **options)
    assert recon.names == ("0.png", "1.png", "2.png")
    np.testing.assert_array_equal(recon.images, images)
    for name, value in vars(by_hand).items():
        if isinstance(value, np.ndarray) and name != "images":
            np.testing.assert_array_equal(getattr(recon, name), value[[1, 2, 0]], err_msg=name)
    np.testing.assert_allclose(recon.tracks[2], points, atol=1e-4)
    first = vggt_jax.infer(images, reference=0, **options)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves((recon, first)))


def test_reference_frames_that_do_not_exist(tiny, tiny_pi3):
    images = np.zeros((2, 28, 28, 3), np.uint8)
    with pytest.raises(InputError, match="frame 2 does not exist"):
        vggt_jax.infer(images, model=tiny(), reference=2)
    with pytest.raises(InputError, match="reference='0001': π³ has no reference frame"):
        vggt_jax.infer(images, model=tiny_pi3(), reference="0001")


def test_infer_puts_known_intrinsics_in(tiny):
    images = np.random.default_rng(11).integers(0, 256, (3, 28, 42, 3), np.uint8)
    known = calibration.pinhole(50.0, (20.0, 15.0))
    recon = vggt_jax.infer(images, model=tiny(), intrinsics=known)
    np.testing.assert_array_equal(recon.intrinsics, np.stack([known] * 3).astype(np.float32))
    assert recon.pixel_centre == 0.5
    points = recon.points_from_depth().reshape(3, -1, 3)
    in_camera = jax.jit(geometry.camera_points_from_world)(points, recon.camera_from_world)
    camera = np.asarray(in_camera).reshape(3, 28, 42, 3)
    rays = camera[1, 7, 30] / recon.depth[1, 7, 30]
    np.testing.assert_allclose(rays, [(30.5 - 20) / 50, (7.5 - 15) / 50, 1], rtol=1e-3)
