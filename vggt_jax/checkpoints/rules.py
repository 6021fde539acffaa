"""The engine of a conversion: a table of key rules, matched against a checkpoint and applied."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import ml_dtypes
import numpy as np
import tqdm

from vggt_jax.checkpoints.errors import CheckpointError

Shape = tuple[int, ...]
Transform = Callable[[np.ndarray], np.ndarray]

DTYPES = ("float32", "bfloat16")
"""What `dtype` of `fill` may name, besides None."""

FLOATING = ("float64", "float32", "float16", "bfloat16")
"""Names of the types that parameters may have in a file."""
_LAYER = "{layer}"


def keep(x: np.ndarray) -> np.ndarray:
    """Leaves a tensor as it is."""
    return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """How one official key, or one key of every layer of a stack, becomes one of our parameters."""

    official: str
    """The key in the official checkpoint; `{layer}` stands for the number of the layer."""
    shape: Shape
    """Shape of the official tensor."""
    native: str
    """The name of our parameter."""
    transform: Transform = keep
    """From the official layout to ours; returns a view of its argument."""
    layers: int | None = None
    """Layers of the stack, which become the leading axis of our parameter; None outside a stack."""
    first: int = 0
    """Number of the first layer in the official checkpoint."""
    step: int = 1
    """From the number of a layer to that of the next; 2 for one of two stacks that alternate."""
    bfloat16: bool = False
    """Whether `dtype="bfloat16"` stores the parameter in bfloat16."""

    def __post_init__(self):
        if (_LAYER in self.official) != (self.layers is not None):
            raise ValueError(f"{self.official=} must hold {_LAYER} exactly if layers is given")

    @property
    def native_shape(self) -> Shape:
        """Shape of our parameter, found without allocating it."""
        shape = self.transform(np.broadcast_to(np.int8(0), self.shape)).shape
        return shape if self.layers is None else (self.layers, *shape)


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place that the tensor of one official key fills."""

    rule: Rule
    index: tuple[int, ...]
    """Index into the parameter: the layer, or nothing outside a stack."""


def expand(rules: Iterable[Rule]) -> dict[str, Slot]:
    """Returns the slot of every official key that the rules expect.

    Raises:
        ValueError: two rules meet the same official key, or fill the same parameter.
    """
    slots: dict[str, Slot] = {}
    natives: set[str] = set()
    for rule in rules:
        if rule.native in natives:
            raise ValueError(f"two rules fill the parameter {rule.native}")
        natives.add(rule.native)
        for index in [()] if rule.layers is None else [(layer,) for layer in range(rule.layers)]:
            numbers = [rule.first + rule.step * layer for layer in index]
            key = rule.official.replace(_LAYER, "".join(map(str, numbers)))
            if key in slots:
                raise ValueError(f"two rules meet the key {key}")
            slots[key] = Slot(rule, index)
    return slots


def native_shapes(rules: Iterable[Rule]) -> dict[str, Shape]:
    """Returns the shape of every parameter that the rules fill."""
    return {rule.native: rule.native_shape for rule in rules}


