"""Where the scenes of a run come from, and the settings that say so."""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.training import Execution, TrainSettings, scenes
from vggt_jax.training.scenes import Sources, read_sources

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


def settings_of(**changes):
    return TrainSettings(out=pathlib.Path("run"), **changes)


def test_every_tenth_picture_is_kept_for_validation(tmp_path):
    for i in range(20):
        Image.new("RGB", (256, 256), (10 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    found = read_sources(settings_of(world="wide", textures=tmp_path))
    train, validation = (found[part].pictures for part in ("train", "validation"))
    assert (validation.texels[:, 0] & 255).tolist() == [90, 190]
    assert len(train) == 18 and not set(train.texels[:, 0]) & set(validation.texels[:, 0])
    without = {"train": Sources(), "validation": Sources()}
    assert read_sources(settings_of(world="wide")) == without
    for i in range(9, 20):
        (tmp_path / f"{i:02}.png").unlink()
    with pytest.raises(InputError, match="9 pictures, fewer than the 10"):
        read_sources(settings_of(world="wide", textures=tmp_path))
    with pytest.raises(InputError, match="only the wide world"):
        settings_of(textures=tmp_path)
    with pytest.raises(InputError, match="at least 2"):
        settings_of(photographs_every=1)


def test_how_many_scenes_are_rendered_at_once_changes_nothing(monkeypatch):
    def render_scenes(key, num, num_frames, *, size, split, bank):
        images = jax.random.uniform(key, (num, num_frames, *size))
        return {"images": images, "pictures": jnp.zeros((num, 0, 3))}  # none: no elements

    monkeypatch.setattr(scenes, "render_scenes", render_scenes)
    keys = jax.random.split(jax.random.key(0), 6)
    run = lambda at_once: jax.jit(lambda keys: scenes.synthetic("train", at_once)(keys, 2, (3, 4)))
    expected = run(0)(keys)
    assert expected["images"].shape == (6, 2, 3, 4) and expected["pictures"].shape == (6, 0, 3)
    for at_once in (1, 4):  # of six, four at once are three
        found = run(at_once)(keys)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_settings_come_back_from_their_file(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.delitem(sys.modules, "train", raising=False)
    from train import options_of

    changed = settings_of(
        world="wide",
        textures=pathlib.Path("textures"),
        photographs=pathlib.Path("photographs.npz"),
        fit_to_minutes=True,
        max_minutes=3.5,
        freeze=("encoder.",),
        variants=("?x8@224x224:2", "4x2@56x28:1"),
        pixels_per_step=12_900_000,
        execution=Execution(recompute=("trunk",)),
    )
    assert [v.num_scenes for v in changed.batch_variants] == [32, 4]
    for settings in (changed, settings_of()):
        options = options_of(json.loads(json.dumps(settings.to_dict())))
        assert tyro.cli(TrainSettings, args=options) == settings
        other = tyro.cli(TrainSettings, args=[*options, "--seed", "3"])
        assert other == dataclasses.replace(settings, seed=3)


def test_a_run_from_before_a_setting_goes_on_with_its_default():
    earlier = settings_of().to_dict()
    del earlier["world"], earlier["textures"], earlier["pixels_per_step"]
    assert settings_of().differences(earlier) == []
    assert settings_of(world="wide").differences(earlier) == ["world: 'plain' before, 'wide' now"]
    assert np.all([not settings_of(steps=steps).differences(earlier) for steps in (1, 9)])
