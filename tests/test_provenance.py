"""Results say what made them, and scenes and models say on a line what they are."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import trimesh

import vggt_jax
from vggt_jax import Reconstruction
from vggt_jax.models.loading import with_dtype
from vggt_jax.pipeline.origin import provenance_of
from vggt_jax.scene.provenance import Provenance

MADE_BY = Provenance(
    model="some/model",
    checksum="0123456789abcdef",
    versions={"vggt_jax": "9.8", "jax": "0.1"},
    device="a device",
    options={"focal": 3.0},
    attention="Dense()",
    compute_dtype="float32",
    created="2001-02-03T04:05:06+00:00",
    seconds=1.5,
)


def turned(angle, centre):
    """[R | t] of a camera at a place, turned around y."""
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    return np.concatenate([rotation, -rotation @ np.reshape(centre, (3, 1))], axis=1)


@pytest.fixture
def scene():
    rng = np.random.default_rng(7)
    s, height, width = 3, 14, 28
    poses = np.stack([turned(0.1 * i, (0.2 * i, 0, 0)) for i in range(s)]).astype(np.float32)
    intrinsics = np.tile(np.array([[20, 0, 14], [0, 20, 7], [0, 0, 1]], np.float32), (s, 1, 1))
    depth = rng.uniform(1, 2, (s, height, width)).astype(np.float32)
    scene = Reconstruction(
        images=rng.integers(0, 256, (s, height, width, 3), np.uint8),
        camera_from_world=poses,
        intrinsics=intrinsics,
        depth=depth,
        depth_confidence=1 + depth,
        names=("a.png", "b.png", "c.png"),
        provenance=MADE_BY,
    )
    points = scene.points_from_depth()
    return dataclasses.replace(scene, world_points=points, world_points_confidence=1 + depth)


def test_a_scene_is_saved_and_read_with_what_made_it(tmp_path, scene):
    scene.save(tmp_path / "out")
    found = vggt_jax.load_reconstruction(tmp_path / "out")
    assert found.provenance.to_dict() == MADE_BY.to_dict()
    np.testing.assert_array_equal(found.depth, scene.depth)
    with pytest.raises(vggt_jax.InputError, match="overwrite=True"):
        scene.save(tmp_path / "out")
    scene.replace(provenance=Provenance()).save(tmp_path / "out", overwrite=True)
    assert not vggt_jax.load_reconstruction(tmp_path / "out").provenance


@pytest.mark.parametrize(
    "fields",
    [{}, {"model": 3}, {"seconds": "x", "versions": [1], "options": 2}, {"is_small": "yes"}],
)
def test_what_a_file_says_is_not_believed(fields):
    found = Provenance.from_dict(fields)
    assert not found and not found.is_small and str(found) == "" and found.to_dict() == {}


def test_a_damaged_note_is_an_input_error(tmp_path, scene):
    scene.save(tmp_path)
    arrays = dict(np.load(tmp_path / "predictions.npz"))
    arrays["provenance"] = np.frombuffer(b"{not json", np.uint8)
    np.savez(tmp_path / "predictions.npz", **arrays)
    with pytest.raises(vggt_jax.InputError, match=r"predictions\.npz"):
        vggt_jax.load_reconstruction(tmp_path)


def test_time_and_model_are_no_part_of_the_structure(scene):
    other = scene.replace(provenance=Provenance())
    assert jax.tree.structure(scene) == jax.tree.structure(other)


def test_infer_notes_model_options_and_time(tmp_path, tiny):
    vggt_jax.save_model(tiny(), tmp_path / "a.safetensors")
    model = vggt_jax.load_model(tmp_path / "a.safetensors")
    recon = vggt_jax.infer(np.zeros((2, 28, 42, 3), np.uint8), model=model, focal=50.0)
    made_by = recon.provenance
    _, document = vggt_jax.checkpoints.read(tmp_path / "a.safetensors")
    assert made_by.model == str(tmp_path / "a.safetensors") and not made_by.is_small
    assert made_by.checksum == document["checksum"]
    assert made_by.options == {"focal": 50.0} and made_by.seconds > 0
    assert made_by.versions["jax"] == jax.__version__
    assert (made_by.attention, made_by.compute_dtype) == (str(vggt_jax.Dense()), "float32")
    assert str(made_by) in repr(recon) and "2 frames of 42x28" in repr(recon)


def test_a_model_that_nobody_loaded_is_called_by_its_kind(tiny):
    model = tiny()
    plan = vggt_jax.plan(np.zeros((2, 28, 42, 3), np.uint8), model=model)
    long = vggt_jax.Options(model=model, masks=np.ones((2, 28, 42), bool))
    made_by = provenance_of(model, plan, long)
    assert made_by.model == "VGGT" and made_by.checksum is None and made_by.seconds is None
    assert made_by.options == {"masks": "given"} and json.dumps(made_by.to_dict())


def test_representations_are_one_short_line(scene, tiny):
    for shown in (repr(scene), repr(tiny()), repr(with_dtype(tiny(), "bfloat16"))):
        assert "\n" not in shown and len(shown) < 300
    assert "3 frames of 28x14, cameras, intrinsics, depth, points" in repr(scene)
    assert "some/model (0123456789ab)" in repr(scene)
    assert "bfloat16" in repr(with_dtype(tiny(), "bfloat16")) and "cameras" in repr(tiny())
    assert repr(scene.replace(images=None)) and repr(jax.tree.map(lambda x: None, scene))
    assert "2 scenes of 3 frames" in repr(jax.tree.map(lambda x: np.stack([x, x]), scene))


def test_points_move_with_their_cameras(scene):
    true = np.stack([turned(-0.3 * i, (0, 0.1 * i, 0.5)) for i in range(3)]).astype(np.float32)
    bottom = np.tile(np.array([[[0, 0, 0, 1]]], np.float32), (3, 1, 1))
    moved = scene.replace(camera_from_world=np.concatenate([true, bottom], axis=1))
    np.testing.assert_array_equal(moved.camera_from_world, true)
    # The points of the head are those of depth here, before and after.
    np.testing.assert_allclose(moved.world_points, moved.points_from_depth(), atol=1e-5)
    assert np.abs(moved.world_points - scene.world_points).max() > 0.1
    kept = scene.replace(camera_from_world=true, world_points=scene.world_points)
    np.testing.assert_array_equal(kept.world_points, scene.world_points)
    with pytest.raises(ValueError, match="'cameras' is no field"):
        scene.replace(cameras=true)
    with pytest.raises(ValueError, match=r"must be \(3, 3, 4\)"):
        scene.replace(camera_from_world=true[:2])


def test_exports_carry_what_made_them(tmp_path, scene):
    export = lambda name, **options: vggt_jax.export_reconstruction(
        scene, tmp_path / name, format=name, **options
    )
    export("ply")
    head = (tmp_path / "ply").read_bytes().split(b"end_header")[0].decode()
    assert "comment vggt-jax 9.8, some/model (0123456789ab)" in head
    assert len(trimesh.load(tmp_path / "ply", file_type="ply").vertices)
    export("glb")
    data = (tmp_path / "glb").read_bytes()
    document = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    assert document["extras"]["provenance"] == MADE_BY.to_dict()
    export("glb", overwrite=True)  # It still counts as ours.
    export("nerfstudio")
    document = json.loads((tmp_path / "nerfstudio" / "transforms.json").read_text())
    assert document["provenance"]["checksum"] == MADE_BY.checksum


def test_exports_say_that_a_scene_is_probably_none(tmp_path, scene):
    poor = dataclasses.replace(MADE_BY, agreement=0.1, least_agreement=0.2)
    poor = scene.replace(provenance=poor)
    report = vggt_jax.export_reconstruction(poor, tmp_path / "a.ply", format="ply")
    assert report.notes == (poor.warning,) and "no reconstruction" in poor.warning
    assert vggt_jax.export_reconstruction(scene, tmp_path / "b.ply", format="ply").notes == ()
