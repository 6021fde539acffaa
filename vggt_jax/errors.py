"""The exception for input that a person can correct."""


class InputError(ValueError):
    """Input that cannot be used, with the file or value at fault and the way out in one line.

    The command line prints the message alone and exits with code 2; everything else that is raised
    is a defect and keeps its traceback.
    """
