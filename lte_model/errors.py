"""The one error of the project that is meant for a person, and how a command line shows it."""

import sys
from collections.abc import Callable

EXIT_CODE = 2
"""What a command exits with when it refused its input. A crash exits with 1, as Python does."""


class LTEError(Exception):
    """What happened, to which table and date, and what to do next: one line, no traceback."""


def run(main: Callable[[], None]) -> None:
    """Runs a command's ``main``. An `LTEError` becomes one line on stderr and exit code 2."""
    try:
        main()
    except LTEError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None
