"""`scripts/package_model.py`: a checkpoint of training for smaller pictures than its table."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vggt_jax
from vggt_jax.models.loading import named_parameters
from vggt_jax.training.loop import export_model

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def package(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import package_model

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["package_model.py", *map(str, args)])
        package_model.main()

    return run


@pytest.mark.slow
def test_at_its_size_the_model_stays_the_same(package, tmp_path, tiny):
    trained = tiny(img_size=56, pixel_centre=0.5, enable_point=False, enable_track=False)
    export_model(trained, named_parameters(trained), tmp_path / "trained.safetensors")
    package(
        tmp_path / "trained.safetensors",
        "--image-size",
        28,
        "--out",
        tmp_path / "small.safetensors",
    )
    trained = vggt_jax.load_model(tmp_path / "trained.safetensors")
    small = vggt_jax.load_model(tmp_path / "small.safetensors")
    assert (small.config.img_size, small.config.pixel_centre) == (28, 0.5)
    assert small.encoder.pos_embed.shape[0] == 1 + 2 * 2

    images = jax.random.uniform(jax.random.key(0), (1, 2, 28, 28, 3))
    np.testing.assert_allclose(small.encode(images), trained.encode(images), atol=1e-6)
    place = tmp_path / "eight.safetensors"
    options = ("--image-size", 28, "--resize-mode", "longest", "--int8", "--out", place)
    package(tmp_path / "trained.safetensors", *options)
    assert place.stat().st_size < 0.9 * (tmp_path / "small.safetensors").stat().st_size
    eight = vggt_jax.load_model(place)
    assert (small.resize_mode, eight.resize_mode) == ("crop", "longest")
    eight = eight.encode(images)
    np.testing.assert_allclose(eight, trained.encode(images), atol=0.1)

    # The table matters: without it tokens are others.
    small.encoder.pos_embed[...] = jnp.zeros((5, small.config.embed_dim))
    assert np.abs(small.encode(images) - trained.encode(images)).max() > 0.1
