"""What commands print for programs, several formats in one run, frames of videos, folders below."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import vggt_jax
from vggt_jax.checkpoints import annotate
from vggt_jax.cli import printed, programs
from vggt_jax.cli.generated import in_dashes
from vggt_jax.images.files import list_folder
from vggt_jax.pipeline import timing
from vggt_jax.pipeline.many_scenes import ManyScenesOptions


def only_json(capsys):
    return json.loads(capsys.readouterr().out)


def test_infer_with_formats_as_json(tmp_path, photographs, checkpoint, run, refused, capsys):
    nested = tmp_path / "nested"
    (nested / "left").mkdir(parents=True)
    (nested / "right").mkdir()
    for i, place in enumerate(("left/0.png", "left/1.png", "right/0.png")):
        (photographs / f"{i}.png").rename(nested / place)
    out = tmp_path / "out"
    args = ["infer", nested, "--recursive", "--model", checkpoint, "--size", 28, "--out", out]
    args += ["--export", "glb", "nerfstudio", "--focal", 100]
    assert run(*args, "--json") == 0
    outcome = only_json(capsys)
    assert (outcome["frames"], outcome["width"], outcome["height"]) == (3, 28, 14)
    assert [export["format"] for export in outcome["exports"]] == ["glb", "nerfstudio"]
    assert outcome["warning"] is None
    assert set(outcome["seconds"]) >= {"reading photographs", "compiling", "writing glb"}
    document = json.loads((out / "nerfstudio" / "transforms.json").read_text())
    assert [frame["file_path"] for frame in document["frames"]] == [
        "images/left/0.png", "images/left/1.png", "images/right/0.png",
    ]  # fmt: skip
    assert (out / "nerfstudio" / "images" / "right" / "0.png").is_file()
    assert (out / "scene.glb").read_bytes()[:4] == b"glTF"
    # The same again: refused, and why is said as JSON, too; then replaced, without a word.
    assert run(*args, "--json") == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"] in printed.err
    assert run(*args, "--overwrite", "--quiet") == 0
    said = capsys.readouterr()
    assert said.out == "" and "memory:" not in said.err
    assert "twice" in refused(*args[:-5], "--export", "glb", "glb", "--overwrite")
    assert run("export", out, "--format", "ply", "--out", tmp_path / "a.ply", "--json") == 0
    assert only_json(capsys)["points"] > 0


def test_a_scene_that_is_probably_none_is_told(tmp_path, photographs, checkpoint, run, capsys):
    calibrated = tmp_path / "calibrated.safetensors"
    shutil.copy(checkpoint, calibrated)
    annotate(calibrated, least_agreement=1.0)
    args = ["infer", photographs, "--model", calibrated, "--size", 28, "--focal", 100, "--quiet"]
    assert run(*args, "--out", tmp_path / "out", "--json") == 0
    printed = capsys.readouterr()
    outcome = json.loads(printed.out)
    assert f"vggt-jax: warning: {outcome['warning']}\n" == printed.err
    assert outcome["warning"].startswith("this is probably no reconstruction")
    assert outcome["provenance"]["agreement"] < 1 == outcome["provenance"]["least_agreement"]
    report = ["export", tmp_path / "out", "--format", "ply", "--out", tmp_path / "a.ply"]
    assert run(*report, "--json") == 0
    assert only_json(capsys)["notes"] == [outcome["warning"]]
    # Each scene of many.
    (tmp_path / "scenes").mkdir()
    photographs.rename(tmp_path / "scenes" / "attic")
    args = ["batch", tmp_path / "scenes", *args[2:-3], "--focal", 100]
    assert run(*args, "--out", tmp_path / "many") == 0
    assert "vggt-jax: warning: attic: this is probably no" in capsys.readouterr().err


def test_a_plan_and_a_doctor_as_json(photographs, checkpoint, run, capsys):
    assert run("infer", photographs, "--model", checkpoint, "--size", 28, "--plan", "--json") == 0
    plan = only_json(capsys)
    assert plan["frames"] == 3 and plan["fits"] and plan["seconds"] > 0
    assert run("doctor", "--json") == 0
    found = only_json(capsys)
    assert found["versions"]["jax"] == jax.__version__ and "kept in" in str(found["device"])


def test_outcomes_are_strict_json(capsys):
    printed.print_outcome(SimpleNamespace(json=True), "text", {"a": [float("nan"), 1.5], "b": {}})
    assert only_json(capsys) == {"a": [None, 1.5], "b": {}}


def test_frames(tmp_path, run, refused, capsys):
    av = pytest.importorskip("av", reason="needs PyAV")
    clip = tmp_path / "clip.mp4"
    rng = np.random.default_rng(3)
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(10):
            image = rng.integers(0, 256, (48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    out = tmp_path / "frames"
    assert run("frames", clip, "--out", out, "--frames", 3, "--json") == 0
    names = [frame["name"] for frame in only_json(capsys)["frames"]]
    assert names == sorted(path.name for path in out.glob("*.png")) and len(names) == 3
    chosen = vggt_jax.choose_frames(clip, frames=3)
    for name, image in zip(names, chosen.images(), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(out / name)), np.asarray(image))
    assert "is not empty" in refused("frames", clip, "--out", out)
    assert run("frames", clip, "--out", out, "--format", "jpg", "--quiet", "--overwrite") == 0
    assert [path.suffix for path in out.glob("clip*")] == [".jpg"] * 2
    assert "--frames 99" in refused("frames", clip, "--out", tmp_path / "b", "--frames", 99)
    assert not (tmp_path / "b").exists()


def test_folders_below_are_searched_in_natural_order(tmp_path):
    for name in ("b10/1.png", "b2/10.png", "b2/2.png", "0.png", ".cache/9.png", "b2/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name, format="png")
    found = lambda *pattern: [
        path.relative_to(tmp_path).as_posix()
        for path in list_folder(tmp_path, pattern, recursive=True).images
    ]
    assert found() == ["0.png", "b2/2.png", "b2/10.png", "b10/1.png"]
    assert found("!b2/*") == ["0.png", "b10/1.png"] and found("b*/1*") == ["b2/10.png", "b10/1.png"]
    assert found("b2/*", "!10.png") == ["b2/2.png"]
    frames = vggt_jax.load_images(tmp_path, recursive=True, size=14)
    assert frames.names == tuple(found())
    with pytest.raises(vggt_jax.InputError, match="recursive=True is for a folder"):
        vggt_jax.load_images(tmp_path / "0.png", recursive=True)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("memory_check=False helps", "--no-memory-check helps"),
        ("mask_edges=True", "--mask-edges"),
        ("known_distance=3 and pad_frames", "--known-distance 3 and --pad-frames"),
        ("frames are of /a/pad_frames/x.png", "frames are of /a/pad_frames/x.png"),
    ],
)
def test_errors_speak_the_words_of_the_command_line(message, expected):
    assert in_dashes(message, ManyScenesOptions) == expected


def test_programs_of_a_cpu_are_kept_apart_by_its_kind(monkeypatch, tmp_path):
    monkeypatch.setenv("VGGT_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    mine = programs.programs_folder()
    assert mine.parent == tmp_path / "programs"
    monkeypatch.setattr(programs, "_CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags : avx999\n")
    assert programs.programs_folder() != mine
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert programs.programs_folder() == tmp_path / "programs"


def test_it_is_said_where_the_kernels_are_off(monkeypatch):
    assert timing.why_slower() is None
    monkeypatch.setattr("pallas_kernels.devices.is_hopper", lambda: True)
    monkeypatch.setattr("pallas_kernels.mosaic_gpu_call.is_supported", lambda: False)
    assert "JAX 0.11" in timing.why_slower() and "Python 3.12" in timing.why_slower()


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.21, "3.2 s"), (42, "42 s"), (200, "3 min"), (9000, "2.5 h")]
)
def test_durations_are_said_as_precisely_as_they_are_known(seconds, words):
    assert timing.said_duration(seconds) == f"about {words}"
