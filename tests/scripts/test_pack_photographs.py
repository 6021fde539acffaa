"""Packing photographs that COLMAP has posed, for training."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import vggt_jax
from vggt_jax.evaluation import pair_errors
from vggt_jax.training.photographs import read_photographs

pycolmap = pytest.importorskip("pycolmap")

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
SOURCE = ("repository=someone/something", "licence=CC0-1.0")


def write_scene(folder, model="SIMPLE_PINHOLE"):
    """A scene of six photographs of 200x150 pixels that see 80 points."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, 6, 80
    options.camera_width, options.camera_height = 200, 150
    options.camera_model_id = getattr(pycolmap.CameraModelId, model)
    options.camera_params = [180.0, 100.0, 75.0] + [0.1] * (model == "SIMPLE_RADIAL")
    options.num_points2D_without_point3D = 3
    found = pycolmap.synthesize_dataset(options)
    (folder / "sparse").mkdir(parents=True)
    (folder / "images").mkdir()
    found.write(folder / "sparse")
    for image in found.images.values():
        (folder / "images" / image.name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 150), (90, 60, 30)).save(folder / "images" / image.name)
    source = {"repository": "someone/something", "licence": "CC0-1.0"}
    (folder / "source.json").write_text(json.dumps(source))
    return found


def test_a_scene_becomes_photographs_with_points(tmp_path):
    model = write_scene(tmp_path / "scenes" / "a")
    write_scene(tmp_path / "scenes" / "bent", "SIMPLE_RADIAL")
    command = [sys.executable, SCRIPTS / "pack_photographs.py", tmp_path / "scenes"]
    command += ["--out", tmp_path / "pack", "--side", "100", "--length", "8", "--points", "100"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "SIMPLE_RADIAL cameras; undistort" in done.stderr and "1 scenes left out" in done.stdout
    assert "a,6,480,someone/something" in (tmp_path / "pack" / "sources.csv").read_text()

    pack = read_photographs(tmp_path / "pack" / "photographs.npz")
    assert pack.pixels.shape == (6, 100, 100, 3)
    np.testing.assert_array_equal(pack.size, [[75, 100]] * 6)
    np.testing.assert_allclose(pack.intrinsics, [[90, 90, 50, 37.5]] * 6)
    world = np.array([point.xyz for point in model.points3D.values()])
    first = min(model.images.values(), key=lambda image: image.name)
    unit = first.cam_from_world().translation / pack.camera_from_world[0, :, 3]
    np.testing.assert_allclose(unit, unit[0], rtol=1e-4)
    assert np.median(pack.points[pack.points[..., 2] > 0][:, 2]) == pytest.approx(1, abs=1e-3)
    for row, image in enumerate(sorted(model.images.values(), key=lambda image: image.name)):
        pose = image.cam_from_world().matrix() / [1, 1, 1, unit[0]]
        np.testing.assert_allclose(pack.camera_from_world[row], pose, atol=1e-5)
        x, y, z = pack.points[row][pack.points[row, :, 2] > 0].T
        assert len(z) == 80
        expected = world / unit[0] @ pose[:, :3].T + pose[:, 3]
        rays = np.stack([(x - 50) / 90 * z, (y - 37.5) / 90 * z, z], axis=-1)
        nearest = np.linalg.norm(rays[:, None] - expected, axis=-1).min(axis=1)
        assert nearest.max() < 3e-3
    # Rows hold each photograph once, and begin again.
    assert pack.windows.shape == (120, 8)
    for row in pack.windows:
        assert sorted(row[:6]) == list(range(6)) and (row[6:] == row[:2]).all()


def test_photographs_of_a_window_see_the_same(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from pack_photographs import window

    place = np.arange(12)
    together = np.maximum(1 - np.abs(place[:, None] - place) / 4, 0.0)  # a walk
    firsts, spans = set(), []
    for seed in range(40):
        row = window(together, 5, np.random.default_rng(seed))
        assert len(set(row)) == 5
        for i in range(1, 5):
            assert together[row[i], row[:i]].max() > 0
        firsts.add(row[0])
        spans.append(max(row) - min(row))
    assert len(firsts) > 8 and min(spans) == 4 and max(spans) > 7


@pytest.mark.slow
def test_photographs_are_posed_and_packed(tmp_path):
    sample = pathlib.Path(vggt_jax.__file__).parent / "samples" / "cellar"
    run = lambda *args: subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True
    )
    pose = lambda photographs, out: run(
        SCRIPTS / "pose_photographs.py", photographs, "--out", out, "--source", *SOURCE
    )
    done = pose(sample, tmp_path / "scenes" / "cellar")
    assert done.returncode == 0, done.stderr
    again = pose(sample, tmp_path / "scenes" / "cellar")
    assert again.returncode == 1 and "is there already" in again.stderr
    (tmp_path / "few").mkdir()
    for i in range(1, 4):
        shutil.copy(sample / f"000{i}.jpg", tmp_path / "few")
    few = pose(tmp_path / "few", tmp_path / "scenes" / "few")
    assert few.returncode == 1 and "3 photographs, fewer than 5" in few.stderr

    pack = run(SCRIPTS / "pack_photographs.py", tmp_path / "scenes", "--out", tmp_path / "pack")
    assert pack.returncode == 0, pack.stderr
    found = read_photographs(tmp_path / "pack" / "photographs.npz").camera_from_world
    frames = json.loads((sample / "cameras.json").read_text(encoding="utf-8"))["frames"]
    truth = np.array([frame["camera_from_world"] for frame in frames], np.float32)
    assert found.shape == truth.shape
    errors = pair_errors(*map(jax.numpy.asarray, (found, truth)))
    assert max(np.max(errors.rotation), np.max(errors.translation)) < 3  # degrees
