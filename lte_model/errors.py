"""The one error of the project that is meant for a person, and how a command line shows it."""

EXIT_CODE = 2
"""What a command exits with when it refused its input. A crash exits with 1, as Python does."""


class LTEError(Exception):
    """What happened, to which table and date, and what to do next: one line, no traceback."""
