"""Progress over named steps."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import tqdm


class Steps:
    """A progress bar over named steps, and how long each took."""

    def __init__(self, total: int, *, quiet: bool = False):
        self._bar = tqdm.tqdm(
            total=total, bar_format="{n}/{total} {desc} {elapsed}", disable=quiet or None
        )
        self.seconds: dict[str, float] = {}
        """How long each step took, by its name."""

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[Callable[[str], None]]:
        """A step; what it yields takes news of how far it is."""
        self._bar.set_description_str(name)
        finished = threading.Event()

        def tick():
            while not finished.wait(0.5):
                self._bar.refresh()

        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        start = time.perf_counter()
        try:
            yield lambda news: self._bar.set_description_str(f"{name}: {news}")
        finally:
            finished.set()
            ticker.join()
        self.seconds[name] = time.perf_counter() - start
        self._bar.update()

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
