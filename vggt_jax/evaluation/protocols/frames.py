"""Which frames of which sequences a protocol takes: rules that give the published lists."""

import abc
import dataclasses
import random
from collections.abc import Mapping, Sequence

import numpy as np

from vggt_jax.errors import InputError

Chosen = dict[str, tuple[int, ...] | None]
"""Places of the frames of each sequence, from 0, in the order in which a model sees them; None for
a sequence that the rule leaves out."""


class Choice(abc.ABC):
    """A rule that chooses frames."""

    @abc.abstractmethod
    def choose(
        self, lengths: Mapping[str, int], categories: Mapping[str, str | None] | None = None
    ) -> Chosen:
        """The frames of each sequence.

        Args:
            lengths: how many frames each sequence has, all sequences of the data set in its order:
                a random draw depends on those before it.
            categories: of the sequences, for rules that draw by category.
        """

    def with_count(self, count: int) -> "Choice":
        """The same rule for another number of frames, where 0 stands for all.

        Raises:
            InputError: the rule has no such number.
        """
        raise InputError(f"{count} frames: this protocol has no number of frames to choose")


class EachAlone(Choice):
    """A rule that looks at one sequence at a time."""

    @abc.abstractmethod
    def of_length(self, length: int) -> tuple[int, ...] | None:
        """The frames of a sequence of so many."""

    def choose(self, lengths, categories=None) -> Chosen:
        del categories
        return {name: self.of_length(length) for name, length in lengths.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw(Choice):
    """Frames drawn at random, without repeats, by NumPy's legacy generator.

    Attributes:
        count: of the frames.
        seed: of the draws of a whole data set.
        fewest: sequences of fewer frames are left out, without a draw.
        sequences: draw so many sequences of each category, by Python's generator of the same seed;
            None takes all (`--fast_eval` of VGGT's evaluation).
    """

    count: int = 10
    seed: int = 42
    fewest: int = 10
    sequences: int | None = None

    def __post_init__(self):
        if not 0 < self.count <= self.fewest:
            raise ValueError(f"count={self.count} must be in [1, {self.fewest=}]")

    def with_count(self, count: int) -> "Draw":
        if count < 2:
            raise InputError(f"{count} frames: this protocol draws at least two")
        return dataclasses.replace(self, count=count, fewest=max(count, self.fewest))

    def choose(self, lengths, categories=None) -> Chosen:
        generator = np.random.RandomState(self.seed)
        taken = self._sequences(lengths, categories or {})
        chosen: Chosen = dict.fromkeys(lengths)
        for name in taken:
            if lengths[name] >= self.fewest:
                places = generator.choice(lengths[name], self.count, replace=False)
                chosen[name] = tuple(map(int, places))
        return chosen

    def _sequences(self, lengths, categories) -> list[str]:
        if self.sequences is None:
            return list(lengths)
        by_category: dict[str | None, list[str]] = {}
        for name in lengths:
            by_category.setdefault(categories.get(name), []).append(name)
        generator = random.Random(self.seed)
        taken = []
        for names in by_category.values():
            few = len(names) >= self.sequences
            taken += sorted(generator.sample(names, self.sequences)) if few else names
        return taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class EveryNth(EachAlone):
    """The first frame and every so manyth after it.

    Attributes:
        step: between frames.
        first: only so many leading frames of a sequence are looked at; None for all.
        at_least_two: a sequence shorter than two steps has half its length for a step, rounded
            down (CUT3R's loader of NRGBD).
    """

    step: int
    first: int | None = None
    at_least_two: bool = False

    def of_length(self, length: int) -> tuple[int, ...]:
        length = length if self.first is None else min(length, self.first)
        step = min(self.step, max(1, length // 2)) if self.at_least_two else self.step
        return tuple(range(0, length, step))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularSpacing(EachAlone):
    """So many frames at regular spacing.

    Every (n // count)-th of n frames; of the m that these are, where they are too many, those at
    `i m // count`. The reading of SAIL-Recon (eval/datasets/tnt.py); the paper names the numbers
    and not the formula.

    Attributes:
        count: of the frames; None takes all.
    """

    count: int | None

    def with_count(self, count: int) -> "RegularSpacing":
        return dataclasses.replace(self, count=count or None)

    def of_length(self, length: int) -> tuple[int, ...]:
        if self.count is None or length <= self.count:
            return tuple(range(length))
        places = range(0, length, length // self.count)
        return tuple(places[i * len(places) // self.count] for i in range(self.count))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstThenSpaced(EachAlone):
    """The first frame, the second, and every (n - 1) // (count - 1)-th after it, if n > count.

    FastVGGT's choice on ScanNet (eval/eval_scannet.py).

    Attributes:
        count: of the frames.
    """

    count: int

    def with_count(self, count: int) -> "FirstThenSpaced":
        if count < 2:
            raise InputError(f"{count} frames: this protocol takes at least two")
        return dataclasses.replace(self, count=count)

    def of_length(self, length: int) -> tuple[int, ...]:
        if length <= self.count:
            return tuple(range(length))
        step = (length - 1) // (self.count - 1)
        return (0, *range(1, length, step)[: self.count - 1])


@dataclasses.dataclass(frozen=True)
class Listed(Choice):
    """Frames of a list, such as a published one.

    Attributes:
        places: of the frames, by sequence; sequences that it does not name are left out.
    """

    places: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, places: Mapping[str, Sequence[int]]) -> "Listed":
        return cls(tuple((name, tuple(map(int, of))) for name, of in places.items()))

    def choose(self, lengths, categories=None) -> Chosen:
        del categories
        by_name = dict(self.places)
        # Lists name CO3D's sequences without their category.
        short = {name.rpartition("/")[2]: name for name in by_name}
        find = lambda name: by_name.get(name, by_name.get(short.get(name.rpartition("/")[2], "")))
        return {name: find(name) for name in lengths}
