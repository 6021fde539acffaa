"""How a command ends that somebody interrupts, or a batch system ends: tidily, with a word, and
soon.

Python raises an exception for Ctrl-C wherever the main thread happens to be. Four things are
missing:

- It is lost where Python cannot pass exceptions on, as in callbacks of the garbage collector, of
  which JAX has one. Then it is raised again.
- It waits while the main thread compiles, which may take a minute. Another thread waits a few
  seconds for it, removes unfinished files, and ends the process.
- It is lost while Python shuts down, which takes JAX most of a second. The work is done by then,
  and a signal simply ends the process.
- SIGTERM and SIGHUP end a process without any of this. Here they are raised, too.
"""

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

_PATIENCE = 5.0  # Seconds for the main thread to tidy up.
_AGAIN = 0.05  # Seconds until an exception that was lost is raised again.
_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}


class EndedError(BaseException):
    """A signal other than Ctrl-C ends the process. No error, so that nothing handles it as one."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(error: BaseException) -> int:
    """What shells report for a command that a signal ended: 128 and its number."""
    return 128 + (error.number if isinstance(error, EndedError) else signal.SIGINT)


def said(code: int) -> str:
    """What to say of such an end."""
    name = signal.Signals(code - 128).name
    return _WORDS.get(name, name)


def run_program(program: Callable[[], int], name: str) -> NoReturn:
    """Runs a program as the process, and ends it with its exit code.

    Args:
        program: imports what it needs itself, and returns the exit code.
        name: of the command, for messages.
    """
    try:
        numbers = _handle_signals(name)
        code = program()
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
    except (KeyboardInterrupt, EndedError) as error:
        code = exit_code(error)
        _say(name, code)
    except BrokenPipeError:  # Of `| head`: nobody reads what is printed.
        code = 128 + getattr(signal, "SIGPIPE", 13)
    if code > 128:
        # Threads of the compiler may still run, and do not survive an orderly end.
        _end_at_once(code)
    sys.exit(code)


def _handle_signals(name: str) -> list[int]:
    """Which signals they are."""
    numbers = [getattr(signal, word) for word in _WORDS if hasattr(signal, word)]
    # What was ignored stays so: `nohup` ignores SIGHUP.
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, _raise)
    before = sys.unraisablehook

    def raise_again(lost: Any) -> None:
        if not isinstance(lost.exc_value, KeyboardInterrupt | EndedError):
            before(lost)
            return
        number = getattr(lost.exc_value, "number", signal.SIGINT)
        timer = threading.Timer(_AGAIN, _thread.interrupt_main, [number])
        timer.daemon = True
        timer.start()

    sys.unraisablehook = raise_again
    if os.name == "posix":
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        watch = threading.Thread(target=_watch, args=(reading, numbers, name), daemon=True)
        watch.start()
    return numbers


def _raise(number: int, frame: FrameType | None) -> None:
    del frame
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise EndedError(number)


def _watch(reading: int, numbers: list[int], name: str) -> None:
    """Ends the process when the main thread does not, or somebody is in a hurry."""
    import select

    ending = None
    while True:
        if ending is not None and not select.select([reading], [], [], _PATIENCE)[0]:
            break
        (number,) = os.read(reading, 1)
        if number in numbers:
            if ending is not None:
                break
            ending = number
    with contextlib.suppress(ImportError):
        from vggt_jax.files.claims import remove_own

        remove_own()
    _say(name, 128 + ending)
    _end_at_once(128 + ending)


def _say(name: str, code: int) -> None:
    print(f"{name}: {said(code)}", file=sys.stderr)


def _end_at_once(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
