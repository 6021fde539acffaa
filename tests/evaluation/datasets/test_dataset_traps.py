"""What is known to go wrong in each data set: the right value, and what is said of the wrong one."""

import gzip
import json
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets import dtu, dtu_maps, open_dataset, reading, unproject
from vggt_jax.evaluation.datasets.co3d import intrinsics_from_ndc, opencv_from_pytorch3d
from vggt_jax.evaluation.datasets.colmap_model import read_model, rotation_of
from vggt_jax.evaluation.datasets.eth3d_lens import Lens, like_pi3
from vggt_jax.evaluation.datasets.seven_scenes import project_to_colour

# RealEstate10K


def test_clips_are_matched_by_time(copied):
    root, written = copied("re10k", "original")
    clip = "0123456789abcdef"
    images = sorted((root / "frames" / "test" / clip).iterdir())
    images[3].rename(
        images[3].with_name(f"{int(images[3].stem) + 8000}.png")
    )  # Decoded 8 ms later.
    images[5].unlink()
    sequence = open_dataset("re10k", root).load(clip)
    assert [frame.index for frame in sequence.frames] == [*range(5), *range(6, 12)]
    assert sequence.problems.counts == {"image matched by the nearest time": 1, reading.NO_IMAGE: 1}
    for frame in sequence.frames:
        view = written.images[clip][frame.index]
        np.testing.assert_allclose(frame.camera_from_world, view.camera_from_world[:3], atol=1e-8)


def test_clips_whose_numbered_images_closed_ranks_are_refused(copied):
    root, _ = copied("re10k", "pi3")
    clip = "0123456789abcdef"
    images = sorted((root / clip / "images").iterdir())
    for before, after in zip(images[4:], images[5:]):
        after.replace(before)
    with pytest.raises(InputError, match="12 cameras, but 11 images without a gap"):
        open_dataset("re10k", root).load(clip)


def test_clips_without_frames_are_counted(copied):
    root, _ = copied("re10k", "original")
    shutil.rmtree(root / "frames" / "test" / "2123456789abcdef")
    dataset = open_dataset("re10k", root)
    assert len(dataset.sequences()) == 2
    assert dataset.problems.counts == {"clip has no folder of frames": 1}


# CO3D


def test_cameras_of_co3d():
    """A point ahead, to the right and below is at negative x and y in PyTorch3D's axes."""
    rotation, translation = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]), np.array([0.1, 0.2, 5])
    pose = opencv_from_pytorch3d(rotation, translation)
    point = np.array([0.3, -0.4, 0.5])
    expected = (point @ rotation + translation) * [-1, -1, 1]
    np.testing.assert_allclose(pose[:, :3] @ point + pose[:, 3], expected)

    # Landscape of 600 x 400: half the shorter side is 200.
    isotropic = intrinsics_from_ndc((3, 3.5), (0.1, -0.2), "ndc_isotropic", (400, 600))
    np.testing.assert_allclose(isotropic, [[600, 0, 280], [0, 700, 240], [0, 0, 1]])
    bounds = intrinsics_from_ndc((2, 3.5), (0.1, -0.2), "ndc_norm_image_bounds", (400, 600))
    np.testing.assert_allclose(bounds, [[600, 0, 270], [0, 700, 240], [0, 0, 1]])
    with pytest.raises(ValueError, match="ndc_other"):
        intrinsics_from_ndc((1, 1), (0, 0), "ndc_other", (4, 4))


def test_sequences_of_low_quality_or_with_a_far_camera_are_left_out_and_counted(tiny):
    root, _ = tiny("co3d", "original")
    dataset = open_dataset("co3d", root)
    assert dataset.sequences() == ["apple/110_1_2", "apple/120_3_4"]
    assert dataset.problems.counts == {
        "viewpoint quality is too low": 1,
        "a camera is far away (x + y + z above 1e5)": 1,
    }
    everything = open_dataset("co3d", root, min_viewpoint_quality=None, max_translation=None)
    assert len(everything.sequences()) == 4
    test_list = open_dataset("co3d", root, set_list="fewview_dev/test").load("apple/110_1_2")
    assert [frame.name for frame in test_list.frames] == [f"frame{i:06d}" for i in range(1, 12, 2)]
    with pytest.raises(InputError, match="set_lists_manyview.json: is missing"):
        open_dataset("co3d", root, set_list="manyview/test").sequences()


