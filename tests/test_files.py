"""vggt_jax.files: results are replaced whole, by one process at a time, and nothing of others with them."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vggt_jax
from vggt_jax import InputError
from vggt_jax.files import (
    check_not_input,
    checked_path,
    claims,
    output_folder,
    read_json,
    remove_leftovers,
    replacing,
    system,
)
from vggt_jax.files.listing import written_by_us
from vggt_jax.files.moves import Moves

NAMES = ("predictions.npz", "points.ply", "cameras.json", "pictures/0.png")

# Replaces what NAMES says, and dies at the K-th step of it, as by SIGKILL.
_REPLACING = """
import os, pathlib, sys
from vggt_jax.files import output_folder, system

out, text, dies_at, can_exchange, *names = sys.argv[1:]
steps = 0

def counted(function):
    def call(*args, **options):
        global steps
        result = function(*args, **options)
        steps += 1
        if steps == int(dies_at):
            os._exit(9)
        return result
    return call

for name in ("replace", "unlink", "link", "rename"):
    setattr(os, name, counted(getattr(os, name)))
system.exchange = counted(system.exchange if can_exchange == "True" else lambda *_: False)
with output_folder(pathlib.Path(out), overwrite=True, stale=("predictions.npz", "points.ply",
                   "cameras.json", "pictures", "extra.txt")) as folder:
    (folder / "pictures").mkdir()
    for name in names:
        (folder / name).write_text(text)
