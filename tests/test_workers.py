"""Work that devices share out: a thread for each, and an end that all of them hear of."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import jax
import pytest

from vggt_jax.pipeline.workers import read_ahead, share_out

TWO = jax.devices()[:1] * 2


def test_each_item_is_done_once_and_by_whoever_is_free():
    done, turns = [], threading.Barrier(2, timeout=60)

    def work(device, items):
        assert jax.config.jax_default_device == device
        for item in items:
            if item < 2:
                turns.wait()  # Nobody gets beyond these before both have one.
            done.append((item, threading.get_ident()))

    share_out(iter(range(7)), work, TWO)
    assert sorted(item for item, _ in done) == list(range(7))
    threads = dict(done)
    assert threads[0] != threads[1] and threading.get_ident() not in threads.values()


def test_the_last_ones_come_by_size():
    sizes = {"a": 3, "b": 1, "c": 2, "d": 2, "e": 9, "damaged": 0, "g": 4}
    slow = threading.Event()

    def read(name):
        if name == "e":
            assert slow.wait(60)
        if name == "damaged":
            raise OSError(name)
        return sizes[name]

    class Readers(ThreadPoolExecutor):
        def submit(self, *arguments):
            begun.append(super().submit(*arguments))
            return begun[-1]

    begun = []
    with Readers(len(sizes)) as readers:
        loaded = read_ahead(readers, read, sizes, 5, size=lambda x: x)
        # Seven, of which five are read ahead: from the third on all are begun.
        first = [next(loaded) for _ in range(2)]
        assert [(name, future.result()) for name, future in first] == [("a", 3), ("b", 1)]
        wait(begun[:4] + begun[5:])
        name, future = next(loaded)
        assert name == "damaged" and isinstance(future.exception(), OSError)
        # Largest first, but for one that is not read yet.
        assert [next(loaded)[0] for _ in range(3)] == ["g", "c", "d"]
        slow.set()
        assert [(name, future.result()) for name, future in loaded] == [("e", 9)]


def test_one_device_works_in_the_thread_of_the_caller():
    done = []
    for device in (None, TWO[0]):
        work = lambda device, items: done.extend((threading.get_ident(), x) for x in items)
        share_out("ab", work, [device])
    assert done == [(threading.get_ident(), x) for x in "abab"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["work", "items"])
def test_an_error_ends_all_of_them(error, where):
    begun, taken = threading.Barrier(2, timeout=60), []

    def endless():
        yield from (0, 1)
        if where == "items":
            raise error
        yield from iter(int, 1)

    def work(device, items):
        for i, item in enumerate(items):
            if i == 0:
                begun.wait()
                if where == "work" and item == 1:
                    raise error
            taken.append(item)

    with pytest.raises(type(error)):
        share_out(endless(), work, TWO)
    assert taken  # And this is reached: the other one, which had endless work, has ended.
