"""Tiny data sets in the layouts of the published ones, by the writer that people can call, too."""

import shutil
import sys
import types
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture(scope="session")
def writer():
    """`scripts/write_dataset.py`, and the world that it shows."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import dataset_world
        import torch_files
        import write_dataset
    finally:
        sys.path.remove(str(SCRIPTS))
    return types.SimpleNamespace(
        write=write_dataset.write,
        WRITERS=write_dataset.WRITERS,
        files=write_dataset,
        torch=torch_files,
        world=dataset_world,
    )


@pytest.fixture(scope="session")
def tiny(writer, tmp_path_factory):
    """Writes a data set once: its folder, and what it holds. Tests that change it copy it."""
    found = {}

    def written(name, layout):
        if (name, layout) not in found:
            root = tmp_path_factory.mktemp(f"{name}_{layout}")
            found[name, layout] = root, writer.write(name, root, layout, number=12, size=(24, 32))
        return found[name, layout]

    return written


@pytest.fixture
def copied(tiny, tmp_path):
    """A data set that the test may change: its folder, and what it holds."""

    def copy(name, layout):
        root, written = tiny(name, layout)
        shutil.copytree(root, tmp_path / "copy")
        return tmp_path / "copy", written

    return copy
