"""export, bench, doctor, and what holds for all commands."""

import importlib.util
import json
import re
import socket
from typing import Annotated

import numpy as np
import pytest
import trimesh
from PIL import Image

from vggt_jax import cli
from vggt_jax.cli import bench, commands
from vggt_jax.cli.scene import SPELLINGS, in_our_spelling
from vggt_jax.pipeline import memory


@pytest.fixture
def results(tmp_path, photographs, checkpoint, run):
    out = tmp_path / "results"
    assert run("infer", photographs, "--model", checkpoint, "--out", out, "--size", 28) == 0
    return out


def test_export_of_results(tmp_path, results, photographs, run, refused, capsys):
    glb = tmp_path / "scene.glb"
    # Where a random model finds no field of view, the focal length is infinite, and refused.
    args = ["export", results, "--format", "glb", "--out", glb, "--focal", 123]
    assert run(*args, "--conf_threshold", 50) == 0
    printed = capsys.readouterr().out
    assert str(glb) in printed and "3 cameras" in printed
    shapes = trimesh.load(glb).geometry.values()
    (points,) = [shape for shape in shapes if isinstance(shape, trimesh.PointCloud)]
    assert len(points.vertices) == pytest.approx(0.5 * 3 * 14 * 28, abs=3)
    args = ["export", results, "--format", "nerfstudio", "--out", tmp_path / "nerf"]
    assert run(*args, "--images", photographs, "--focal", 123) == 0
    document = json.loads((tmp_path / "nerf" / "transforms.json").read_text())
    assert len(document["frames"]) == 3 and "123" in json.dumps(document)
    assert (tmp_path / "nerf" / "images" / "0.png").read_bytes() == (
        photographs / "0.png"
    ).read_bytes()
    assert "overwrite" in refused("export", results, "--format", "glb", "--out", glb, "--focal", 9)


def test_export_of_photographs(tmp_path, photographs, checkpoint, run):
    out = tmp_path / "scene.ply"
    args = ["export", photographs, "--model", checkpoint, "--size", 28, "--format", "ply"]
    assert run(*args, "--out", out, "--use_point_map", "--min_confidence", 0) == 0
    assert len(trimesh.load(out).vertices) == 3 * 14 * 28


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--model", "x"], ["--model", "too late"]),
        (["--sparse-ratio", "0.5"], ["--sparse-ratio", "too late"]),
        (["--images", "x"], ["--images x", "ply"]),
        (["--tracks", "head"], ["tracks", "colmap", "ply"]),
        (["--confidence-percentile", "120"], ["120", "[0, 100)"]),
        (["--known-distance", "0,0,1"], ["photograph 0 twice", "choose others"]),
    ],
)
def test_export_refuses(tmp_path, results, refused, options, parts):
    out = tmp_path / "scene.ply"
    message = refused("export", results, "--format", "ply", "--out", out, *options)
    for part in parts:
        assert part in message
    assert not out.exists()


