"""The mean of models' weights."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from vggt_jax.errors import InputError
from vggt_jax.models.loading import abstract_model, load_model, named_parameters, save_model
from vggt_jax.training.state import with_named


def test_the_mean_of_two_models(tmp_path, monkeypatch, cameras_config):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2] / "scripts")
    from average_models import mean_of

    def save(name, value, config=cameras_config):
        model = abstract_model(config)
        shapes = named_parameters(model).items()
        filled = {name: np.full(x.shape, value, np.float32) for name, x in shapes}
        save_model(with_named(model, jax.tree.map(jax.numpy.asarray, filled)), tmp_path / name)
        return tmp_path / name

    paths = [save(f"{value}.safetensors", value) for value in (1, 2, 6)]
    mean_of(paths, tmp_path / "mean.safetensors")
    found = named_parameters(load_model(tmp_path / "mean.safetensors"))
    assert all((np.asarray(x, np.float32) == 3).all() for x in found.values())
    other = dataclasses.replace(cameras_config, camera_iters=3)
    with pytest.raises(InputError, match=r"other.safetensors: another kind or size"):
        mean_of([paths[0], save("other.safetensors", 1, other)], tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()
