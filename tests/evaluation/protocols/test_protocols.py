"""Protocols: which frames they take, and what their metrics are where the answer is known."""

import dataclasses
import json
import types

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.base import Scan
from vggt_jax.evaluation.protocols import (
    PROTOCOLS,
    CloudScore,
    PairScore,
    Prediction,
    Truth,
    aggregated,
    clouds,
    poses,
    protocol_for,
    results,
    score,
)
from vggt_jax.evaluation.protocols.frames import (
    Draw,
    EveryNth,
    FirstThenSpaced,
    Listed,
    RegularSpacing,
)
from vggt_jax.evaluation.protocols.resizing import Resizing
from vggt_jax.evaluation.protocols.scoring import turned
from vggt_jax.evaluation.protocols.truth import best_values, listed, perfect

# Frames, height, width.
S, H, W = 4, 10, 14


@pytest.fixture(scope="module")
def truth():
    """A bumpy surface that four cameras walk along, and its scan."""
    rng = np.random.default_rng(2)
    turns = Rotation.from_rotvec(0.2 * rng.normal(size=(S, 3))).as_matrix()
    centres = np.stack([np.linspace(0, 1, S), 0.2 * rng.normal(size=S), np.zeros(S)], axis=1)
    cameras = np.concatenate([turns, -np.einsum("sij,sj->si", turns, centres)[..., None]], axis=2)
    x, y = np.meshgrid(np.linspace(-1, 1, W), np.linspace(-0.8, 0.8, H))
    points = np.stack([x, y, 2 + 0.3 * np.sin(3 * x) * np.cos(2 * y)], axis=-1)
    points = points + 0.4 * np.arange(S)[:, None, None, None] * np.array([1, 0.1, 0.05])
    valid = rng.uniform(size=(S, H, W)) < 0.9
    return Truth(
        camera_from_world=cameras, points=points, valid=valid, scan=Scan(points=points[valid])
    )


def in_millimetres(truth):
    """A thousandfold scene of the same shape."""
    cameras, points = truth.camera_from_world.copy(), 1000 * truth.points
    cameras[..., 3] *= 1000
    scan = Scan(points=points[truth.valid])
    return Truth(camera_from_world=cameras, points=points, valid=truth.valid, scan=scan)


def noisy(truth):
    """A prediction that is off a little."""
    rng = np.random.default_rng(4)
    cameras = truth.camera_from_world.copy()
    cameras[..., :3] = (
        Rotation.from_rotvec(0.05 * rng.normal(size=(S, 3))).as_matrix() @ cameras[..., :3]
    )
    cameras[..., 3] += 0.02 * rng.normal(size=(S, 3))
    points = truth.points + 0.01 * rng.normal(size=truth.points.shape)
    return Prediction(camera_from_world=cameras, points=points)


# Protocols that compare alike are one case here.
CASES = {protocol.score: key for key, protocol in PROTOCOLS.items()}


