"""Checks that the live LTEs are recent enough for `--date` and that no day was missed; exits with 2 otherwise.

For each basis in force and each published representation of the settings:

1. The newest date in table `publications` may be at most `freshness.max_age_days` before `--date`.
2. Each of the last `freshness.missed_days` days since the first publication must have a snapshot.

Nothing else notices a day on which no task ran, because no task failed: the DAG was paused, the scheduler was down
over midnight, or a run waits for a pool or hangs. The job needs no JVM, so that any other scheduler can run it too.
"""

import datetime
import itertools
from collections.abc import Collection

from lte_model.command_line import CommandParser, run
from lte_model.domain.representations import representation
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.settings import Settings
from lte_model.warehouse.reading import exists, scan
from lte_model.warehouse.tables import PUBLICATIONS, SNAPSHOT_ACCOUNTS, Table

CATCH_UP = "run lte_daily for it (Trigger, Backfill), and see in Airflow why it did not run: paused, waiting, hanging?"


def stale_because(date: datetime.date, published: Collection[datetime.date], max_age_days: int) -> str | None:
    """Why a representation with these published dates is stale; None if it isn't."""
    if not published:
        return f"nothing was ever published; {CATCH_UP}"
    age = (date - max(published)).days
    if age <= max_age_days:
        return None
    return f"what is live is of {max(published)}, {age} days before {date}, {max_age_days} are allowed; {CATCH_UP}"


def days_missed(
    date: datetime.date, published: Collection[datetime.date], there: Collection[datetime.date], days: int
) -> list[datetime.date]:
    """The last `days` days before `date`, since the first publication, without a snapshot; ascending."""
    back = [date - ONE_DAY * age for age in range(days, 0, -1)]
    return [day for day in back if published and day >= min(published) and day not in there]


def check_freshness(settings: Settings, date: datetime.date) -> list[str]:
    """A line about each representation in each basis in force.

    Raises `LTEError` that lists everything stale or missed.
    """
    found, wrong = [], []
    options = settings.freshness
    names = [name for name in settings.model.representations if representation(name).publishable]
    for basis_id, name in itertools.product(settings.basis.in_force, names):
        lte = name if basis_id == settings.basis.basis_id else f"{name} in basis {basis_id}"
        published = _dates(settings, PUBLICATIONS, name, basis_id)
        there = _dates(settings, SNAPSHOT_ACCOUNTS, name, basis_id)
        missed = days_missed(date, published, there, options.missed_days)
        if stale := stale_because(date, published, options.max_age_days):
            wrong.append(f"{lte}: {stale}")
        if missed:
            wrong.append(f"{lte}: no snapshot of {', '.join(map(str, missed))}; {CATCH_UP}")
        if published:
            found.append(f"{lte}: live is {max(published)}, no day of the last {options.missed_days} is missed")
    if wrong:
        raise LTEError(" ".join(wrong))
    return found


def _dates(settings: Settings, table: Table, name: str, basis_id: str) -> set[datetime.date]:
    """A representation's snapshot dates in a table, in one basis ("": in any); empty if the table doesn't exist."""
    if not exists(settings, table.name):
        return set()
    rows = scan(settings, table.name).filter(representation=name)
    if basis_id:
        rows = rows.filter(basis_id=basis_id)
    return set(rows.select("snapshot_date").unique().collect()["snapshot_date"])


def main() -> None:
    """Reads the command line and runs the job."""
    _, settings, date = CommandParser(__doc__, "the day whose vectors should be live").read()
    print(*check_freshness(settings, date), sep="\n")


if __name__ == "__main__":
    run(main)
