"""Measures the online test `--test` over the days [--from, --to), as sums of each variant's outcomes.

1. **Who is in the test:** a user belongs to the variant of the first exposure. A user who saw two variants by the end
   of the period, or one before it began, is counted and left out.
2. **What they did (y):** outcomes from a user's first exposure to the end of the period; 0 for a user without any.
3. **What they did before (x):** outcomes of equally many days before the period, the covariate of CUPED.

For each variant, metric and day, the table holds what the day adds to n, Σy, Σy², Σx, Σx², Σxy, which
lte_model/online_test/statistics.py reads: sums up to a day measure a test that ends then. No row names a user. Sums are
whole numbers in units of 1/10,000 of a metric's unit, so that they don't depend on the order of rows.

`test_accounts` counts every row of both feeds by its fate.

`--rehearse` simulates an A/A test on past days: every user with an outcome in the period counts as exposed from the
first outcome on, and a hash of the user picks one of two variants. Its true uplift is 0; it shows how long a real test
must run.
"""

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Row, Window
from pyspark.sql import functions as F

from jobs.feeds.online_test import (
    BEFORE,
    EXPOSURES,
    FATE,
    FIRST,
    IN_TEST,
    OUTCOMES,
    days_before,
    exposures_by_fate,
    outcomes_by_fate,
    read_exposures,
    read_outcomes,
    rehearsed_exposures,
)
from jobs.feeds.sources import reading
from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse, sql_date, sql_text
from lte_model.command_line import CommandParser, run
from lte_model.domain.windows import Interval, parse_date
from lte_model.errors import LTEError
from lte_model.online_test.statistics import parse_test_name
from lte_model.warehouse.tables import TEST_ACCOUNTS, TEST_MEASUREMENTS


@dataclass(frozen=True)
class MeasuredTest:
    """What a run of the job counted: users by variant, and (rows, users) by (feed, fate)."""

    users: dict[str, int]
    accounts: dict[tuple[str, str], tuple[int, int]]


def measurements(exposures: DataFrame, outcomes: DataFrame, metrics: Sequence[str]) -> DataFrame:
    """(day, variant, metric, users, sum_y, sum_yy, sum_x, sum_xx, sum_xy): what each day adds, in whole units.

    If a day takes a user's y from b to a, it adds a² − b² to Σy² and x(a − b) to Σxy. x counts from the day of the
    first exposure on. A day that adds nothing has no row.
    """
    named = F.array(*[F.struct(F.lit(name).alias("metric"), F.col(name).alias("units")) for name in metrics])
    per_metric = outcomes.select(
        "user_id", "variant", "exposed_ts", F.to_date("outcome_ts").alias("day"), FATE, F.inline(named)
    ).where("units <> 0")
    user = ("user_id", "variant", "metric")
    before = (
        per_metric.where(F.col(FATE) == BEFORE)
        .groupBy(*user, F.to_date("exposed_ts").alias("exposed_day"))
        .agg(F.sum("units").alias("x"))
    )
    until_yesterday = Window.partitionBy(*user).orderBy("day").rowsBetween(Window.unboundedPreceding, -1)
    during = (
        per_metric.where(F.col(FATE) == IN_TEST)
        .groupBy(*user, "day")
        .agg(F.sum("units").alias("y"))
        .withColumn("y_before", F.coalesce(F.sum("y").over(until_yesterday), F.lit(0)))
        .join(before.drop("exposed_day"), list(user), "left")
    )
    exposed = (
        exposures.where(F.col(FATE) == FIRST)
        .groupBy(F.to_date("exposed_ts").alias("day"), "variant")
        .agg(F.count("*").alias("users"))
        .select("*", F.explode(F.array(*map(F.lit, metrics))).alias("metric"))
    )
    added = [
        exposed,
        before.select(
            F.col("exposed_day").alias("day"),
            "variant",
            "metric",
            F.col("x").alias("sum_x"),
            _product("x", "x").alias("sum_xx"),
        ),
        during.select(
            "day",
            "variant",
            "metric",
            F.col("y").alias("sum_y"),
            _product("y", F.col("y") + 2 * F.col("y_before")).alias("sum_yy"),
            _product("y", F.coalesce("x", F.lit(0))).alias("sum_xy"),
        ),
    ]
    rows = added[0]
    for more in added[1:]:
        rows = rows.unionByName(more, allowMissingColumns=True)
    sums = ("sum_y", "sum_yy", "sum_x", "sum_xx", "sum_xy")
    return rows.groupBy("day", "variant", "metric").agg(
        F.coalesce(F.sum("users"), F.lit(0)).alias("users"),
        *[F.coalesce(F.sum(F.col(name).cast("decimal(38, 0)")), F.lit(0)).alias(name) for name in sums],
    )


