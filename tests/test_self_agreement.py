"""Scenes that agree with themselves, and by how much less those do in which one thing is wrong."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import vggt_jax
from vggt_jax import InputWarning, Reconstruction, self_agreement
from vggt_jax.evaluation import pair_errors
from vggt_jax.models.origin import Origin, remember
from vggt_jax.pipeline import run
from vggt_jax.pipeline.one_scene import warned_of
from vggt_jax.scene.provenance import NOT_MEASURED, Provenance
from vggt_jax.scene.self_agreement import Part, _worst_angles, camera_agreement, depth_agreement

S, HEIGHT, WIDTH = 4, 42, 56
POOR = Provenance(model="some/model", agreement=0.1, least_agreement=0.25)


@pytest.fixture
def scene():
    """Frames of a tilted plane, by cameras side by side that look at it from slightly different
    directions; everything fits."""
    turns = Rotation.from_rotvec([[0, 0.05 * i, 0.02 * i] for i in range(S)]).as_matrix()
    centres = np.array([[0.2 * i, 0.05 * i**2, -0.1 * i] for i in range(S)])
    poses = np.concatenate([turns, -turns @ centres[..., None]], axis=-1)
    matrix = np.array([[60.0, 0, WIDTH / 2], [0, 50.0, HEIGHT / 2], [0, 0, 1]])
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(matrix).T
    in_world = np.einsum("sji,hwj->shwi", turns, rays)
    normal, distance = np.array([0.3, 0.1, 1.0]), 3.0
    depth = (distance - centres @ normal)[:, None, None] / (in_world @ normal)
    return Reconstruction(
        images=np.zeros((S, HEIGHT, WIDTH, 3), np.uint8),
        camera_from_world=poses.astype(np.float32),
        intrinsics=np.tile(matrix, (S, 1, 1)).astype(np.float32),
        depth=depth.astype(np.float32),
        world_points=(centres[:, None, None] + in_world * depth[..., None]).astype(np.float32),
        world_points_confidence=np.full(depth.shape, 3.0, np.float32),
        pixel_centre=0.5,
    )


def changed(array, frame, value):
    """The array with another value in one frame."""
    array = array.copy()
    array[frame] = value
    return array


def test_what_fits_agrees(scene):
    assert self_agreement(scene) == 1.0
    # In any unit, and wherever the world begins.
    larger = dataclasses.replace(
        scene,
        camera_from_world=scene.camera_from_world * np.float32([1, 1, 1, 7]),
        depth=7 * scene.depth,
        world_points=7 * scene.world_points,
    )
    assert self_agreement(larger) == 1.0
    assert self_agreement(dataclasses.replace(scene, world_points_confidence=None)) == 1.0


def test_a_camera_that_the_points_do_not_have_costs_its_pairs(scene):
    """Of the six pairs of four frames, three have the frame; 10.5 degrees count from 11 to 30."""
    for degrees, expected in ((10.5, (3 + 3 * 20 / 30) / 6), (90, 0.5)):
        turn = Rotation.from_euler("y", degrees, degrees=True).as_matrix()
        turned = (turn @ scene.camera_from_world[2]).astype(np.float32)
        poses = changed(scene.camera_from_world, 2, turned)
        wrong = Part(dataclasses.replace(scene, camera_from_world=poses))
        assert camera_agreement(wrong) == pytest.approx(expected)
    # The same where the frame has no points.
    points = changed(scene.world_points, 2, np.nan)
    assert camera_agreement(Part(dataclasses.replace(scene, world_points=points))) == 0.5
    # And where it has no intrinsics.
    for none in (np.nan, 0.0):
        intrinsics = changed(scene.intrinsics, 2, none)
        part = Part(dataclasses.replace(scene, intrinsics=intrinsics))
        assert camera_agreement(part) == 0.5 and depth_agreement(part) == 1.0
    with pytest.raises(ValueError, match="one scene at a time"):
        self_agreement(dataclasses.replace(scene, images=scene.images[None]))


def test_depth_that_another_frame_has_otherwise(scene):
    """Frame and points grow about their camera, which stays where it was for both."""
    two = dataclasses.replace(
        scene,
        **{
            name: getattr(scene, name)[:2]
            for name in ("images", "camera_from_world", "intrinsics", "depth", "world_points")
        },
        world_points_confidence=None,
    )
    pose = two.camera_from_world[1]
    centre = -pose[:, :3].T @ pose[:, 3]
    for scale, expected in ((1.08, 1.0), (1.3, 0.0)):
        points = centre + scale * (two.world_points[1] - centre)
        part = Part(
            dataclasses.replace(
                two,
                depth=changed(two.depth, 1, scale * two.depth[1]),
                world_points=changed(two.world_points, 1, points),
            )
        )
        assert camera_agreement(part) == 1.0
        assert depth_agreement(part) == expected
    # Cameras that look away from each other see nothing in common.
    away = np.diag([-1.0, 1, -1]).astype(np.float32) @ pose
    poses = changed(two.camera_from_world, 1, away)
    assert depth_agreement(Part(dataclasses.replace(two, camera_from_world=poses))) == 0.0


def test_what_is_masked_or_not_trusted_does_not_count(scene):
    left = np.arange(WIDTH) < WIDTH // 2
    mask = np.broadcast_to(~left, scene.depth.shape)
    broken = dataclasses.replace(
        scene,
        depth=np.where(left & (np.arange(S) == 1)[:, None, None], 99, scene.depth),
        world_points=np.where(left[:, None], np.float32(5), scene.world_points),
    )
    assert self_agreement(broken) < 0.5
    assert self_agreement(dataclasses.replace(broken, mask=mask)) == 1.0
    unsure = np.where(left, 1.0, 3.0) * np.ones(scene.depth.shape)
    doubted = dataclasses.replace(broken, depth=scene.depth, world_points_confidence=unsure)
    assert self_agreement(doubted) == 1.0


def test_where_nothing_can_be_compared(scene):
    assert self_agreement(dataclasses.replace(scene, world_points=None)) is None
    one = {
        field.name: value[:1]
        for field in dataclasses.fields(scene)
        if isinstance(value := getattr(scene, field.name), np.ndarray)
    }
    assert self_agreement(dataclasses.replace(scene, **one)) is None


def test_angles_are_those_of_the_evaluation():
    rng = np.random.default_rng(4)
    poses = np.concatenate(
        [Rotation.random(10, random_state=3).as_matrix(), rng.normal(size=(10, 3, 1))], axis=-1
    ).reshape(2, 5, 3, 4)
    poses[1, :2], poses[1, 4] = poses[0, :2], np.inf
    errors = pair_errors(*poses[::-1].astype(np.float32))
    expected = np.maximum(errors.rotation, errors.translation)
    # What is left of single precision where the angle is 0.
    np.testing.assert_allclose(_worst_angles(*poses), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "probably no reconstruction"),
        ({"agreement": 0.25}, None),
        ({"agreement": None, "is_small": True}, None),  # a single photograph
        ({"least_agreement": None}, None),  # a model that nobody calibrated
        ({"agreement": None, "least_agreement": None, "is_small": True}, NOT_MEASURED),
    ],
)
def test_when_a_scene_warns(scene, changes, said):
    recon = scene.replace(provenance=dataclasses.replace(POOR, **changes))
    if said is None:
        assert recon.warning == ""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warned_of(recon)
        return
    assert said in recon.warning and "\n" not in recon.warning
    with pytest.warns(InputWarning, match=said[:40]):
        assert warned_of(recon) is recon


def test_the_warning_has_both_numbers_and_the_model(scene):
    recon = scene.replace(provenance=POOR)
    assert all(part in recon.warning for part in ("some/model", "0.10 of 1", "below 0.25"))
    assert recon.agreement == 0.1
    # Of other cameras it is not known.
    assert recon.replace(camera_from_world=scene.camera_from_world).agreement is None
    document = json.loads(json.dumps(POOR.to_dict()))
    assert Provenance.from_dict(document).warning == recon.warning
    for value in (True, "0.1", -0.1, 1.5, float("nan"), [0.1]):
        assert Provenance.from_dict(document | {"agreement": value}).agreement is None


def test_infer_measures_models_that_were_calibrated(tiny, monkeypatch):
    images = np.zeros((2, 28, 42, 3), np.uint8)
    model = jax.tree.map(lambda x: x, tiny())  # Others share the one that is kept.
    plain = vggt_jax.infer(images, model=model)
    assert plain.agreement is None
    remember(model, Origin("a/model", None, least_agreement=0.2))
    measured = []
    monkeypatch.setattr(run, "self_agreement", lambda recon: measured.append(recon) or 0.125)
    with pytest.warns(InputWarning, match="a/model predicts agree") as said:
        recon = vggt_jax.infer(images, model=model, focal=3.0)
    assert said[0].filename == __file__
    assert (recon.agreement, recon.provenance.least_agreement) == (0.125, 0.2)
    # What is known comes later: the model was calibrated by what it predicts.
    np.testing.assert_array_equal(measured[0].intrinsics, plain.intrinsics)
    assert recon.intrinsics[0, 0, 0] == 3
