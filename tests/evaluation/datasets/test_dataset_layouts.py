"""Every data set in every layout: what is loaded is what was written, and lies on the surfaces."""

import numpy as np
import pytest
from dataset_cases import CASES, LAYOUTS, OPTIONS

from vggt_jax.evaluation.datasets import DATASETS, open_dataset, unproject

LOST = {
    "nrgbd": ("breakfast_room", (3, 4)),
    "scannet": ("scene0708_00", (2,)),
    "tanks": ("Barn", (2,)),
}
UNIT = {"dtu": 1e-3}  # In metres.
# What a file rounds depth to, in metres.
QUANTUM = {"7scenes": 1.1e-3, "nrgbd": 6e-4, "scannet": 6e-4}


def test_there_is_a_writer_for_every_data_set_and_layout(writer):
    assert {name: layouts for name, (_, layouts) in writer.WRITERS.items()} == LAYOUTS
    assert set(DATASETS) == set(LAYOUTS)


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request, tiny):
    name, layout = request.param
    root, written = tiny(name, layout)
    return name, layout, open_dataset(name, root, **OPTIONS.get(name, {})), written


def test_sequences_and_frames_are_those_that_were_written(case):
    name, layout, dataset, written = case
    assert set(dataset.sequences()) == set(written.images)
    for sequence in map(dataset.load, dataset.sequences()):
        views = written.images[sequence.name]
        assert [frame.index for frame in sequence.frames] == sorted(views)
        assert len({frame.name for frame in sequence.frames}) == len(sequence.frames)
        scene, lost = LOST.get(name, (None, ()))
        for frame in sequence.frames:
            view = views[frame.index]
            if (sequence.name, frame.index) in {(scene, i) for i in lost}:
                assert frame.camera_from_world is None
                continue
            scale = np.array([1, 1, 1, 1 / UNIT.get(name, 1)])
            expected = view.camera_from_world[:3] * scale
            np.testing.assert_allclose(
                frame.camera_from_world, expected, atol=2e-6 / UNIT.get(name, 1)
            )
            assert (
                frame.load_image().shape == (*view.size, 3) and frame.load_image().dtype == np.uint8
            )
            if name != "tanks":
                np.testing.assert_allclose(frame.intrinsics, view.intrinsics, atol=2e-5)


def test_photographs_are_those_of_the_cameras(case, writer):
    """The order of frames, and the size and orientation of pictures."""
    name, layout, dataset, written = case
    sequence = dataset.load(dataset.sequences()[-1])
    for frame in sequence.frames[1::5]:
        expected, _ = writer.world.render(written.images[sequence.name][frame.index])
        found = frame.load_image().astype(float)
        inside = (found > 0).any(-1)
        # JPEG and resampling; another frame of the track is off by more than 15.
        assert np.abs(found - expected)[inside].mean() < 8
        assert inside.mean() > 0.8


def test_depth_lies_on_the_surfaces_where_it_was_written(case, writer):
    name, layout, dataset, written = case
    depths = written.depths
    for sequence in map(dataset.load, dataset.sequences()):
        if not depths.get(sequence.name):
            assert not any(frame.has_depth for frame in sequence.frames) or name == "eth3d"
            continue
        for frame in sequence.frames:
            depth = frame.load_depth()
            assert depth.dtype == np.float32 and np.isfinite(depth).all() and (depth >= 0).all()
            view = depths[sequence.name][frame.index]
            assert depth.shape == view.size
            _, truth = writer.world.render(view)
            truth = np.where(np.isfinite(truth), truth, 0)
            unit, quantum = UNIT.get(name, 1), QUANTUM.get(name, 1e-5)
            if name == "co3d":
                quantum = 6e-4 * np.maximum(truth, 1) if layout != "dust3r" else 1e-4
            if (name, layout) == ("eth3d", "original"):
                continue  # From the nearest pixel; see test_eth3d.py.
            different = np.abs(depth * unit - truth) > quantum
            # Corners that the writer filled with what is no depth.
            assert different.sum() <= (3 if name == "co3d" else 1 if layout == "raw" else 0)
            assert (depth > 0).mean() > 0.3
            if frame.camera_from_world is None or (name, layout) == ("7scenes", "raw"):
                continue
            points = unproject(frame, depth) * unit
            assert writer.world.distance(points).max() < 2 * np.max(quantum)


def test_truth_agrees_with_itself(case):
    name, layout, dataset, written = case
    for check in dataset.check():
        assert check.num_frames == len(written.images[check.name])
        assert check.consistent
        if written.depths.get(check.name) and name != "co3d":
            assert check.num_depth == check.num_frames and check.num_compared > 100
            assert check.agreeing > 0.6


@pytest.mark.parametrize(
    ("name", "layout", "inside", "sequence"),
    [
        ("re10k", "original", "test", "2123456789abcdef"),
        ("re10k", "cut3r", "2123456789abcdef", "2123456789abcdef"),
        ("co3d", "original", "apple", "apple/120_3_4"),
        ("tanks", "original", "Church", "Church"),
        ("eth3d", "original", "pipes", "pipes"),
        ("7scenes", "original", "chess", "chess/seq-03"),
        ("nrgbd", "original", "thin_geometry", "thin_geometry"),
        ("dtu", "mvsnet", "scan4", "scan4"),
        ("scannet", "sens", "scene0708_00", "scene0708_00"),
        ("scannet", "processed", "scene0708_00", "scene0708_00"),
    ],
)
def test_a_single_scene_may_be_opened(tiny, name, layout, inside, sequence):
    root, written = tiny(name, layout)
    dataset = open_dataset(name, root / inside)
    assert sequence in dataset.sequences()
    whole = open_dataset(name, root)
    found, expected = dataset.load(sequence), whole.load(sequence)
    assert [f.index for f in found.frames] == [f.index for f in expected.frames]
    np.testing.assert_array_equal(
        found.frames[0].camera_from_world, expected.frames[0].camera_from_world
    )
