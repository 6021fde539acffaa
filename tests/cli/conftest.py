"""Photographs and a checkpoint for commands, and running them."""

import jax
import numpy as np
import pytest
from PIL import Image

import vggt_jax
from vggt_jax import cli
from vggt_jax.pipeline import reconstruct


@pytest.fixture(scope="session")
def programs():
    """Compiled programs of `reconstruct` by what they were compiled for."""
    return {}


@pytest.fixture(autouse=True)
def share_programs(programs, monkeypatch):
    """Commands compile anew each time they run; here those for the same arguments do so once."""
    compile_reconstruct = reconstruct.compile_reconstruct

    def shared(model, inputs, **options):
        shapes = {name: (np.shape(x), np.asarray(x).dtype) for name, x in inputs.items()}
        key = str((jax.tree.structure(model), sorted(shapes.items()), sorted(options.items())))
        if key not in programs:
            programs[key] = compile_reconstruct(model, inputs, **options)
        return programs[key]

    monkeypatch.setattr(reconstruct, "compile_reconstruct", shared)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tiny):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    vggt_jax.save_model(tiny(), path)
    return path


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (96, 160, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def run():
    """Runs a command and returns its exit code."""
    return lambda *args: cli.main([str(arg) for arg in args])


@pytest.fixture
def refused(run, capsys):
    """The message of a command that must end with exit code 2, on one line."""

    def message(*args):
        assert run(*args) == 2
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("vggt-jax: error: ")]
        assert len(lines) == 1 and "Traceback" not in error
        return lines[0]

    return message
