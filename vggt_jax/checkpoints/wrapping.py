"""What training puts around the tensors of a model: dictionaries, modules, averages, optimizers."""

import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.official import OfficialKeys

# Modules around others, by the names that they have in keys: of torch.compile, of PyTorch's
# DistributedDataParallel and FSDP, of its activation checkpointing, and of Lightning.
_MODULES = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module|"
    r"_forward_module)\."
)
# Words in names of averages of the weights, and of what an optimizer keeps for each.
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|avg|average|averaged|shadow|teacher)", re.IGNORECASE)
_OPTIMIZER = re.compile(r"(?:^|[._])(?:optim\w*|exp_avg\w*|scheduler\w*)\b", re.IGNORECASE)


def without_wrapping(
    tensors: Mapping[str, np.ndarray], source: str, known: Mapping[str, OfficialKeys]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Finds the model in what a training left behind: the keys that begin alike, up to one by which
    a model is known.

    Args:
        tensors: arrays by key.
        source: name of the checkpoint, for messages.
        known: the models that can be converted.

    Returns:
        The arrays of one model by official key, and why others, by key, are left out. All of them,
        as they are, where no model is found.

    Raises:
        CheckpointError: two models are there alike.
    """
    marks = tuple(mark for model in known.values() for mark in model.marks)
    by_key: dict[str, str] = {}
    for key in tensors:
        short = _MODULES.sub("", key)
        # Where two keys would become one, both stay as they are.
        by_key[key] = short
    repeated = {short for short, count in Counter(by_key.values()).items() if count > 1}
    by_key = {key: key if short in repeated else short for key, short in by_key.items()}

    models = Counter(
        prefix for short in by_key.values() if (prefix := _before(short, marks)) is not None
    )
    if not models:
        return {by_key[key]: x for key, x in tensors.items()}, {}
    chosen = _chosen(models, source)
    others = [prefix for prefix in models if prefix != chosen and prefix.startswith(chosen)]
    taken, outside = {}, {}
    for key, x in tensors.items():
        short = by_key[key]
        if not short.startswith(chosen):
            outside[key] = _why_outside(key, chosen)
        elif of_other := [prefix for prefix in others if short.startswith(prefix)]:
            outside[key] = _why_outside(of_other[0], chosen)
        elif x.dtype == object and not x.ndim:
            outside[key] = "no tensor"
        else:
            taken[short.removeprefix(chosen)] = x
    return taken, outside


def _before(key: str, marks: tuple[str, ...]) -> str | None:
    """What stands before the mark of a model in a key; None where there is none."""
    starts = [match.end() for match in re.finditer(r"\.", key)]
    return next((key[:start] for start in (0, *starts) if key.startswith(marks, start)), None)


def _chosen(models: Mapping[str, int], source: str) -> str:
    """The model among several: no average, nothing of an optimizer, and the most complete."""

    def rank(prefix: str) -> tuple[bool, bool, int]:
        return bool(_OPTIMIZER.search(prefix)), bool(_AVERAGE.search(prefix)), -models[prefix]

    first, *rest = sorted(models, key=lambda prefix: (*rank(prefix), len(prefix), prefix))
    if first and rest and rank(rest[0]) == rank(first):
        raise CheckpointError(
            f"{source}: holds two models, {first}* and {rest[0]}*; leave one out with --ignore "
            f"{rest[0]}"
        )
    return first


def _why_outside(key: str, chosen: str) -> str:
    if _OPTIMIZER.search(key):
        return "of an optimizer"
    if _AVERAGE.search(key):
        return f"an average of the weights beside the model{f' {chosen}*' * bool(chosen)}"
    return f"not of the model, whose keys begin with {chosen}"
