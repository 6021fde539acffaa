"""The toys are drawn to the bit as when their goldens were computed."""

import zlib

import numpy as np
import pytest
import toys

WEIGHTS = {
    "vggt_toy": 0x1B5BD19B,
    "vggt_odd": 0x0CD671FE,
    "vggt_late": 0x84F2079E,
    "pi3_toy": 0x063D6B20,
    "pi3_odd": 0x14F3BAF4,
    "mapanything_toy": 0x4BC4EAE8,
    "mapanything_odd": 0xC34E26F2,
    "pi3x_odd": 0x06D6D26A,
    "da3_toy": 0x6DE8B8F5,
    "da3_odd": 0x4DDF1255,
}
KNOWN = {
    ("mapanything_toy", "b2n5_42x56_known"): 0x9674C385,
    ("mapanything_odd", "b2n5_42x56_known"): 0x85DBC251,
    ("da3_odd", "b2n3_42x56_poses"): 0xFF0A416E,
}
IMAGES = {
    ("da3_odd", "b2n3_42x56_poses"): 0xDF5021CC,
    ("da3_odd", "n3_56x28"): 0x92E15422,
    ("da3_toy", "b2n3_42x56"): 0x826C6878,
    ("da3_toy", "n4_28x42"): 0x645EF59B,
    ("mapanything_odd", "b2n5_42x56_known"): 0xC834DF65,
    ("mapanything_odd", "n2_70x42"): 0x34D9C64B,
    ("mapanything_toy", "b2n5_42x56_known"): 0x17FC0526,
    ("pi3_odd", "b2n3_42x70"): 0x7B78C73C,
    ("pi3_odd", "n5_84x42"): 0x605A953F,
    ("pi3_toy", "b2n2_70x70"): 0xDBF0B2B8,
    ("pi3_toy", "n1_56x84"): 0x14F1A110,
    ("pi3x_odd", "n2_56x84"): 0x191FA0FA,
    ("pi3x_odd", "b2n3_42x70_all"): 0xAD4B6913,
    ("pi3x_odd", "b2n3_42x70_poses"): 0xAD4B6913,
    ("pi3x_odd", "b2n3_42x70_some"): 0xAD4B6913,
    ("vggt_late", "n3_70x98"): 0x2A2639F8,
    ("vggt_odd", "b2n3_112x70"): 0x2D114CE2,
    ("vggt_odd", "n5_84x112"): 0xB6C3698E,
    ("vggt_toy", "b2n2_70x70"): 0x0C4F0AA5,
    ("vggt_toy", "n1_56x84"): 0xBFA03BE9,
    ("vggt_toy", "n2_140x182"): 0x7F8446D2,
}

PRIORS = {
    "b2n3_42x70_all": 0xF0FDBAE4,
    "b2n3_42x70_poses": 0x04DE2E6D,
    "b2n3_42x70_some": 0x331A14A5,
}


def crc(*arrays):
    assert {x.dtype for x in arrays} == {np.dtype(np.float32)}
    return zlib.crc32(b"".join(x.astype("<f4").tobytes() for x in arrays))


@pytest.mark.parametrize("toy", toys.NAMES)
def test_weights_are_those_of_the_goldens(toy):
    drawn = toys.weights(toy)
    assert crc(*(drawn[key] for key in sorted(drawn))) == WEIGHTS[toy]


@pytest.mark.parametrize(("toy", "case"), IMAGES)
def test_images_are_those_of_the_goldens(toy, case):
    drawn = toys.images(toy, case)
    assert crc(drawn) == IMAGES[toy, case]
    assert drawn.min() >= 0 and drawn.max() <= 1


@pytest.mark.parametrize(("toy", "case"), KNOWN)
def test_what_is_known_is_that_of_the_goldens(toy, case):
    known = toys.known(toy, case)
    assert crc(*(x for _, x in sorted(known.items()) if x.dtype != bool)) == KNOWN[toy, case]
    # Relative rotations are more than half turns, whose quaternions have another sign.
    rotation = known["camera_poses"][:, :, :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.swapaxes(-1, -2), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-6
    )


@pytest.mark.parametrize(("case", "checksum"), PRIORS.items())
def test_priors_are_those_of_the_goldens(case, checksum):
    drawn = toys.priors("pi3x_odd", case)
    assert crc(*(drawn[name] for name in ("intrinsics", "depths", "poses"))) == checksum


def test_every_case_has_goldens_of_its_toy():
    cases = {path.stem for path in toys.GOLDEN.glob("*_*x*.npz")}
    assert cases == {f"{toy}.{case}" for toy, case in IMAGES}


def test_a_key_draws_the_same_whatever_others_there_are():
    first = toys.normal("vggt_toy a.weight", (3, 4))
    assert not np.any(first == toys.normal("vggt_odd a.weight", (3, 4)))
    np.testing.assert_array_equal(first, toys.normal("vggt_toy a.weight", (3, 4)))
    many = toys.normal("many", (100_000,))
    assert abs(many.mean()) < 0.01 and abs(many.std() - 1) < 0.01


def test_maps_are_kept_at_all_places_within_a_patch_and_at_the_border():
    rows, columns = np.mgrid[:112, :70]
    kept = toys.kept("points", np.stack([rows, columns], axis=-1)[None, None])
    assert kept.shape == (1, 1, 38, 24, 2)
    for size, places in ((112, kept[0, 0, :, 0, 0]), (70, kept[0, 0, 0, :, 1])):
        assert {0, size - 1} <= set(places) and set(places % 14) == set(range(14))
    tracks = np.zeros((1, 2, 3))
    assert toys.kept("conf", tracks) is tracks
    assert toys.kept("conf", np.zeros((1, 2, 28, 42, 1))).shape == (1, 2, 10, 15, 1)  # of π³
    assert toys.kept("conf", np.zeros((1, 2, 28, 42))).shape == (1, 2, 10, 15)  # of MapAnything
