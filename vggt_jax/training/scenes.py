"""Where the scenes of a run come from."""

import jax
import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.synthetic.families import Split
from vggt_jax.synthetic.pictures import PictureBank, picture_bank, read_pictures
from vggt_jax.synthetic.scenes import render_scenes
from vggt_jax.training.settings import TrainSettings
from vggt_jax.training.step import Render

_PARTS = ("train", "validation")
_OF_VALIDATION = 10  # every tenth picture


def rendered(settings: TrainSettings, part: str) -> Render:
    """Scenes of the world that the settings name, of "train" or "validation"."""
    splits: dict[tuple[str, str], Split] = {
        ("plain", "train"): "train",
        ("plain", "validation"): "validation",
        ("wide", "train"): "wide-train",
        ("wide", "validation"): "wide-validation",
    }
    return synthetic(splits[settings.world, part], settings.render_at_once)


def synthetic(split: Split, at_once: int) -> Render:
    """Scenes of the synthetic world, rendered a few at a time."""

    def render(keys, num_frames, size, bank: PictureBank | None = None):
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


def read_textures(settings: TrainSettings) -> dict[str, tuple[PictureBank, ...]]:
    """What scenes of "train" and "validation" need beside their keys: pictures, or nothing.

    Raises:
        InputError: they cannot be read, or are too few for both parts.
    """
    if settings.textures is None:
        return dict.fromkeys(_PARTS, ())
    pictures = read_pictures(settings.textures)
    if len(pictures) < _OF_VALIDATION:
        raise InputError(
            f"textures {settings.textures}: {len(pictures)} pictures, fewer than the "
            f"{_OF_VALIDATION} needed"
        )
    is_validation = np.arange(len(pictures)) % _OF_VALIDATION == _OF_VALIDATION - 1
    parts = zip(_PARTS, (~is_validation, is_validation), strict=True)
    return {part: (picture_bank(pictures[mask]),) for part, mask in parts}
