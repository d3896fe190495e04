"""The command line that every job has: `--date D --settings FILE`."""

import argparse
import datetime

from lte_model.settings import Settings, load_settings
from lte_model.windows import parse_run_date


class JobParser(argparse.ArgumentParser):
    """A parser with `--date` and `--settings`, described by the first line of the job's docstring."""

    def __init__(self, docstring: str, date_help: str):
        super().__init__(description=docstring.splitlines()[0])
        self.add_argument("--date", required=True, help=date_help)
        self.add_argument("--settings", help="settings file (default: the one that LTE_SETTINGS names)")

    def read(self) -> tuple[argparse.Namespace, Settings, datetime.date]:
        """The arguments, the settings and the date. Raises `LTEError` for a setting or a date that can't be."""
        arguments = self.parse_args()
        return arguments, load_settings(arguments.settings), parse_run_date(arguments.date)
