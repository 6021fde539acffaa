"""vggt_jax.export: what the files hold, that they are whole, and what is refused."""

import json
import os
import stat
import struct

import numpy as np
import pytest
import trimesh
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.export import (
    select_points,
    write_cameras,
    write_depth_pictures,
    write_overview,
    write_point_cloud,
    write_predictions,
)
from vggt_jax.files import file_stems, output_folder, replacing
from vggt_jax.images.frames import FrameTransform

S, HEIGHT, WIDTH = 2, 5, 7


def scene(seed=0):
    rng = np.random.default_rng(seed)
    world_points = rng.normal(size=(S, HEIGHT, WIDTH, 3)).astype(np.float32)
    confidence = rng.permutation(S * HEIGHT * WIDTH).reshape(S, HEIGHT, WIDTH).astype(np.float32)
    images = rng.integers(0, 256, (S, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return world_points, confidence, images


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


# Whole files


def test_a_file_appears_when_complete(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    with replacing(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert listing(path.parent) == ["file.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_file_leaves_the_old_one(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path) as file:
        file.write(b"half of the ne")
        raise error
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["file.bin"]


def test_what_is_stale_goes_with_what_replaces_it(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with output_folder(out, overwrite=False) as folder:
        for name in ("a", "b"):
            (folder / name).write_text("old")
    (out / "mine").write_text("mine")
    with output_folder(out, overwrite=True, stale=("a", "b", "c")) as folder:
        (folder / "a").write_text("new")
    assert listing(out) == [".vggt-jax.json", "a", "mine"]
    assert (out / "a").read_text() == "new"
    with pytest.raises(KeyboardInterrupt), output_folder(out, overwrite=True, stale=("a", "b")):
        raise KeyboardInterrupt
    assert listing(out) == [".vggt-jax.json", "a", "mine"] and listing(tmp_path) == ["out"]


def test_files_have_the_usual_permissions(tmp_path):
    with replacing(tmp_path / "x") as file:
        file.write(b"")
    (tmp_path / "y").touch()
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) == stat.S_IMODE(
        os.stat(tmp_path / "y").st_mode
    )


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    for path in (tmp_path / "file" / "x.npz", tmp_path / "folder.npz"):
        with pytest.raises(InputError, match="cannot be written") as caught:
            write_predictions(path, {"a": np.zeros(3)})
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert listing(tmp_path) == ["file", "folder.npz"]


def test_a_full_disk_is_one_clear_line(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(InputError, match="No space left on device"), replacing(path) as file:
        file.write(b"abc")
        raise OSError(28, "No space left on device")
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["00.jpg", "sub/01.v2.jpg"], ("00", "01.v2")),
        (["a/0.jpg", "b/0.jpg", "c/1.jpg"], ("0000_0", "0001_0", "0002_1")),
        (["0.jpg", "0.png"], ("0000_0", "0001_0")),
        (["A.jpg", "a.jpg"], ("0000_A", "0001_a")),
        (["a b?.jpg", "a_b_.jpg"], ("0000_a_b_", "0001_a_b_")),
        (["../../etc/passwd", "C:\\x\\y.png"], ("passwd", "y")),
        (["küche.jpg", ".hidden.jpg", "...", "x" * 300], ("küche", "hidden", "frame", "x" * 50)),
        ([], ()),
    ],
)
def test_file_stems_are_safe_and_distinct(names, stems):
    assert file_stems(names) == stems


# Arrays


def test_predictions_come_back(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "depth": rng.normal(size=(2, 3, 5)).astype(np.float32),
        "tracks": rng.normal(size=(7, 2)),
        "mask": rng.integers(0, 2, (3, 5)).astype(bool),
        "images": rng.integers(0, 256, (2, 3), dtype=np.uint8),
        "names": np.array(["00.jpg", "küche.jpg"]),
        "empty": np.zeros((0, 3), np.float32),
    }
    write_predictions(tmp_path / "predictions.npz", arrays)
    assert listing(tmp_path) == ["predictions.npz"]
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as file:
        assert sorted(file) == sorted(arrays)
        for name, array in arrays.items():
            assert file[name].dtype == array.dtype
            np.testing.assert_array_equal(file[name], array)


def test_arrays_that_npz_cannot_hold(tmp_path):
    import ml_dtypes

    for array in (np.zeros(3, ml_dtypes.bfloat16), np.array([None, "a"]), None):
        with pytest.raises(ValueError, match=r"'x' of dtype .* convert it first"):
            write_predictions(tmp_path / "x.npz", {"x": array})
    for name in ("file", "allow_pickle", ""):
        with pytest.raises(ValueError, match="rename it"):
            write_predictions(tmp_path / "x.npz", {name: np.zeros(3)})
    assert listing(tmp_path) == []


# Points


def test_points_above_the_percentile_are_kept():
    world_points, confidence, images = scene()
    points, colors = select_points(world_points, confidence, images, confidence_percentile=30.0)
    # Confidences are 0 .. 69; the 30th percentile by the lower value is 0.3 * 69 = 20.7 -> 20.
    kept = confidence >= 20
    np.testing.assert_array_equal(points, world_points[kept])
    np.testing.assert_array_equal(colors, images[kept])
    assert points.dtype == np.float32 and colors.dtype == np.uint8
    everything, _ = select_points(world_points, confidence, images, confidence_percentile=0.0)
    assert len(everything) == S * HEIGHT * WIDTH
    best, _ = select_points(world_points, confidence, images, confidence_percentile=100.0)
    np.testing.assert_array_equal(best, world_points[confidence == 69])
    equal, _ = select_points(world_points, np.ones_like(confidence), images)
    assert len(equal) == S * HEIGHT * WIDTH


def test_unusable_points_do_not_count():
    world_points, confidence, images = scene()
    expected = confidence >= 35
    world_points[0, 1, 2, 1] = np.nan
    world_points[1, 0, 0, 0] = np.inf
    confidence[1, 4, 6] = np.nan
    confidence[0, 0, 3] = np.inf
    mask = np.ones(confidence.shape, bool)
    mask[:, :, 5] = False
    usable = np.isfinite(world_points).all(-1) & np.isfinite(confidence) & mask
    points, _ = select_points(
        world_points, confidence, images, confidence_percentile=50.0, mask=mask
    )
    # The median of what is left, and not of all.
    expected = usable & (confidence >= np.sort(confidence[usable])[(usable.sum() - 1) // 2])
    np.testing.assert_array_equal(points, world_points[expected])
    assert np.isfinite(points).all()
    none, colors = select_points(world_points, confidence, images, mask=np.zeros_like(mask))
    assert none.shape == colors.shape == (0, 3)


def test_too_many_points_are_drawn_by_seed():
    world_points, confidence, images = scene()
    options = {"confidence_percentile": 0.0, "max_points": 23}
    points, colors = select_points(world_points, confidence, images, **options)
    assert points.shape == (23, 3)
    flat = world_points.reshape(-1, 3).tolist()
    positions = [flat.index(point) for point in points.tolist()]
    assert positions == sorted(set(positions))
    np.testing.assert_array_equal(colors, images.reshape(-1, 3)[positions])
    again, _ = select_points(world_points, confidence, images, **options)
    np.testing.assert_array_equal(points, again)
    other, _ = select_points(world_points, confidence, images, **options, seed=1)
    assert (points != other).any()
    all_points, _ = select_points(
        world_points, confidence, images, confidence_percentile=0.0, max_points=None
    )
    assert len(all_points) == 70


def test_float_images_become_bytes():
    world_points, confidence, images = scene()
    _, expected = select_points(world_points, confidence, images)
    for shift in (0, 0.4, -0.4):  # the nearest byte counts
        floats = (np.clip(images + shift, 0, 255) / 255).astype(np.float32)
        _, colors = select_points(world_points, confidence, floats)
        np.testing.assert_array_equal(colors, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"confidence_percentile": -1.0},
        {"confidence_percentile": 100.5},
        {"confidence_percentile": float("nan")},
        {"max_points": 0},
    ],
)
def test_options_of_the_selection_out_of_range(options):
    with pytest.raises(InputError, match=f"{next(iter(options))}="):
        select_points(*scene(), **options)


def test_selection_refuses_shapes_that_do_not_fit():
    world_points, confidence, images = scene()
    for arguments in (
        (world_points[:1], confidence, images),
        (world_points, confidence[..., None], images),
        (world_points, confidence, images[..., :2]),
    ):
        with pytest.raises(ValueError, match="must be"):
            select_points(*arguments)
    with pytest.raises(ValueError, match=r"mask\.shape=\(5, 7\)"):
        select_points(world_points, confidence, images, mask=np.ones((HEIGHT, WIDTH), bool))


def test_point_cloud_comes_back(tmp_path):
    world_points, _, images = scene()
    points, colors = world_points.reshape(-1, 3), images.reshape(-1, 3)
    path = tmp_path / "points.ply"
    write_point_cloud(path, points, colors)
    header, _, body = path.read_bytes().partition(b"end_header\n")
    assert b"format binary_little_endian 1.0" in header and b"element vertex 70" in header
    # 3 floats and 4 bytes (red, green, blue, alpha) a point.
    first = struct.unpack_from("<3f4B", body)
    assert len(body) == 70 * 16
    assert first == (*points[0].tolist(), *colors[0].tolist(), 255)
    cloud = trimesh.load(path)
    np.testing.assert_array_equal(cloud.vertices.astype(np.float32), points)
    np.testing.assert_array_equal(cloud.colors[:, :3], colors)
    assert listing(tmp_path) == ["points.ply"]


def test_an_empty_point_cloud_is_a_valid_file(tmp_path):
    write_point_cloud(tmp_path / "x.ply", np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))
    assert b"element vertex 0\n" in (tmp_path / "x.ply").read_bytes()


@pytest.mark.parametrize(
    ("points", "colors", "message"),
    [
        (np.zeros((5, 3)), np.zeros((4, 3), np.uint8), "must both be"),
        (np.zeros((5, 2)), np.zeros((5, 2), np.uint8), "must both be"),
        (np.zeros((5, 3)), np.zeros((5, 3)), "must be uint8"),
        (np.full((5, 3), np.nan), np.zeros((5, 3), np.uint8), "must be finite"),
    ],
)
def test_point_clouds_that_are_refused(tmp_path, points, colors, message):
    with pytest.raises(ValueError, match=message):
        write_point_cloud(tmp_path / "x.ply", points, colors)
    assert listing(tmp_path) == []


# Cameras


def transforms():
    twice = FrameTransform(
        original_size=(70, 14),
        model_size=(84, 28),
        scale_x=2.0,
        scale_y=2.5,
        offset_x=0.0,
        offset_y=-28.0,
        content_rows=(0, 84),
        content_columns=(0, 28),
    )
    return (FrameTransform.identity((84, 28)), twice)


def strict_json(path):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_cameras_come_back(tmp_path):
    rng = np.random.default_rng(0)
    camera_from_world = rng.normal(size=(2, 3, 4)).astype(np.float32)
    intrinsics = np.array([[[50, 0, 14], [0, 60, 42], [0, 0, 1]]] * 2, np.float32)
    path = tmp_path / "cameras.json"
    write_cameras(
        path,
        names=("00.jpg", "küche.jpg"),
        transforms=transforms(),
        camera_from_world=camera_from_world,
        intrinsics=intrinsics,
        pixel_centre=0.25,
    )
    content = strict_json(path)
    assert content["pixel_centre"] == 0.25 and "0.5" in content["conventions"]["pixel_centre"]
    assert "x right, y down, z forward" in content["conventions"]["axes"]
    first, second = content["frames"]
    assert (first["name"], second["name"]) == ("00.jpg", "küche.jpg")
    assert second["original_size"] == {"height": 70, "width": 14}
    assert second["model_size"] == {"height": 84, "width": 28}
    for i, frame in enumerate((first, second)):
        found = np.array(frame["camera_from_world"], np.float32)
        np.testing.assert_array_equal(found, camera_from_world[i])
        np.testing.assert_array_equal(frame["intrinsics_model"], intrinsics[i])
    np.testing.assert_array_equal(first["intrinsics_original"], intrinsics[0])
    assert second["intrinsics_original"] == [[25, 0, 7], [0, 24, 28], [0, 0, 1]]
    assert second["model_from_original"] == {"scale": [2, 2.5], "offset": [0, -28]}
    # The shortest decimals of a float32, not the 17 digits of its value as a float64.
    assert f"{camera_from_world[0, 0, 0]!s}" in path.read_text()


def test_what_is_not_finite_or_missing_is_null(tmp_path):
    camera_from_world = np.zeros((2, 3, 4), np.float32)
    camera_from_world[0, 1, 2] = np.nan
    intrinsics = np.tile(np.eye(3, dtype=np.float32), (2, 1, 1))
    intrinsics[1, 0, 0] = np.inf
    path = tmp_path / "cameras.json"
    arguments = {"names": ("a", "b"), "transforms": transforms(), "pixel_centre": 0.5}
    write_cameras(path, **arguments, camera_from_world=camera_from_world, intrinsics=intrinsics)
    first, second = strict_json(path)["frames"]
    assert first["camera_from_world"] == [[0, 0, 0, 0], [0, 0, None, 0], [0, 0, 0, 0]]
    assert second["intrinsics_model"][0] == [None, 0, 0]
    assert second["intrinsics_original"] == [[None, 0, 0], [0, 0.4, 11.2], [0, 0, 1]]
    write_cameras(path, **arguments, camera_from_world=camera_from_world, intrinsics=None)
    for frame in strict_json(path)["frames"]:
        assert frame["intrinsics_model"] is None and frame["intrinsics_original"] is None


def test_cameras_of_another_number_of_frames(tmp_path):
    good = {
        "names": ("a", "b"),
        "transforms": transforms(),
        "camera_from_world": np.zeros((2, 3, 4)),
        "intrinsics": np.zeros((2, 3, 3)),
        "pixel_centre": 0.5,
    }
    bad = {
        "names": ("a",),
        "transforms": transforms()[:1],
        "camera_from_world": np.zeros((2, 4, 4)),
        "intrinsics": np.zeros((3, 3)),
    }
    for name, value in bad.items():
        with pytest.raises(ValueError, match=r"must be \(|zip\(\)"):
            write_cameras(tmp_path / "x.json", **(good | {name: value}))
    assert listing(tmp_path) == []


# Pictures


def read(path):
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


def test_depth_pictures_share_one_range(tmp_path):
    """Frame 0 holds depths 1 .. 2 and frame 1 the same plus 2: colours must not start anew."""
    depth = np.linspace(1, 2, HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH).repeat(2, 0)
    depth[1] += 2
    depth[0, 0, :3] = [np.nan, np.inf, 0]
    mask = np.ones(depth.shape, bool)
    mask[1, 2, 2] = False
    paths = write_depth_pictures(tmp_path / "depth", depth, ["a/0.jpg", "b/0.jpg"], mask)
    assert [path.name for path in paths] == ["0000_0_depth.png", "0001_0_depth.png"]
    assert listing(tmp_path / "depth") == [path.name for path in paths]
    near, far = (read(path) for path in paths)
    assert near.shape == (HEIGHT, WIDTH, 3)
    assert (near[0, :3] == 255).all() and (far[2, 2] == 255).all()
    assert (near == 255).all(-1).sum() == 3 and (far == 255).all(-1).sum() == 1
    # The ends of matplotlib's turbo: near is dark red and far is dark blue.
    np.testing.assert_allclose(near[0, 3], [122, 4, 3], atol=3)
    np.testing.assert_allclose(far[-1, -1], [48, 18, 59], atol=1)
    # Depth 2 between them: its place is that of its logarithm, in 255 steps.
    valid = np.isfinite(depth) & (depth > 0) & mask
    low, high = np.percentile(depth[valid], [2, 98])
    from matplotlib import colormaps

    position = round(255 * np.log(depth[0, -1, -1] / low) / np.log(high / low))
    expected = np.round(np.array(colormaps["turbo"](255 - position)[:3]) * 255)
    np.testing.assert_array_equal(near[-1, -1], expected)
    assert 100 < position < 160


def test_outliers_do_not_take_the_range(tmp_path):
    depth = np.linspace(1, 2, 40 * 50).reshape(1, 40, 50)
    (plain,) = write_depth_pictures(tmp_path / "plain", depth, ["x"])
    outliers = depth.copy()
    outliers[0, 20, 20] = 1e6
    (path,) = write_depth_pictures(tmp_path / "outliers", outliers, ["x"])
    difference = np.abs(read(plain) - read(path)).max(-1)
    assert np.delete(difference.ravel(), 20 * 50 + 20).max() < 12
    np.testing.assert_array_equal(read(path)[20, 20], read(path)[-1, -1])


@pytest.mark.parametrize("value", [3.0, np.nan])
def test_flat_and_empty_depth_have_one_colour(tmp_path, value):
    (path,) = write_depth_pictures(tmp_path, np.full((1, HEIGHT, WIDTH), value), ["x"])
    colours = np.unique(read(path).reshape(-1, 3), axis=0)
    assert len(colours) == 1
    assert (colours == 255).all() == np.isnan(value)


def test_overview_shows_photographs_above_their_depth(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    depth = rng.uniform(1, 2, (3, 40, 50)).astype(np.float32)
    write_overview(tmp_path / "overview.png", images, depth)
    sheet = read(tmp_path / "overview.png")
    assert sheet.shape == (2 * 40 + 3 * 8, 3 * 50 + 4 * 8, 3)
    paths = write_depth_pictures(tmp_path / "depth", depth, ["0", "1", "2"])
    for i in range(3):
        left = 8 + i * 58
        np.testing.assert_array_equal(sheet[8:48, left : left + 50], images[i])
        np.testing.assert_array_equal(sheet[56:96, left : left + 50], read(paths[i]))
    assert (sheet[:8] == 255).all() and (sheet[:, :8] == 255).all()
    write_overview(tmp_path / "floats.png", images / 255.0, depth)
    np.testing.assert_array_equal(read(tmp_path / "floats.png"), sheet)


def test_overview_of_a_long_scene_is_small(tmp_path):
    grey = np.arange(11, dtype=np.uint8) * 10
    images = np.broadcast_to(grey[:, None, None, None], (11, 30, 640, 3)).copy()
    depth = np.ones((11, 30, 640), np.float32)
    write_overview(tmp_path / "x.png", images, depth, max_frames=3, frame_width=100)
    sheet = read(tmp_path / "x.png")
    # 100 wide, 30 * 100 / 640 = 5 high; the first, the middle and the last frame.
    assert sheet.shape == (2 * 5 + 3 * 8, 3 * 100 + 4 * 8, 3)
    assert sheet[10, [50, 158, 266], 0].tolist() == [0, 50, 100]
    write_overview(tmp_path / "y.png", images[:1], depth[:1], max_frames=1)
    assert read(tmp_path / "y.png").shape == (2 * 15 + 3 * 8, 320 + 2 * 8, 3)


def test_pictures_refuse_what_does_not_fit(tmp_path):
    depth = np.ones((S, HEIGHT, WIDTH))
    images = np.zeros((S, HEIGHT, WIDTH, 3), np.uint8)
    with pytest.raises(ValueError, match="number of frames, 2"):
        write_depth_pictures(tmp_path, depth, ["one"])
    with pytest.raises(ValueError, match=r"mask\.shape="):
        write_depth_pictures(tmp_path, depth, ["0", "1"], np.ones((HEIGHT, WIDTH), bool))
    with pytest.raises(ValueError, match=r"images\.shape="):
        write_overview(tmp_path / "x.png", images[:1], depth)
    with pytest.raises(ValueError, match="max_frames=0"):
        write_overview(tmp_path / "x.png", images, depth, max_frames=0)
    assert listing(tmp_path) == []
