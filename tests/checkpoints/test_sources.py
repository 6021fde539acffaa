"""Reading official checkpoints: files, folders, hub names, and everything that can be wrong."""

import json
import sys

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.sources import find_checkpoint, read_tensors
from vggt_jax.models.conversion import load_official


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="only PyTorch writes and reads .pt files")


def one_line(call, *arguments) -> str:
    with pytest.raises(CheckpointError) as raised:
        call(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:100],
        lambda data: data[:4],
        lambda data: b"",
        lambda data: data + b"more",
        lambda data: b"this is text, in a file with a wrong name\n" * 3,
    ],
)
def test_damaged_safetensors_are_named(tmp_path, toy, change):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(change(toy.read_bytes()))
    message = one_line(load_official, path)
    assert message.startswith(f"{path}: not a complete .safetensors file")
    assert message.endswith("copy or download it again")


def test_types_without_a_numpy_counterpart_are_named(tmp_path):
    header = {"x.y": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    text = json.dumps(header).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0\0")
    assert str(path) in one_line(load_official, path)


@pytest.mark.parametrize("name", ["none.safetensors", "none.pt", "a/b/none", "none"])
def test_missing_files_are_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message = one_line(load_official, name)
    assert message.startswith(
        f"{name}: no such file; give a .safetensors, .pt, .pth, .ckpt or .bin file"
    )


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"123")
    assert (
        one_line(load_official, path)
        == f"{path}: must be a .safetensors, .pt, .pth, .ckpt or .bin file"
    )


def test_a_folder_is_searched(tmp_path):
    assert "holds neither model.safetensors nor model.pt" in one_line(find_checkpoint, tmp_path)
    for name in ("model.pt", "model.safetensors"):
        (tmp_path / name).touch()
        assert find_checkpoint(tmp_path).files == (tmp_path / name,)


def test_another_model_is_recognised_whatever_the_configuration(save):
    path = save({"aggregator.inter_frame_blocks.0.norm1.bias": np.zeros(3, np.float32)})
    assert f"{path}: looks like VGGT-Omega" in one_line(load_official, path)


def test_pt_needs_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK")
    assert "pip install 'vggt-jax[torch]'" in one_line(load_official, path)


def state_dict(torch, tensors):
    return {key: torch.from_numpy(np.array(x)) for key, x in tensors.items()}


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pt_is_the_same_checkpoint(tmp_path, torch, toy, toy_tensors, toy_config, wrapper, prefix):
    state = {prefix + key: x for key, x in state_dict(torch, toy_tensors).items()}
    path = tmp_path / "toy.pt"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    path.with_suffix(".json").write_text(json.dumps(toy_config))
    assert load_official(path)[2].checksum == load_official(toy)[2].checksum


def test_pt_from_before_zip_archives(tmp_path, torch, toy, toy_tensors, toy_config):
    path = tmp_path / "old.pth"
    state = state_dict(torch, toy_tensors)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert load_official(path, toy_config)[2].checksum == load_official(toy)[2].checksum


def test_pt_types_and_strides(tmp_path, torch):
    base = torch.arange(15, dtype=torch.float32).reshape(3, 5)
    path = tmp_path / "odd.pt"
    torch.save(
        {
            "transposed": base.T,
            "bfloat16": base.T.to(torch.bfloat16)[1:, ::2],
            "parameter": torch.nn.Parameter(base[1]),
            "scalar": torch.tensor(7, dtype=torch.bfloat16),
            "epoch": 3,
            "sparse": base.to_sparse(),
        },
        path,
    )
    x = read_tensors(path)
    expected = np.arange(15, dtype=np.float32).reshape(3, 5)
    np.testing.assert_array_equal(x["transposed"], expected.T)
    assert x["bfloat16"].dtype.name == "bfloat16" and x["scalar"].dtype.name == "bfloat16"
    np.testing.assert_array_equal(x["bfloat16"].astype(np.float32), expected.T[1:, ::2])
    np.testing.assert_array_equal(x["parameter"], expected[1])
    assert x["scalar"] == 7
    assert x["epoch"].dtype == object and x["sparse"].dtype == object


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: b"this is text\n",
        lambda data: data[:200] + bytes(800) + data[1000:],
    ],
)
def test_damaged_pt_is_named(tmp_path, torch, toy_tensors, change):
    path = tmp_path / "broken.pt"
    torch.save(state_dict(torch, toy_tensors), path)
    path.write_bytes(change(path.read_bytes()))
    message = one_line(load_official, path)
    assert message.startswith(f"{path}: not a ") and "again" in message


def test_pt_with_code_is_refused(tmp_path, torch):
    path = tmp_path / "whole_model.pt"
    torch.save(torch.nn.Linear(2, 3), path)
    message = one_line(load_official, path)
    assert message.startswith(f"{path}: holds Python objects (torch.nn.modules.linear.Linear)")
    assert "torch.save(model.state_dict(), FILE)" in message


@pytest.mark.parametrize(("content", "kind"), [([1, 2], "list"), ({3: 4}, "dict")])
def test_pt_without_tensors_by_name_is_refused(tmp_path, torch, content, kind):
    path = tmp_path / "odd.pt"
    torch.save(content, path)
    assert f"{path}: holds a {kind}, not tensors by name" in one_line(load_official, path)


def test_a_hub_name_is_downloaded(tmp_path, monkeypatch, toy):
    asked = []

    def download(name, file, local_files_only):
        asked.append((name, file, local_files_only))
        if file == "model.safetensors":
            raise errors.EntryNotFoundError("404")
        return str(toy)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    found = find_checkpoint("facebook/VGGT-1B")
    assert found.files == (toy,) and found.name == "facebook/VGGT-1B/model.pt"
    assert asked == [
        ("facebook/VGGT-1B", "model.safetensors", False),
        ("facebook/VGGT-1B", "model.pt", False),
    ]


def test_without_a_network_the_cache_is_searched(tmp_path, monkeypatch, toy):
    def download(name, file, local_files_only):
        if not local_files_only:
            raise errors.LocalEntryNotFoundError("offline")
        return str(toy)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    found = find_checkpoint("facebook/VGGT-1B")
    assert found.files == (toy,) and found.name == "facebook/VGGT-1B/model.pt"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.RepositoryNotFoundError, "no such repository on huggingface.co"),
        (errors.GatedRepoError, "access is restricted"),
        (errors.LocalEntryNotFoundError, "cannot be reached"),
        (errors.EntryNotFoundError, "holds neither model.safetensors nor model.pt"),
        (errors.HFValidationError, "no such repository"),
        (errors.HfHubHTTPError, "the download failed"),
        (ConnectionError, "the download failed"),
    ],
)
def test_failed_downloads_are_explained(tmp_path, monkeypatch, kind, message):
    def download(name, file, local_files_only):
        raise kind.__new__(kind)  # what else they take differs between versions

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    text = one_line(load_official, "facebook/VGGT-1B")
    assert text.startswith("facebook/VGGT-1B: ") and message in text
