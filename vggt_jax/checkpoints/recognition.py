"""Which model a checkpoint of official keys belongs to, and whether it has the released size."""

from collections.abc import Iterable, Mapping

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.rules import Rule, Shape, expand

# Share of the trunk tensors of a released model by which a checkpoint is taken for it.
_ENOUGH = 0.9

# Parts of keys of models that resemble ours and cannot be converted.
_OTHER_MODELS = {"inter_frame_blocks.": "VGGT-Omega", "pose_inject_blk.": "Pi3X"}
# How keys of ours begin. What is looked for first must not be an addition to another model.
_MARKS = {"aggregator.": "vggt", "point_decoder.": "pi3", "camera_decoder.": "pi3"}
_GIVE = "give a checkpoint of VGGT or Pi3 such as facebook/VGGT-1B or yyfz233/Pi3"


def identify(keys: Iterable[str], source: str) -> str:
    """Returns the name of the model, in our checkpoints, that official keys belong to.

    Args:
        keys: all official keys; single ones may be missing or wrong.
        source: name of the checkpoint, for messages.

    Raises:
        CheckpointError: they are of no model that can be converted; the message says what they
            look like.
    """
    keys = list(keys)
    for mark, model in _OTHER_MODELS.items():
        if any(mark in key for key in keys):
            raise CheckpointError(
                f"{source}: looks like {model} (it has keys {mark}*), which cannot be converted; "
                f"{_GIVE}"
            )
    for mark, name in _MARKS.items():
        if any(key.startswith(mark) for key in keys):
            return name
    found = ", ".join(sorted({key.partition(".")[0] for key in keys})[:8]) or "none"
    raise CheckpointError(
        f"{source}: neither VGGT nor Pi3: no key begins with {' or '.join(_MARKS)} "
        f"(its keys begin with: {found}); {_GIVE}"
    )


def require_released_size(
    shapes: Mapping[str, Shape], trunk: Iterable[Rule], source: str, *, model: str, released: str
) -> None:
    """Checks that nearly all tensors of the trunk are there with the shapes of the released model.

    Args:
        shapes: shape by official key.
        trunk: rules of the released model that every checkpoint of it has.
        source: name of the checkpoint, for messages.
        model: name of the family, such as VGGT.
        released: name of the released model, such as VGGT-1B.

    Raises:
        CheckpointError: they are not.
    """
    expected = {key: slot.rule.shape for key, slot in expand(trunk).items()}
    fitting = sum(shapes.get(key) == shape for key, shape in expected.items())
    if fitting < _ENOUGH * len(expected):
        raise CheckpointError(
            f"{source}: a {model}, but not of the released size: {fitting} of the {len(expected)} "
            f"trunk tensors of {released} are there with its shapes; describe the size with "
            "--config FILE.json"
        )
