"""Measures the snapshot of `--date` before it goes live; exits with 2 where a measure is beyond its bound of a stop.

For each basis in force, and each representation of the settings that is published, it

1. reads every row of the snapshot once, a piece of a file at a time: what must not be, ages, lengths;
2. compares some users, those of the first buckets, with other dates: with the snapshot before, which is that of D−7 or
   the nearest to it (inertia); and with the one that the model in use was trained on, or the nearest to D−30 (drift);
3. looks for the same users in the events of [D−L−W, D) known before D (coverage);
4. puts the figures into table `lte_monitoring`, in the place of those of an earlier run of D, and into MLflow, draws
   the page `<reports>/monitoring.html`, names what is beyond a bound, and stops.

A basis beside that of the trainings stands in MLflow and on the page as `uniform in basis …`. What the figures mean is
in lte_model/monitoring/measures.py, and their bounds are `[monitoring]` of the settings. A measure that
has nothing to be compared with is absent. The vectors of `monitoring.sampled_users` users are in memory, of three dates
at most; of a larger snapshot the rest is a sum. Runs without a JVM.
"""

import dataclasses
import datetime
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, write_deltalake

from jobs.engine.calendar import day_number
from jobs.engine.files import Listing, in_days, list_files, overlaps, read_pieces
from jobs.engine.packing import BUCKETS, buckets_of
from jobs.engine.sums import ROWS
from jobs.spark.commits import commit_note
from lte_model import metrics
from lte_model.command_line import JobParser, asked_bases, run
from lte_model.domain.basis import GRID, chosen_basis, to_vector
from lte_model.domain.representations import REPRESENTATIONS, Representation
from lte_model.domain.windows import Interval, lte_window, target_window
from lte_model.errors import LTEError
from lte_model.monitoring import measures
from lte_model.monitoring.measures import Level, Reading
from lte_model.monitoring.page import page_path, record, write_page
from lte_model.settings import Settings
from lte_model.tracking import lineage
from lte_model.warehouse.tables import EVENTS, LTE_MONITORING, LTE_SNAPSHOTS, SEMANTIC_BASES, Table

INERTIA_DAYS = 7
"""Inertia is the cosine of a user's LTE at D and at D−7."""

REFERENCE_DAYS = 30
"""Drift is measured from about so long ago where no model says from when."""

ROWS_AT_ONCE = 2**14

NORM = 2.0**-32
"""What norms are summed up in."""

COLUMNS = ("user_id", "user_bucket", "vector_sum", "event_count", "newest_event_date")
_ROWS = pa.schema([ROWS.field(name) for name in COLUMNS])

