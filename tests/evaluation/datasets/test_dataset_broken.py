"""Harmless variation changes nothing, and what is missing or broken is left out, named and counted."""

import gzip
import json
import re
import shutil

import numpy as np
import pytest
from dataset_cases import CASES, FIRST_QUICK, OPTIONS

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets import DATASETS, Problems, open_dataset, reading


def opened(name, root, **options):
    return open_dataset(name, root, **(OPTIONS.get(name, {}) | options))


def vary(root):
    """Files of systems and people beside the data, other ends of lines, blanks, upper case."""
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        (folder / ".DS_Store").write_bytes(b"\0\1")
        (folder / "Thumbs.db").write_bytes(b"\0\1")
        (folder / "._frame.png").write_bytes(b"\0")
        (folder / "readme.md").write_text("notes")
    for path in list(root.rglob("*.txt")) + list(root.rglob("*.log")):
        lines = path.read_text().replace("\r", "").split("\n")
        path.write_bytes("".join(line + "  \r\n" for line in lines).encode())
    for path in list(root.rglob("*")):
        if path.suffix in (".jpg", ".png"):
            path.rename(path.with_suffix(path.suffix.upper()))


@pytest.mark.parametrize(("name", "layout"), FIRST_QUICK)
def test_harmless_variation_changes_nothing(copied, tiny, name, layout):
    changed, _ = copied(name, layout)
    vary(changed)
    expected, found = opened(name, tiny(name, layout)[0]), opened(name, changed)
    assert found.sequences() == expected.sequences()
    for sequence in found.sequences()[-1:]:
        one, other = expected.load(sequence), found.load(sequence)
        assert [f.name.lower() for f in one.frames] == [f.name.lower() for f in other.frames]
        assert one.problems.counts == other.problems.counts
        for a, b in zip(one.frames, other.frames):
            np.testing.assert_array_equal(a.intrinsics, b.intrinsics)
            assert (a.camera_from_world is None) == (b.camera_from_world is None)
            if a.camera_from_world is not None:
                np.testing.assert_array_equal(a.camera_from_world, b.camera_from_world)
            assert a.has_depth == b.has_depth
        last = other.frames[-1]
        np.testing.assert_array_equal(last.load_image(), one.frames[-1].load_image())


@pytest.mark.parametrize(
    ("name", "layout"),
    [case for case in FIRST_QUICK if not {"sens", "pixelsplat"} & set(case.values)],
)
def test_missing_and_damaged_photographs_are_counted(copied, name, layout):
    root, _ = copied(name, layout)
    dataset = opened(name, root)
    sequence = dataset.sequences()[0]
    before = dataset.load(sequence)
    gone, damaged = before.frames[5], before.frames[7]
    gone.image.unlink()
    damaged.image.write_bytes(b"no picture")
    dataset = opened(name, root)
    after = dataset.load(sequence)
    assert [f.name for f in after.frames] == [
        f.name for f in before.frames if f not in (gone, damaged)
    ]
    # The others keep their places and cameras.
    for frame, same in zip(after.frames, [f for f in before.frames if f not in (gone, damaged)]):
        assert frame.index == same.index
        if same.camera_from_world is not None:
            np.testing.assert_array_equal(frame.camera_from_world, same.camera_from_world)
    counts = after.problems.counts
    missing = "pose has no image" if name == "tanks" else reading.NO_IMAGE
    more = {missing: before.problems.counts.get(missing, 0) + 1, reading.DAMAGED_IMAGE: 1}
    assert counts == before.problems.counts | more
    for line in after.problems.lines():
        assert "\n" not in line
    # Loading again counts nothing twice.
    dataset.load(sequence)
    assert dataset.problems.counts[reading.DAMAGED_IMAGE] == 1