def measure_test(
    warehouse: Warehouse, date: datetime.date, test: str, period: Interval, rehearse: bool = False
) -> MeasuredTest:
    """Runs the job: writes the rows of the test and the date.

    Raises `LTEError` if the period has not ended by `date`, there are fewer than two variants, or no user in the test
    has an outcome.
    """
    require_period(period, date)
    metrics = warehouse.settings.online_test.metrics
    outcomes_feed = read_outcomes(warehouse, metrics, Interval(days_before(period).start, date))
    if rehearse:
        source, exposures = warehouse.settings.sources.outcomes, rehearsed_exposures(outcomes_feed, test, period)
    else:
        source = warehouse.settings.sources.exposures
        exposures = exposures_by_fate(read_exposures(warehouse, Interval(period.start, date)), test, period)
    with _cached(exposures), reading(source):
        accounts = _account(EXPOSURES, exposures)
        counted = exposures.where(F.col(FATE) == FIRST).groupBy("variant").count().orderBy("variant")
        users = {row["variant"]: row["count"] for row in counted.collect()}
        if len(users) < 2:
            raise LTEError(
                f"test {test} has users of {len(users)} variants in {period}{''.join(f': {one}' for one in users)}; a "
                f"comparison needs two. Rows of source {source}: {_in_words(accounts) or 'none'}"
            )
        outcomes = outcomes_by_fate(outcomes_feed, exposures, metrics, period)
        source = warehouse.settings.sources.outcomes
        with _cached(outcomes), reading(source):
            of_outcomes = _account(OUTCOMES, outcomes)
            if (OUTCOMES, IN_TEST) not in of_outcomes:
                raise LTEError(
                    f"no outcome of source {source} is of a user of test {test} after the first exposure and in "
                    f"{period}. Its rows: {_in_words(of_outcomes) or 'none'}"
                )
            accounts |= of_outcomes
            rows = measurements(exposures, outcomes, metrics).collect()
    _write(warehouse, date, test, period, rows, accounts)
    return MeasuredTest(users, accounts)


@contextmanager
def _cached(frame: DataFrame) -> Iterator[None]:
    """Caches the frame for the block only, so that a later read of the same place finds its new content."""
    frame.cache()
    try:
        yield
    finally:
        frame.unpersist()


def require_period(period: Interval, date: datetime.date) -> None:
    """Raises `LTEError` if the period has no day, or its last day isn't over."""
    if period.days < 1:
        raise LTEError(f"the period {period} has no day; give --from before --to")
    if period.end > date:
        raise LTEError(f"the period {period} of the test isn't over on --date {date}; give --to {date} at most")


def _account(feed: str, rows: DataFrame) -> dict[tuple[str, str], tuple[int, int]]:
    """(feed, fate) → (rows, distinct users)."""
    counted = rows.groupBy(FATE).agg(F.count("*").alias("rows"), F.count_distinct("user_id").alias("users"))
    return {(feed, row[FATE]): (row["rows"], row["users"]) for row in counted.orderBy(FATE).collect()}


def _write(
    warehouse: Warehouse,
    date: datetime.date,
    test: str,
    period: Interval,
    rows: Sequence[Row],
    accounts: dict[tuple[str, str], tuple[int, int]],
) -> None:
    """Replaces the rows of the test and date; accounts first, so that no measurement lacks one."""
    of_test = f"test_name = {sql_text(test)} AND measured_for = {sql_date(date)}"
    key = {"test_name": test, "measured_for": date}
    account = [
        key | {"feed": feed, FATE: fate, "rows": count, "users": users}
        for (feed, fate), (count, users) in accounts.items()
    ]
    dated = key | {"test_start": period.start, "test_end": period.end}
    for table, made in ((TEST_ACCOUNTS, account), (TEST_MEASUREMENTS, [dated | row.asDict() for row in rows])):
        warehouse.create(table)
        frame = warehouse.spark.createDataFrame(made, warehouse.read(table).schema)
        warehouse.replace(table, frame.coalesce(1), of_test)


def _in_words(accounts: dict[tuple[str, str], tuple[int, int]]) -> str:
    return ", ".join(f"{rows:,} {fate}" for (_, fate), (rows, _) in accounts.items())


def _product(one: Column | str, other: Column | str) -> Column:
    """The product of two whole numbers as a decimal, because it may exceed BIGINT."""
    one, other = (F.col(side) if isinstance(side, str) else side for side in (one, other))
    return one.cast("decimal(19, 0)") * other.cast("decimal(19, 0)")


def describe(test: str, period: Interval, measured: MeasuredTest) -> list[str]:
    """What was measured, as lines of readable text."""
    users = ", ".join(f"{variant} {number:,}" for variant, number in measured.users.items())
    lines = [f"test {test} over {period}: users of {users}"]
    for feed in (EXPOSURES, OUTCOMES):
        rows = {key: counts for key, counts in measured.accounts.items() if key[0] == feed}
        lines.append(f"{feed}: {sum(count for count, _ in rows.values()):,} rows: {_in_words(rows)}")
    return lines


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__, "the date of the read-out; the test's period ends on it or before")
    parser.add_argument("--test", required=True, help="the name of the test")
    parser.add_argument("--from", dest="start", required=True, help="the first day of the test")
    parser.add_argument("--to", dest="end", required=True, help="the day after its last day")
    parser.add_argument("--rehearse", action="store_true", help="make a test of past days, in which nothing is new")
    arguments, settings, date = parser.read()
    test = parse_test_name(arguments.test)
    period = Interval(parse_date(arguments.start), parse_date(arguments.end))
    require_period(period, date)
    with spark_session(settings, "measure_test", date) as spark:
        measured = measure_test(Warehouse(spark, settings), date, test, period, arguments.rehearse)
    print(*describe(test, period, measured), sep="\n")


if __name__ == "__main__":
    run(main)
