"""Our checkpoint on disk: round trips, atomic writing, and damage."""

import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from vggt_jax.checkpoints import annotate, checksum, is_native, native, read, write
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.safetensors_file import read_safetensors, write_safetensors
from vggt_jax.files import system

DOCUMENT = {"model": "vggt", "config": {"depth": 3}}
KINDS = ["folder", "file.safetensors"]


def params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "frame_blocks.attn.qkv.kernel": rng.standard_normal((3, 5, 7), np.float32),
        "frame_blocks.ls1": rng.standard_normal((3, 5)).astype(ml_dtypes.bfloat16),
        "half": rng.standard_normal(11).astype(np.float16),
        "zeros": np.zeros((2, 3), np.float32),
        "scalar": np.float32(7).reshape(()),
        "transposed": rng.standard_normal((13, 2), np.float32).T,
        "empty": np.zeros((0, 5), np.float32),
    }


def refused(call, *arguments, **options) -> str:
    with pytest.raises(CheckpointError) as raised:
        call(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", KINDS)
def test_round_trip(tmp_path, name):
    path = tmp_path / "new" / name
    write(path, params(), DOCUMENT, report={"seconds": 1.5})
    found, document = read(path, verify=True)
    assert document == {
        "format": "vggt-jax",
        "version": 1,
        **DOCUMENT,
        "checksum": checksum(params()),
    }
    assert found.keys() == params().keys()
    for key, x in params().items():
        assert isinstance(found[key], np.ndarray)
        assert found[key].dtype == x.dtype and found[key].shape == x.shape
        np.testing.assert_array_equal(found[key], x, key)
    assert is_native(path) and is_native(str(path))
    assert [p.name for p in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", KINDS)
def test_a_field_is_changed_and_arrays_stay(tmp_path, name):
    path = tmp_path / name
    kernel = "frame_blocks.attn.qkv.kernel"
    write(path, params(), DOCUMENT, report={"seconds": 1.5}, int8=[kernel])
    before, document = read(path)
    stored = lambda: read_safetensors(path)[0][kernel].dtype if path.is_file() else None
    dtype = stored()
    annotate(path, least_agreement=0.25)
    found, changed = read(path, verify=True)
    assert changed == document | {"least_agreement": 0.25} and stored() == dtype
    assert found.keys() == before.keys()
    for key, x in before.items():
        np.testing.assert_array_equal(found[key], x, key)
    if path.is_file():
        assert json.loads(read_safetensors(path)[1]["report"]) == {"seconds": 1.5}
    annotate(path, least_agreement=None)
    assert read(path)[1] == document
    assert "not a checkpoint" in refused(annotate, tmp_path / "none", least_agreement=0.25)


@pytest.mark.parametrize("name", KINDS)
def test_kernels_of_eight_bits_come_back_in_bfloat16(tmp_path, name):
    kernel, given = "frame_blocks.attn.qkv.kernel", params()
    given[kernel][1, :, 2] = 0  # a channel without a scale
    write(tmp_path / name, given, DOCUMENT, int8=[kernel])
    found, document = read(tmp_path / name, verify=True)
    assert document["version"] == 2 and found.keys() == given.keys()
    assert found[kernel].dtype == ml_dtypes.bfloat16
    # Half a level of 127, of each channel of each layer by its own largest, and the rounding after.
    most = np.abs(given[kernel]).max(axis=1, keepdims=True)
    error = np.abs(found[kernel].astype(np.float32) - given[kernel])
    assert (error <= most * (0.5 / 127 + 2**-8)).all() and error.max() > 0
    for other in given.keys() - {kernel}:
        np.testing.assert_array_equal(found[other], given[other])


def test_eight_bits_that_do_not_belong_together(tmp_path):
    for name in ("scalar", "missing"):
        assert "no array" in refused(write, tmp_path / "a", params(), DOCUMENT, int8=[name])
    path, kernel = tmp_path / "a.safetensors", "frame_blocks.attn.qkv.kernel"
    write(path, params(), DOCUMENT, int8=[kernel])
    stored, metadata = read_safetensors(path)
    for wrong in (
        {f"{kernel}.int8_scale": np.ones((3, 1, 6), np.float32)},
        {kernel: np.ones((3, 5, 7), np.float32)},
        {"half.int8_scale": np.ones((), np.float32)},
    ):
        with (tmp_path / "b.safetensors").open("wb") as file:
            write_safetensors(file, stored | wrong, metadata)
        assert "b.safetensors: damaged" in refused(read, tmp_path / "b.safetensors")


def test_checksum_sees_name_type_shape_and_value():
    def changed(**changes):
        return checksum({"a": np.zeros((2, 3), np.float32), "b": np.ones(5, np.float32)} | changes)

    same = {"b": np.ones(5, np.float32), "a": np.zeros((2, 3), np.float32)}
    assert checksum(same) == changed()
    variants = [
        changed(a=np.zeros((3, 2), np.float32)),
        changed(a=np.zeros((2, 3), np.int32)),
        changed(b=np.float32([1, 1, 1, 1, 2])),
        changed(c=np.ones(0, np.float32)),
        changed(),
    ]
    assert len(set(variants)) == 5
    # From the definition, so that checkpoints written once stay valid.
    assert checksum({"a": np.arange(3, dtype=np.float32)}) == (
        "sha256:6e16d42c82fd344da71660f3cb6d2635af2f437b77224aa31a88beb520170fdf"
    )


def test_other_paths_are_not_native(tmp_path, toy):
    text = tmp_path / "text.safetensors"
    text.write_text("no")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for path in (tmp_path, tmp_path / "none", text, toy, tmp_path / "config.json"):
        assert not is_native(path)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "failure", [OSError("No space left"), ValueError("EXHAUSTED"), KeyboardInterrupt()]
)
def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, name, failure):
    written = []

    def fail_after(write_into):
        def run(place, *arguments):
            write_into(place, *arguments)
            written.extend(tmp_path.iterdir())
            raise failure

        return run

    for function in ("_write_file", "_write_folder"):
        monkeypatch.setattr(native, function, fail_after(getattr(native, function)))
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else CheckpointError
    with pytest.raises(expected):
        write(tmp_path / name, params(), DOCUMENT)
    assert len(written) == 1 and written[0].name.startswith(".vggt-jax-")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", KINDS)