@pytest.mark.parametrize("name", DATASETS)
def test_a_folder_without_the_data_set_is_refused_with_what_was_looked_for(tmp_path, name):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "IMG_0001.jpg").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        open_dataset(name, tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message and "\n" not in message
    for layout in DATASETS[name].layouts:
        assert layout.looked_for in message and layout.name in message
    with pytest.raises(InputError, match="no such folder"):
        open_dataset(name, tmp_path / "nowhere")


def test_names_and_options_are_checked(tiny):
    root, _ = tiny("nrgbd", "original")
    with pytest.raises(InputError, match="no data set 'nrgb'; there are re10k, co3d"):
        open_dataset("nrgb", root)
    with pytest.raises(InputError, match="unexpected keyword argument 'stride'"):
        open_dataset("nrgbd", root, stride=3)
    for name, options in {
        "nrgbd": {"depth": "exact"}, "7scenes": {"split": "dev"}, "dtu": {"light": 7},
        "eth3d": {"images": "warped"}, "scannet": {"prefer": "tar"}, "co3d": {"split": "dev"},
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=next(iter(options))):
            open_dataset(
                name, tiny(name, CASES[[c[0] for c in CASES].index(name)][1])[0], **options
            )
    with pytest.raises(
        InputError, match="no sequence kitchen; there are breakfast_room, thin_geometry"
    ):
        open_dataset("nrgbd", root).load("kitchen")


@pytest.mark.parametrize(
    ("name", "file", "damage"),
    [
        ("nrgbd", "breakfast_room/poses.txt", lambda text: text[: len(text) // 3]),
        ("nrgbd", "breakfast_room/focal.txt", lambda text: ""),
        ("tanks", "Barn_COLMAP_SfM.log", lambda text: text.rstrip().rpartition("\n")[0]),
        (
            "eth3d",
            "courtyard/dslr_calibration_jpg/cameras.txt",
            lambda text: text.replace("FISH", ""),
        ),
        (
            "eth3d",
            "courtyard/dslr_calibration_jpg/images.txt",
            lambda text: text.replace("0.", "x"),
        ),
        ("scannet", "scene0707_00/intrinsic/intrinsic_depth.txt", lambda text: text[:20]),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_damaged_file_of_a_whole_scene_is_named(copied, name, file, damage):
    root, _ = copied(name, "original")
    (root / file).write_text(damage((root / file).read_text()))
    dataset = opened(name, root)
    sequence = file.partition("/")[0].partition("_COLMAP")[0]
    with pytest.raises(InputError, match=re.escape(str(root / file))):
        dataset.load(sequence)
    (check,) = dataset.check([sequence])
    assert not check.complete and check.num_frames == 0 and str(root / file) in check.lines[0]


def test_poses_are_checked():
    problems = Problems()
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, (1, 2, 3)
    found = reading.rigid(pose, problems, "a", inverse=True)
    np.testing.assert_allclose(found, np.c_[turn.T, -turn.T @ (1, 2, 3)])
    np.testing.assert_array_equal(reading.rigid(pose[:3], problems, "a", inverse=False), pose[:3])
    assert not problems
    mirrored, stretched, lost = pose.copy(), pose.copy(), pose.copy()
    mirrored[:3, 0] *= -1
    stretched[:3, :3] *= 1.5
    lost[1, 1] = -np.inf
    for label, wrong in (("b", mirrored), ("c", stretched), ("d", lost)):
        assert reading.rigid(wrong, problems, label, inverse=True) is None
    assert problems.counts == {reading.NO_ROTATION: 2, reading.LOST_POSE: 1}
    assert problems.things(reading.NO_ROTATION) == ("b", "c")


def test_problems_are_shown_on_a_line_a_kind():
    problems = Problems()
    for i in range(5):
        problems.add("pose is missing", f"frame\n{i}")
    problems.add("pose is missing", "frame\n0")
    other = Problems()
    other.update(problems)
    assert other.lines(2) == ["pose is missing: 5 (frame\\n0, frame\\n1 and 3 more)"]
    assert problems and not Problems()


def test_depth_that_was_converted_to_8_bits_is_refused(tmp_path, writer):
    writer.files.save(tmp_path / "depth.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(InputError, match="16 bits"):
        reading.read_uint16(tmp_path / "depth.png")


def test_lines_of_a_clip_that_cannot_be_read_keep_their_places(copied):
    root, written = copied("re10k", "original")
    clip, other = "0123456789abcdef", "1123456789abcdef"
    path = root / "test" / f"{clip}.txt"
    lines = path.read_text().split("\n")
    words = lines[6].split()
    lines[3], lines[6] = "15869 no number", " ".join([words[0], "nan", *words[2:]])
    path.write_text("\n".join(lines))
    (root / "test" / f"{other}.txt").write_text("https://www.youtube.com/watch?v=none\n")
    dataset = opened("re10k", root)
    sequence = dataset.load(clip)
    assert [frame.index for frame in sequence.frames] == [0, 1, *range(3, 12)]
    for frame in sequence.frames:
        view = written.images[clip][frame.index]
        np.testing.assert_allclose(frame.camera_from_world, view.camera_from_world[:3], atol=1e-8)
        assert (frame.intrinsics is None) == (frame.index == 5)
    assert sequence.problems.counts == {
        "line of a camera file cannot be read": 1,
        "intrinsics are not finite, or of no camera": 1,
    }
    with pytest.raises(InputError, match=f"{other}.txt: is no camera file"):
        dataset.load(other)


def test_records_of_co3d_without_their_parts_are_counted(copied):
    root, _ = copied("co3d", "original")
    path = root / "apple" / "frame_annotations.jgz"
    records = json.loads(gzip.decompress(path.read_bytes()))
    del records[1]["image"], records[2]["viewpoint"], records[3]["depth"]["path"]
    records[4]["viewpoint"]["T"], records[5]["mask"] = None, {"mass": 3}
    path.write_bytes(gzip.compress(json.dumps(records).encode()))
    sequence = opened("co3d", root).load("apple/110_1_2")
    assert [frame.index for frame in sequence.frames] == [0, *range(2, 12)]
    poses = [frame.camera_from_world is None for frame in sequence.frames[:5]]
    assert poses == [False, True, False, True, False]
    assert sequence.frames[2].has_depth and sequence.frames[4].load_mask() is not None
    assert sequence.problems.counts == {"record has no image": 1, "camera cannot be read": 2}


def test_annotations_of_vggt_may_lie_in_any_folder_of_the_data_set(copied):
    root, written = copied("co3d", "vggt")
    (root / "annotations").rename(root / "co3d_v2_annotations")
    dataset = opened("co3d", root)
    assert dataset.layout == "vggt" and dataset.sequences() == list(written.images)


def test_annotations_of_a_clip_and_truncated_maps_of_depth_are_counted(copied, tmp_path):
    root, _ = copied("re10k", "pi3")
    path = root / "0123456789abcdef" / "annotations.json"
    records = json.loads(path.read_text())
    del records[1]["filepath"]
    records[2] = None
    path.write_text(json.dumps(records))
    sequence = opened("re10k", root).load("0123456789abcdef")
    assert [frame.index for frame in sequence.frames] == [0, *range(3, 12)]
    assert sequence.problems.counts == {"annotation cannot be read": 2}
    path.write_text('{"0": 1}')
    with pytest.raises(InputError, match="annotations.json: is no list of annotations"):
        opened("re10k", root).load("0123456789abcdef")
    shutil.rmtree(root)
    root, _ = copied("dtu", "training")
    path = next((root / "Depths").rglob("*0003.pfm"))
    path.write_bytes(path.read_bytes()[:-4])
    sequence = opened("dtu", root).load("scan1")
    assert sequence.problems.counts == {reading.DAMAGED_DEPTH: 1} and len(sequence.frames) == 12
