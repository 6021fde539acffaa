"""The exception for a checkpoint that cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit: every problem, and the way out."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type where it has none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