def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch, name):
    write(tmp_path / name, params(), DOCUMENT)

    def fail(path, *_):
        raise OSError("disk on fire")

    monkeypatch.setattr(native, "_write_file", fail)
    monkeypatch.setattr(native, "_write_folder", fail)
    message = refused(write, tmp_path / name, {}, DOCUMENT, overwrite=True)
    assert message.startswith(f"{tmp_path / name}") and "cannot be written (disk on fire" in message
    assert read(tmp_path / name, verify=True)[0].keys() == params().keys()
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_failed_replacement_is_undone(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    write(path, params(), DOCUMENT)
    replace = os.replace

    def fail_on_new(source, target):
        if "/new/" in str(source):
            raise OSError("stale handle")
        replace(source, target)

    # Where folders cannot be exchanged in one step.
    monkeypatch.setattr(system, "exchange", lambda first, second: False)
    monkeypatch.setattr(os, "replace", fail_on_new)
    assert "stale handle" in refused(write, path, {"a": np.ones(3)}, DOCUMENT, overwrite=True)
    monkeypatch.undo()
    assert read(path, verify=True)[0].keys() == params().keys()
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", KINDS)
def test_overwriting_is_asked_for(tmp_path, name):
    write(tmp_path / name, params(), DOCUMENT)
    assert "exists; choose another path" in refused(write, tmp_path / name, params(), DOCUMENT)
    write(tmp_path / name, {"a": np.float32([3, 5])}, DOCUMENT, overwrite=True)
    assert list(read(tmp_path / name, verify=True)[0]) == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_other_things_are_never_overwritten(tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "keep.txt"):
        message = refused(write, path, params(), DOCUMENT, overwrite=True)
        assert message == f"{path}: exists and is not a checkpoint of vggt-jax; choose another path"
    assert (tmp_path / "keep.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", params(), DOCUMENT)
    assert is_native(tmp_path / "empty")


def test_the_destination_is_checked_first(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    below_file = tmp_path / "file" / "out"
    assert "is not a writable folder" in refused(native.check_destination, below_file)
    monkeypatch.setattr(native.os, "access", lambda path, mode: path != tmp_path)
    message = refused(native.check_destination, tmp_path / "new" / "out")
    assert f"{tmp_path} is not a writable folder; choose another path" in message


def test_too_little_space_is_told_before_writing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(native.shutil, "disk_usage", lambda path: usage)
    message = refused(write, tmp_path / "out", params(), DOCUMENT)
    assert "0.00 GB are free; make room" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"config": {}}, "model=None must be str"),
        ({"model": "vggt"}, "config=None must be dict"),
        (DOCUMENT | {"format": "other"}, "format='other', expected 'vggt-jax'"),
        (DOCUMENT | {"version": 3}, "version 3 of the format, this is version 2; update vggt-jax"),
    ],
)
def test_documents_are_checked(tmp_path, document, message):
    assert message in refused(write, tmp_path / "out", params(), document)
    assert list(tmp_path.iterdir()) == []


def damage_config(path, text):
    (path / "config.json").write_text(text)


def overwrite(path):
    path.write_bytes(b"?" * path.stat().st_size)


