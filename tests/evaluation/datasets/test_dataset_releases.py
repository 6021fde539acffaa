"""Other releases of the same data: where their files lie, and of which size cameras are."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets import dtu_maps, open_dataset, reading, unproject
from vggt_jax.evaluation.datasets.torch_archive import read_archive

CLIP = "0123456789abcdef"


# RealEstate10K


@pytest.mark.parametrize("place", ["some/video", "none", "none/" + CLIP])
def test_frames_are_found_by_the_list_of_locations_or_the_address_of_the_video(copied, place):
    """The writer's address ends in v=none."""
    root, written = copied("re10k", "original")
    frames = root / "frames" / "test"
    (frames / CLIP).rename(frames / "moved")
    (frames / place).parent.mkdir(parents=True, exist_ok=True)
    (frames / "moved").rename(frames / place)
    (frames / "video_loc.txt").unlink()
    if place == "some/video":
        # A path on the disk of whoever made the list.
        (frames / place).rename(frames / "some" / CLIP)
        (frames / "video_loc.txt").write_text(f"/disk/frames/test/some/{CLIP}\n")
    elif place == "none":  # With frames of another clip of the same video.
        shutil.copy(frames / "none" / "158692025.png", frames / "none" / "58692025.png")
    sequence = open_dataset("re10k", root).load(CLIP)
    assert [frame.index for frame in sequence.frames] == [*range(12)] and not sequence.problems
    for frame in sequence.frames:
        view = written.images[CLIP][frame.index]
        np.testing.assert_allclose(frame.camera_from_world, view.camera_from_world[:3], atol=1e-8)


def test_camera_files_may_lie_in_any_folder(copied):
    root, written = copied("re10k", "original")
    (root / "test").rename(root / "poses")
    assert open_dataset("re10k", root).sequences() == list(written.images)


def test_packed_clips_are_found_without_an_index_and_broken_files_counted(copied, writer):
    root, written = copied("re10k", "pixelsplat")
    files = root / "test"
    (files / "index.json").unlink()
    dataset = open_dataset("re10k", files)
    assert dataset.sequences() == list(written.images) and not dataset.problems
    assert dataset.load(CLIP).split == "test"

    (files / "000002.torch").write_bytes((files / "000001.torch").read_bytes()[:-30])
    writer.torch.save_torch(files / "000003.torch", [{"key": "short", "images": []}])
    dataset = open_dataset("re10k", root)
    assert dataset.sequences() == [*written.images, "short"]
    assert dataset.problems.counts == {"file of clips cannot be read": 1}
    with pytest.raises(InputError, match="000003.torch: is no list of clips .*'timestamps'"):
        dataset.load("short")

    index = {CLIP: "000001.torch", "gone": "000009.torch"}
    (files / "index.json").write_text(json.dumps(index))
    dataset = open_dataset("re10k", root)
    assert dataset.problems.counts == {} and CLIP in dataset.sequences()
    assert dataset.problems.counts["file of clips is missing"] == 1
    with pytest.raises(InputError, match="000001.torch: does not hold clip " + CLIP):
        dataset.load(CLIP)


def test_photographs_of_packed_clips_that_are_damaged_are_counted(tmp_path, writer):
    cameras = np.tile(np.array([1, 2, 0.5, 0.5, 0, 0, *np.eye(4)[:3].ravel()], np.float32), (3, 1))
    cameras[2, 6] = np.nan
    images = [np.zeros(9, np.uint8), np.zeros(0, np.uint8)]
    images += [np.frombuffer(writer.files.jpeg(np.zeros((4, 6, 3), np.uint8)), np.uint8)]
    clip = {"key": "a", "timestamps": np.array([9, 5, 7]), "cameras": cameras, "images": images}
    writer.torch.save_torch(tmp_path / "000000.torch", [clip])
    (frame,) = (sequence := open_dataset("re10k", tmp_path).load("a")).frames
    # In the order of time: the one at 5 is empty, that at 7 good but for its pose.
    assert (frame.name, frame.index, frame.camera_from_world) == ("7", 1, None)
    np.testing.assert_array_equal(frame.intrinsics, reading.pinhole(6, 8, 3, 2))
    assert sequence.problems.counts == {
        reading.NO_IMAGE: 1,
        reading.LOST_POSE: 1,
        reading.DAMAGED_IMAGE: 1,
    }