def test_depth_of_co3d_is_float16_within_its_mask(tiny):
    frame = open_dataset("co3d", tiny("co3d", "original")[0]).load("apple/110_1_2").frames[0]
    depth = frame.load_depth()
    assert not depth[0, :3].any()  # Infinite, not a number, outside of the mask.
    assert frame.load_mask().dtype == bool and frame.load_mask().shape == depth.shape


def test_annotations_in_opencv_are_read_as_such(copied):
    root, written = copied("co3d", "vggt")
    view = written.images["apple/110_1_2"][0]
    record = {
        "filepath": "apple/110_1_2/images/frame000001.jpg",
        "extri": view.camera_from_world[:3].tolist(),
        "intri": view.intrinsics.tolist(),
    }
    document = gzip.compress(json.dumps({"110_1_2": [record]}).encode())
    (root / "annotations" / "apple_test.jgz").write_bytes(document)
    (frame,) = open_dataset("co3d", root).load("apple/110_1_2").frames
    np.testing.assert_array_equal(frame.camera_from_world, view.camera_from_world[:3])
    np.testing.assert_array_equal(frame.intrinsics, view.intrinsics)


# Tanks & Temples


def test_poses_without_images_and_images_without_poses_are_counted(tiny):
    dataset = open_dataset("tanks", tiny("tanks", "original")[0])
    barn, church = map(dataset.load, ("Barn", "Church"))
    assert barn.problems.counts == {"image was not registered": 1}
    assert barn.frames[2].camera_from_world is None and barn.frames[2].name == "000003"
    assert church.problems.counts == {"pose has no image": 1} and len(church.frames) == 11
    assert barn.category == "training" and barn.facts["threshold"] == 0.01


def test_scans_come_with_their_transform_and_crop(tiny, writer):
    scan = open_dataset("tanks", tiny("tanks", "original")[0]).load("Church").points()
    world = np.linalg.inv(scan.scan_from_world)
    points = scan.points @ world[:3, :3].T + world[:3, 3]
    assert len(points) == 300 and writer.world.distance(points).max() < 1e-5
    points = np.array([[0.0, 0, 0], [8.9, 0, 9], [9.1, 0, 0], [0, 0, 11], [0, 0, -9]])
    np.testing.assert_array_equal(scan.crop.contains(points), [True, True, False, False, True])


def test_scenes_with_a_binary_colmap_model(copied):
    root, written = copied("tanks", "image_sets")
    (root / "Barn_COLMAP_SfM.log").unlink()
    folder = root / "colmap_results" / "training__Barn" / "0"
    folder.mkdir(parents=True)
    params = (22.0, 21.0, 16.0, 12.0)
    (folder / "cameras.bin").write_bytes(struct.pack("<QIiQQ4d", 1, 5, 1, 32, 24, *params))
    images = struct.pack("<Q", 2)
    for i in (4, 1):
        # A turn by 90 degrees about z.
        images += struct.pack("<I7dI", i, 0.5**0.5, 0, 0, 0.5**0.5, 1, 2, 3, 5)
        images += f"{i + 1:06d}.jpg".encode() + b"\0" + struct.pack("<Q3d", 1, *(0.0,) * 3)
    (folder / "images.bin").write_bytes(images)
    sequence = open_dataset("tanks", root).load("Barn")
    found = [frame for frame in sequence.frames if frame.camera_from_world is not None]
    assert [frame.index for frame in found] == [1, 4] and len(sequence.frames) == 12
    np.testing.assert_allclose(
        found[0].camera_from_world, [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3]], atol=1e-15
    )
    np.testing.assert_array_equal(found[0].intrinsics, reading.pinhole(*params))
    assert sequence.problems.counts == {"image was not registered": 10}
    (folder / "images.bin").write_bytes(images[:-20])
    with pytest.raises(
        InputError, match="images.bin: is no images.bin of COLMAP .*it ends in image 000002.jpg"
    ):
        read_model(folder)


