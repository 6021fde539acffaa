"""What is said of input: the exception that a person can correct, and the warning."""

import re

# Control characters, separators of lines, marks that turn the direction of text, and halves of
# surrogate pairs, which stand for bytes of file names that are no UTF-8.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """A text on one line, in which characters that steer terminals are shown as escapes.

    Names of files hold any of them: a newline becomes `\\n`, a byte that is no UTF-8 `\\xe9`.
    """
    return _UNPRINTABLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # How Python hides such a byte.
        return f"\\x{code - 0xDC00:02x}"
    return ascii(found[0])[1:-1]


class InputError(ValueError):
    """Input that cannot be used, with the file or value at fault and the way out in one line.

    The command line prints the message alone and exits with code 2; everything else that is raised
    is a defect and keeps its traceback. Control characters are shown as escapes.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class InputWarning(UserWarning):
    """What was left out of the input, or read in another way than somebody could expect, or that it
    gave no result to rely on.

    The command line prints it on a line of its own; in Python it is a warning like others.
    Control characters are shown as escapes.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))