@pytest.mark.slow  # PyTorch takes seconds to import.
def test_archives_of_torch_are_read_without_it_and_run_nothing(tmp_path):
    torch = pytest.importorskip("torch")
    view = torch.arange(24, dtype=torch.float64).reshape(4, 6)[1:, 1:3].t()
    torch.save({"a": [view], "none": torch.zeros(0, 3), "n": 2.5}, tmp_path / "a.pt")
    found = read_archive(tmp_path / "a.pt")
    np.testing.assert_array_equal(found["a"][0].read(), view.numpy())
    assert found["none"].read().shape == (0, 3) and found["n"] == 2.5
    torch.save(torch.nn.Linear(1, 1), tmp_path / "b.pt")
    with pytest.raises(InputError, match="b.pt: .*it holds torch.nn.*Linear, which is not read"):
        read_archive(tmp_path / "b.pt")


# DTU

FULL = reading.pinhole(2892.33, 2883.18, 823.205, 619.07)
# Of depth of 160x128, as published.
SMALL = [361.541, 360.398, 82.9, 66.384]


def test_cameras_of_dtu_follow_the_sizes_of_its_releases():
    small = reading.pinhole(*SMALL)
    cut = reading.scaled(small, 4, 4)
    for size, expected in {(512, 640): cut, (1200, 1600): FULL, (128, 160): small}.items():
        for matrix in (FULL, small):
            np.testing.assert_allclose(dtu_maps.intrinsics_for(matrix, size), expected, atol=5e-3)
    # Photographs that were resized as a whole, and cameras of a quarter.
    expected = reading.scaled(FULL, 0.4, 0.4)
    np.testing.assert_allclose(dtu_maps.intrinsics_for(FULL, (480, 640)), expected)
    quarter = reading.scaled(FULL, 0.25, 0.25)
    np.testing.assert_allclose(dtu_maps.intrinsics_for(quarter, (1200, 1600)), FULL)
    own = reading.pinhole(80, 80, 33, 23)
    np.testing.assert_array_equal(dtu_maps.intrinsics_for(own, (48, 64)), own)


@pytest.mark.parametrize(("image", "stored"), [((128, 160), (60, 80)), ((120, 160), (64, 80))])
def test_depth_of_the_whole_view_and_of_its_middle(tmp_path, writer, image, stored):
    """Whole maps beside photographs that were cut, and the other way round."""
    (whole,) = writer.files.views_of(1, (1200, 1600))
    middle = reading.scaled(whole.intrinsics, 0.5, 0.5) - [[0, 0, 80], [0, 0, 44], [0, 0, 0]]
    of = {
        (60, 80): reading.scaled(whole.intrinsics, 0.05, 0.05),
        (120, 160): reading.scaled(whole.intrinsics, 0.1, 0.1),
        (64, 80): reading.scaled(middle, 0.125, 0.125),
        (128, 160): reading.scaled(middle, 0.25, 0.25),
    }
    view = dataclasses.replace(whole, intrinsics=of[stored], size=stored)
    depth = np.nan_to_num(writer.world.render(view)[1] * 1000, posinf=0)
    folder = tmp_path / "Rectified" / "scan1_train"
    writer.files.save(folder / "rect_001_3_r5000.png", np.zeros((*image, 3), np.uint8))
    writer.files._dtu_camera(tmp_path / "Cameras" / "00000000_cam.txt", whole, 0)
    raw = tmp_path / "Depths_raw" / "scan1"
    writer.files._save_pfm(raw / "depth_map_0000.pfm", depth, big=False)
    counts = np.full(stored, 255, np.uint8)
    counts[:, : stored[1] // 2] = 10
    writer.files.save(raw / "depth_visual_0000.png", counts)
    (frame,) = (sequence := open_dataset("dtu", tmp_path).load("scan1")).frames
    assert not sequence.problems and frame.registered
    np.testing.assert_allclose(frame.intrinsics, of[image], atol=1e-6)
    found = frame.load_depth()
    assert found.shape == {(60, 80): (51, 64), (64, 80): (75, 100)}[stored]
    points = unproject(frame, found) / 1000
    assert len(points) > 500 and writer.world.distance(points).max() < 1e-5
    assert not found[:, : found.shape[1] // 2].any()