# ETH3D


def test_photographs_of_eth3d_are_undistorted(tiny, writer):
    root, written = tiny("eth3d", "original")
    sequence = open_dataset("eth3d", root).load("courtyard")
    assert [frame.name for frame in sequence.frames] == [
        f"DSC_{286 + 2 * i:04d}.JPG" for i in range(12)
    ]
    for frame in sequence.frames[:4]:  # Of two cameras.
        depth = frame.load_depth()
        view = written.images["courtyard"][frame.index]
        _, truth = writer.world.render(view)
        known = (depth > 0) & np.isfinite(truth)
        assert known.mean() > 0.5
        # From the nearest pixel, which is up to .7 away: some of 5 percent on the floor.
        assert np.median(np.abs(depth[known] / truth[known] - 1)) < 0.01
        assert np.median(writer.world.distance(unproject(frame, depth))) < 0.02


def test_stored_photographs_of_eth3d_have_rays(tiny, writer):
    root, _ = tiny("eth3d", "original")
    frame = open_dataset("eth3d", root, images="distorted").load("courtyard").frames[1]
    depth = frame.load_depth()
    assert writer.world.distance(unproject(frame, depth)).max() < 1e-5
    mask, strict = frame.load_mask(), open_dataset("eth3d", root, images="distorted", masked=(1, 2))
    assert mask[:4, :5].all() and not mask[:4, 5:9].any() and mask[4:].all()
    assert not strict.load("courtyard").frames[1].load_mask()[:4, :9].any()


def test_the_lens_is_that_of_colmap():
    pycolmap = pytest.importorskip("pycolmap")
    params = np.array([0.21, 0.2, -5e-3, 5e-3, -0.15, 0.4, -8e-3, 9e-3])
    lens = Lens(reading.pinhole(340.0, 341, 300, 200), (400, 600), params)
    camera = pycolmap.Camera(
        model="THIN_PRISM_FISHEYE", width=600, height=400, params=[340, 341, 300, 200, *params]
    )
    rays = lens.rays()[::40, ::40].reshape(-1, 2)
    rays_of_colmap = np.random.default_rng(0).uniform(-0.7, 0.7, (50, 2))
    expected = camera.img_from_cam(np.c_[rays_of_colmap, np.ones(50)])
    np.testing.assert_allclose(lens.pixels(rays_of_colmap), expected, atol=1e-9)
    y, x = np.mgrid[0:400:40, 0:600:40] + 0.5
    np.testing.assert_allclose(lens.pixels(rays), np.stack([x, y], -1).reshape(-1, 2), atol=1e-8)


def test_undistortion_as_in_the_preparation_of_pi3():
    """Without distortion it moves nothing; depth is carried to the nearest pixel."""
    picture = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
    params = np.zeros(8)
    params[2] = 0.3  # p1, which that preparation leaves out.
    wide = Lens(reading.pinhole(1e5, 1e5, 16, 12), (24, 32), params)  # Nearly no angle.
    np.testing.assert_array_equal(like_pi3(picture, wide, depth=False)[1:, 1:], picture[1:, 1:])
    depth = picture[..., 0].astype(np.float32)
    np.testing.assert_array_equal(like_pi3(depth, wide, depth=True), depth)


def test_undistorted_photographs_take_the_depth_of_the_distorted(copied, tiny, writer):
    root, written = copied("eth3d", "undistorted")
    shutil.copytree(tiny("eth3d", "original")[0], root, dirs_exist_ok=True)
    frame = open_dataset("eth3d", root).load("pipes").frames[2]
    assert "undistorted" in str(frame.image)
    assert np.median(writer.world.distance(unproject(frame, frame.load_depth()))) < 0.02