"""


def replaced(out, text, *names, dies_at=0, can_exchange=True):
    """Writes results of this text in a process of its own; its exit code."""
    command = [sys.executable, "-c", _REPLACING, out, text, dies_at, can_exchange, *names]
    return subprocess.run([str(part) for part in command], check=False).returncode


def texts(out):
    return {
        path.relative_to(out).as_posix(): path.read_text()
        for path in out.rglob("*")
        if path.is_file() and path.name != ".vggt-jax.json"
    }


@pytest.mark.parametrize("dies_at", [3, 8, 10, 12])
@pytest.mark.parametrize("can_exchange", [True, False])
def test_results_are_old_or_new_after_a_kill(tmp_path, dies_at, can_exchange):
    out = tmp_path / "out"
    assert replaced(out, "old", *NAMES, "extra.txt") == 0
    for name in ("notes.txt", "pictures/mine.png"):
        (out / name).write_text("mine")
    mine = {"notes.txt": "mine", "pictures/mine.png": "mine"}
    old = dict.fromkeys((*NAMES, "extra.txt"), "old") | mine
    new = dict.fromkeys(NAMES, "new") | mine
    assert replaced(out, "new", *NAMES, dies_at=dies_at, can_exchange=can_exchange) in (0, 9)
    found = texts(out)
    if can_exchange:
        assert found in (old, new)
    else:  # Halfway there, without the file that says that the rest belongs together.
        assert found in (old, new) or "predictions.npz" not in found
    claims.settle(out)
    assert texts(out) in (old, new)
    assert replaced(out, "newer", *NAMES) == 0
    assert texts(out) == dict.fromkeys(NAMES, "newer") | mine
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert written_by_us(out) == {*NAMES, ".vggt-jax.json"}


def test_what_had_come_in_before_a_kill_stays(tmp_path):
    staging, out = tmp_path / "staging", tmp_path / "out"
    # Both old files had left and one new one had come when the process died.
    files = {staging / "old" / "a": "old", staging / "old" / "b": "old"}
    files |= {out / "a": "new", staging / "new" / "b": "new"}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    journal = {"out": "out", "removed": ["a", "b"], "added": ["a", "b"]}
    (staging / "journal.json").write_text(json.dumps(journal))
    Moves.finish(staging)
    assert texts(out) == {"a": "new", "b": "new"}
    assert texts(staging / "old") == {"a": "old", "b": "old"}
    assert not Moves.are_unfinished(staging)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_what_others_put_there_stays(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(system, "exchange", lambda *_: False)
    out = tmp_path / "out"
    (out / "images" / "deep" / "empty").mkdir(parents=True)
    (out / "images" / "photo.jpg").write_text("mine")
    (out / "link").symlink_to("images/photo.jpg")
    with output_folder(out, overwrite=False, entries=["sparse"]) as folder:
        (folder / "sparse").mkdir()
        (folder / "sparse" / "cameras.bin").write_text("ours")
    with output_folder(out, overwrite=True, entries=["sparse"], stale=["sparse"]) as folder:
        (folder / "sparse").mkdir()
        (folder / "sparse" / "images.bin").write_text("ours")
    assert texts(out) == {"images/photo.jpg": "mine", "link": "mine", "sparse/images.bin": "ours"}
    assert (out / "link").is_symlink() and (out / "images" / "deep" / "empty").is_dir()


def _write(out, *names, overwrite=True, **options):
    with output_folder(out, overwrite=overwrite, **options) as folder:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("ours")


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("name", ["images/p0.png", "images", "images/p0.png/x"])
def test_what_was_not_listed_is_not_replaced(tmp_path, overwrite, name):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    before = texts(out)
    with pytest.raises(InputError, match="was not written by an earlier run.*choose another --out"):
        _write(out, "images/p0.png", overwrite=overwrite, entries=["images"], stale=["images"])
    assert texts(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_changed_since_is_not_replaced(tmp_path):
    out = tmp_path / "out"
    names = ("sparse/a", "sparse/b")
    _write(out, *names, overwrite=False)
    (out / "sparse" / "a").write_text("mine")  # As long as what it was.
    with pytest.raises(InputError, match="sparse/a was not written.* or was changed since"):
        _write(out, *names, stale=["sparse"])
    assert texts(out) == {"sparse/a": "mine", "sparse/b": "ours"}
    _write(out, "sparse/b", "sparse/c", stale=["sparse"])
    assert texts(out) == {"sparse/a": "mine", "sparse/b": "ours", "sparse/c": "ours"}


@pytest.mark.parametrize("listing", ["[", "[]", '{"format": 1}', '{"format": "files that vggt-jax '
                         'wrote", "files": {"a": 3}}', "[" * 100_000])  # fmt: skip
def test_a_list_that_cannot_be_used_lists_nothing(tmp_path, listing):
    _write(tmp_path / "out", "a", overwrite=False)
    (tmp_path / "out" / ".vggt-jax.json").write_text(listing)
    with pytest.raises(InputError, match="was not written by an earlier run"):
        _write(tmp_path / "out", "a", stale=["a"])


def test_copies_are_as_good(tmp_path):
    _write(tmp_path / "out", "a", overwrite=False)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (tmp_path / "out").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    _write(copy, "a", stale=["a"])


def test_inputs_are_not_replaced(tmp_path):
    out = tmp_path / "out"
    _write(out, "images/0.png", "images/1.png", overwrite=False)
    with pytest.raises(InputError, match=r"0.png: is what this command reads, and would be"):
        _write(out, "x", stale=["images"], inputs=[out / "images" / "0.png"])
    assert set(texts(out)) == {"images/0.png", "images/1.png"}
    for same in (out, out / ".." / "out"):
        with pytest.raises(InputError, match="is what this command reads"):
            check_not_input(same, [tmp_path / "none", out])


# One process at a time


_HOLDING = """
import pathlib, sys, time
from vggt_jax.files import output_folder, replacing

path = pathlib.Path(sys.argv[1])
with output_folder(path / "out", overwrite=True) as folder, replacing(path / "file") as file:
    (folder / "half").write_text("half")
    file.write(b"half")
    file.flush()
    print("ready", flush=True)
    time.sleep(100)
