"""A snapshot's measures against plain Python, planted faults that must stop it, and identical rows on a rerun.

Longer than 350 lines, because every test measures the same synthetic snapshots.
"""

import datetime
import math

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient

from jobs import monitor_lte
from jobs.engine import snapshots
from jobs.engine.calendar import day_number
from jobs.engine.packing import buckets_of
from jobs.engine.snapshots import SnapshotRows, Tally, UserVectors
from jobs.monitor_lte import (
    coverage,
    dates_to_compare,
    drift,
    inertia,
    measure,
    monitor,
    read_seen,
    require_publishable,
)
from jobs.snapshot_lte import snapshot_lte
from lte_model.command_line import run
from lte_model.domain.basis import GRID
from lte_model.domain.windows import ONE_DAY, lte_window, target_window
from lte_model.errors import LTEError
from lte_model.monitoring.measures import FEWEST_USERS, MEASURES, Level
from lte_model.monitoring.page import page_path
from lte_model.settings import Settings, Window
from lte_model.tracking import lineage, runs
from lte_model.warehouse.tables import EVENTS, LTE_MONITORING, LTE_SNAPSHOTS, SEMANTIC_BASES
from tests.jobs.events import FIRST_DAY, events, events_table
from tests.jobs.small_tables import DATE as SMALL_DATE

DATE = datetime.date(2024, 3, 1)
WEEK = ONE_DAY * 7
LAG, WINDOW = 3, 10
USERS = [f"u{number:04}" for number in range(FEWEST_USERS + 100)]
NEEDS_ANOTHER = {
    "users_change", "inertia", "moved_per_day", "inertia_days", "mean_shift", "psi_norm", "psi_events", "psi_age",
    "reference_days",
}  # fmt: skip


def snapshot(date=DATE, seed=0, users=USERS):
    """Rows of `lte_snapshots`: each user's vector is stable, with small changes between seeds."""
    taste, noise = np.random.default_rng(7), np.random.default_rng(seed)
    vectors = taste.normal(size=(len(users), 4)) + 0.05 * noise.normal(size=(len(users), 4))
    vectors *= 0.9 / np.linalg.norm(vectors, axis=1, keepdims=True) * taste.uniform(0.3, 1, (len(users), 1))
    counts = taste.integers(1, 9, len(users))
    frame = pl.DataFrame(
        {
            "user_id": users,
            "user_bucket": buckets_of(pa.array(users)),
            "vector_sum": np.rint(vectors * counts[:, None] * GRID).astype(int).tolist(),
            "event_count": counts,
            "newest_event_date": [
                date - ONE_DAY * int(age) for age in taste.integers(LAG + 1, LAG + WINDOW, len(users))
            ],
        },
        schema_overrides={"vector_sum": pl.List(pl.Int32), "event_count": pl.Int32},
    )
    return frame.with_columns(
        snapshot_date=pl.lit(date), basis_id=pl.lit("b"), representation=pl.lit("uniform"),
        lag_days=pl.lit(LAG), window_days=pl.lit(WINDOW),
    )  # fmt: skip


def write(settings, table, frame, **options):
    """Writes a table with Spark's types: Arrow can't filter the string views in Polars' files."""
    if isinstance(frame, pl.DataFrame):
        frame = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    write_deltalake(settings.table_path(table.name), frame, mode="append", **options)


def write_shop(settings, *snapshots, seen=None):
    """Writes the snapshots, and two events for each user in `seen`: one in the window and one after it."""
    bases = pl.DataFrame({"basis_id": ["b"], "dimensions": [4]})
    write(settings, SEMANTIC_BASES, bases)
    for frame in snapshots:
        write(settings, LTE_SNAPSHOTS, frame, partition_by=["basis_id", "representation", "snapshot_date"])
    days = [DATE - ONE_DAY * (LAG + 1), DATE - ONE_DAY]
    found = pl.DataFrame({"user_id": USERS if seen is None else seen}).join(
        pl.DataFrame({"event_date": days}), how="cross"
    )
    write(settings, EVENTS, found.with_columns(known_date=pl.col("event_date")))


def figures(settings, date=DATE):
    _, readings = measure(settings, date)
    return {reading.measure.name: reading.value for reading in readings}


def earlier():
    return [snapshot(DATE - ONE_DAY * 30, 1), snapshot(DATE - WEEK, 2)]


def test_a_good_snapshot_passes(settings):
    write_shop(settings, *earlier(), snapshot())
    _, readings = measure(settings, DATE)
    assert [reading.measure.name for reading in readings] == list(MEASURES)
    assert {reading.level for reading in readings} == {Level.OK}
    require_publishable(settings, DATE, readings)