DAMAGE = {
    "no config": lambda path: (path / "config.json").unlink(),
    "config is text": lambda path: damage_config(path, "{"),
    "config is a list": lambda path: damage_config(path, "[]"),
    "config of the future": lambda path: damage_config(
        path, json.dumps(DOCUMENT | {"format": "vggt-jax", "version": 9, "checksum": ""})
    ),
    "no arrays": lambda path: shutil.rmtree(path / "arrays"),
    "arrays without files": lambda path: [
        f.unlink() for f in path.glob("arrays/**/*") if f.is_file()
    ],
    "no index": lambda path: (path / "arrays" / "_METADATA").unlink(),
    "short index": lambda path: (path / "arrays" / "_METADATA").write_text('{"tree'),
    "no manifest": lambda path: (path / "arrays" / "manifest.ocdbt").unlink(),
    "short data": lambda path: [
        f.write_bytes(f.read_bytes()[:100]) for f in path.glob("arrays/ocdbt.process_0/d/*")
    ],
    "no data": lambda path: shutil.rmtree(path / "arrays" / "ocdbt.process_0"),
    "index of the same size": lambda path: overwrite(path / "arrays" / "_METADATA"),
}
# Before anything is read of the arrays.
INCOMPLETE = DAMAGE.keys() - {
    "no config", "config is text", "config is a list", "config of the future", "index of the same size"
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_named(tmp_path, capfd, damage):
    path = tmp_path / "out"
    write(path, params() | {"large": np.ones((100, 1000), np.float32)}, DOCUMENT)
    DAMAGE[damage](path)
    message = refused(read, path)
    assert str(path) in message
    assert ("incomplete" in message and "bytes; copy" in message) == (damage in INCOMPLETE)
    assert capfd.readouterr() == ("", "")


def test_damaged_files_are_named(tmp_path, toy):
    path = tmp_path / "out.safetensors"
    write(path, params(), DOCUMENT)
    path.write_bytes(path.read_bytes()[:-1])
    assert "not a complete .safetensors file" in refused(read, path)
    assert "convert/from_torch.py" in refused(read, toy)
    assert refused(read, tmp_path / "none") == f"{tmp_path / 'none'}: no such checkpoint"


@pytest.mark.parametrize("name", KINDS)
def test_changed_values_are_found_when_verifying(tmp_path, name):
    path = tmp_path / name
    x = {"large": np.full((100, 1000), 3, np.float32)}
    write(path, x, DOCUMENT)
    files = [path] if path.is_file() else [f for f in path.glob("**/d/*") if f.is_file()]
    for file in files:
        data = file.read_bytes()
        if len(data) > x["large"].nbytes:
            middle = len(data) // 2
            file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    assert "damaged: its checksum is" in refused(read, path, verify=True)
    read(path)


def test_the_library_reads_a_file(tmp_path):
    path = tmp_path / "out.safetensors"
    x = {name: array for name, array in params().items() if array.dtype != ml_dtypes.bfloat16}
    write(path, x, DOCUMENT)
    found = load_file(path)
    assert found.keys() == x.keys()
    for name, array in x.items():
        np.testing.assert_array_equal(found[name], array, name)
    assert all(array.flags.aligned for array in read(path)[0].values())


def test_arrays_of_a_file_are_mapped_and_read_only(tmp_path):
    path = tmp_path / "out.safetensors"
    write(path, params(), DOCUMENT)
    with pytest.raises(ValueError, match="read-only"):
        read(path)[0]["half"][0] = 1


# Edited by hand


@pytest.mark.parametrize(
    ("field", "value"),
    [("files", ["a"]), ("files", None), ("files", {"../x": 3}), ("files", {"/etc/passwd": 3}),
     ("files", {"a": "b"}), ("files", {"a" * 5000: 1}), ("empty_parameters", [1]),
     ("empty_parameters", 3), ("empty_parameters", {"x": 3}), ("empty_parameters", {"x": ["junk", [0]]}),
     ("empty_parameters", {"x": ["float32", [10**6, 10**6]]}),
     ("empty_parameters", {"x": ["float32", [0, -1]]}), ("empty_parameters", {"x": ["float32", [3]]}),
     ("empty_parameters", {"x": ["object", [0]]}), ("empty_parameters", {"half": ["float32", [0]]})],
)  # fmt: skip
def test_configurations_of_folders_are_checked(tmp_path, field, value):
    path = tmp_path / "out"
    write(path, params(), DOCUMENT)
    document = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(document | {field: value}))
    assert str(path) in refused(read, path)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "null"])
def test_documents_beyond_reason(tmp_path, text):
    path = tmp_path / "out"
    write(path, params(), DOCUMENT)
    (path / "config.json").write_text(text)
    assert str(path) in refused(read, path) and not is_native(path)


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    assert "is no file" in refused(read, tmp_path / "x.safetensors")
    write(tmp_path / "out", params(), DOCUMENT)
    (tmp_path / "out" / "config.json").unlink()
    os.mkfifo(tmp_path / "out" / "config.json")
    assert "is no file" in refused(read, tmp_path / "out")


def test_files_of_others_stay_in_a_folder_that_is_replaced(tmp_path):
    write(tmp_path / "out", params(), DOCUMENT)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "arrays" / "mine").write_text("mine")
    write(tmp_path / "out", {"a": np.float32([3, 5])}, DOCUMENT, overwrite=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "out" / "arrays" / "mine").read_text() == "mine"
    assert list(read(tmp_path / "out", verify=True)[0]) == ["a"]
