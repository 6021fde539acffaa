"""Work that is read ahead, and shared out among devices, a thread for each."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from typing import Generic, TypeVar

import jax

from vggt_jax.layers.shards import Device

T = TypeVar("T")


def read_ahead(
    readers: ThreadPoolExecutor,
    read: Callable[[str], T],
    names: Iterable[str],
    most: int,
    *,
    size: Callable[[T], int],
) -> Iterator[tuple[str, Future[T]]]:
    """Names and what is read under them, as it will be, while others are being read.

    In order but for those after which nothing is left to begin: of these the largest first, of what
    has been read. Devices that share them then end at the same time, and what is written behind the
    last of them is small.

    Args:
        most: how many are read ahead.
        size: of what was read. What cannot be read comes before all others.
    """
    ahead: dict[str, Future[T]] = {}
    for name in names:
        ahead[name] = readers.submit(read, name)
        if len(ahead) > most:
            first = next(iter(ahead))
            yield first, ahead.pop(first)

    def how_large(name: str) -> float:
        return math.inf if ahead[name].exception() else size(ahead[name].result())

    while ahead:
        are_read, _ = wait(ahead.values(), return_when=FIRST_COMPLETED)
        largest = max((name for name in ahead if ahead[name] in are_read), key=how_large)
        yield largest, ahead.pop(largest)


def share_out(
    items: Iterable[T],
    work: Callable[[Device | None, Iterator[T]], None],
    devices: Sequence[Device | None],
) -> None:
    """Has every device work on items of its own; each takes the next as soon as it can.

    Args:
        items: taken by one thread at a time, in their order.
        work: of one device, with the items that it gets. It runs in a thread of its own, where this
            is the default device; of one device alone, in the thread of the caller. None leaves the
            default device as it is.
        devices: one or more.

    Raises:
        BaseException: what `work` raises, or Ctrl-C; the others then end with the items they have.
    """
    shared = _Shared(items)

    def run(device: Device | None) -> None:
        try:
            with contextlib.nullcontext() if device is None else jax.default_device(device):
                work(device, shared)
        except BaseException:
            shared.stop()
            raise

    if len(devices) == 1:
        run(devices[0])
        return
    with ThreadPoolExecutor(len(devices)) as threads:
        try:
            for future in as_completed([threads.submit(run, device) for device in devices]):
                future.result()
        except BaseException:  # Ctrl-C comes to this thread alone.
            shared.stop()
            raise


class _Shared(Generic[T]):
    """An iterator for several threads."""

    def __init__(self, items: Iterable[T]):
        self._items, self._lock, self._stopped = iter(items), threading.Lock(), False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._lock:
            if self._stopped:
                raise StopIteration
            return next(self._items)

    def stop(self) -> None:
        """From now on there are no more items."""
        self._stopped = True