"""


def test_a_living_process_is_left_alone_and_a_dead_one_is_not(tmp_path):
    command = [sys.executable, "-c", _HOLDING, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        before = sorted(path.name for path in tmp_path.rglob("*"))
        with pytest.raises(InputError, match=f"another process .{process.pid}.; wait for it"):
            _write(tmp_path / "out", "a")
        remove_leftovers(tmp_path)
        with replacing(tmp_path / "other") as file:
            file.write(b"whole")
        assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*before, "other"])
        process.kill()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    _write(tmp_path / "out", "a")


def test_one_process_does_not_write_a_place_twice_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_PATIENCE", 0)
    with pytest.raises(InputError, match="out: is being written by another process"):
        with output_folder(tmp_path / "new" / "out", overwrite=False):
            _write(tmp_path / "new" / "out", "a")
    assert not (tmp_path / "new").exists()


def test_what_comes_in_between_is_kept(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="is not empty"):
        with output_folder(out, overwrite=False) as folder:
            (folder / "a").write_text("ours")
            out.mkdir()
            (out / "b").write_text("of another program")
    assert texts(out) == {"b": "of another program"}


def test_links_and_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to("far")
    _write(tmp_path / "out", "a", overwrite=False)
    assert (tmp_path / "out").is_symlink() and texts(tmp_path / "far") == {"a": "ours"}
    monkeypatch.chdir(tmp_path / "far")
    here = os.stat(".")
    _write(Path(), "b", stale=["a"])
    assert texts(Path()) == {"b": "ours"} and os.path.samestat(here, os.stat(tmp_path / "far"))
    with pytest.raises(InputError, match="root of a file system"):
        _write(Path("/"), "a", entries=[])


def test_nothing_is_written_through_a_link_in_the_folder(tmp_path):
    """Which may lead to somebody's photographs."""
    (tmp_path / "photographs").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pictures").symlink_to(tmp_path / "photographs")
    with pytest.raises(InputError, match="out: pictures was not written by an earlier run"):
        with output_folder(tmp_path / "out", overwrite=True, stale=["pictures"]) as folder:
            (folder / "pictures").mkdir()
            (folder / "pictures" / "a.png").write_text("ours")
    assert not any((tmp_path / "photographs").iterdir())


def test_where_nothing_can_be_made_nobody_waits_for_ever(tmp_path, monkeypatch):
    """File systems such as /proc say that there is no such folder."""
    monkeypatch.setattr(claims, "_PATIENCE", 0.05)
    with pytest.raises(FileNotFoundError):
        claims.Claim.of(tmp_path / "gone" / "out")


def test_in_a_folder_that_is_mounted_all_stays_inside(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_takes_folders", lambda out: False)
    (tmp_path / "out").mkdir()
    for name in ("a", "b"):
        _write(tmp_path / "out", name, stale=["a", "b"])
        assert texts(tmp_path / "out") == {name: "ours"}
    assert sorted(os.listdir(tmp_path / "out")) == [".vggt-jax.json", "b"]


# What the machine says


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_errors_of_the_disk_name_the_folder(tmp_path, number):
    for error in (OSError(number, os.strerror(number)), None):
        with (
            pytest.raises(InputError) as caught,
            output_folder(tmp_path / "out", overwrite=True) as x,
        ):
            if error is not None:
                raise error
            with replacing(x / "file"):
                raise OSError(number, os.strerror(number))
        assert str(caught.value).startswith(str(tmp_path / "out"))
        assert os.strerror(number) in str(caught.value) and ".partial" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "what"),
    [("", "is empty"), ("a\0b", "NUL"), ("a" * 300, "longer"), ("a/" * 2500, "longer")],
)
def test_paths_that_cannot_be(path, what):
    with pytest.raises(InputError, match=what) as caught:
        checked_path(path, "place")
    assert len(str(caught.value)) < 250 and "\0" not in str(caught.value)
    with pytest.raises(InputError, match=what):
        with replacing(path):
            pass


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"[" * 100_000, "nested too deep"), (b"{", "not a list"), (b"\xff\xfe\x00", "not a list"),
     (b"1" * 10_000, "not a list")],
)  # fmt: skip
def test_json_that_cannot_be_used(tmp_path, content, what):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=what) as caught:
        read_json(path, "list")
    assert "\n" not in str(caught.value)


def test_json_is_read_from_files_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="is no file"):
            read_json(path)
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**30)
    began = time.monotonic()
    with pytest.raises(InputError, match="1024 MiB, too much"):
        read_json(tmp_path / "large")
    assert time.monotonic() - began < 1
    (tmp_path / "good").write_text(json.dumps({"a": [1]}))
    assert read_json(tmp_path / "good") == {"a": [1]}


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE HTML><title>Sign in</title>", "web page"),
        (b"<html lang=en>", "web page"),
    ],
)
def test_what_stands_for_a_file_that_was_not_fetched(tmp_path, start, what):
    for name in ("a.jpg", "m.safetensors", "m.pt", "predictions.npz"):
        (tmp_path / name).write_bytes(start)
    for read, name in (
        (vggt_jax.load_images, "a.jpg"),
        (vggt_jax.load_model, "m.safetensors"),
        (vggt_jax.load_model, "m.pt"),
        (vggt_jax.load_reconstruction, "predictions.npz"),
    ):
        with pytest.raises((InputError, vggt_jax.CheckpointError), match=f"{name}: is a .*{what}"):
            read(tmp_path / name)
