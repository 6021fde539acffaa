"""Tables of tile sizes and thresholds by device."""

import tomllib
from pathlib import Path

import pytest

from pallas_kernels import MosaicGpuConfig, TritonConfig, tuned

FILES = sorted(Path(tuned.__file__).parent.glob("*.toml"))
NAME = "linear.min_tiles_per_multiprocessor"
H100 = "NVIDIA H100 80GB HBM3"


def names(table, prefix=""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from names(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_values_are_those_of_the_device_or_of_all(pretend_device):
    tiles = "attention.mosaic_gpu.2.128"
    for kind, stages in [(H100, 3), ("NVIDIA H200", 2), ("another", 2), ("cpu", 2)]:
        pretend_device("gpu", "9.0", kind)
        assert tuned.value(tiles) == {"query_tiles": 1, "stages": stages}
        # What only the default says holds everywhere.
        assert tuned.value(NAME) == 16
    assert set(tuned.device_kinds()) == {H100, "NVIDIA H200", "cpu"}


def test_default_has_every_name():
    default = next(path for path in FILES if path.stem == "default")
    known = set(names(tomllib.loads(default.read_text(encoding="utf-8"))))
    for path in FILES:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        kind = table.pop("device_kind", None)
        assert (kind is None) == (path == default)
        assert set(names(table)) <= known, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tiles_fit_the_kernels(path):
    """Settings check themselves; those of the default fit small devices too."""
    table = tomllib.loads(path.read_text(encoding="utf-8")).get("attention", {})
    assert table or path.stem == "cpu"  # which has no kernels
    for itemsize, of_type in table.get("triton", {}).items():
        for head_dim, tiles in of_type.items():
            assert int(itemsize) in (2, 4) and int(head_dim) in (32, 64, 128)
            assert 128 % TritonConfig(**tiles).tile_q == 0
    for itemsize, of_type in table.get("mosaic_gpu", {}).items():
        for head_dim, tiles in of_type.items():
            assert int(itemsize) == 2
            MosaicGpuConfig(**tiles).check_head_dim(int(head_dim))


def test_override():
    with tuned.override({NAME: 3}):
        assert tuned.value(NAME) == 3
        with tuned.override({"attention.mosaic_gpu.2.64": {"query_tiles": 1, "stages": 2}}):
            assert tuned.value(NAME) == 3
            assert tuned.value("attention.mosaic_gpu.2.64")["query_tiles"] == 1
        assert tuned.value("attention.mosaic_gpu.2.64")["query_tiles"] == 2
    assert tuned.value(NAME) == 16


def test_unknown_names():
    for name in ("linear.tiles", "dense.x", "linear.min_tiles_per_multiprocessor.more"):
        with pytest.raises(KeyError, match="no tuned value is called"):
            tuned.value(name)
        with pytest.raises(KeyError, match="no tuned value is called"), tuned.override({name: 1}):
            pass
