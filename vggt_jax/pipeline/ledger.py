"""Which scenes of a run on many workers are begun, written, failed, or were lost with a worker.

There is one ledger for a run, and workers ask it before they begin a scene and before they write
it. So what was lost is known, and a worker that everybody took for dead writes nothing.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from vggt_jax.errors import InputError

Ending = Literal["written", "failed", "elsewhere", "there"]
"""What became of a scene: "there" is "elsewhere" with a result that holds."""

_LARGEST_PORTION = 16  # Scenes.
_PORTIONS_OF_A_WORKER = 4  # Or more, so that all workers end at about the same time.


@dataclasses.dataclass(frozen=True)
class Portion:
    """Scenes that a worker does together, which it reads ahead and writes while it computes.

    Attributes:
        names: of the scenes.
        retried: whether they were begun by a worker that was lost.
    """

    names: tuple[str, ...]
    retried: bool = False


@dataclasses.dataclass(frozen=True)
class Begun:
    """A scene that a worker has begun.

    Attributes:
        attempt: from 1 on.
        machine: where the worker is.
        may_write: whether it has asked to write, and may.
    """

    attempt: int
    machine: str
    may_write: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Books:
    """What a ledger says at a time.

    Attributes:
        waiting: scenes with no end, in order.
        begun: those of them that a worker has.
        losses: how often scenes were lost with their worker.
        endings: what became of the others, and why.
        twice: of scenes that were begun more often than once, what became of the times before.
        problem: why the run cannot go on.
        said: what workers warned of, each once.
    """

    waiting: tuple[str, ...]
    begun: Mapping[str, Begun]
    losses: Mapping[str, int]
    endings: Mapping[str, tuple[Ending, str]]
    twice: Mapping[str, str]
    problem: tuple[Literal["input", "defect"], str] | None
    said: tuple[str, ...]


class Ledger:
    """The books of a run.

    Args:
        names: of the scenes.
    """

    def __init__(self, names: Sequence[str]):
        self._names = tuple(names)
        self._attempts = dict.fromkeys(names, 0)
        self._losses: dict[str, int] = {}
        self._begun: dict[str, Begun] = {}
        self._endings: dict[str, tuple[Ending, str]] = {}
        self._could_write: set[str] = set()
        self._twice: dict[str, str] = {}
        self._problem: tuple[Literal["input", "defect"], str] | None = None
        self._said: dict[str, None] = {}

    def begin(self, name: str, machine: str) -> int | None:
        """The number of this attempt at a scene; None where it is not to be done any more.

        Whoever had it before is too late from now on.
        """
        if self._problem is not None or name in self._endings:
            return None
        if name in self._begun:  # By a worker that is not lost, or not yet known to be.
            self.lose(name, self._attempts[name], "it was given to another worker")
        self._attempts[name] += 1
        self._begun[name] = Begun(self._attempts[name], machine)
        return self._attempts[name]

    def may_write(self, name: str, attempt: int) -> bool:
        """Whether an attempt is the last one, and so may write."""
        begun = self._begun.get(name)
        if begun is None or begun.attempt != attempt:
            return False
        self._begun[name] = dataclasses.replace(begun, may_write=True)
        return True

    def end(self, name: str, attempt: int, ending: Ending, reason: str = "") -> None:
        """Writes down what became of a scene; of an attempt that is not the last one, nothing."""
        begun = self._begun.get(name)
        if begun is None or begun.attempt != attempt:
            return
        del self._begun[name]
        if ending == "there" and name in self._could_write:
            ending = "written"
            self._twice[name] += "; its result was there already"
        self._endings[name] = (ending, reason)

    def lose(self, name: str, attempt: int, reason: str) -> None:
        """Writes down that the worker was lost that had begun a scene; see `end`."""
        begun = self._begun.get(name)
        if begun is None or begun.attempt != attempt:
            return
        del self._begun[name]
        self._losses[name] = self._losses.get(name, 0) + 1
        if begun.may_write:
            self._could_write.add(name)
        earlier = f"{self._twice[name]}; " if name in self._twice else ""
        self._twice[name] = f"{earlier}{reason}"

    def fail(self, name: str, reason: str) -> None:
        """Ends a scene that no worker has."""
        if name not in self._begun:
            self._endings.setdefault(name, ("failed", reason))

    def stop(self, kind: Literal["input", "defect"], reason: str) -> None:
        """Ends the run: no scene is begun any more. The first reason counts."""
        self._problem = self._problem or (kind, reason)

    def say(self, text: str) -> None:
        """Writes down what a worker warns of."""
        self._said[text] = None

    def books(self) -> Books:
        """How things stand."""
        return Books(
            waiting=tuple(name for name in self._names if name not in self._endings),
            begun=dict(self._begun),
            losses=dict(self._losses),
            endings=dict(self._endings),
            twice={name: said for name, said in self._twice.items() if self._attempts[name] > 1},
            problem=self._problem,
            said=tuple(self._said),
        )

    def num_ended(self) -> int:
        """How many scenes have an end."""
        return len(self._endings)


def portions(
    waiting: Sequence[str], losses: Mapping[str, int], *, workers: int, batch_size: int
) -> list[Portion]:
    """Shares scenes out.

    A scene that was lost with its worker comes first and alone: if it was what took the worker's
    memory, it takes no other scene with it again.

    Args:
        waiting: names.
        losses: how often scenes were lost, by name.
        workers: how many there are.
        batch_size: scenes in a batch; portions hold whole batches.
    """
    alone = [name for name in waiting if losses.get(name)]
    others = [name for name in waiting if not losses.get(name)]
    size = min(_LARGEST_PORTION, math.ceil(len(others) / (_PORTIONS_OF_A_WORKER * workers)))
    size = math.ceil(max(1, size) / batch_size) * batch_size
    return [
        *(Portion((name,), retried=True) for name in alone),
        *(Portion(tuple(others[i : i + size])) for i in range(0, len(others), size)),
    ]


def run_rounds(
    ledger: Ledger,
    hand_out: Callable[[Sequence[Portion]], str | None],
    *,
    workers: int,
    batch_size: int,
    retries: int,
    why_lost: Callable[[str], str],
) -> Books:
    """Hands scenes out to workers until each has an end.

    What is begun and has no end when a round is over was lost with its worker, and is handed out
    again.

    Args:
        ledger: of the run, or what stands for it elsewhere.
        hand_out: has workers do all portions, as far as they live; says what ended it early.
        workers, batch_size: see `portions`.
        retries: how often a scene is begun again.
        why_lost: says what became of a worker, from its machine.

    Raises:
        InputError: the run cannot go on, or no worker begins anything.
        RuntimeError: a worker found a defect.
    """
    while True:
        books = ledger.books()
        if books.problem is not None:
            kind, reason = books.problem
            raise InputError(reason) if kind == "input" else RuntimeError(reason)
        if not books.waiting:
            return books
        before = _state(books)
        shares = portions(books.waiting, books.losses, workers=workers, batch_size=batch_size)
        ended_by = hand_out(shares)
        books = ledger.books()
        if books.problem is None and _state(books) == before:
            said = f" ({ended_by})" if ended_by else ""
            raise InputError(
                f"no worker of the Ray cluster began a scene{said}; `ray status` says what "
                "machines there are, and Ray's logs why workers end"
            )
        _lose(ledger, books, retries, why_lost)


def _lose(ledger: Ledger, books: Books, retries: int, why_lost: Callable[[str], str]) -> None:
    reasons = {machine: why_lost(machine) for machine in {x.machine for x in books.begun.values()}}
    for name, begun in books.begun.items():
        why = reasons[begun.machine]
        ledger.lose(name, begun.attempt, why)
        times = books.losses.get(name, 0) + 1
        if times > retries:
            ledger.fail(name, f"its worker was lost {times} times, the last time because {why}")


def _state(books: Books) -> tuple[int, int, int]:
    return len(books.endings), len(books.begun), sum(books.losses.values())


def shared_out(
    machines: Iterable[Mapping[str, float]], workers: int | None
) -> tuple[int, dict[str, float]]:
    """How many workers there are, and what of a machine each takes.

    Args:
        machines: by machine, its numbers of "CPU" and "GPU"; one or the other may be missing.
        workers: how many are wanted; None for one a GPU, or where there are none one a machine.

    Returns:
        The number, and `num_cpus` and `num_gpus` of each.

    Raises:
        InputError: there is nothing to run on, or less than was asked for.
    """
    machines = list(machines)
    gpus = [int(machine.get("GPU", 0)) for machine in machines]
    if sum(gpus):
        if workers is not None and workers > sum(gpus):
            raise InputError(
                f"workers={workers}: the Ray cluster has {sum(gpus)} GPUs, one for a worker; "
                "leave it out"
            )
        return workers or sum(gpus), {"num_cpus": 0, "num_gpus": 1}
    cpus = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
    if not cpus:
        raise InputError("the Ray cluster has no GPU and no CPU for a worker")
    if workers is not None and workers > sum(cpus):
        raise InputError(
            f"workers={workers}: the Ray cluster has {sum(cpus)} CPUs, at least one for a worker; "
            "leave it out"
        )
    # As many CPUs for each as there can be: JAX has use for all.
    each = min(cpus)
    while workers is not None and sum(number // each for number in cpus) < workers:
        each -= 1
    number = workers or sum(number // each for number in cpus)
    return number, {"num_cpus": each, "num_gpus": 0}