@pytest.mark.parametrize("key", CASES.values(), ids="-".join)
def test_truth_is_perfect_and_a_similarity_changes_nothing(key, truth):
    protocol, rounding = PROTOCOLS[key], 1e-5
    if getattr(protocol.score, "observed", False):  # In millimetres, and thinned to fifths of one.
        truth, rounding = in_millimetres(truth), 0.2
    found = score(protocol, truth, perfect(protocol, truth))
    for name, best in best_values(protocol).items():
        assert name not in found or found[name] == pytest.approx(best, abs=rounding), name
    assert set(best_values(protocol)) & set(found)
    turn = np.eye(4)
    turn[:3, :3] = 2.7 * Rotation.from_rotvec([0.4, -1.1, 0.3]).as_matrix()
    turn[:3, 3] = (4, -2, 7)
    prediction = noisy(truth)
    before, after = (score(protocol, truth, x) for x in (prediction, turned(prediction, turn)))
    assert before.keys() == after.keys() and found["num_frames"] == S
    for name, value in before.items():
        assert after[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert any(before[x] != found[x] for x in found)


def test_protocols_are_values_that_results_carry():
    for (dataset, name), protocol in PROTOCOLS.items():
        assert (protocol.dataset, protocol.name) == (dataset, name) and hash(protocol)
        assert (
            json.loads(json.dumps(protocol.to_dict()))["score"]["kind"]
            == type(protocol.score).__name__
        )
        assert protocol_for(name, dataset) is protocol
        for row in protocol.published:
            assert row.source and row.metrics
    with pytest.raises(InputError, match="'cut3r' is not one for dtu; there are paper, pi3, vggt"):
        protocol_for("cut3r", "dtu")


@pytest.mark.parametrize("relative", ["first", "second", "common"])
@pytest.mark.parametrize("angle", [10.5, -10.5])
def test_one_camera_turned_in_place(relative, angle, truth):
    cameras = truth.camera_from_world.copy()
    turn = Rotation.from_rotvec(np.radians(angle) * np.array([0, 1, 0])).as_matrix()
    cameras[2] = turn @ cameras[2]
    found = poses.camera_metrics(cameras, truth.camera_from_world, relative)
    pairs, wrong = S * (S - 1) / 2, S - 1
    assert found["num_pairs"] == pairs
    assert found["rra_5"] == pytest.approx(1 - wrong / pairs) and found["rra_15"] == 1
    rotation, translation = poses.pair_errors(cameras, truth.camera_from_world, relative)
    np.testing.assert_allclose(np.sort(rotation), [0] * 3 + [10.5] * 3, atol=1e-5)
    if relative == "common":  # Directions are those of the pose's own translation there.
        return
    # Translations turn by no more than the camera, so that the rotation decides.
    assert (translation <= rotation + 1e-5).all()
    for degrees in (15, 30):
        expected = 1 - wrong / pairs * 10 / degrees
        assert found[f"auc_{degrees}"] == pytest.approx(expected)
    assert found["auc_3"] == found["auc_5"] == pytest.approx(1 - wrong / pairs)
    # Directions in coordinates of the turned camera turn: of pairs with it as the first, or second.
    is_first, is_second = (np.array(x) == 2 for x in np.triu_indices(S, 1))
    turning = is_first if relative == "first" else is_second
    assert (translation[~turning] < 1e-5).all() and (translation[turning] > 1).all()


def test_pairs_that_have_no_direction_or_are_no_numbers(truth):
    cameras = truth.camera_from_world.copy()
    cameras[:2, :, 3] = 0
    _, translation = poses.pair_errors(cameras, truth.camera_from_world, "first")
    assert translation[0] == pytest.approx(90)
    mirrored = truth.camera_from_world * np.array([1, 1, 1, -1])
    _, translation = poses.pair_errors(mirrored, truth.camera_from_world, "first")
    assert (translation < 1e-5).all()  # The sign does not count.
    cameras[3, 0, 0] = np.nan
    rotation, _ = poses.pair_errors(cameras, truth.camera_from_world, "second")
    assert (rotation == 1e6).sum() == 3
    assert poses.auc(np.array([0.0, 2.0, 3.0, 3.1]), 3) == pytest.approx((0.25 + 0.25 + 0.75) / 3)


def test_trajectories_are_those_of_evo(truth):
    pytest.importorskip("evo", exc_type=ImportError)
    world_from_camera = lambda x: poses.inverse(poses.square(x))
    found, expected = map(
        world_from_camera, (noisy(truth).camera_from_world, truth.camera_from_world)
    )
    for align_origin in (False, True):
        ours = poses.trajectory_metrics(found, expected, align_origin=align_origin)
        theirs = poses.trajectory_metrics_of_evo(found, expected, align_origin=align_origin)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-6) and value > 1e-3, name