def test_raw_depth_of_another_size_is_refused(copied):
    root, _ = copied("eth3d", "original")
    path = next((root / "courtyard" / "ground_truth_depth" / "dslr_images").iterdir())
    path.write_bytes(path.read_bytes()[:-8])
    frame = {f.name: f for f in open_dataset("eth3d", root).load("courtyard").frames}[path.name]
    with pytest.raises(InputError, match="has 766 numbers, and 32x24 pixels need 768"):
        frame.load_depth()


def test_scans_of_eth3d_are_moved_to_the_cameras(tiny, writer):
    scan = open_dataset("eth3d", tiny("eth3d", "pi3")[0]).load("pipes").points()
    assert len(scan.points) == 200 and writer.world.distance(scan.points).max() < 1e-5


# 7-Scenes


def test_depth_of_7scenes_says_of_which_camera_it_is(tiny, writer):
    root, written = tiny("7scenes", "original")
    dataset = open_dataset("7scenes", root)
    assert dataset.sequences() == ["chess/seq-03"]
    stored = dataset.load("chess/seq-03").frames[4]
    raw = open_dataset("7scenes", root, depth="raw").load("chess/seq-03").frames[4]
    assert stored.registered and not raw.registered
    np.testing.assert_allclose(raw.depth_camera, reading.pinhole(29.25, 29.25, 16, 12))
    np.testing.assert_allclose(stored.depth_camera, reading.pinhole(26.25, 26.25, 16.025, 12.025))
    np.testing.assert_allclose(raw.intrinsics, stored.intrinsics)
    # The pose is the colour camera's here, so that raw depth is off by the baseline and half a degree.
    assert 5e-3 < writer.world.distance(unproject(raw, raw.load_depth())).max() < 5e-2


def test_projected_depth_is_that_of_the_colour_camera(tiny):
    root, _ = tiny("7scenes", "raw")
    stored = open_dataset("7scenes", tiny("7scenes", "original")[0]).load("chess/seq-03")
    made = open_dataset("7scenes", root, depth="projected").load("chess/seq-03")
    for one, other in zip(stored.frames[::4], made.frames[::4]):
        a, b = one.load_depth(), other.load_depth()
        both = (a > 0) & (b > 0)
        assert other.registered and both.mean() > 0.4
        assert np.median(np.abs(a[both] / b[both] - 1)) < 0.02


def test_invalid_depth_does_not_wrap_into_near_points(tmp_path):
    """Values of the published preprocessing, for a picture without any depth."""
    path = tmp_path / "frame-000000.depth.png"
    Image.fromarray(np.full((480, 640), 65535, np.uint16)).save(path)
    assert not project_to_colour(path, (480, 640)).any()
    wrapped = project_to_colour(path, (480, 640), legacy_wrap=True)
    near = wrapped[(wrapped > 0) & (wrapped < 1)]
    assert len(near) > 10_000 and 0.45 < near.max() < 0.5 and (wrapped > 65).any()


def test_releases_with_wrapped_depth_are_found(copied):
    root, _ = copied("7scenes", "original")
    folder = root / "chess" / "seq-03"
    assert open_dataset("7scenes", root).check()[0].complete
    raw = folder / "frame-000001.depth.png"
    values = np.array(Image.open(raw))
    values[-6:, -8:] = 65535
    Image.fromarray(values).save(raw)
    wrapped = np.round(project_to_colour(raw, (24, 32), True) * 1000).astype(np.uint16)
    Image.fromarray(wrapped).save(folder / "frame-000001.depth.proj.png")
    (check,) = open_dataset("7scenes", root).check()
    assert [line for line in check.lines if "near points made of 65535" in line]
    stored, remade, legacy = (
        open_dataset("7scenes", root, **options).load("chess/seq-03").frames[1].load_depth()
        for options in ({}, {"depth": "remade"}, {"depth": "remade", "legacy_wrap": True})
    )
    assert stored.min() == remade.min() == 0 and ((stored > 0) & (stored < 0.5)).any()
    assert remade[remade > 0].min() > 0.5
    np.testing.assert_array_equal(stored, legacy)


