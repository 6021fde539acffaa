"""Where the scenes of a run come from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.synthetic.families import Split
from vggt_jax.synthetic.pictures import PictureBank, picture_bank, read_pictures
from vggt_jax.synthetic.scenes import render_scenes
from vggt_jax.training.normalization import SceneTruth
from vggt_jax.training.photographs import Photographs, PosedImages, read_photographs
from vggt_jax.training.settings import TrainSettings
from vggt_jax.training.step import Render

_PARTS = ("train", "validation")
_OF_VALIDATION = 10  # every tenth picture


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    """What scenes are made of beside their keys: pictures of surfaces, and photographs."""

    pictures: PictureBank | None = None
    photographs: Photographs | None = None


def scenes_of(settings: TrainSettings, part: str) -> Render:
    """Scenes of the world that the settings name, of "train" or "validation", and photographs among
    those of "train"."""
    splits: dict[tuple[str, str], Split] = {
        ("plain", "train"): "train",
        ("plain", "validation"): "validation",
        ("wide", "train"): "wide-train",
        ("wide", "validation"): "wide-validation",
    }
    render = synthetic(splits[settings.world, part], settings.render_at_once)
    return with_photographs(render, settings.photographs_every)


def synthetic(split: Split, at_once: int) -> Render:
    """Scenes of the synthetic world, rendered a few at a time."""

    def render(keys, num_frames, size, sources: Sources = Sources()):
        bank = sources.pictures
        one = lambda key: jax.tree.map(
            lambda x: x[0], render_scenes(key, 1, num_frames, size=size, split=split, bank=bank)
        )
        num = keys.shape[0]
        if at_once == 0 or at_once >= num:
            return jax.vmap(one)(keys)
        # What does not divide would be compiled a second time, for the rest.
        at_most = max(i for i in range(1, at_once + 1) if num % i == 0)
        found = jax.lax.map(jax.vmap(one), keys.reshape(-1, at_most))
        return jax.tree.map(lambda x: x.reshape(num, *x.shape[2:]), found)

    return render


def with_photographs(render: Render, every: int) -> Render:
    """The scenes of `render`, but the first of every so many of photographs, if there are any."""

    def mixed(keys, num_frames, size, sources: Sources = Sources()) -> SceneTruth:
        photographs = sources.photographs
        if photographs is None:
            return render(keys, num_frames, size, sources)
        groups = keys.reshape(-1, every)
        drawn = jax.vmap(lambda key: photographs.draw(key, num_frames, size))(groups[:, 0])
        others = render(groups[:, 1:].reshape(-1), num_frames, size, sources)
        parts = {}
        for field in dataclasses.fields(PosedImages):
            first, rest = getattr(drawn, field.name), getattr(others, field.name)
            rest = rest.reshape(len(groups), every - 1, *rest.shape[1:])
            both = jnp.concatenate([first[:, None], rest], axis=1)
            parts[field.name] = both.reshape(-1, *both.shape[2:])
        return PosedImages(**parts)

    return mixed


def read_sources(settings: TrainSettings) -> dict[str, Sources]:
    """What scenes of "train" and "validation" need beside their keys.

    Raises:
        InputError: a file cannot be read, or there are too few pictures for both parts.
    """
    pictures = dict.fromkeys(_PARTS)
    if settings.textures is not None:
        all_pictures = read_pictures(settings.textures)
        if len(all_pictures) < _OF_VALIDATION:
            raise InputError(
                f"textures {settings.textures}: {len(all_pictures)} pictures, fewer than the "
                f"{_OF_VALIDATION} needed"
            )
        is_validation = np.arange(len(all_pictures)) % _OF_VALIDATION == _OF_VALIDATION - 1
        masks = zip(_PARTS, (~is_validation, is_validation), strict=True)
        pictures = {part: picture_bank(all_pictures[mask]) for part, mask in masks}
    found = {part: Sources(pictures=bank) for part, bank in pictures.items()}
    if settings.photographs is not None:
        photographs = read_photographs(settings.photographs)
        found["train"] = dataclasses.replace(found["train"], photographs=photographs)
    return found
