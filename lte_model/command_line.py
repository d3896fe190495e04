"""The command line that every job has: `--date D --settings FILE`.

Some take a range of dates instead of the date, and some have commands, each with options of its own.
"""

import argparse
import datetime
import sys
from collections.abc import Callable

from lte_model.domain.representations import require_distinct
from lte_model.domain.windows import every, parse_date, parse_run_date
from lte_model.errors import EXIT_CODE, LTEError
from lte_model.settings import Settings, load_settings


class CommandParser(argparse.ArgumentParser):
    """A parser with `--settings`, described by the first line of `description`, such as a job's docstring.

    With `date_help`, which says what it is, also `--date`: a `datetime.date` that isn't in the future. With `ranges`
    also `--from`, `--to` and `--every`, which may stand in the place of `--date`.
    """

    def __init__(
        self,
        description: str | None,
        date_help: str = "",
        ranges: bool = False,
        prog: str | None = None,
        no_settings: str | None = None,
    ):
        super().__init__(prog=prog or _program(), description=(description or "").partition("\n")[0])
        if date_help:
            self.add_argument("--date", type=parse_run_date, required=not ranges, help=date_help)
        if ranges:
            self.add_argument("--from", dest="start", metavar="FROM", help="the first date of a range")
            self.add_argument("--to", dest="end", metavar="TO", help="the day after the range")
            self.add_argument("--every", type=int, default=1, help="days from one date of the range to the next")
        self.add_argument(
            "--settings", default=no_settings, help="settings file (default: the one that LTE_SETTINGS names)"
        )
        self._commands: argparse._SubParsersAction[CommandParser] | None = None

    def add_command(self, name: str, does: str, date_help: str = "") -> "CommandParser":
        """The parser of a command, whose name the arguments have as `command`."""
        if self._commands is None:
            self._commands = self.add_subparsers(dest="command", required=True)
        # Without a default of its own, a command leaves a `--settings` that stands before it as it is.
        return self._commands.add_parser(
            name, help=does, description=does, date_help=date_help, no_settings=argparse.SUPPRESS
        )

    def add_representations(self, what: str) -> None:
        """Adds `--representation`, which may be given several times; `asked_representations` reads it."""
        self.add_argument(
            "--representation",
            action="append",
            dest="representations",
            metavar="R",
            help=f"{what}; repeatable (default: those of model.representations in the settings)",
        )

    def add_bases(self, what: str) -> None:
        """Adds `--basis`, which may be given several times; `asked_bases` reads it."""
        self.add_argument(
            "--basis",
            action="append",
            dest="bases",
            metavar="ID",
            help=f"{what}; repeatable (default: basis.basis_id and basis.beside of the settings)",
        )

    def read_settings(self) -> tuple[argparse.Namespace, Settings]:
        """The arguments and the settings. Raises `LTEError` for a setting or a date that can't be."""
        arguments = self.parse_args()
        return arguments, load_settings(arguments.settings)

    def read(self) -> tuple[argparse.Namespace, Settings, datetime.date]:
        """The arguments, the settings and the date. Raises as `read_settings`."""
        arguments, settings = self.read_settings()
        return arguments, settings, arguments.date

    def read_dates(self) -> tuple[argparse.Namespace, Settings, tuple[datetime.date, ...]]:
        """The arguments, the settings and the dates of the range, or the one date.

        Raises `LTEError` for dates that make no range.
        """
        arguments, settings = self.read_settings()
        return arguments, settings, dates_of(arguments)


def _program() -> str | None:
    """What a person types to run this process, as far as it is a module; None leaves it to argparse."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name}" if spec else None


def asked_representations(arguments: argparse.Namespace, settings: Settings) -> tuple[str, ...]:
    """The representations of the command line, or of the settings. Raises `LTEError` for one that isn't known."""
    names = tuple(arguments.representations or settings.model.representations)
    require_distinct(names)
    return names


def asked_bases(arguments: argparse.Namespace, settings: Settings) -> tuple[str, ...]:
    """The bases of the command line, or those in force, each once; "" stands for the only one that is registered."""
    return tuple(dict.fromkeys(arguments.bases or settings.basis.in_force))


def dates_of(arguments: argparse.Namespace) -> tuple[datetime.date, ...]:
    """The dates that the command line of a parser with `ranges` asks for."""
    if arguments.start or arguments.end:
        if not (arguments.start and arguments.end) or arguments.date:
            raise LTEError("give --from and --to together, without --date")
        dates = every(arguments.every, parse_date(arguments.start), parse_run_date(arguments.end))
        if not dates:
            raise LTEError(f"no date lies in [{arguments.start}, {arguments.end}); give --from before --to")
        return dates
    if not arguments.date:
        raise LTEError("give --date, or --from and --to")
    return (arguments.date,)


def run(main: Callable[[], None]) -> None:
    """Runs a command's ``main``. An `LTEError` becomes one line on stderr and exit code 2."""
    try:
        main()
    except LTEError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None
