"""`scripts/evaluate_photographs.py` by its rules: windows, the order and shape of frames, poses, means."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggt_jax import load_images
from vggt_jax.errors import InputError

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import evaluate_photographs

    return evaluate_photographs


def test_every_window_counts(script):
    found = [list(window) for window in script.windows(10, 4, 2)]
    assert found == [[0, 2, 4, 6], [1, 3, 5, 7], [2, 4, 6, 8], [3, 5, 7, 9]]
    assert [list(window) for window in script.windows(8, 8, 1)] == [list(range(8))]
    assert not list(script.windows(8, 8, 2))


def scene(folder, sizes, **camera):
    """Photographs brighter from one to the next, listed in the wrong order, each a metre further to the right."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for i, size in enumerate(sizes):
        Image.new("RGB", size, (40 * i,) * 3).save(folder / "images" / f"{i}.png")
        matrix = np.eye(4)
        matrix[0, 3] = i
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": matrix.tolist()})
    document = {"frames": frames[::-1], **camera}
    (folder / "transforms.json").write_text(json.dumps(document))
    return folder


def test_frames_come_in_the_order_of_their_names_with_opencv_poses(script, tmp_path):
    folder = scene(tmp_path / "a", [(60, 40)] * 3)
    images, poses = script.read_scene(folder, "square", 28, 14)
    assert images.shape == (3, 28, 28, 3) and images[:, 0, 0, 0].tolist() == [0, 40, 80]
    # nerfstudio's y is up and z back; the camera moved to the right, so the world moves to the left.
    expected = np.concatenate([np.diag([1, -1, -1]), np.zeros((3, 1))], axis=-1)
    for i, pose in enumerate(poses):
        expected[0, 3] = -i
        np.testing.assert_allclose(pose, expected, atol=1e-6)
    images, _ = script.read_scene(folder, "own", 42, 14)
    assert images.shape == (3, 28, 56, 3)  # 3.7 x 2.4 patches for 60x40; as infer has them
    frames = load_images([folder / "images/0.png"], mode="area", size=42)
    assert images.shape[1:] == frames.images.shape[1:]
    portrait, _ = script.read_scene(scene(tmp_path / "b", [(40, 60)]), "own", 42, 14)
    assert portrait.shape == (1, 56, 28, 3)


def test_what_cannot_be_read_is_named(script, tmp_path):
    folder = scene(tmp_path / "a", [(60, 40), (40, 60)])
    assert script.read_scene(folder, "square", 28, 14)[0].shape == (2, 28, 28, 3)
    with pytest.raises(InputError, match="several shapes; use --shape square"):
        script.read_scene(folder, "own", 42, 14)
    (folder / "images" / "1.png").unlink()
    with pytest.raises(InputError, match=r"1\.png: cannot be read"):
        script.read_scene(folder, "square", 28, 14)


def test_means_have_standard_errors(script):
    assert script.mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / 3**0.5))
    mean, error = script.mean_and_error([0.5])
    assert mean == 0.5 and math.isnan(error)


def test_a_folder_without_scenes_ends_in_one_line(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate_photographs.py", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert (
        ended.value.code == 2 and "no folder in it has a transforms.json" in capsys.readouterr().err
    )
