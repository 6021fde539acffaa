"""vggt-jax evaluate, on tiny data sets."""

import json
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

import vggt_jax
from vggt_jax import cli
from vggt_jax.evaluation.datasets import DATASETS
from vggt_jax.pipeline import evaluating, placing

SCRIPTS = Path(__file__).parents[3] / "scripts"
# One program serves all sequences.
SHAPE = ("--size", 28, 28, "--pad-frames-to", 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of a tiny data set by name."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        from write_dataset import write
    finally:
        sys.path.remove(str(SCRIPTS))

    folders = {}

    def of(name, number=12, size=(24, 32)):
        key = name, number, size
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp(name)
            write(name, folders[key], None, number, size)
        return folders[key]

    return of


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    vggt_jax.save_model(tiny(enable_track=False, enable_point=False, enable_depth=False), path)
    return path


def run(*args):
    return cli.main(["evaluate", *map(str, args)])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_results_and_going_on(root, model, tmp_path, capsys, monkeypatch):
    out = tmp_path / "new" / "results.jsonl"
    args = ("scannet", root("scannet"), "--model", model, *SHAPE, "--out", out)
    assert run(*args) == 0
    said = capsys.readouterr()
    assert f"scannet, pi3: 2 of 2 sequences -> {out}" in said.out
    assert "ate" in said.out and "VGGT, dense (about)" in said.out and "0.035 (" in said.out
    assert "pose is not finite: 1 (scene0708_00/2)" in said.err
    about, *lines = lines_of(out)
    assert about["protocol"]["frames"] == {
        "kind": "EveryNth",
        "step": 3,
        "first": 270,
        "at_least_two": False,
    }
    assert about["model"] == str(model) and about["attention"] == "Dense(implementation=None)"
    assert [x["sequence"] for x in lines] == ["scene0707_00", "scene0708_00"]
    assert lines[0]["frames"] == ["0", "3", "6", "9"] and lines[0]["size"] == [28, 28]
    assert lines[0]["sparsity"] == 0
    ates = [x["metrics"]["ate"] for x in lines]
    assert min(ates) > 0 and f"{np.mean(ates):.4f}" in said.out

    # What is there is not done again; a line that was cut off, and what failed, is.
    failed = json.dumps({"sequence": "scene0708_00", "error": "memory"})
    out.write_text("\n".join([*out.read_text().splitlines()[:2], failed, '{"sequence": "sc']))
    evaluated = []

    def evaluate(evaluation, name, places, **options):
        evaluated.append((name, places))
        return dict(lines[1])

    monkeypatch.setattr(evaluating, "evaluate_sequence", evaluate)
    assert run(*args) == 0
    assert evaluated == [("scene0708_00", (0, 3, 6, 9))] and lines_of(out)[1:] == lines
    assert "1 of 2 sequences are done" in capsys.readouterr().err
    assert run(*args, "--limit", 1) == 0 and len(evaluated) == 1

    # Other settings are another run.
    assert run(*args, "--num-keys", 64) == 2
    assert (
        "results of another run, which differs in attention; choose another"
        in capsys.readouterr().err
    )
    assert run(*args[:-2], "--out", root("scannet") / "scene0707_00" / "pose" / "0.txt") == 2
    assert "is no JSON" in capsys.readouterr().err
    mine = tmp_path / "mine.txt"
    for text in ("mine", '{"mine": 1}\n'):
        mine.write_text(text)
        assert run(*args[:-1], mine) == 2 and mine.read_text() == text
        assert "holds no results of vggt-jax evaluate" in capsys.readouterr().err

    def fail(*args, **options):
        raise vggt_jax.InputError("0.png: cannot be read")

    monkeypatch.setattr(evaluating, "evaluate_sequence", fail)
    out = tmp_path / "failed.jsonl"
    assert run(*args[:-1], out) == 1
    assert lines_of(out)[1] == {"sequence": "scene0707_00", "error": "0.png: cannot be read"}
    assert "0 of 2 sequences" in capsys.readouterr().out

    # Two devices (the only one here, twice) have a sequence each at the same time.
    both = threading.Barrier(2, timeout=60)

    def together(evaluation, name, places, **options):
        both.wait()
        if name == "scene0707_00":
            raise vggt_jax.InputError("0.png: cannot be read")
        return dict(lines[1])

    monkeypatch.setattr(evaluating, "evaluate_sequence", together)
    monkeypatch.setattr(placing, "chosen_devices", lambda number, here: jax.devices()[:1] * number)
    out = tmp_path / "two.jsonl"
    assert run(*args[:-1], out, "--devices", 2) == 1
    assert sorted(lines_of(out)[1:], key=lambda x: x["sequence"]) == [
        {"sequence": "scene0707_00", "error": "0.png: cannot be read"},
        lines[1],
    ]
    assert "1 of 2 sequences" in capsys.readouterr().out


def test_lists_and_checks(root, tmp_path, capsys):
    assert run("--list") == 0
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in DATASETS)
    assert run("tanks", "--list") == 0
    said = capsys.readouterr().out
    assert "π³, block-sparse 50.0%, 100 frames: rra_5 0.83, rta_5 0.83" in said
    assert "files, original: SCENE/000001.jpg" in said
    assert run("re10k", root("re10k"), "--list", "--limit", 1) == 0
    said = capsys.readouterr()
    places = np.random.RandomState(42).choice(12, 10, replace=False)
    assert said.out == f"0123456789abcdef: 10 frames: {' '.join(map(str, places))}\n"
    assert "too few frames, or is not in the list: 1 (2123456789abcdef)" in said.err
    # The draw of a sequence is that among all, whichever are asked for.
    generator = np.random.RandomState(42)
    second = [generator.choice(12, 10, replace=False) for _ in range(2)][1]
    assert run("re10k", root("re10k"), "--list", "--sequences", "1123456789abcdef") == 0
    said = capsys.readouterr().out
    assert said == f"1123456789abcdef: 10 frames: {' '.join(map(str, second))}\n"
    # What published numbers are of, and the folder does not hold.
    for name, missing in (
        ("dtu", "protocol is missing: 20 (scan9, scan10, scan11 and 17 more)"),
        ("7scenes", "protocol is missing: 6 (fire, heads, office and 3 more)"),
        ("scannet", "protocol is missing: 92 (scene0709_00, scene0710_00, scene0712_00 and 89"),
    ):
        assert run(name, root(name), "--list") == 0
        assert f"sequence of the {missing}" in capsys.readouterr().err
    frames = tmp_path / "list.json"
    frames.write_text('{"110_1_2": [0, 5, 2], "119_1_2": [7]}')
    assert run("co3d", root("co3d"), "--list", "--frame-list", frames) == 0
    said = capsys.readouterr()
    assert said.out == "apple/110_1_2: 3 frames: 0 5 2\n"
    assert "sequence of the list is missing: 1 (119_1_2)" in said.err
    frames.write_text('{"110_1_2": [0, 5, 2]}')
    for name, options in (("dtu", ()), ("co3d", ("--frame-list", frames)), ("re10k", ())):
        assert run(name, root(name), "--check", "--size", 28, 28, *options) == 0
        assert "frames, good" in capsys.readouterr().out
    options = ("--data", "min_viewpoint_quality=None", "max_translation=None")
    frames.write_text('{"130_5_6": [0], "140_7_8": [1]}')
    assert run("co3d", root("co3d"), "--list", "--frame-list", frames, *options) == 0
    said = capsys.readouterr().out
    assert said == "apple/130_5_6: 1 frames: 0\napple/140_7_8: 1 frames: 1\n"
    depth = next((root("dtu") / "scan4").rglob("*00000005.npy"))
    whole = depth.read_bytes()
    depth.write_bytes(whole[:100])
    assert run("dtu", root("dtu"), "--check", "--size", 28, 28) == 1
    assert "1 of 2 sequences are good" in capsys.readouterr().out
    depth.write_bytes(whole)
    # What a protocol compares where it is there is not left out in silence.
    (mesh,) = (root("scannet") / "scene0707_00").glob("*.ply")
    mesh.rename(mesh.with_suffix(".away"))
    run("scannet", root("scannet"), "--check", "--protocol", "fastvggt", "--size", 28, 28)
    said = capsys.readouterr().err
    assert "scan is missing, so that points are not compared: 1 (scene0707_00)" in said
    mesh.with_suffix(".away").rename(mesh)