def test_icp_and_normals_are_those_of_open3d():
    pytest.importorskip("open3d", exc_type=ImportError)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, (2, 900))
    expected = np.stack([x, y, 0.2 * np.sin(4 * x) + 0.1 * y**2], axis=1)
    turn = Rotation.from_rotvec([0.03, -0.02, 0.05]).as_matrix()
    found = expected[rng.permutation(900)[:700]] @ turn.T + [0.02, -0.01, 0.03]
    ours = clouds.cloud_metrics(found, expected, icp_distance=0.1)
    theirs = clouds.cloud_metrics(found, expected, icp_distance=0.1, tools="published")
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-7), name
    without = clouds.cloud_metrics(found, expected)
    assert ours["accuracy"] < 0.5 * without["accuracy"] and theirs["nc1"] > 0.9


def test_clouds_that_are_known_by_heart():
    x, y = np.meshgrid(np.arange(10.0), np.arange(10.0))
    plane = np.stack([x.ravel(), y.ravel(), np.zeros(100)], axis=1)
    lifted = plane[:50] + [0, 0, 0.25]
    found = clouds.cloud_metrics(lifted, plane)
    assert found["accuracy"] == 0.25 and found["completeness_median"] == pytest.approx(
        np.hypot(0.25, 0.5), abs=0.3
    )
    assert found["nc1"] == pytest.approx(1) and found["normal_consistency"] == pytest.approx(1)
    assert found["chamfer"] == (found["accuracy"] + found["completeness"]) / 2
    assert clouds.f_score(lifted, plane, 0.3) == {
        "precision": 1.0, "recall": 0.5, "f_score": pytest.approx(2 / 3)
    }  # fmt: skip
    assert clouds.clipped_chamfer(plane + [0, 0, 0.3], plane) == {"chamfer_sum": pytest.approx(0.6)}
    assert clouds.clipped_chamfer(plane + [0, 0, 9], plane) == {"chamfer_sum": pytest.approx(1)}
    assert len(clouds.thinned(plane, 0.9)) == 100 and len(clouds.thinned(plane, 1.1)) == 50
    broken = np.vstack([plane, [[np.nan] * 3]])
    assert clouds.cloud_metrics(broken, plane)["accuracy"] == np.inf
    tilted = plane @ Rotation.from_rotvec([0, np.pi / 3, 0]).as_matrix().T
    np.testing.assert_allclose(np.abs(clouds.normals(tilted) @ [np.sin(np.pi / 3), 0, 0.5]), 1)


def test_alignment_by_medians_scores_the_middle(truth):
    both = clouds.Clouds(points=5 * truth.points + [1, 2, 3], truth=truth.points, valid=truth.valid)
    middle = both.central(4)
    assert middle.valid.shape == (S, 4, 4) and np.array_equal(
        middle.truth, truth.points[:, 3:7, 5:9]
    )
    cameras = truth.camera_from_world
    turn = np.diag([5.0, 5, 5, 1])
    turn[:3, 3] = (1, 2, 3)
    moved = turned(perfect(protocol_for("cut3r", "7scenes"), truth), turn)
    points, expected = clouds.aligned_by_medians(both, moved.camera_from_world, cameras, side=4)
    assert len(points) == truth.valid[:, 3:7, 5:9].sum()
    np.testing.assert_allclose(points, expected, atol=1e-9)


