"""The one error that is meant for a person, and the exit code of a command that raises it."""

EXIT_CODE = 2
"""The exit code of a command that refuses its input. A crash exits with 1, Python's default."""


class LTEError(Exception):
    """What happened, to which table and date, and what to do next: one line, no traceback."""
