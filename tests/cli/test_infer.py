"""The command line: what it writes, and one line with exit code 2 for input that it cannot use."""

import json

import jax
import numpy as np
import pytest
import trimesh
from PIL import Image

import vggt_jax
from pallas_kernels import tuned
from vggt_jax.models import loading
from vggt_jax.pipeline import memory, streaming


def test_infer_writes_everything(tmp_path, photographs, checkpoint, capsys, run):
    out = tmp_path / "new" / "out"
    args = ["infer", photographs, "--model", checkpoint, "--out", out, "--size", 140]
    assert run(*args, "--query-points", "20,30", "--query-points", "159,95") == 0
    assert {path.name for path in out.iterdir()} == {
        "predictions.npz", "cameras.json", "points.ply", "overview.png", "depth_pictures",
        "track_pictures", ".vggt-jax.json",
    }  # fmt: skip
    assert len(list((out / "depth_pictures").iterdir())) == 3
    assert len(list((out / "track_pictures").iterdir())) == 3
    assert not list(tmp_path.glob("**/.vggt-jax-*"))

    arrays = np.load(out / "predictions.npz")
    assert arrays["depth"].shape == (3, 84, 140) and arrays["images"].dtype == np.uint8
    np.testing.assert_allclose(arrays["tracks_in_photographs"][0], [[20, 30], [159, 95]], atol=1e-3)
    cameras = json.loads((out / "cameras.json").read_text())["frames"]
    assert [frame["name"] for frame in cameras] == ["0.png", "1.png", "2.png"]
    np.testing.assert_allclose(
        [frame["camera_from_world"] for frame in cameras], arrays["camera_from_world"], rtol=1e-6
    )
    cloud = trimesh.load(out / "points.ply")
    assert len(cloud.vertices) == pytest.approx(0.75 * 3 * 84 * 140, rel=0.01)
    printed = capsys.readouterr()
    assert "memory: about" in printed.err
    for part in ("3 frames of 140x84", "compiling", "reconstructing 3 frames", " s"):
        assert part in printed.out


