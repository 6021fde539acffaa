"""What is said of input while a command runs, and names of files on its lines."""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import tqdm

from vggt_jax.cli.generated import in_dashes
from vggt_jax.errors import InputWarning
from vggt_jax.pipeline.many_scenes import ManyScenesOptions


@contextlib.contextmanager
def warnings_on_lines() -> Iterator[None]:
    """Prints what is said of input as errors are printed, each once."""
    said: set[str] = set()

    with warnings.catch_warnings():
        show = warnings.showwarning

        def on_a_line(message: Any, category: Any, *place: Any, **options: Any) -> None:
            if not issubclass(category, InputWarning):
                show(message, category, *place, **options)
            elif (text := in_dashes(str(message), ManyScenesOptions, words=False)) not in said:
                said.add(text)
                tqdm.tqdm.write(f"vggt-jax: warning: {text}", file=sys.stderr)

        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = on_a_line
        yield


def print_any_names() -> None:
    """Lets names of files be printed whose bytes are no UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
