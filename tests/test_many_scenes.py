"""Many scenes: batches give what `infer` gives, and an interrupted run goes on where it was."""

import gc
import itertools
import json
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future

import jax
import numpy as np
import pytest
from PIL import Image

import vggt_jax
from pallas_kernels import tuned
from vggt_jax import (
    BlockSparse,
    InputError,
)
from vggt_jax.pipeline import many_scenes, memory, plan, stores, streaming
from vggt_jax.pipeline.inputs import read as read_inputs
from vggt_jax.pipeline.options import Options

SIZES = {"hall": 3, "attic": 5, "yard": 4, "shed": 5, "barn": 2}


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    """3 to 5 frames share a program, as 33 and 34 do."""
    monkeypatch.setattr(plan, "bucket", lambda n: 5 if 3 <= n <= 5 else n)


@pytest.fixture
def scenes():
    rng = np.random.default_rng(0)
    shape = lambda name: (28, 56) if name == "barn" else (28, 42)
    return {
        name: rng.integers(0, 256, (frames, *shape(name), 3), np.uint8)
        for name, frames in SIZES.items()
    }


@pytest.fixture(scope="module")
def model(tiny):
    # Dense heads take long to compile; the command line's tests have them.
    return tiny(enable_track=False, enable_point=False, enable_depth=False)


def run(scenes, out, model, **options):
    return vggt_jax.reconstruct_scenes(scenes, out, model=model, progress=False, **options)


def read(out, name):
    with np.load(out / name / "predictions.npz") as file:
        return dict(file)


def test_batches_give_what_infer_gives(tmp_path, scenes, model):
    del scenes["barn"]  # of another size, so another program
    attention = BlockSparse(min_tokens=0, sparse_ratio=0.5, block_q=16, block_k=8)
    before = many_scenes._reconstruct._cache_size()
    report = run(scenes, tmp_path / "out", model, attention=attention, batch_size=3)
    assert sorted(report.written) == sorted(scenes)
    assert report.skipped == () and report.failed == {}
    # Three, four and five frames are one program.
    assert many_scenes._reconstruct._cache_size() == before + 1
    for name, images in scenes.items():
        np.testing.assert_array_equal(read(tmp_path / "out", name)["images"], images)
    # Of three frames, in a batch with scenes of four and five.
    found, images = read(tmp_path / "out", "hall"), scenes["hall"]
    expected = vggt_jax.infer(images, model=model, attention=attention, pad_frames=False)
    for key in ("camera_from_world", "intrinsics"):
        np.testing.assert_allclose(
            found[key], getattr(expected, key), rtol=2e-4, atol=2e-5, err_msg=key
        )
    for key, value in vars(expected.attention_stats).items():
        np.testing.assert_allclose(found[f"attention_{key}"], value, rtol=1e-5)


def test_a_batch_holds_scenes_of_one_kind(scenes, model):
    """Of one size, one type, and numbers of frames that are padded to the same."""
    scenes = {"floats": (scenes["shed"] / 255).astype(np.float32)} | scenes
    loaded, options = [], Options()
    for name, images in scenes.items():
        loaded.append((name, Future()))
        inputs = read_inputs(images, model, options)
        scene_plan = plan.plan_scene(inputs, model, options)
        loaded[-1][1].set_result(many_scenes._Scene(name, options, inputs, scene_plan, {}))
    batches = many_scenes._batches(loaded, 2, fail=None)
    names = [[scene.name for scene in batch] for batch in batches]
    assert names == [["hall", "attic"], ["yard", "shed"], ["floats"], ["barn"]]