def test_frames_of_published_lists():
    # Numbers of frames of the first clips of RealEstate10K's test split, and what π³'s list
    # (datasets/seq-id-maps/Re10K_relpose_seq-id-map_seed42.json) takes of them.
    lengths = {
        "000c3ab189999a83": 279,
        "000db54a47bd43fe": 237,
        "short": 9,
        "0017ce4c6a39d122": 229,
    }
    chosen = protocol_for("pi3", "re10k").frames.choose(lengths)
    assert chosen["000c3ab189999a83"] == (30, 126, 199, 142, 254, 237, 97, 206, 258, 144)
    assert chosen["000db54a47bd43fe"] == (99, 6, 233, 223, 58, 185, 75, 104, 180, 122)
    assert chosen["0017ce4c6a39d122"] == (3, 202, 77, 65, 81, 220, 167, 194, 172, 50)
    assert chosen["short"] is None
    number = lambda name, dataset, length: len(protocol_for(name, dataset).frames.of_length(length))
    # Of lists kf200, kf40, kf5, kf500 and kf100 of the same repository.
    assert [number("pi3", "7scenes", x) for x in (1000, 500)] == [5, 3]
    assert [number("pi3-dense", "7scenes", x) for x in (1000, 500)] == [25, 13]
    assert number("pi3", "dtu", 49) == 10
    # ETH3D has 38 pictures of courtyard, 76 of facade, 14 of pipes.
    assert [number("pi3", "eth3d", x) for x in (38, 76, 14)] == [8, 16, 3]
    assert protocol_for("pi3", "scannet").frames.of_length(5000) == tuple(range(0, 270, 3))
    two = protocol_for("cut3r", "nrgbd").frames
    assert two.of_length(380) == (0, 190) and two.of_length(381) == (0, 190, 380)
    assert two.of_length(1200) == (0, 500, 1000)


def test_categories_of_co3d_that_were_trained_on_are_drawn_first():
    names = [f"{category}/1_2_3" for category in ("apple", "ball", "book", "car", "zebra")]
    dataset = types.SimpleNamespace(sequences=lambda: names)
    order = listed(PROTOCOLS["co3d", "pi3"], dataset)
    assert [x.partition("/")[0] for x in order] == ["apple", "car", "ball", "book", "zebra"]
    assert listed(PROTOCOLS["co3d", "vggt"], dataset) == ["apple/1_2_3", "car/1_2_3"]


def test_rules_of_frames():
    assert FirstThenSpaced(count=4).of_length(4) == (0, 1, 2, 3)
    assert FirstThenSpaced(count=4).of_length(14) == (0, 1, 5, 9)
    assert RegularSpacing(count=25).of_length(24) == tuple(range(24))
    places = RegularSpacing(count=25).of_length(410)  # 26 at every 16th
    assert len(places) == 25 and places[:3] == (0, 16, 32) and places[-1] == 384
    assert RegularSpacing(count=None).of_length(3) == (0, 1, 2)
    assert EveryNth(step=5).of_length(0) == ()
    listed = Listed.of({"apple/1_2": [3, 1], "4_5": [0]})
    assert listed.choose({"apple/1_2": 9, "cup/4_5": 9, "cup/7": 9}) == {
        "apple/1_2": (3, 1), "cup/4_5": (0,), "cup/7": None
    }  # fmt: skip
    fast = Draw(count=2, seed=0, fewest=3, sequences=2)
    lengths = {f"{c}/{i}": 5 for c in "ab" for i in range(4)} | {"c/0": 5, "c/1": 2}
    chosen = fast.choose(lengths, {x: x[0] for x in lengths})
    taken = [x for x, places in chosen.items() if places]
    assert [x[0] for x in taken] == list("aabbc") and "c/1" not in taken
    assert fast.with_count(4).fewest == 4
    assert RegularSpacing(count=25).with_count(0) == RegularSpacing(count=None)
    with pytest.raises(InputError, match="1 frames: this protocol draws at least two"):
        fast.with_count(1)
    with pytest.raises(InputError, match="no number of frames to choose"):
        EveryNth(step=3).with_count(4)


