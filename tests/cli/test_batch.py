"""Many scenes on the command line: every option of one scene holds for each of them."""

import json
import shutil

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import vggt_jax


@pytest.fixture
def scenes(tmp_path, photographs):
    folder = tmp_path / "scenes"
    for name in ("hall", "attic"):
        shutil.copytree(photographs, folder / name)
    (folder / "notes.txt").write_text("no scene")
    return folder


def test_scenes_with_masks_cameras_and_tracks(tmp_path, scenes, checkpoint, run, capsys):
    for name, left in (("hall", 30), ("attic", 60)):
        (tmp_path / "masks" / name).mkdir(parents=True)
        for i in range(3):
            mask = np.zeros((96, 160), np.uint8)
            mask[:, left:] = 255
            Image.fromarray(mask).save(tmp_path / "masks" / name / f"{i}.png")
    args = ["batch", scenes, "--model", checkpoint, "--size", 28, "--out", tmp_path / "out"]
    args += ["--masks", tmp_path / "masks" / "{scene}", "--focal", 100, "--reference", 1]
    args += ["--batch-size", 2]
    assert run(*args) == 0
    assert "2 scenes written" in capsys.readouterr().out
    one = ["infer", scenes / "attic", "--model", checkpoint, "--size", 28, "--focal", 100]
    one += ["--reference", 1, "--masks", tmp_path / "masks" / "attic", "--out", tmp_path / "one"]
    assert run(*one) == 0
    found, expected = (
        vggt_jax.load_reconstruction(tmp_path / folder) for folder in ("out/attic", "one")
    )
    for name in ("mask", "intrinsics", "camera_from_world", "depth", "depth_confidence"):
        x, y = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5, err_msg=name)
    assert not found.mask.all()
    hall = vggt_jax.load_reconstruction(tmp_path / "out" / "hall")
    assert hall.mask.sum() > found.mask.sum()
    # Again: everything is there. With another option: refused.
    assert run(*args) == 0
    assert "2 were there" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["focal"] == 100 and settings["reference"] == "1"
    assert run(*args[:-2], "--mask-edges") == 2
    assert "another --mask-edges" in capsys.readouterr().err


def test_a_scene_that_fails_is_named_and_the_code_is_1(
    tmp_path, scenes, checkpoint, run, refused, capsys
):
    (scenes / "attic" / "1.png").write_bytes(b"no image")
    args = ["batch", scenes, "--model", checkpoint, "--size", 28, "--out", tmp_path / "out"]
    assert run(*args) == 1
    assert "failed: attic: " in capsys.readouterr().err
    assert (tmp_path / "out" / "hall" / "predictions.npz").is_file()
    assert "export" in refused(*args, "--min-confidence", 2)


def test_addresses_are_as_good_as_folders(
    tmp_path, scenes, checkpoint, run, refused, capsys, monkeypatch
):
    files = fsspec.filesystem("memory")
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    for path in scenes.rglob("*.png"):
        files.pipe(f"/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    args = ["--model", checkpoint, "--size", 28]
    assert run("batch", scenes, *args, "--out", f"file://{tmp_path}/out") == 0
    refuses = ["scenes/attic/", "out/hall/"]

    def refusing(method):
        def ask(self, one, other, *others, **options):
            if any(name in path for name in refuses for path in (one, other)):
                raise PermissionError("you may not")
            return method(self, one, other, *others, **options)

        return ask

    for name in ("get_file", "put_file"):
        monkeypatch.setattr(MemoryFileSystem, name, refusing(getattr(MemoryFileSystem, name)))
    args += ["--out", "memory://out"]
    # An address that refuses: that scene fails alone, and is done when it does so no more.
    assert run("batch", "memory://scenes", *args) == 1
    said = capsys.readouterr().err
    assert "failed: attic: memory://scenes/attic: " in said and said.count("you may not") == 2
    assert "failed: hall: memory://out: " in said
    assert files.find("/out") == ["/out/settings.json"]
    refuses.remove("out/hall/")
    assert run("batch", "memory://scenes", *args) == 1
    assert files.find("/out") == ["/out/hall/predictions.npz", "/out/settings.json"]
    refuses.clear()
    assert run("batch", "memory://scenes", *args) == 0
    assert "1 scenes written to memory://out, 1 were there" in capsys.readouterr().out
    for name in ("hall", "attic"):
        files.get(f"/out/{name}/predictions.npz", str(tmp_path / "found.npz"))
        found = dict(np.load(tmp_path / "found.npz"))
        expected = dict(np.load(tmp_path / "out" / name / "predictions.npz"))
        assert found.keys() == expected.keys()
        for key in found.keys() - {"provenance", "made_from"}:  # Of another time and place.
            np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
    assert "another size" in refused("batch", "memory://scenes", *args, "--size", 14)
    assert "no such folder" in refused("batch", "memory://nothing", *args)
    assert "nowhere" in refused("batch", "nowhere://scenes", *args)
    assert "lost a slash" in refused("batch", "memory://scenes", *args, "--masks", "s3://b/masks")


def test_a_plan_is_printed_and_nothing_runs(
    tmp_path, photographs, checkpoint, run, refused, capsys
):
    args = ["infer", photographs, "--model", checkpoint, "--size", 28]
    assert run(*args, "--sparse-ratio", 0.75, "--plan") == 0
    printed = capsys.readouterr().out
    for part in ("3 of 28x14", "Dense", "min_tokens=4096", "float32", "memory: about"):
        assert part in printed
    # Options of attention become what will run.
    options = ["--sparse-ratio", 0.5, "--sparse-layers", 0, "--min-tokens", 0, "--plan"]
    assert run(*args, *options) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in ("BlockSparse", "sparse_ratio=0.5", "layers=(0,)"))
    assert run(*args, "--num-keys", 5, "--min-tokens", 0, "--plan") == 0
    assert "Sampled(num_keys=5" in capsys.readouterr().out
    assert "--out" in refused(*args)
