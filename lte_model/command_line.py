"""The command line that every job has: `--date D --settings FILE`.

Some jobs take a range of dates instead, and some have commands with their own options.
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
    """A parser with `--settings`; its help shows the first line of `description`, such as a module's docstring.

    `date_help` describes `--date`, a `datetime.date` that isn't in the future; without it there is no `--date`.
    `ranges` adds `--from`, `--to` and `--every`, which may replace `--date`.
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
        """Adds a command and returns its parser. The arguments hold the command's name as `command`."""
        if self._commands is None:
            self._commands = self.add_subparsers(dest="command", required=True)
        # No default here: it would overwrite a `--settings` that stands before the command.
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
        """The arguments and the settings. Raises `LTEError` for an invalid setting or date."""
        arguments = self.parse_args()
        return arguments, load_settings(arguments.settings)

    def read(self) -> tuple[argparse.Namespace, Settings, datetime.date]:
        """The arguments, the settings and the date. Raises `LTEError` like `read_settings`."""
        arguments, settings = self.read_settings()
        return arguments, settings, arguments.date

    def read_dates(self) -> tuple[argparse.Namespace, Settings, tuple[datetime.date, ...]]:
        """The arguments, the settings and the dates of the range, or the one date.

        Raises `LTEError` if the dates form no range.
        """
        arguments, settings = self.read_settings()
        return arguments, settings, dates_of(arguments)


def _program() -> str | None:
    """The command that runs this process, if it is a module; None lets argparse choose the name."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name}" if spec else None


def asked_representations(arguments: argparse.Namespace, settings: Settings) -> tuple[str, ...]:
    """The representations of the command line, or else of the settings. Raises `LTEError` for an unknown one."""
    names = tuple(arguments.representations or settings.model.representations)
    require_distinct(names)
    return names


def asked_bases(arguments: argparse.Namespace, settings: Settings) -> tuple[str, ...]:
    """The bases of the command line, or else those in force, without repeats. "" means the only registered basis."""
    return tuple(dict.fromkeys(arguments.bases or settings.basis.in_force))


def dates_of(arguments: argparse.Namespace) -> tuple[datetime.date, ...]:
    """The dates that a command line with `ranges` asks for. Raises `LTEError` if they form no range."""
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