def test_splits_of_7scenes(copied):
    root, _ = copied("7scenes", "raw")
    (root / "chess" / "TestSplit.txt").write_text("sequence3\nsequence5\n")
    dataset = open_dataset("7scenes", root)
    assert dataset.sequences() == ["chess/seq-03"]
    assert dataset.problems.lines() == ["sequence is missing: 1 (chess/seq-05)"]
    (root / "chess" / "TestSplit.txt").unlink()
    (root / "chess" / "TrainSplit.txt").unlink()
    dataset = open_dataset("7scenes", root)
    assert dataset.sequences() == ["chess/seq-03"] and dataset.problems


# NRGBD


def test_lost_poses_of_nrgbd_are_reported_and_names_are_numbers(tiny):
    root, _ = tiny("nrgbd", "original")
    sequence = open_dataset("nrgbd", root).load("breakfast_room")
    assert [frame.name for frame in sequence.frames] == [f"img{i}" for i in range(12)]
    assert sequence.problems.lines() == [
        "pose is not finite: 2 (breakfast_room/3, breakfast_room/4)"
    ]
    noisy = open_dataset("nrgbd", root, depth="depth_with_noise").load("breakfast_room")
    off = noisy.frames[0].load_depth() - sequence.frames[0].load_depth()
    assert 0.01 < np.std(off[np.abs(off) < 0.1]) < 0.03


# DTU


