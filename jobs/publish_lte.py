"""Publishes the snapshot of `--date` in `lte_live`: the one row per user that a reader of today finds.

An older snapshot never replaces a newer one, so that a backfill of past dates leaves what is live alone.
"""

import datetime

from pyspark.sql import functions as F

from jobs.bases import basis_in_force
from jobs.command_line import JobParser
from jobs.session import spark_session
from jobs.snapshot_lte import REPRESENTATION, uniform_lte_of
from jobs.tables import LTE_LIVE, LTE_SNAPSHOTS, Warehouse, sql_date
from lte_model.errors import LTEError, run


def publish_lte(warehouse: Warehouse, date: datetime.date) -> tuple[datetime.date, int]:
    """Runs the job; returns the date that is live afterwards and its users.

    Raises `LTEError` where there is no snapshot of `date`.
    """
    basis_id = basis_in_force(warehouse)
    of_basis = uniform_lte_of(basis_id)
    snapshot = warehouse.read(LTE_SNAPSHOTS).where(f"{of_basis} AND snapshot_date = {sql_date(date)}")
    if snapshot.isEmpty():
        raise LTEError(
            f"table lte_snapshots holds no {REPRESENTATION} LTE of {date} in basis {basis_id}; "
            f"run jobs.snapshot_lte --date {date}"
        )
    warehouse.create(LTE_LIVE)
    live_date = warehouse.read(LTE_LIVE).where(of_basis).agg(F.max("snapshot_date")).first()[0]
    if live_date is None or live_date <= date:
        warehouse.replace(LTE_LIVE, snapshot, of_basis)
        live_date = date
    return live_date, warehouse.read(LTE_LIVE).where(of_basis).count()


def main() -> None:
    _, settings, date = JobParser(__doc__, "the snapshot date to publish").read()
    with spark_session(settings, "publish_lte") as spark:
        live_date, users = publish_lte(Warehouse(spark, settings), date)
    kept = "" if live_date == date else f"; the older {date} leaves it alone"
    print(f"live: the LTE of {live_date}, {users:,} users{kept}")


if __name__ == "__main__":
    run(main)