def test_resizing_as_the_published_code_does():
    relative = protocol_for("pi3", "re10k").resizing
    assert relative.final_size(360, 640) == (294, 504) and relative.final_size(968, 1296) == (
        378,
        504,
    )
    maps = protocol_for("pi3", "dtu").resizing
    assert [maps.final_size(*x) for x in ((480, 640), (1200, 1600), (4032, 6048))] == [
        (392, 518), (392, 518), (350, 518)
    ]  # fmt: skip
    crop = protocol_for("vggt", "co3d").resizing
    assert crop.final_size(360, 640) == (294, 518) and crop.final_size(1280, 720) == (518, 518)
    intrinsics = np.array([[525.0, 0, 320], [0, 525, 240], [0, 0, 1]])
    exact, single = (
        maps.intrinsics(intrinsics, (480, 640), (480, 640), x) for x in ("exact", "single_factor")
    )
    assert exact[0] == pytest.approx([525 * 518 / 640, 0, 259]) and exact[1, 1] == 525 * 392 / 480
    assert single[0, 0] == single[1, 1] == 525 * 392 / 480
    tall = crop.intrinsics(intrinsics, (1280, 720), (1280, 720), "exact")
    assert tall[1, 2] == pytest.approx(240 * 924 / 1280 - 203)
    depth = np.arange(12.0).reshape(3, 4)
    small = Resizing(exactly=(1, 2))
    assert small.depth(depth, (3, 4)).tolist() == [[5, 7]]
    assert small.depth(depth, (3, 4), "single_factor").tolist() == [[0, 2]]
    image = np.zeros((6, 8, 3), np.uint8)
    assert small.images([image, image[:4]]).shape == (2, 1, 2, 3)


def test_what_cannot_be_scored(truth):
    protocol = protocol_for("pi3", "re10k")
    with pytest.raises(InputError, match="predicts no cameras"):
        score(protocol, truth, Prediction(camera_from_world=None))
    lost = truth.camera_from_world.copy()
    lost[1] = np.nan
    known = dataclasses.replace(truth, camera_from_world=lost)
    assert score(protocol, known, perfect(protocol, truth))["num_frames"] == S - 1
    lost[1:] = np.nan
    with pytest.raises(InputError, match="fewer than two of the frames have a true pose"):
        score(protocol, known, perfect(protocol, truth))
    assert isinstance(protocol.score, PairScore)
    maps = protocol_for("pi3", "dtu")
    assert isinstance(maps.score, CloudScore) and maps.score.icp_distance == 100
    with pytest.raises(InputError, match="predicts no points"):
        score(maps, truth, Prediction(camera_from_world=truth.camera_from_world))


def test_sequences_become_one_number():
    line = lambda category, auc, pairs, **more: {
        "category": category, "metrics": {"auc_30": auc, "num_pairs": pairs, **more}
    }  # fmt: skip
    lines = [line("cup", 0.2, 30), line("cup", 0.8, 10), line("tv", 0.5, 5, ate=None)]
    assert aggregated(protocol_for("pi3", "co3d"), lines) == {
        "auc_30": pytest.approx((0.2 * 30 + 0.8 * 10 + 0.5 * 5) / 45)
    }
    of_categories = aggregated(protocol_for("vggt", "co3d"), lines)["auc_30"]
    assert of_categories == pytest.approx((0.35 + 0.5) / 2)
    of_sequences = aggregated(protocol_for("paper", "tanks"), lines)["auc_30"]
    assert of_sequences == pytest.approx(0.5)
    tanks = protocol_for("paper", "tanks")
    shown = results.table(tanks, {"rra_5": 0.9, "ate": 0.02}, label="mine", count=50).splitlines()
    assert shown[0].split() == ["rra_5", "ate"] and shown[1].split() == ["mine", "0.9000", "0.0200"]
    assert shown[2].split() == ["VGGT,", "dense", "0.848", "(+0.052)", "0.023", "(-0.003)"]
    assert len(shown) == 2 + 8 + 1 and shown[5].startswith("VGGT, block-sparse 75.0%")
    assert results.finite({"ate": np.inf, "rpe": np.nan, "num_pairs": 3}) == {
        "ate": 1e9, "rpe": None, "num_pairs": 3
    }  # fmt: skip