def test_what_is_refused(root, tmp_path, capsys):
    def refused(*args):
        assert run(*args) == 2
        return capsys.readouterr().err

    assert "no data set 'kitti'; there are re10k, co3d" in refused("kitti", tmp_path)
    assert "name a data set and its folder" in refused("dtu")
    assert "no DTU" in refused("dtu", tmp_path)
    dtu = root("dtu")
    assert "'cut3r' is not one for dtu; there are paper, pi3, vggt" in refused(
        "dtu", dtu, "--protocol", "cut3r"
    )
    assert "--sequences scan5: " in refused("dtu", dtu, "--sequences", "scan5")
    assert "--limit 0 must be at least 1" in refused("dtu", dtu, "--limit", 0)
    assert "no number of frames to choose" in refused("dtu", dtu, "--num-frames", 3)
    assert "name a file of results to write with --out" in refused("dtu", dtu)
    eth3d = root("eth3d")
    assert "--data depth: must be NAME=VALUE" in refused("eth3d", eth3d, "--data", "depth")
    assert 'images 5 must be "undistorted"' in refused("eth3d", eth3d, "--data", "images=5")
    assert "argument 'depth'" in refused("eth3d", eth3d, "--data", "depth=raw")
    co3d = ("co3d", root("co3d"), "--data", "min_viewpoint_quality=high")
    assert "min_viewpoint_quality='high' must be a number" in refused(*co3d)
    frames = tmp_path / "list.json"
    frames.write_text('{"scan1": [0, -5]}')
    assert 'must be {"name of a sequence": [0, 5, ...], ...}' in refused(
        "dtu", dtu, "--frame-list", frames
    )
    frames.write_text('{"scan9": [0, 5]}')
    assert "holds none of the sequences of pi3" in refused("dtu", dtu, "--frame-list", frames)


@pytest.mark.slow
def test_all_data_sets(root, tiny, tmp_path, capsys):
    vggt_jax.save_model(tiny(), tmp_path / "model")
    frames = tmp_path / "list.json"
    frames.write_text('{"110_1_2": [0, 5, 2, 9], "120_3_4": [1, 4, 7, 11]}')
    sparse = ("--sparse-ratio", 0.5, "--min-tokens", 0)
    for name in DATASETS:
        out = tmp_path / f"{name}.jsonl"
        options = [
            "--model",
            tmp_path / "model",
            "--protocol",
            "paper",
            "--out",
            out,
            "--size",
            84,
            84,
            "--pad-frames-to",
            12,
        ]
        options += ["--frame-list", frames] if name == "co3d" else []
        assert run(name, root(name), *options, *sparse) == 0, capsys.readouterr().err
        lines = lines_of(out)[1:]
        assert lines
        for line in lines:  # With few frames all keys are one block or two.
            assert len(line["frames"]) < 10 or line["sparsity"] > 0.1, line
            assert all(np.isfinite(x) for x in line["metrics"].values() if x is not None)
        assert "-> " in capsys.readouterr().out