def leave_out(
    tensors: Mapping[str, np.ndarray], reasons: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Splits off the keys that begin with one of the prefixes.

    Args:
        tensors: tensors by official key.
        reasons: why keys are left out, by their prefix.

    Returns:
        The other tensors, and the reason for every key left out.
    """
    ignored = {
        key: reason
        for key in tensors
        for prefix, reason in reasons.items()
        if key.startswith(prefix)
    }
    return {key: x for key, x in tensors.items() if key not in ignored}, ignored


def fill(
    rules: Sequence[Rule],
    tensors: Mapping[str, np.ndarray],
    *,
    source: str,
    model: str,
    dtype: str | None = None,
) -> dict[str, np.ndarray]:
    """Fills every parameter of a table of rules from the tensors of an official checkpoint.

    The parameters are allocated once and filled one tensor at a time, so memory-mapped tensors
    cost no memory of their own.

    Args:
        rules: the table.
        tensors: tensors by official key, all of which must be consumed.
        source: name of the checkpoint, for messages.
        model: name of the model and size that the rules describe, for messages.
        dtype: `"float32"`; `"bfloat16"` for the parameters that their rule marks, float32 for the
            others; None as stored, with float64 rounded to float32.

    Returns:
        Parameters by name.

    Raises:
        CheckpointError: keys are missing or unexpected, tensors have a wrong shape, are not
            floating point or hold NaN or infinities; every one of them is listed.
    """
    slots = expand(rules)
    problems = _structural_problems(slots, tensors)
    params = {} if any(problems.values()) else _allocate(slots, tensors, dtype)
    sound = [key for key in slots if key in tensors and not _misfit(slots[key], tensors[key])]
    problems["not finite"] = []
    for key in tqdm.tqdm(sound, desc="converting", unit="key", disable=None):
        rule, index = slots[key].rule, slots[key].index
        target = params[rule.native].dtype if params else tensors[key].dtype
        with np.errstate(over="ignore"):  # an overflow becomes infinite, which is reported
            x = tensors[key].astype(target, copy=False)
        if not np.isfinite(x).all():
            nans, infinities = np.isnan(x).sum(), np.isinf(x).sum()
            problems["not finite"].append(
                f"{key} has {nans} NaN and {infinities} infinite of {x.size} values as {x.dtype}"
            )
        if params:
            params[rule.native][index] = rule.transform(x)
    if any(problems.values()):
        raise CheckpointError(_message(problems, source, model))
    return params


def _misfit(slot: Slot, x: np.ndarray) -> bool:
    return x.shape != slot.rule.shape or x.dtype.name not in FLOATING


def _structural_problems(
    slots: Mapping[str, Slot], tensors: Mapping[str, np.ndarray]
) -> dict[str, list[str]]:
    """Returns a line for each problem that shows without reading values, by kind."""
    shared = [(key, slots[key].rule.shape, tensors[key]) for key in slots if key in tensors]
    return {
        "missing": [
            f"{key} {list(slot.rule.shape)}"
            for key, slot in slots.items()
            # PyTorch models have no key for a parameter without elements.
            if key not in tensors and math.prod(slot.rule.shape)
        ],
        "unexpected": [f"{key} {list(x.shape)}" for key, x in tensors.items() if key not in slots],
        "misshapen": [
            f"{key} is {list(x.shape)}, expected {list(shape)}"
            for key, shape, x in shared
            if x.shape != shape
        ],
        "not floating point": [
            f"{key} is {x.dtype.name}, expected one of {', '.join(FLOATING)}"
            for key, _, x in shared
            if x.dtype.name not in FLOATING
        ],
    }


def _allocate(
    slots: Mapping[str, Slot], tensors: Mapping[str, np.ndarray], dtype: str | None
) -> dict[str, np.ndarray]:
    stored: dict[Rule, list[np.dtype]] = {}
    for key, slot in slots.items():
        stored.setdefault(slot.rule, []).extend([tensors[key].dtype] if key in tensors else [])
    return {
        rule.native: np.empty(rule.native_shape, _target_dtype(rule, dtypes, dtype))
        for rule, dtypes in stored.items()
    }


def _target_dtype(rule: Rule, stored: Sequence[np.dtype], dtype: str | None) -> np.dtype:
    if dtype == "bfloat16" and rule.bfloat16:
        return np.dtype(ml_dtypes.bfloat16)
    if dtype is not None or not stored:
        return np.dtype(np.float32)
    # float32 holds the values of layers stored in different types of at most its width.
    same = len(set(stored)) == 1 and stored[0] != np.float64
    return stored[0] if same else np.dtype(np.float32)


def _message(problems: Mapping[str, Sequence[str]], source: str, model: str) -> str:
    counts = [f"{len(lines)} {kind}" for kind, lines in problems.items() if lines]
    total = sum(map(len, problems.values()))
    message = [
        f"{source} does not fit {model}: {total} problem{'s' * (total > 1)} ({', '.join(counts)})"
    ]
    message += [f"  {kind}: {line}" for kind, lines in problems.items() for line in lines]
    if problems["unexpected"]:
        message.append("keys that the model does not need are left out with --ignore PREFIX")
    if problems["missing"] or problems["misshapen"]:
        message.append("a model of another size is described with --config FILE.json")
    return "\n".join(message)