def test_a_run_goes_on_where_it_was_interrupted(tmp_path, scenes, model, monkeypatch):
    write, written, started = stores.write_reconstruction, [], itertools.count()

    def interrupted(folder, recon, **others):
        if next(started) >= 2:
            raise KeyboardInterrupt
        written.append(folder.name)
        write(folder, recon, **others)

    monkeypatch.setattr(stores, "write_reconstruction", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(scenes, tmp_path, model)
    assert {path.parent.name for path in tmp_path.glob("*/predictions.npz")} == set(written)
    kept = {name: (tmp_path / name / "predictions.npz").stat().st_mtime_ns for name in written}

    monkeypatch.setattr(stores, "write_reconstruction", write)
    # What a process leaves that is killed while it writes.
    left = next(tmp_path / name for name in scenes if name not in written)
    left.mkdir(exist_ok=True)
    (left / ".vggt-jax-1f2e3d4c.tmp").write_bytes(b"half of a result")
    report = run(scenes, tmp_path, model)
    assert set(report.skipped) == set(written) and len(report.written) == 3
    assert {path.parent.name for path in tmp_path.glob("*/predictions.npz")} == set(SIZES)
    for name, time in kept.items():
        assert (tmp_path / name / "predictions.npz").stat().st_mtime_ns == time
    assert not list(tmp_path.rglob("*.tmp"))
    again = run(scenes, tmp_path, model)
    assert again.written == () and set(again.skipped) == set(SIZES)


# Reconstructs scenes until the process dies in the middle of writing the third.
_KILLED = """
import itertools, os, pathlib, sys, time, zipfile
import numpy as np
import vggt_jax

scenes, out, model = sys.argv[1:]
archive, started = zipfile.ZipFile, itertools.count()

def begin(file, mode="r", **options):
    if mode == "w" and next(started) >= 2:
        file.write(b"half of a result")
        file.flush()
        while len(list(pathlib.Path(out).glob("*/predictions.npz"))) < 2:
            time.sleep(0.01)
        os._exit(9)
    return archive(file, mode, **options)

zipfile.ZipFile = begin
with np.load(scenes) as file:
    vggt_jax.reconstruct_scenes(dict(file), out, model=model, progress=False)
"""


@pytest.mark.slow
def test_a_run_goes_on_after_its_process_was_killed(tmp_path, scenes, model):
    del scenes["barn"], scenes["yard"]
    out, weights = tmp_path / "out", tmp_path / "model.safetensors"
    vggt_jax.save_model(model, weights)
    np.savez(tmp_path / "scenes.npz", **scenes)
    command = [sys.executable, "-c", _KILLED, tmp_path / "scenes.npz", out, weights]
    assert subprocess.run(command, check=False).returncode == 9
    written = {path.parent.name for path in out.glob("*/predictions.npz")}
    assert len(written) == 2 and len(list(out.rglob("*.tmp"))) == 1
    report = run(scenes, out, weights)
    assert set(report.skipped) == written and set(report.written) == set(scenes) - written
    assert not list(out.rglob("*.tmp"))
    for name, images in scenes.items():
        np.testing.assert_array_equal(read(out, name)["images"], images)


def test_devices_share_scenes_out(tmp_path, scenes, model, monkeypatch):
    """Two threads, both of the only device here: results are those of one, to the last bit."""
    run(scenes, tmp_path / "one", model)
    together, threads, run_batch = threading.Barrier(2, timeout=60), [], many_scenes._run

    def both(*arguments):
        threads.append(threading.get_ident())
        if len(threads) <= 2:
            together.wait()  # Neither goes on before the other has a scene, too.
        return run_batch(*arguments)

    monkeypatch.setattr(many_scenes, "chosen_devices", lambda *_, here: jax.devices()[:1] * 2)
    monkeypatch.setattr(many_scenes, "_run", both)
    damaged = {"damaged": np.zeros((2, 28, 42, 4, 3), np.uint8)}
    out = tmp_path / "two"
    report = vggt_jax.reconstruct_scenes(
        damaged | scenes, out, model=model, progress=False, devices=1
    )
    assert sorted(report.written) == sorted(scenes) and list(report.failed) == ["damaged"]
    assert len(set(threads)) == 2
    for name in scenes:
        found, expected = read(out, name), read(tmp_path / "one", name)
        for key in ("camera_from_world", "intrinsics"):
            np.testing.assert_array_equal(found[key], expected[key], err_msg=f"{name} {key}")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_scenes_are_written_at_the_same_time(tmp_path, scenes, model, monkeypatch, batch_size):
    write, both = stores.write_reconstruction, threading.Barrier(2)

    def together(folder, recon, **others):
        both.wait(timeout=120)  # Each waits for another one to be written.
        write(folder, recon, **others)

    monkeypatch.setattr(stores, "write_reconstruction", together)
    two = {name: scenes[name] for name in ("attic", "shed")}
    report = run(two, tmp_path, model, batch_size=batch_size)
    assert set(report.written) == set(two)
    for name, images in two.items():
        np.testing.assert_array_equal(read(tmp_path, name)["images"], images)


def test_a_disk_that_is_full_ends_the_run_and_loses_nothing(tmp_path, scenes, model, monkeypatch):
    write = stores.write_reconstruction

    def full(folder, recon, **others):
        if folder.name == "shed":
            raise InputError("no space left")
        write(folder, recon, **others)

    two = {name: scenes[name] for name in ("shed", "attic")}
    with monkeypatch.context() as patch:
        patch.setattr(stores, "write_reconstruction", full)
        with pytest.raises(InputError, match="no space left"):
            run(two, tmp_path, model, batch_size=2, num_writers=1)
    report = run(two, tmp_path, model, batch_size=2)
    assert set(report.skipped) | set(report.written) == set(two) and "shed" in report.written


def out_of_memory(*args, **options):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


def test_what_did_not_fit_leaves_the_device(tmp_path, scenes, model, monkeypatch):
    """Before the next scene runs, whether it shows when a scene starts or when it is fetched."""
    kept, alive = [], []

    class Kept(np.ndarray):
        """Stands for tokens on the device; plain arrays take no weak references."""

    def run_scene(model, batch, *args):
        alive.append([name for name, ref in kept if ref() is not None])
        tokens = np.zeros(1).view(Kept)
        name = batch[0].name
        kept.append((name, weakref.ref(tokens)))
        if name == "attic":
            out_of_memory(tokens)
        # No result of a program, so that fetching it fails.
        return tokens

    monkeypatch.setattr(many_scenes, "_run", run_scene)
    monkeypatch.setattr(many_scenes, "sent_to_host", out_of_memory)
    monkeypatch.setattr(many_scenes, "fingerprint", lambda model: "some model")
    gc.disable()
    try:
        report = run(scenes, tmp_path, model)
    finally:
        gc.enable()
    assert set(report.failed) == set(SIZES) and report.written == ()
    assert all("choose fewer frames" in reason for reason in report.failed.values())
    # `attic` is tried again when the one before has left. Of the others, the one before is being
    # fetched.
    names = [name for name, _ in kept]
    assert sorted(names) == sorted([*SIZES, "attic"])
    assert names[0] == "hall" and names[names.index("attic") + 1] == "attic"
    assert all(
        set(found) <= {before} - {"attic"}
        for found, before in zip(alive[1:], names[:-1], strict=True)
    )


def test_what_did_not_fit_beside_another_scene_runs_alone(tmp_path, scenes, model, monkeypatch):
    real, begun = many_scenes._run, []

    def run_scene(model, batch, *args):
        begun.append(batch[0].name)
        if len(begun) == 2:
            out_of_memory()
        return real(model, batch, *args)

    monkeypatch.setattr(many_scenes, "_run", run_scene)
    two = {name: scenes[name] for name in ("attic", "shed")}
    report = run(two, tmp_path, model)
    assert begun[1] == begun[2] and report.failed == {} and set(report.written) == set(two)


@pytest.mark.slow
def test_scenes_of_many_frames_leave_the_device_in_pieces(tmp_path, scenes, tiny, monkeypatch):
    model = tiny(enable_track=False, enable_point=False)
    many = {name: scenes[name] for name in ("hall", "shed")}
    run(many, tmp_path / "whole", model)
    monkeypatch.setattr(plan, "bucket", lambda n: n)
    pieces, run_frames = [], streaming._run_frames
    spy = lambda *args, **options: pieces.append(int(args[2])) or run_frames(*args, **options)
    monkeypatch.setattr(streaming, "_run_frames", spy)
    # The one of five frames; that of three waits for a batch.
    with tuned.override({"streaming.from_pixels": 4 * 28 * 42, "streaming.frames_in_piece": 2}):
        run(many, tmp_path / "streamed", model, batch_size=2)
    assert pieces == [0, 2, 3]
    for name in many:
        found, expected = read(tmp_path / "streamed", name), read(tmp_path / "whole", name)
        assert found.keys() == expected.keys()
        for key in ("camera_from_world", "depth", "depth_confidence", "images"):
            np.testing.assert_allclose(found[key], expected[key], rtol=2e-4, atol=2e-5)


def test_what_does_not_fit_into_memory_is_reported(tmp_path, scenes, model, monkeypatch):
    check = lambda name: memory.check_memory(model, scenes[name].shape)
    enough = (check("barn").needed.total + check("attic").needed.total) // 2  # 2 and 5 frames
    free = enough - memory.weight_bytes(model)
    monkeypatch.setattr(memory, "available_memory", lambda: free)
    two = {name: scenes[name] for name in ("attic", "barn")}
    report = run(two, tmp_path / "checked", model)
    assert report.written == ("barn",)
    assert "5 frames of 42x28 need about" in report.failed["attic"]
    assert "memory_check=False" in report.failed["attic"]
    assert run(two, tmp_path / "unchecked", model, memory_check=False).failed == {}

    def reconstruct(model, images, **options):
        if images.shape[1] == 5:
            out_of_memory()
        return real(model, images, **options)

    real = many_scenes._reconstruct
    monkeypatch.setattr(many_scenes, "_reconstruct", reconstruct)
    report = run(two, tmp_path / "failing", model, memory_check=False)
    assert report.written == ("barn",)
    assert "choose fewer frames" in report.failed["attic"]


def test_results_of_other_settings_are_not_mixed(tmp_path, scenes, model, tiny):
    one = {"hall": scenes["hall"]}
    run(one, tmp_path, model)
    with pytest.raises(InputError, match="holds results with another attention; choose another"):
        run(scenes, tmp_path, model, attention=BlockSparse(min_tokens=0, sparse_ratio=0.5))
    with pytest.raises(InputError, match="holds results with another model"):
        run(scenes, tmp_path, tiny(enable_track=False, enable_point=False))
    trained_on = jax.tree.map(lambda x: np.float32(1.5) * np.asarray(x), model)
    with pytest.raises(InputError, match="holds results with another model"):
        run(scenes, tmp_path, trained_on)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(InputError, match="settings.json: not a JSON document"):
        run(scenes, tmp_path, model)


def test_a_folder_of_scenes_of_which_one_is_damaged(tmp_path, model):
    rng = np.random.default_rng(1)
    for name in ("one", "two", "three"):
        (tmp_path / "scenes" / name).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 256, (28, 42, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "scenes" / name / f"{i}.png")
    (tmp_path / "scenes" / "two" / "1.png").write_bytes(b"no picture")
    (tmp_path / "scenes" / "empty").mkdir()
    (tmp_path / "scenes" / "notes.txt").write_text("")
    report = run(tmp_path / "scenes", tmp_path / "out", model, size=28)
    assert set(report.written) == {"one", "three"}
    assert set(report.failed) == {"two"} and "1.png" in report.failed["two"]
    assert not (tmp_path / "out" / "two").exists()
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["size"] == 28 and settings["attention"] == "Dense(implementation=None)"


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a\0b", "\u00e9" * 128])
def test_names_that_cannot_be_folders(tmp_path, model, name):
    with pytest.raises(InputError, match="cannot be a folder"):
        run({name: np.zeros((2, 28, 28, 3), np.uint8)}, tmp_path, model)
    assert not list(tmp_path.iterdir())


def test_folders_without_scenes(tmp_path, model):
    with pytest.raises(InputError, match="no such folder"):
        run(tmp_path / "missing", tmp_path / "out", model)
    with pytest.raises(InputError, match="holds no folders of photographs"):
        run(tmp_path, tmp_path / "out", model)
    with pytest.raises(
        InputError, match="batch_size=0, num_readers=2, num_writers=2 must be at least 1"
    ):
        run({}, tmp_path / "out", model, batch_size=0)