@pytest.mark.parametrize("tail", ["425 2.5", "425 2.5 192", "425 2.5 192 935"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_camera_files_of_all_lengths(tmp_path, tail, newline):
    pose, matrix = np.arange(16.0).reshape(4, 4), np.arange(9.0).reshape(3, 3)
    rows = lambda m: "\n".join(" ".join(map(str, row)) + " " for row in m)
    text = f"extrinsic\n{rows(pose)}\n\nintrinsic\n{rows(matrix)}\n\n{tail}\n"
    (tmp_path / "cam.txt").write_bytes(text.replace("\n", newline).encode())
    found = dtu.read_camera(tmp_path / "cam.txt")
    np.testing.assert_array_equal(found[0], matrix)
    np.testing.assert_array_equal(found[1], pose)


def test_pfm_files_have_an_order_of_bytes_and_begin_below(tmp_path):
    picture = np.arange(6, dtype=np.float32).reshape(2, 3)
    for header, form in ((b"Pf\n3 2\n-1.0\n", "<f4"), (b"Pf\r\n3 2\r\n1\r\n", ">f4")):
        (tmp_path / "a.pfm").write_bytes(header + picture[::-1].astype(form).tobytes())
        np.testing.assert_array_equal(dtu_maps.read_pfm(tmp_path / "a.pfm"), picture)
    for wrong in (b"PF\n3 2\n-1.0\n" + bytes(24), b"Pf\n3 2\n-1.0\n" + bytes(20)):
        (tmp_path / "a.pfm").write_bytes(wrong)
        with pytest.raises(InputError, match=r"a\.pfm: is no PFM file of one channel"):
            dtu_maps.read_pfm(tmp_path / "a.pfm")


def test_scans_of_dtu_know_what_was_observed(tiny):
    scan = open_dataset("dtu", tiny("dtu", "mvsnet")[0]).load("scan4").points()
    assert scan.points.shape == scan.normals.shape == (300, 3)
    np.testing.assert_allclose(scan.normals, [[0, 0, 1]] * 300)
    # Cubes of a metre, of which those at the two low sides were not seen.
    points = np.array(
        [[-1000.0, 1000, 0], [-1600, 1000, 0], [-1400, 600, 2400], [9000, 0, 0], [-1000, 400, 0]]
    )
    np.testing.assert_array_equal(scan.observed.contains(points), [True, False, True, False, False])
    np.testing.assert_array_equal(scan.observed.above_table([[0, 0, 4], [0, 0, 6]]), [False, True])


def test_other_lights_and_smaller_depth_of_dtu(tiny, copied):
    root, _ = tiny("dtu", "training")
    dark = open_dataset("dtu", root, light=0).load("scan1").frames[0].load_image().mean()
    assert 3 < open_dataset("dtu", root).load("scan1").frames[0].load_image().mean() / dark < 5
    copy, _ = copied("dtu", "mvsnet")
    path = copy / "scan1" / "depths" / "00000002.npy"
    np.save(path, np.load(path)[::2, ::2])
    frame = open_dataset("dtu", copy).load("scan1").frames[2]
    np.testing.assert_allclose(frame.depth_camera, reading.scaled(frame.intrinsics, 0.5, 0.5))


# ScanNet


def test_sens_files_hold_what_their_export_holds(tiny):
    exported = open_dataset("scannet", tiny("scannet", "original")[0]).load("scene0708_00")
    packed = open_dataset("scannet", tiny("scannet", "sens")[0]).load("scene0708_00")
    assert packed.problems.counts == exported.problems.counts == {reading.LOST_POSE: 1}
    for one, other in zip(exported.frames, packed.frames):
        np.testing.assert_array_equal(one.load_image(), other.load_image())
        np.testing.assert_array_equal(one.load_depth(), other.load_depth())


def test_truncated_sens_files_keep_their_whole_frames(copied):
    root, _ = copied("scannet", "sens")
    path = root / "scene0707_00" / "scene0707_00.sens"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    sequence = open_dataset("scannet", root).load("scene0707_00")
    assert 3 < len(sequence.frames) < 9
    assert sequence.problems.lines() == [f"file is truncated: 1 ({path})"]
    path.write_bytes(b"\4\0\0\0")
    with pytest.raises(InputError, match="is truncated in its header"):
        open_dataset("scannet", root).load("scene0707_00")


def test_colour_that_was_made_smaller_takes_the_intrinsics_of_depth(copied):
    root, _ = copied("scannet", "original")
    before = open_dataset("scannet", root).load("scene0707_00").frames[0]
    for path in (root / "scene0707_00" / "color").iterdir():
        Image.open(path).resize((32, 24)).save(path)
    sequence = open_dataset("scannet", root).load("scene0707_00")
    np.testing.assert_allclose(sequence.frames[0].intrinsics, before.depth_camera)
    assert len(sequence.problems.counts) == 1
    (root / "scene0707_00" / "intrinsic" / "intrinsic_depth.txt").unlink()
    (root / "scene0707_00" / "intrinsic" / "intrinsic_color.txt").unlink()
    sequence = open_dataset("scannet", root).load("scene0707_00")
    assert sequence.problems.counts == {"intrinsics are missing": 1}
    assert sequence.frames[0].intrinsics is None and sequence.frames[0].depth_camera is None


def test_scenes_of_scannet_in_several_layouts(copied, tiny, writer):
    root, _ = copied("scannet", "original")
    shutil.copytree(tiny("scannet", "sens")[0], root, dirs_exist_ok=True)
    (root / "scene0707_00" / "scene0707_00.txt").write_text(
        "axisAlignment = 0 -1 0 2 1 0 0 3 0 0 1 4 0 0 0 1 \nnumColorFrames = 99\n"
    )
    exported, packed = (open_dataset("scannet", root, prefer=kind) for kind in (None, "sens"))
    assert exported.load("scene0707_00").frames[0].image.name == "0.jpg"
    sequence = packed.load("scene0707_00")
    assert sequence.frames[0].image.name == "scene0707_00.sens"
    np.testing.assert_array_equal(sequence.facts["axis_alignment"][:3, 3], [2, 3, 4])
    assert not exported.load("scene0708_00").facts
    assert writer.world.distance(sequence.points().points).max() < 1e-5


def test_quaternions_have_their_real_part_first():
    np.testing.assert_allclose(rotation_of(1, 0, 0, 0), np.eye(3))
    np.testing.assert_allclose(
        rotation_of(2, 2, 0, 0), [[1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-15
    )