@pytest.mark.slow
def test_many_frames_are_streamed(tmp_path, photographs, tiny, run, refused, monkeypatch, capsys):
    vggt_jax.save_model(tiny(enable_point=False, enable_track=False), tmp_path / "model")
    args = ["infer", photographs, "--model", tmp_path / "model", "--size", 28]
    assert run(*args, "--out", tmp_path / "whole") == 0
    in_pairs = {"streaming.from_pixels": 1, "streaming.frames_in_piece": 2}
    with tuned.override(in_pairs):
        assert run(*args, "--out", tmp_path / "streamed") == 0
    found, expected = (
        np.load(tmp_path / name / "predictions.npz") for name in ("streamed", "whole")
    )
    assert set(found) == set(expected)
    for name in ("depth", "depth_confidence", "camera_from_world"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    assert "reconstructing 3 frames" in capsys.readouterr().out

    def too_much(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(streaming.Stream, "__call__", too_much)
    with tuned.override(in_pairs):
        assert "3 frames do not fit" in refused(*args, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_infer_keeps_earlier_results_unless_told(tmp_path, photographs, checkpoint, run, refused):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    args = ["infer", photographs, "--model", checkpoint, "--out", out]
    assert "is not empty" in refused(*args)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert run(*args, "--overwrite") == 0
    assert (out / "notes.txt").read_text() == "mine"
    (out / "depth_pictures" / "mine.png").write_text("of somebody else")
    assert run(*args, "--overwrite", "--points", "head") == 0
    assert len(list((out / "depth_pictures").iterdir())) == 3 + 1


def change_nothing(folder):
    return folder


def empty(folder):
    for path in folder.iterdir():
        path.unlink()
    return folder


def one_is_text(folder):
    (folder / "1.jpg").write_text("not a picture")
    return folder


def one_is_truncated(folder):
    data = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(data[: len(data) // 2])
    return folder


def another_shape(folder):
    Image.new("RGB", (160, 60)).save(folder / "9.png")
    return folder


def only_one(folder):
    return folder / "0.png"


def missing(folder):
    return folder / "nowhere"


@pytest.mark.parametrize(
    ("spoil", "options", "parts"),
    [
        (empty, [], ["photographs", "no images"]),
        (missing, [], ["nowhere"]),
        (one_is_text, [], ["1.jpg"]),
        (one_is_truncated, [], ["1.png"]),
        (only_one, [], ["0.png", "--allow-single-image"]),
        (another_shape, [], ["9.png", "mode"]),
        (change_nothing, ["--size", "100"], ["100", "multiple of 14", "98"]),
        (change_nothing, ["--query-points", "160,5"], ["(160, 5)", "outside 0.png", "160 wide"]),
        (change_nothing, ["--query-points", "5;6"], ["'5;6'", "x,y"]),
        (change_nothing, ["--query-points", "5,6", "--size", "28"], ["28x14", "too small", "16"]),
        (change_nothing, ["--size", "140000014"], ["140000014", "at most"]),
        (change_nothing, ["--confidence-percentile", "100"], ["100", "[0, 100)"]),
        (change_nothing, ["--max-points", "0"], ["at least 1"]),
        (
            change_nothing,
            ["--out", "/proc/nowhere/out"],
            ["/proc/nowhere/out", "cannot be written"],
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path, photographs, checkpoint, spoil, options, parts, refused
):
    out = tmp_path / "out"
    source = spoil(photographs)
    args = ["infer", source, "--model", checkpoint, "--out", out, "--size", 140, *options]
    message = refused(*args)
    for part in parts:
        assert part in message
    assert not out.exists() and not list(tmp_path.glob("**/.vggt-jax*"))


def test_no_images_at_all(checkpoint, tmp_path, refused):
    assert "image" in refused("infer", "--model", checkpoint, "--out", tmp_path / "out")


@pytest.mark.parametrize("kind", ["missing", "truncated", "no checkpoint", "pi3"])
def test_a_model_that_cannot_be_used(tmp_path, photographs, tiny, kind, refused):
    model = tmp_path / "model.safetensors"
    if kind == "truncated":
        model = tmp_path / "folder"
        vggt_jax.save_model(tiny(), model)
        largest = max(model.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-5])
    elif kind == "no checkpoint":
        model.write_text("a text")
    elif kind == "pi3":
        from safetensors.numpy import save_file

        save_file({"decoder.0.norm1.weight": np.zeros(3, np.float32)}, model)
    out = tmp_path / "out"
    message = refused("infer", photographs, "--model", model, "--out", out)
    assert str(model) in message and not out.exists()


def test_too_little_memory_names_what_fits(
    tmp_path, photographs, checkpoint, monkeypatch, run, refused
):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    args = ["infer", photographs, "--model", checkpoint, "--out", tmp_path / "out"]
    message = refused(*args)
    assert "3 frames of 28x14" in message and "not even one fits" in message
    network = vggt_jax.load_model(checkpoint)
    weights = memory.weight_bytes(network)
    two = memory.estimate_memory(network.config, weights=weights, num_frames=2, height=14, width=28)
    monkeypatch.setattr(memory, "available_memory", lambda: two.total - weights)
    assert "about 2 frames fit" in refused(*args)
    assert run(*args, "--no-memory-check") == 0


@pytest.mark.slow
def test_single_image_on_request(tmp_path, photographs, checkpoint, run):
    args = ["infer", photographs / "0.png", "--model", checkpoint, "--out", tmp_path / "out"]
    assert run(*args, "--allow-single-image") == 0
    assert np.load(tmp_path / "out" / "predictions.npz")["depth"].shape == (1, 14, 28)


@pytest.mark.slow
def test_modes_for_mixed_shapes(tmp_path, photographs, checkpoint, run):
    another_shape(photographs)
    args = ["infer", photographs, "--model", checkpoint, "--mode", "pad", "--out", tmp_path / "out"]
    assert run(*args) == 0
    arrays = np.load(tmp_path / "out" / "predictions.npz")
    assert arrays["depth"].shape == (4, 28, 28) and not arrays["valid"].all()


def test_convert(tmp_path, toy_checkpoint, capsys, run, refused):
    source, converted = toy_checkpoint("vggt_late"), tmp_path / "late"
    assert run("convert", source, converted) == 0
    assert "keys" in capsys.readouterr().out
    assert "exists" in refused("convert", source, converted)
    loaded, expected = (
        loading.named_parameters(vggt_jax.load_model(x)) for x in (converted, source)
    )
    assert loaded.keys() == expected.keys()
    for name, values in loaded.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_unknown_options_end_with_exit_code_2(photographs, checkpoint, run):
    with pytest.raises(SystemExit) as stop:
        run("infer", photographs, "--model", checkpoint, "--out", "x", "--nonsense", 3)
    assert stop.value.code == 2


def test_points_from_a_head_that_is_missing(tmp_path, photographs, toy_checkpoint, refused):
    model = toy_checkpoint("vggt_late")
    args = ["infer", photographs, "--model", model, "--out", tmp_path / "out"]
    assert "--points head" in refused(*args, "--points", "head")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "options", "what"),
    [
        (
            {"enable_camera": False},
            ["--known-distance", "0,1,2"],
            "no cameras for --known-distance",
        ),
        ({"enable_depth": False}, ["--known-depth", "0,1,1,2"], "no depth for --known-depth"),
    ],
)
def test_lengths_of_what_a_model_does_not_predict(
    tmp_path, photographs, tiny, refused, monkeypatch, change, options, what
):
    monkeypatch.setattr(
        "vggt_jax.pipeline.reconstruct.compile_reconstruct", None
    )  # Nothing to call.
    vggt_jax.save_model(tiny(**change), tmp_path / "model")
    args = ["infer", photographs, "--model", tmp_path / "model", "--out", tmp_path / "out"]
    assert what in refused(*args, *options)


def test_photographs_are_never_overwritten(photographs, checkpoint, refused):
    args = ["infer", photographs, "--model", checkpoint, "--out", photographs, "--overwrite"]
    assert "holds the photographs" in refused(*args)
    assert len(list(photographs.iterdir())) == 3


@pytest.mark.slow
def test_sparse_attention_of_few_and_many_tokens(tmp_path, photographs, checkpoint, run, capsys):
    args = ["infer", photographs, "--model", checkpoint, "--size", 28, "--sparse-ratio", 0.5]
    assert run(*args, "--out", tmp_path / "dense") == 0
    assert "fewer than min_tokens=4096" in capsys.readouterr().err
    options = ["--min-tokens", 0, "--sparse-layers", 0]
    assert run(*args, *options, "--out", tmp_path / "sparse") == 0
    assert "min_tokens" not in capsys.readouterr().err
    density = np.load(tmp_path / "sparse" / "predictions.npz")["attention_density"]
    assert "attention_density" not in np.load(tmp_path / "dense" / "predictions.npz")
    assert density.shape[0] > 1 and (density[1:] == 1).all()


def test_layers_that_are_not_there(tmp_path, photographs, checkpoint, refused):
    args = ["infer", photographs, "--model", checkpoint, "--size", 28, "--out", tmp_path / "out"]
    assert "layers" in refused(*args, "--sparse-ratio", 0.5, "--sparse-layers", 77)