def text_file(folder):
    (folder / "known.json").write_text("{}")
    return folder / "known.json"


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model, which takes long, ends the test."""

    def load_model(*_, **__):
        pytest.fail("a model was loaded before the options were checked")

    monkeypatch.setattr("vggt_jax.pipeline.inputs.load_model", load_model)


@pytest.mark.parametrize(
    ("format", "options", "part"),
    [
        ("ply", ["--max-points", 0], "--max-points 0 must"),
        ("ply", ["--shared-camera"], "--shared-camera is for colmap"),
        ("ply", ["--images", "x"], "is for results"),
        ("ply", ["--min-confidence", "nan"], "--min-confidence=nan"),
        ("ply", ["--intrinsics", "9,9,nan,9"], "--intrinsics 9,9,nan,9: all four must be finite"),
        ("ply", ["--intrinsics", "9,9,9,inf"], "must be finite"),
        ("ply", ["--intrinsics", text_file], "known.json: must be JSON like cameras.json"),
        ("ply", ["--out", "."], "is a folder; name a file"),
        ("glb", ["--camera-size", -1], "--camera-size -1.0"),
        ("glb", ["--out", text_file], "known.json: exists"),
        ("nerfstudio", ["--out", text_file], "is no folder"),
        ("nerfstudio", ["--out", "."], "holds images, points.ply already"),
        ("colmap", ["--min-track-length", 1], "--min-track-length 1"),
        ("colmap", ["--depth-tolerance", 1], "--depth-tolerance 1.0"),
        ("colmap", ["--min-visibility", 0.5], "--min-visibility is not for --tracks 'depth'"),
        ("colmap", ["--tracks", "head"], "--tracks head: needs --query-points"),
        ("colmap", ["--points", "head"], "points is for ply"),
    ],
)
def test_what_is_wrong_with_an_export_shows_before_the_work(
    tmp_path, photographs, refused, no_model, monkeypatch, format, options, part
):
    if format == "colmap":
        pytest.importorskip("pycolmap", reason="needs pycolmap")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "points.ply").write_text("mine")
    (tmp_path / "images").mkdir()
    options = [option(tmp_path) if callable(option) else option for option in options]
    args = ["export", photographs, "--model", "none", "--format", format, "--out", "scene"]
    assert part in refused(*args, *options)
    assert (tmp_path / "points.ply").read_text() == "mine" and not (tmp_path / "scene").exists()


def test_what_is_wrong_with_a_view_shows_before_the_work(photographs, refused, no_model):
    pytest.importorskip("viser", reason="needs viser")
    args = ["view", photographs, "--model", "none"]
    assert "port=70000" in refused(*args, "--port", 70000)
    assert "--max-points=0" in refused(*args, "--max-points", 0)
    assert "--min-confidence=-1" in refused(*args, "--min-confidence", -1)


def test_what_does_not_fit_the_photographs_shows_before_they_are_reconstructed(
    tmp_path, photographs, checkpoint, refused, monkeypatch
):
    def compile_reconstruct(*_, **__):
        pytest.fail("photographs were reconstructed before the options were checked")

    monkeypatch.setattr("vggt_jax.pipeline.reconstruct.compile_reconstruct", compile_reconstruct)
    cameras = tmp_path / "cameras.json"
    matrix = [[None, 0, 3], [0, 9, 3], [0, 0, 1]]
    frames = [{"name": f"{i}.png", "intrinsics_original": matrix} for i in range(3)]
    cameras.write_text(json.dumps({"frames": frames}))
    common = [photographs, "--model", checkpoint, "--size", 28]
    infer = ["infer", *common, "--out", tmp_path / "out"]
    export = ["export", *common, "--format", "ply", "--out", tmp_path / "out.ply"]
    for args in (infer, export, ["view", *common]):
        assert "frame 9 does not exist" in refused(*args, "--known-distance", "0,9,2")
        assert "'x.png'" in refused(*args, "--known-distance", "x.png,1,2")
        assert "photograph 2 twice" in refused(*args, "--known-distance", "2.png,2,1")
        assert "outside" in refused(*args, "--known-depth", "0,500,1,2")
        assert "0.png: intrinsics must be finite" in refused(*args, "--intrinsics", cameras)
    if importlib.util.find_spec("pycolmap"):
        Image.new("RGB", (160, 60)).save(photographs / "9.png")
        export[-3:] = ["colmap", "--out", tmp_path / "colmap"]
        message = refused(*export, "--mode", "pad", "--shared-camera")
        assert "9.png is 160x60 and 0.png 160x96" in message
    assert {path.name for path in tmp_path.iterdir()} == {"photographs", "cameras.json"}


def test_view(results, photographs, checkpoint, run, refused, monkeypatch):
    pytest.importorskip("viser", reason="needs viser")
    shown = []
    monkeypatch.setattr(
        "vggt_jax.viewer.view", lambda recon, **options: shown.append((recon, options))
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert run("view", results, "--port", port, "--max-points", 99, "--conf_threshold", 40) == 0
    threshold = float(np.median(shown[0][0].world_points_confidence))
    args = ["view", photographs, "--model", checkpoint, "--size", 28]
    assert run(*args, "--min-confidence", threshold, "--use_point_map") == 0
    (first, options), (second, others) = shown
    assert (options["host"], options["port"], options["max_points"]) == ("127.0.0.1", port, 99)
    assert options["confidence_percentile"] == 40 and others["points"] == "head"
    np.testing.assert_array_equal(first.images, second.images)
    assert options["min_confidence"] is None and others["confidence_percentile"] is None
    assert others["min_confidence"] == threshold and second.mask is None
    assert "too late" in refused("view", results, "--sparse-ratio", 0.5)


def test_export_of_nothing(tmp_path, refused):
    out = tmp_path / "scene.ply"
    assert "no images given" in refused("export", "--format", "ply", "--out", out)
    message = refused("export", tmp_path / "none", "--format", "ply", "--out", out)
    assert str(tmp_path / "none") in message


def test_doctor(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("VGGT_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "some-model").mkdir(parents=True)
    assert run("doctor") == 0
    printed = capsys.readouterr().out
    for part in (
        "Versions",
        "Device",
        "Attention",
        "Extras",
        "Models",
        str(tmp_path),
        "some-model",
    ):
        assert part in printed
    rows = dict(re.findall(r"^ +(\S+) {2,}(.+)$", printed, re.MULTILINE))
    assert rows["jax"] == __import__("jax").__version__
    assert rows["dense"].startswith(("xla", "cudnn", "mosaic_gpu"))
    assert rows["block-sparse"] in ("xla", "triton", "mosaic_gpu")
    if rows["block-sparse"] == "xla":
        assert rows["triton"].startswith("not here: ")
    assert rows["av"].endswith("for videos as input")


@pytest.mark.slow
def test_bench(run, refused, capsys, monkeypatch, tiny):
    cameras = tiny(enable_point=False, enable_track=False, enable_depth=False)
    monkeypatch.setattr(bench, "random_model", lambda *_: cameras)
    args = ["bench", "--size", 28, 42, "--repeats", 1]
    assert run(*args, "--frames", 1, 3, "--sparse-ratio", 0.5) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[0] == ["frames", "attention", "seconds", "frames/s", "compiling", "GiB"]
    cases = [f"{number} {kind}" for number in (1, 3) for kind in ("dense", "sparse")]
    assert [" ".join(row[:2]) for row in rows[1:]] == cases
    assert all(float(row[-4]) > 0 and float(row[-3]) > 0 for row in rows[1:])
    for options, parts in [
        (["--frames", 0], "positive"),
        (["--size", 28, 30], "multiples of 14"),
        (["--sparse-ratio", 2], "sparse-ratio"),
    ]:
        assert parts in refused(*args, *options)
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    assert "not even one fits" in refused(*args)


@pytest.mark.parametrize("architecture", [pytest.param("vggt", marks=pytest.mark.slow), "pi3"])
def test_random_models_have_the_size_asked_for(architecture, monkeypatch):
    monkeypatch.setitem(bench._WIDTHS, "small", (32, 2))
    model = bench.random_model(architecture, "small", "bfloat16")
    kernel = (model.frame_blocks.attn.qkv.kernel, model.encoder.blocks.attn.qkv.kernel)
    assert [x.shape for x in kernel] == [
        (24 if architecture == "vggt" else 18, 32, 96),
        (24, 32, 96),
    ]
    assert kernel[0].dtype == "bfloat16" and np.isfinite(np.asarray(kernel[0], np.float32)).all()


def test_spellings_of_the_official_scripts():
    argv = ["export", "--scene_dir", "a_b", "--conf_thres_value=5.0", "--use_ba", "--", "--a_b"]
    ours = ["export", "--image-folder", "a_b", "--min-confidence=5.0", "--bundle-adjustment"]
    assert in_our_spelling(argv) == [*ours, "--", "--a_b"]


def test_every_spelling_has_a_counterpart(capsys):
    for command in ("infer", "export"):
        assert cli.main([command, "--help"]) == 0
        options = set(re.findall(r"--([a-z-]+)", capsys.readouterr().out))
        assert not options & set(SPELLINGS)
        if command == "export":
            assert set(SPELLINGS.values()) <= options


def test_the_same_option_means_the_same_everywhere():
    """Options of one name have one type, and for scenes the same default."""
    types = {}
    for command in (commands.Infer, commands.Convert, commands.Export, commands.Bench):
        for name, kind in command.__annotations__.items():
            # An option may bring its help with it, which is no part of its type.
            marks = [
                mark
                for mark in getattr(kind, "__metadata__", ())
                if not getattr(mark, "help", None)
            ]
            if marks:
                kind = Annotated[kind.__origin__, *marks]
            if (command, name) not in [(commands.Bench, "frames"), (commands.Bench, "size")]:
                types.setdefault(name, set()).add(str(kind).replace("typing.", ""))
    different = {name for name, kinds in types.items() if len(kinds) > 1}
    assert different <= {"max_points"}
