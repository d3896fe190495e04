"""Measures the snapshot of `--date` before it goes live; exits with 2 if a measure is beyond its stop bound.

For each basis in force, and each published representation of the settings, the job

1. reads every row of the snapshot once, a piece of a file at a time, and counts invalid rows, ages and norms;
2. compares a sample, the users of the first buckets, with two earlier snapshots: the one nearest to D−7 (inertia), and
   the newest that the model in use was trained on, or else the one nearest to D−30 (drift);
3. looks for the same users in the events of [D−L−W, D) known before D (coverage);
4. replaces the figures of D in table `lte_monitoring`, logs them to MLflow, draws the page
   `<reports>/monitoring.html`, and names each measure beyond a bound.

MLflow and the page show a basis of `basis.beside` as `uniform in basis …`. lte_model/monitoring/measures.py explains
the measures; `[monitoring]` of the settings sets their bounds. A measure without a snapshot to compare with is absent.
Memory holds the vectors of `monitoring.sampled_users` users for at most three dates; the other rows are only summed up.
The job needs no JVM.
"""

import dataclasses
import datetime
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, write_deltalake

from jobs.engine.files import Listing, in_days, list_files, overlaps, read_pieces
from jobs.engine.packing import BUCKETS, buckets_of
from jobs.engine.snapshots import Tally, UserVectors, read_all, read_sample, snapshots_of
from jobs.spark.commits import commit_note
from lte_model import metrics
from lte_model.command_line import CommandParser, asked_bases, run
from lte_model.domain.basis import chosen_basis
from lte_model.domain.representations import REPRESENTATIONS, Representation
from lte_model.domain.windows import INERTIA_DAYS, Interval, lte_window, target_window
from lte_model.errors import LTEError
from lte_model.monitoring import measures
from lte_model.monitoring.measures import Level, Reading
from lte_model.monitoring.page import page_path, record, write_page
from lte_model.settings import Settings
from lte_model.tracking import lineage
from lte_model.warehouse.reading import place_of, scan
from lte_model.warehouse.tables import EVENTS, LTE_MONITORING, LTE_SNAPSHOTS, SEMANTIC_BASES

REFERENCE_DAYS = 30
"""How far back the reference of the drift lies if no model has a training date."""

