"""The exception for a checkpoint that cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit: every problem, and the way out."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