FIGURES = pa.schema(
    [
        pa.field("snapshot_date", pa.date32(), nullable=False),
        pa.field("basis_id", pa.string(), nullable=False),
        pa.field("representation", pa.string(), nullable=False),
        pa.field("measure", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""The columns of `lte_monitoring`, which is written without Spark."""


@dataclass(frozen=True)
class Users:
    """Some users of one snapshot: vectors (users, dimensions) float32, the events in each, and the days from its newest
    event to the snapshot date."""

    user_ids: pa.Array
    vectors: np.ndarray
    event_counts: np.ndarray
    ages: np.ndarray

    def __len__(self) -> int:
        return len(self.ages)

    @cached_property
    def norms(self) -> np.ndarray:
        return np.linalg.norm(self.vectors, axis=1)

    def where(self, chosen: np.ndarray) -> "Users":
        return Users(
            self.user_ids.filter(pa.array(chosen)), self.vectors[chosen], self.event_counts[chosen], self.ages[chosen]
        )

    @staticmethod
    def together(parts: Sequence["Users"]) -> "Users":
        """All of them in the order of their ids, so that no mean has other last bits for other files."""
        user_ids = pa.concat_arrays([part.user_ids for part in parts])
        order = pc.sort_indices(user_ids).to_numpy()
        columns = ("vectors", "event_counts", "ages")
        return Users(
            user_ids.take(order), *(np.concatenate([getattr(part, name) for part in parts])[order] for name in columns)
        )


@dataclass(frozen=True)
class Block:
    """Some rows of a snapshot: those that can be read, with the bucket of each, and how many can't be."""

    users: Users
    buckets: np.ndarray
    null_rows: int
    off_grid_rows: int


def read_blocks(
    files: Listing, date: datetime.date, dimensions: int, condition: pc.Expression | None = None
) -> Iterator[Block]:
    """The rows of the snapshot of `date` that match, a few thousand at a time."""
    for part in files.parts(at_least=1):
        for table in read_pieces(part, COLUMNS, condition):
            for batch in table.cast(_ROWS).to_batches(max_chunksize=ROWS_AT_ONCE):
                yield _block(batch, date, dimensions)


def _block(batch: pa.RecordBatch, date: datetime.date, dimensions: int) -> Block:
    valid = np.logical_and.reduce([batch[name].is_valid().to_numpy(zero_copy_only=False) for name in COLUMNS])
    batch = batch.filter(pa.array(valid))
    fits = pc.equal(pc.list_value_length(batch["vector_sum"]), dimensions)
    right = batch.filter(fits)
    holes = right["vector_sum"].flatten().is_null().to_numpy(zero_copy_only=False).reshape(-1, dimensions).any(axis=1)
    right = right.filter(pa.array(~holes))
    units = right["vector_sum"].flatten().to_numpy().reshape(-1, dimensions)  # (users, dimensions) in grid units
    event_counts, newest = right["event_count"].to_numpy(), right["newest_event_date"].cast(pa.int32()).to_numpy()
    largest = event_counts[:, None].astype(np.int64) * GRID
    off_grid = ((units > largest) | (units < -largest)).any(axis=1)
    return Block(
        Users(right["user_id"], to_vector(units, event_counts), event_counts, day_number(date) - newest),
        right["user_bucket"].to_numpy(),
        null_rows=int((~valid).sum() + holes.sum()),
        off_grid_rows=len(batch) - len(fits.filter(fits)) + int(off_grid.sum()),
    )


@dataclass
class Tally:
    """What is counted over all rows of a snapshot. `ages[days]` are the users whose newest event is so old."""

    largest_norm: float
    null_rows: int = 0
    off_grid_rows: int = 0
    long_rows: int = 0
    zero_rows: int = 0
    events: int = 0
    norms: int = 0
    """In units of `NORM`: the same sum in any order."""
    ages: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))

    def add(self, block: Block) -> None:
        users = block.users
        self.null_rows += block.null_rows
        self.off_grid_rows += block.off_grid_rows
        self.long_rows += int((users.norms > self.largest_norm).sum())
        self.zero_rows += int((users.norms == 0).sum())
        self.events += int(users.event_counts.sum(dtype=np.int64))
        self.norms += int(np.rint(users.norms.astype(np.float64) / NORM).astype(np.int64).sum())
        # No event of an LTE is dated on D or later: the gate of the snapshots has seen to it.
        ages = np.bincount(np.maximum(users.ages, 0), minlength=len(self.ages))
        ages[: len(self.ages)] += self.ages
        self.ages = ages

    def figures(self) -> dict[str, float]:
        """The counts, and the means and quantiles over the rows that could be read, if any."""
        counts = {name: getattr(self, name) for name in ("null_rows", "off_grid_rows", "long_rows")}
        read, up_to = int(self.ages.sum()), self.ages.cumsum()
        if not read:
            return counts
        return counts | {
            "zero_share": self.zero_rows / read,
            "events_mean": self.events / read,
            "norm_mean": self.norms * NORM / read,
            "age_mean": int(self.ages @ np.arange(len(self.ages))) / read,
            # The smallest age that this share of the users doesn't exceed.
            "age_p50": int(np.searchsorted(up_to, 0.5 * read)),
            "age_p95": int(np.searchsorted(up_to, 0.95 * read)),
        }


def read_sample(files: Listing, date: datetime.date, dimensions: int, buckets: int) -> Users:
    """The users of the first so many buckets."""
    wanted = pc.field("user_bucket") < buckets
    return Users.together([_nobody(dimensions), *(b.users for b in read_blocks(files, date, dimensions, wanted))])


def read_all(files: Listing, date: datetime.date, dimensions: int, buckets: int, tally: Tally) -> Users:
    """The same users, when every row has been added to the tally."""
    sample = [_nobody(dimensions)]
    for block in read_blocks(files, date, dimensions):
        tally.add(block)
        sample.append(block.users.where(block.buckets < buckets))
    return Users.together(sample)


def _nobody(dimensions: int) -> Users:
    none = np.zeros(0, np.int32)
    return Users(pa.array([], pa.string()), np.zeros((0, dimensions), np.float32), none, none)


def inertia(now: Users, before: Users) -> float:
    """The mean cosine of the LTEs of the users who are in both; NaN where nobody is."""
    place = pc.index_in(before.user_ids, value_set=now.user_ids).fill_null(-1).to_numpy()
    both = place >= 0
    return metrics.mean_cosine(before.vectors[both], now.vectors[place[both]])


def drift(now: Users, reference: Users) -> dict[str, float]:
    """How far the population has moved; nothing where one has nobody."""
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
    """(user_id, oldest, newest): the users of the first so many buckets with events in [D−L−W, D) known before D, and
    the dates of the first and the last of them."""
    days = Interval(lte_window(date, settings.window.lag_days, settings.window.window_days).start, date)
    known = pc.field("known_date") < pa.scalar(date, pa.date32())
    files = list_files(_place(settings, EVENTS)).where(overlaps("event_date", days))
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
    """Of the users with events, the shares with an LTE and without, and the days before `date` that nobody has any of."""
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
    """A basis ("": that of the settings), and the readings of its snapshot of `date`, of each representation that is
    published.

    Raises `LTEError` where a table or a snapshot is missing.
    """
    bases = pl.scan_delta(_place(settings, SEMANTIC_BASES)).select("basis_id", "dimensions").sort("basis_id").collect()
    wanted = basis_id or settings.basis.basis_id
    basis_id = chosen_basis(bases["basis_id"].to_list(), wanted, _place(settings, SEMANTIC_BASES))
    dimensions = bases.filter(basis_id=basis_id)["dimensions"].item()
    listing = list_files(_place(settings, LTE_SNAPSHOTS)).of({"basis_id": basis_id})
    buckets, seen = 0, pl.DataFrame()
    readings = []
    for kind in (REPRESENTATIONS[name] for name in settings.model.representations):
        if not kind.publishable:
            print(f"{kind.name} is not monitored: it is never published")
            continue
        snapshots = _snapshots(listing, kind)
        if date not in snapshots:
            raise LTEError(
                f"table lte_snapshots holds no {kind.name} LTE of {date} in basis {basis_id}; "
                f"run jobs.snapshot_lte --date {date} --representation {kind.name}"
            )
        wanted = min(BUCKETS, max(1, BUCKETS * settings.monitoring.sampled_users // snapshots[date].records))
        if wanted != buckets:
            buckets, seen = wanted, read_seen(settings, date, wanted)
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
    """The measures of one representation that have a value."""
    tally = Tally(kind.largest_norm(dimensions))
    now = read_all(snapshots[date], date, dimensions, buckets, tally)
    values = {"users": snapshots[date].records} | tally.figures()
    values |= coverage(seen, now.user_ids, date, settings.window.lag_days)
    before, reference = dates_to_compare(settings, date, snapshots)
    samples = {day: read_sample(snapshots[day], day, dimensions, buckets) for day in {before, reference} - {None}}
    if before is not None:
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
    """The snapshot before, and the reference of the drift: none of them for the first snapshot.

    The snapshot before is that of D−7, or the nearest to it. The reference is the newest that the model in use was
    trained on; where there is no model, or that snapshot is gone, the nearest to D−30.
    """
    earlier = [there for there in snapshots if there < date]
    if not earlier:
        return None, None

    def nearest(days: int) -> datetime.date:
        return min(earlier, key=lambda there: (abs((date - there).days - days), there))

    model = lineage.model_on(settings, date)
    anchors = settings.training_set.dates(model.training_date).anchors if model else ()
    trained_on = [anchor for anchor in anchors if anchor in earlier]
    return nearest(INERTIA_DAYS), max(trained_on, default=nearest(REFERENCE_DAYS))


def _snapshots(listing: Listing, kind: Representation) -> dict[datetime.date, Listing]:
    """The files of each snapshot of a representation that has a row."""
    of_kind = listing.of({"representation": kind.name}).where(pl.col("num_records") > 0)
    dates = of_kind.files["partition.snapshot_date"].cast(pl.Date).unique().to_list()
    return {date: of_kind.of({"snapshot_date": str(date)}) for date in dates}


def keep(settings: Settings, date: datetime.date, basis_id: str, readings: Sequence[Reading]) -> None:
    """Puts the figures of `date` into `lte_monitoring`, in the place of those that are there."""
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
    # Merged: a table of another release may lack a column, or have one more.
    write_deltalake(path, figures, mode="overwrite", predicate=of_date, schema_mode="merge", commit_properties=noted)


def monitor(settings: Settings, date: datetime.date, bases: Sequence[str] = ("",)) -> list[Reading]:
    """Measures the snapshots of `date`, and puts the figures into the table, the page and MLflow; returns them.

    Raises `LTEError` where a table or a snapshot is missing; a broken bound is the caller's.
    """
    measured = {wanted: measure(settings, date, wanted) for wanted in bases}
    shown: dict[str, str] = {}  # the bases on the page, and what is said of them behind the representation
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
        rows = pl.scan_delta(settings.table_path(LTE_MONITORING.name)).filter(pl.col("basis_id").is_in([*shown]))
        named = pl.col("representation") + pl.col("basis_id").replace_strict(shown, return_dtype=pl.String)
        page = write_page(settings, rows.with_columns(representation=named).collect())
        record(settings, date, readings, page)
    return readings


def require_publishable(settings: Settings, date: datetime.date, readings: Sequence[Reading]) -> None:
    """Raises `LTEError`, with every reading that is beyond its bound of a stop."""
    broken = [f"{reading}. {reading.measure.advice}" for reading in readings if reading.level is Level.STOP]
    if broken:
        raise LTEError(
            f"the snapshot of {date} must not go live: {'; '.join(broken)}. What is live stays. See "
            f"{page_path(settings)}; if it is as it should be, move the bound in [monitoring] of the settings"
        )


def _place(settings: Settings, table: Table) -> str:
    """Where the table lies. Raises `LTEError` where it isn't there yet."""
    path = settings.table_path(table.name)
    if not DeltaTable.is_deltatable(path):
        raise LTEError(f"table {table.name} does not exist at {path}; run {table.written_by} first")
    return path


def main() -> None:
    parser = JobParser(__doc__, "the snapshot date to measure")
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