FIGURES = pa.schema(
    [
        pa.field("snapshot_date", pa.date32(), nullable=False),
        pa.field("basis_id", pa.string(), nullable=False),
        pa.field("representation", pa.string(), nullable=False),
        pa.field("measure", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""The schema of `lte_monitoring`, which is written without Spark."""


def inertia(now: UserVectors, before: UserVectors) -> float:
    """The mean cosine of the LTEs of the users in both samples; NaN if there are none."""
    place = pc.index_in(before.user_ids, value_set=now.user_ids).fill_null(-1).to_numpy()
    both = place >= 0
    return metrics.mean_cosine(before.vectors[both], now.vectors[place[both]])


def drift(now: UserVectors, reference: UserVectors) -> dict[str, float]:
    """How far the population has moved; empty if a sample has no users."""
    if not (len(now) and len(reference)):
        return {}
    means = [users.vectors.mean(axis=0, dtype=np.float64) for users in (now, reference)]
    return {
        "mean_shift": float(np.linalg.norm(means[0] - means[1])),
        "psi_norm": measures.population_stability(reference.norms, now.norms),
        "psi_events": measures.population_stability(reference.event_counts, now.event_counts),
        "psi_age": measures.population_stability(reference.ages, now.ages),
    }


def read_seen(settings: Settings, date: datetime.date, buckets: int) -> pl.DataFrame:
    """(user_id, oldest, newest): the dates of a user's first and last event in [D−L−W, D) known before D.

    Only users of the first `buckets` buckets are read.
    """
    days = Interval(lte_window(date, settings.window.lag_days, settings.window.window_days).start, date)
    known = pc.field("known_date") < pa.scalar(date, pa.date32())
    files = list_files(place_of(settings, EVENTS.name)).where(overlaps("event_date", days))
    seen = pl.DataFrame(schema={"user_id": pl.String, "oldest": pl.Date, "newest": pl.Date})
    for part in files.parts(at_least=1):
        for table in read_pieces(part, ("user_id", "event_date"), in_days("event_date", days) & known):
            day = pl.col("event_date")
            found = pl.DataFrame(table).group_by("user_id").agg(oldest=day.min(), newest=day.max())
            if buckets < BUCKETS:
                found = found.filter(buckets_of(found["user_id"].to_arrow()) < buckets)
            seen = pl.concat([seen, found]).group_by("user_id").agg(pl.col("oldest").min(), pl.col("newest").max())
    return seen


def coverage(seen: pl.DataFrame, user_ids: pa.Array, date: datetime.date, lag_days: int) -> dict[str, float]:
    """The shares of users with events who have or lack an LTE, and the days without events before `date`."""
    if seen.is_empty():
        return {}
    recent = target_window(date, lag_days)
    has_lte = pl.col("user_id").is_in(pl.Series(user_ids).implode())
    figures = seen.select(
        without_lte=1 - has_lte.mean(),
        missing=1 - has_lte.filter(pl.col("oldest") < recent.start).mean(),
        coverage=has_lte.filter(pl.col("newest") >= recent.start).mean(),
        days_without_events=(pl.lit(date) - pl.col("newest").max()).dt.total_days() - 1,
    )
    return {name: value for name, value in figures.row(0, named=True).items() if value is not None}


def measure(settings: Settings, date: datetime.date, basis_id: str = "") -> tuple[str, list[Reading]]:
    """The basis id ("": that of the settings), and the readings of each published representation's snapshot of `date`.

    Raises `LTEError` if a table or a snapshot is missing.
    """
    bases = scan(settings, SEMANTIC_BASES.name).select("basis_id", "dimensions").sort("basis_id").collect()
    wanted = basis_id or settings.basis.basis_id
    basis_id = chosen_basis(bases["basis_id"].to_list(), wanted, settings.table_path(SEMANTIC_BASES.name))
    dimensions = bases.filter(basis_id=basis_id)["dimensions"].item()
    listing = list_files(place_of(settings, LTE_SNAPSHOTS.name)).of({"basis_id": basis_id})
    buckets, seen = 0, pl.DataFrame()
    readings = []
    for kind in (REPRESENTATIONS[name] for name in settings.model.representations):
        if not kind.publishable:
            print(f"{kind.name} is not monitored: it is never published")
            continue
        snapshots = snapshots_of(listing, kind)
        if date not in snapshots:
            raise LTEError(
                f"table lte_snapshots holds no {kind.name} LTE of {date} in basis {basis_id}; "
                f"run jobs.snapshot_lte --date {date} --representation {kind.name}"
            )
        sampled = min(BUCKETS, max(1, BUCKETS * settings.monitoring.sampled_users // snapshots[date].records))
        if sampled != buckets:
            buckets, seen = sampled, read_seen(settings, date, sampled)
        values = _figures(settings, date, kind, snapshots, dimensions, buckets, seen)
        readings += measures.judged(settings, kind.name, values)
    return basis_id, readings


def _figures(
    settings: Settings,
    date: datetime.date,
    kind: Representation,
    snapshots: Mapping[datetime.date, Listing],
    dimensions: int,
    buckets: int,
    seen: pl.DataFrame,
) -> dict[str, float]:
    """One representation's measures, without those that have no value."""
    tally = Tally(kind.largest_norm(dimensions))
    now = read_all(snapshots[date], date, dimensions, buckets, tally)
    values = {"users": snapshots[date].records} | tally.figures()
    values |= coverage(seen, now.user_ids, date, settings.window.lag_days)
    before, reference = dates_to_compare(settings, date, snapshots)
    samples = {day: read_sample(snapshots[day], day, dimensions, buckets) for day in {before, reference} if day}
    if before and reference:
        days = (date - before).days
        found = inertia(now, samples[before])
        values |= {
            "users_change": snapshots[date].records / snapshots[before].records - 1,
            "inertia": found,
            "moved_per_day": (1 - found) / days,
            "inertia_days": days,
        }
        values |= drift(now, samples[reference]) | {"reference_days": (date - reference).days}
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def dates_to_compare(
    settings: Settings, date: datetime.date, snapshots: Collection[datetime.date]
) -> tuple[datetime.date, datetime.date] | tuple[None, None]:
    """The dates that inertia and drift compare with; (None, None) for the first snapshot.

    Inertia takes the snapshot nearest to D−7. Drift takes the newest that the model in use was trained on; without a
    model, or if its snapshots are gone, the one nearest to D−30.
    """
    earlier = [there for there in snapshots if there < date]
    if not earlier:
        return None, None

    def nearest(days: int) -> datetime.date:
        return min(earlier, key=lambda there: (abs((date - there).days - days), there))

    model = lineage.model_on(settings, date)
    anchors = settings.training_set.dates(model.training_date).anchors if model and model.training_date else ()
    trained_on = [anchor for anchor in anchors if anchor in earlier]
    return nearest(INERTIA_DAYS), max(trained_on, default=nearest(REFERENCE_DAYS))


def keep(settings: Settings, date: datetime.date, basis_id: str, readings: Sequence[Reading]) -> None:
    """Replaces the figures of `date` in `lte_monitoring`."""
    rows = [
        {
            "snapshot_date": date,
            "basis_id": basis_id,
            "representation": reading.representation,
            "measure": reading.measure.name,
            "value": reading.value,
        }
        for reading in readings
    ]
    path = settings.table_path(LTE_MONITORING.name)
    noted = CommitProperties(custom_metadata={"userMetadata": commit_note("monitor_lte", date)})
    DeltaTable.create(path, FIGURES, mode="ignore", commit_properties=noted)
    of_date = f"basis_id = '{basis_id}' AND snapshot_date = '{date}'"
    figures = pa.Table.from_pylist(rows, FIGURES)
    # Merge the schemas: a table of another release may lack a column, or have one more.
    write_deltalake(path, figures, mode="overwrite", predicate=of_date, schema_mode="merge", commit_properties=noted)


def monitor(settings: Settings, date: datetime.date, bases: Sequence[str] = ("",)) -> list[Reading]:
    """Measures the snapshots of `date`, and writes the readings to the table, the page and MLflow; returns them.

    Raises `LTEError` if a table or a snapshot is missing. The caller handles broken bounds.
    """
    measured = {wanted: measure(settings, date, wanted) for wanted in bases}
    shown: dict[str, str] = {}  # basis id → what the page appends to the representation's name
    readings = []
    for wanted, (basis_id, of_basis) in measured.items():
        shown[basis_id] = "" if wanted in ("", settings.basis.basis_id) else f" in basis {basis_id}"
        readings += [
            dataclasses.replace(reading, representation=f"{reading.representation}{shown[basis_id]}")
            for reading in of_basis
        ]
        if of_basis:
            keep(settings, date, basis_id, of_basis)
    if readings:
        if settings.basis.basis_id:
            shown.setdefault(settings.basis.basis_id, "")
        rows = scan(settings, LTE_MONITORING.name).filter(pl.col("basis_id").is_in([*shown]))
        named = pl.col("representation") + pl.col("basis_id").replace_strict(shown, return_dtype=pl.String)
        page = write_page(settings, rows.with_columns(representation=named).collect())
        record(settings, date, readings, page)
    return readings


def require_publishable(settings: Settings, date: datetime.date, readings: Sequence[Reading]) -> None:
    """Raises `LTEError` that lists every reading beyond its stop bound."""
    broken = [f"{reading}. {reading.measure.advice}" for reading in readings if reading.level is Level.STOP]
    if broken:
        raise LTEError(
            f"the snapshot of {date} must not go live: {'; '.join(broken)}. What is live stays. See "
            f"{page_path(settings)}; if it is as it should be, move the bound in [monitoring] of the settings"
        )


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__, "the snapshot date to measure")
    parser.add_bases("measure LTEs of this basis")
    arguments, settings, date = parser.read()
    readings = monitor(settings, date, asked_bases(arguments, settings))
    for reading in readings:
        warned = reading.level is Level.WARN
        print(f"WARN {reading}: {reading.measure.advice}" if warned else f"{reading.level.value:<4} {reading}")
    print(f"page: {page_path(settings)}")
    require_publishable(settings, date, readings)


if __name__ == "__main__":
    run(main)
