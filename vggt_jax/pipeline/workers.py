"""Work that is shared out among devices, a thread for each."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Generic, TypeVar

import jax

from vggt_jax.layers.shards import Device

T = TypeVar("T")


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
