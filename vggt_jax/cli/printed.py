"""What a command prints at its end: for people, or as JSON for programs."""

import json
import math
from typing import Annotated, Any

import tyro

Json = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(
    help="Print the outcome as one JSON object on standard output, and nothing else there.",
    help_behavior_hint="",
)]  # fmt: skip


def print_outcome(command: Any, text: str, outcome: dict[str, Any]) -> None:
    """Prints one of the two, or with --quiet no text.

    Args:
        outcome: the same by name, as JSON can hold it; numbers that are not finite become null.
    """
    if command.json:
        print(json.dumps(_finite(outcome), indent=2, allow_nan=False, ensure_ascii=True))
    elif not getattr(command, "quiet", False):
        print(text)


def print_error(message: str) -> None:
    """Prints why there is no outcome, where one was asked for as JSON."""
    print(json.dumps({"error": message}))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