def lists(frame, change):
    """The snapshot with changed sums for half of the users."""
    half = pl.int_range(pl.len()) % 2 == 0
    return frame.with_columns(pl.when(half).then(change).otherwise(pl.col("vector_sum")).alias("vector_sum"))


SUMS = pl.col("vector_sum")
FAULTS = {
    "half of the vectors are zero": (lambda frame: lists(frame, SUMS.list.eval(0 * pl.element())), "zero_share 50.0 %"),
    "the population has shifted": (
        lambda frame: frame.with_columns(SUMS.list.eval(pl.element().abs())),
        "mean_shift .*, stops above 0.2",
    ),
    "half of the users are gone": (lambda frame: frame.gather_every(2), "missing 50.0 %, stops above 10.0 %"),
    "the vectors are other users'": (lambda frame: frame.with_columns(SUMS.reverse()), "inertia .*, stops below 0.5"),
    "a sum is null": (
        lambda frame: lists(frame, SUMS.list.eval(pl.when(pl.element() != pl.element().max()).then(pl.element()))),
        "null_rows 300, stops above 0",
    ),
    "a day is null": (
        lambda frame: frame.with_columns(
            pl.when(pl.col("user_id") > USERS[0]).then(pl.col("newest_event_date")).alias("newest_event_date")
        ),
        "null_rows 1,",
    ),
    "a dimension is missing": (lambda frame: lists(frame, SUMS.list.head(3)), "off_grid_rows 300,"),
    "sums are larger than their counts": (
        lambda frame: lists(frame, SUMS.list.eval(pl.element() * 0 + 10 * GRID)),
        "off_grid_rows 300,.*long_rows 300,",
    ),
    "vectors are longer than an item's": (
        lambda frame: lists(frame, pl.concat_list([pl.col("event_count") * GRID] * 4)),
        "long_rows 300, stops above 0",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_stops_the_snapshot_and_is_named(settings, fault):
    change, said = FAULTS[fault]
    write_shop(settings, *earlier(), change(snapshot()))
    _, readings = measure(settings, DATE)
    with pytest.raises(LTEError, match=f"the snapshot of {DATE} must not go live: .*{said}.*What is live stays"):
        require_publishable(settings, DATE, readings)


def test_rows_in_another_order_and_in_other_files_have_the_same_bits():
    """A cluster splits its files differently from one machine."""
    random = np.random.default_rng(0)
    ids, ages = pa.array(USERS), random.integers(0, 30, len(USERS))
    now, before = random.normal(size=(2, len(USERS), 4)).astype(np.float32)

    def cut(vectors):
        places = np.array_split(random.permutation(len(USERS)), 5)
        return [UserVectors(ids.take(place), vectors[place], ages[place], ages[place]) for place in places]

    found = set()
    for _ in range(20):
        tally = Tally(largest_norm=1.0)
        for users in (parts := cut(now)):
            tally.add(SnapshotRows(users, ages, null_rows=0, off_grid_rows=0))
        both = UserVectors.together(parts), UserVectors.together(cut(before))
        found.add((inertia(*both), *drift(*both).values(), *tally.figures().values()))
    assert len(found) == 1


def test_a_first_snapshot_has_nothing_to_be_compared_with(settings):
    write_shop(settings, snapshot())
    assert set(figures(settings)) == set(MEASURES) - NEEDS_ANOTHER
    few = snapshot(DATE - WEEK).head(FEWEST_USERS - 1)
    write(settings, LTE_SNAPSHOTS, few)
    assert set(MEASURES) - set(figures(settings)) == {"psi_norm", "psi_events", "psi_age"}


def plain(frame, date):
    """Each user's vector, events and age, one by one."""
    return {
        row["user_id"]: (
            [units / row["event_count"] / GRID for units in row["vector_sum"]],
            row["event_count"],
            (date - row["newest_event_date"]).days,
        )
        for row in frame.to_dicts()
    }


def cosine(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


@pytest.mark.parametrize("sampled", [len(USERS), 100])
def test_the_figures_are_those_of_plain_python(settings, monkeypatch, sampled):
    """Computes in small blocks, with users that appear and disappear, for all users or a sample."""
    monkeypatch.setattr(snapshots, "ROWS_AT_ONCE", 7)
    rules = settings.monitoring.model_copy(update={"sampled_users": sampled})
    settings = settings.model_copy(update={"monitoring": rules})
    now, before = snapshot(users=USERS[50:]), snapshot(DATE - WEEK, 2, USERS[:-20])
    seen = USERS[40:90]
    write_shop(settings, before, now, seen=seen)
    found, by_user = figures(settings), plain(now, DATE)
    ages = sorted(age for _, _, age in by_user.values())
    assert found["users"] == len(by_user)
    assert found["events_mean"] == pytest.approx(sum(count for _, count, _ in by_user.values()) / len(by_user))
    assert found["norm_mean"] == pytest.approx(sum(math.hypot(*one) for one, _, _ in by_user.values()) / len(by_user))
    assert found["age_mean"] == pytest.approx(sum(ages) / len(ages))
    assert found["age_p50"] == ages[math.ceil(0.5 * len(ages)) - 1]
    assert found["age_p95"] == ages[math.ceil(0.95 * len(ages)) - 1]
    assert found["users_change"] == pytest.approx(len(now) / len(before) - 1)
    assert (found["inertia_days"], found["days_without_events"]) == (7, 0)

    buckets = min(4096, 4096 * sampled // len(now))
    sample = {user for user in USERS if buckets_of(pa.array([user]))[0] < buckets}
    assert (len(sample) == len(USERS)) == (sampled == len(USERS)) and sample
    mine, theirs = (
        {user: row for user, row in plain(frame, DATE).items() if user in sample} for frame in (now, before)
    )
    cosines = [cosine(mine[user][0], theirs[user][0]) for user in mine if user in theirs]
    assert found["inertia"] == pytest.approx(sum(cosines) / len(cosines))
    assert found["moved_per_day"] == pytest.approx((1 - found["inertia"]) / 7)
    means = [[sum(row[0][place] for row in rows.values()) / len(rows) for place in range(4)] for rows in (mine, theirs)]
    assert found["mean_shift"] == pytest.approx(math.dist(*means), abs=1e-6)
    sampled_seen = [user for user in seen if user in sample]
    without = sum(user not in mine for user in sampled_seen) / len(sampled_seen)
    assert (found["without_lte"], found["missing"]) == (pytest.approx(without), pytest.approx(without))
    assert found["coverage"] == pytest.approx(1 - without)


@hypothesis_settings(max_examples=25)
@given(
    feed=st.lists(events(), min_size=1, max_size=25), with_lte=st.sets(st.sampled_from("uvwx")), day=st.integers(1, 45)
)
def test_coverage_is_that_of_plain_python(tmp_path_factory, feed, with_lte, day):
    date = FIRST_DAY + ONE_DAY * day
    settings = Settings(
        warehouse=str(tmp_path_factory.mktemp("events")), window=Window(lag_days=LAG, window_days=WINDOW)
    )
    table = events_table(feed)
    write(settings, EVENTS, table.select(["user_id", "event_date", "known_date"]))
    window, recent = lte_window(date, LAG, WINDOW), target_window(date, LAG)
    known = [event for event in feed if window.start <= event.event_date < date and event.known_date < date]
    everybody = {event.user_id for event in known}
    of_window = {event.user_id for event in known if event.event_date in window}
    active = {event.user_id for event in known if event.event_date in recent}
    expected = {
        "without_lte": (everybody - with_lte, everybody),
        "missing": (of_window - with_lte, of_window),
        "coverage": (active & with_lte, active),
    }
    shares = {name: len(part) / len(of) for name, (part, of) in expected.items() if of}
    if known:
        shares["days_without_events"] = (date - max(event.event_date for event in known)).days - 1
    found = coverage(read_seen(settings, date, 4096), pa.array(sorted(with_lte), pa.string()), date, LAG)
    assert found == pytest.approx(shares)


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory):
    """One SQLite file for these tests: creating MLflow's tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def recorded(settings, tracking_uri, tmp_path):
    own = {"tracking_uri": tracking_uri, "experiment": tmp_path.name, "model_name": tmp_path.name}
    return settings.model_copy(update={"mlflow": settings.mlflow.model_copy(update=own)})


def kept(settings):
    rows = pl.scan_delta(settings.table_path(LTE_MONITORING.name)).collect()
    return sorted(rows.rows(), key=str)


def test_a_date_that_is_measured_again_leaves_the_same_rows_and_no_others(recorded):
    write_shop(recorded, *earlier(), snapshot())
    monitor(recorded, DATE)
    later, client = kept(recorded), MlflowClient(recorded.mlflow.tracking_uri)
    readings = monitor(recorded, DATE - WEEK)
    both, page = kept(recorded), page_path(recorded).read_bytes()
    assert set(later) < set(both) and len(both) == len(later) + len(readings)
    for date in (DATE, DATE - WEEK):
        monitor(recorded, date)
    assert kept(recorded) == both and page_path(recorded).read_bytes() == page
    (run_of,) = client.search_runs([runs.configure(recorded).experiment_id])
    history = client.get_metric_history(run_of.info.run_id, "uniform/inertia")
    assert sorted(metric.step for metric in history) == [day_number(DATE - WEEK), day_number(DATE)]
    # A figure that can't be computed any more has no row.
    write(recorded, LTE_SNAPSHOTS, snapshot(DATE - WEEK - ONE_DAY * 30, users=USERS[:9]))
    monitor(recorded, DATE - WEEK)
    measures = [{row[3] for row in rows if row[0] == DATE - WEEK} for rows in (both, kept(recorded))]
    assert measures[0] - measures[1] == {"psi_norm", "psi_events", "psi_age"} and measures[1] < measures[0]


def test_the_command_warns_records_and_stops(recorded, monkeypatch, capsys):
    write_shop(recorded, *earlier(), snapshot(), seen=[*USERS[:20], *(f"new{n}" for n in range(100))])
    for key, value in (("TRACKING_URI", recorded.mlflow.tracking_uri), ("EXPERIMENT", recorded.mlflow.experiment)):
        monkeypatch.setenv(f"LTE_MLFLOW__{key}", value)
    arguments = ["monitor_lte", "--date", str(DATE), "--settings", f"{recorded.home}/settings.toml"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        run(monitor_lte.main)
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert f"error: the snapshot of {DATE} must not go live: uniform missing 83.3 %, stops above 10.0 %." in said.err
    assert "WARN uniform coverage 16.7 %, warns below 20.0 %: Many new users" in said.out
    assert "ok   uniform inertia 0.99" in said.out
    assert {row[3] for row in kept(recorded)} == set(MEASURES)
    assert "Stopped." in page_path(recorded).read_text()
    monkeypatch.setenv("LTE_MONITORING__MISSING__STOP_ABOVE", "0.9")
    run(monitor_lte.main)


def test_what_is_compared_with_what(recorded):
    there = {DATE - ONE_DAY * day for day in (1, 5, 8, 29, 40, 70)}

    def compared(date=DATE):
        return [day and (date - day).days for day in dates_to_compare(recorded, date, there)]

    assert compared() == [8, 29]
    there.remove(DATE - ONE_DAY * 8)
    assert compared() == [5, 29]
    assert compared(DATE - ONE_DAY * 70) == [None, None]
    runs.configure(recorded)
    client = MlflowClient(recorded.mlflow.tracking_uri)
    client.create_registered_model(recorded.mlflow.model_name)
    options = recorded.training_set
    trained = next(
        date
        for date in (DATE - ONE_DAY * day for day in range(70))
        if options.dates(date).anchors[-1] == DATE - ONE_DAY * 40
    )
    client.create_model_version(recorded.mlflow.model_name, "nowhere", tags={"training_date": str(trained)})
    assert lineage.model_on(recorded, DATE).training_date == trained
    assert compared() == [5, 40]
    there.remove(DATE - ONE_DAY * 40)
    assert compared() == [5, 29]


def test_what_is_missing_is_named_and_what_is_never_published_is_passed_over(settings, capsys):
    with pytest.raises(LTEError, match=r"table semantic_bases does not exist at .*; run jobs.fit_basis first"):
        measure(settings, DATE)
    write_shop(settings, snapshot())
    missing = DATE + ONE_DAY
    with pytest.raises(LTEError, match=f"holds no uniform LTE of {missing} in basis b; run jobs.snapshot_lte --date"):
        measure(settings, missing)
    model = settings.model.model_copy(update={"representations": ("uniform", "leaking")})
    _, readings = measure(settings.model_copy(update={"model": model}), DATE)
    assert {reading.representation for reading in readings} == {"uniform"}
    assert "leaking is not monitored" in capsys.readouterr().out


@pytest.mark.spark
def test_what_spark_writes_is_read_and_what_is_written_spark_reads(filled, tracking_uri):
    own = {"tracking_uri": tracking_uri, "experiment": "spark", "model_name": "spark"}
    settings = filled.settings.model_copy(update={"mlflow": filled.settings.mlflow.model_copy(update=own)})
    dates = [SMALL_DATE, SMALL_DATE + WEEK]
    accounts = {account.snapshot_date: account.users for account in snapshot_lte(filled, dates)}
    for date in dates:
        found = {reading.measure.name: reading for reading in monitor(settings, date)}
        assert found["users"].value == accounts[date]
        assert found["missing"].value == 0 and 0 < found["coverage"].value <= 1
        assert [found[name].value for name in ("null_rows", "off_grid_rows", "zero_share")] == [0, 0, 0]
    assert 0 < found["inertia"].value < 1 and found["inertia_days"].value == 7
    rows = filled.read(LTE_MONITORING)
    assert rows.count() == len(kept(settings))
    declared = filled.spark.createDataFrame([], LTE_MONITORING.columns).schema
    assert [(one.name, one.dataType) for one in rows.schema] == [(one.name, one.dataType) for one in declared]
    assert [one.nullable for one in DeltaTable(filled.path(LTE_MONITORING)).schema().fields] == [False] * len(declared)
