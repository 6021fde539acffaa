"""The toy VGGT in the official key layout, and copies of it with something changed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vggt_jax.checkpoints.safetensors_file import read_safetensors

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def toy(toy_checkpoint) -> Path:
    """The toy checkpoint, with its configuration beside it."""
    return toy_checkpoint("vggt_toy")


@pytest.fixture
def toy_config() -> dict:
    """The configuration of the toy, as its JSON file has it."""
    return json.loads((GOLDEN / "vggt_toy.json").read_text())


@pytest.fixture
def toy_tensors(toy) -> dict[str, np.ndarray]:
    """The tensors of the toy by official key."""
    return read_safetensors(toy)[0]


@pytest.fixture
def released_shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every key of the released VGGT-1B."""
    shapes = json.loads((GOLDEN / "vggt_1b_shapes.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


@pytest.fixture
def save(tmp_path, toy_config) -> Callable[[Mapping[str, np.ndarray]], Path]:
    """Writes tensors to a `.safetensors` file with the toy configuration beside it."""

    def save_tensors(tensors: Mapping[str, np.ndarray]) -> Path:
        path = tmp_path / "changed.safetensors"
        save_file({key: np.ascontiguousarray(x) for key, x in tensors.items()}, path)
        path.with_suffix(".json").write_text(json.dumps(toy_config))
        return path

    return save_tensors
