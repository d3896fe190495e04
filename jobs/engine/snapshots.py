"""Reads snapshots without Spark: the LTEs of a sample of users, and a tally of all rows.

Rows are read a few thousand at a time. Invalid rows are counted: with a null, with other dimensions than the basis, or
with a vector off the grid.
"""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from jobs.engine.calendar import day_number
from jobs.engine.files import Listing, read_pieces
from jobs.engine.sums import ROWS
from lte_model.domain.basis import GRID, to_vector
from lte_model.domain.representations import Representation

ROWS_AT_ONCE = 2**14

NORM = 2.0**-32
"""The unit in which norms are summed."""

ROW_COLUMNS = ("user_id", "user_bucket", "vector_sum", "event_count", "newest_event_date")
_ROWS = pa.schema([ROWS.field(name) for name in ROW_COLUMNS])


def snapshots_of(listing: Listing, kind: Representation) -> dict[datetime.date, Listing]:
    """A representation's snapshots that have a row: date → files."""
    of_kind = listing.of({"representation": kind.name}).where(pl.col("num_records") > 0)
    dates = of_kind.files["partition.snapshot_date"].cast(pl.Date).unique().to_list()
    return {date: of_kind.of({"snapshot_date": str(date)}) for date in dates}


@dataclass(frozen=True)
class UserVectors:
    """Some users of one snapshot.

    `vectors` (users, dimensions) float32 are their LTEs, `event_counts` (users,) the numbers of events in them, and
    `ages` (users,) the days from the newest event to the snapshot date.
    """

    user_ids: pa.Array
    vectors: np.ndarray
    event_counts: np.ndarray
    ages: np.ndarray

    def __len__(self) -> int:
        return len(self.ages)

    @cached_property
    def norms(self) -> np.ndarray:
        """The norm of each vector (users,)."""
        return np.linalg.norm(self.vectors, axis=1)

    def where(self, chosen: np.ndarray) -> "UserVectors":
        """The users selected by `chosen` (users,) bool."""
        return UserVectors(
            self.user_ids.filter(pa.array(chosen)), self.vectors[chosen], self.event_counts[chosen], self.ages[chosen]
        )

    @staticmethod
    def together(parts: Sequence["UserVectors"]) -> "UserVectors":
        """All parts, ordered by id, so that means have the same bits however rows are split into files."""
        user_ids = pa.concat_arrays([part.user_ids for part in parts])
        order = pc.sort_indices(user_ids).to_numpy()
        columns = ("vectors", "event_counts", "ages")
        return UserVectors(
            user_ids.take(order), *(np.concatenate([getattr(part, name) for part in parts])[order] for name in columns)
        )


@dataclass(frozen=True)
class SnapshotRows:
    """Some rows of a snapshot: users with readable rows, their buckets, and counts of invalid rows."""

    users: UserVectors
    buckets: np.ndarray
    null_rows: int
    off_grid_rows: int


def read_rows(
    files: Listing, date: datetime.date, dimensions: int, condition: pc.Expression | None = None
) -> Iterator[SnapshotRows]:
    """The rows of the snapshot of `date` that match, a few thousand at a time."""
    for part in files.parts(at_least=1):
        for table in read_pieces(part, ROW_COLUMNS, condition):
            for batch in table.cast(_ROWS).to_batches(max_chunksize=ROWS_AT_ONCE):
                yield _rows(batch, date, dimensions)


def _rows(batch: pa.RecordBatch, date: datetime.date, dimensions: int) -> SnapshotRows:
    valid = np.logical_and.reduce([batch[name].is_valid().to_numpy(zero_copy_only=False) for name in ROW_COLUMNS])
    batch = batch.filter(pa.array(valid))
    fits = pc.equal(pc.list_value_length(batch["vector_sum"]), dimensions)
    right = batch.filter(fits)
    holes = right["vector_sum"].flatten().is_null().to_numpy(zero_copy_only=False).reshape(-1, dimensions).any(axis=1)
    right = right.filter(pa.array(~holes))
    units = right["vector_sum"].flatten().to_numpy().reshape(-1, dimensions)  # (users, dimensions) in grid units
    event_counts, newest = right["event_count"].to_numpy(), right["newest_event_date"].cast(pa.int32()).to_numpy()
    largest = event_counts[:, None].astype(np.int64) * GRID
    off_grid = ((units > largest) | (units < -largest)).any(axis=1)
    return SnapshotRows(
        UserVectors(right["user_id"], to_vector(units, event_counts), event_counts, day_number(date) - newest),
        right["user_bucket"].to_numpy(),
        null_rows=int((~valid).sum() + holes.sum()),
        off_grid_rows=len(batch) - len(fits.filter(fits)) + int(off_grid.sum()),
    )


@dataclass
class Tally:
    """Counts over all rows of a snapshot. `ages[days]` is the number of users with a newest event so old."""

    largest_norm: float
    null_rows: int = 0
    off_grid_rows: int = 0
    long_rows: int = 0
    zero_rows: int = 0
    events: int = 0
    norms: int = 0
    """In units of `NORM`, so that the sum doesn't depend on the order of rows."""
    ages: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))

    def add(self, rows: SnapshotRows) -> None:
        """Adds these rows to the counts."""
        users = rows.users
        self.null_rows += rows.null_rows
        self.off_grid_rows += rows.off_grid_rows
        self.long_rows += int((users.norms > self.largest_norm).sum())
        self.zero_rows += int((users.norms == 0).sum())
        self.events += int(users.event_counts.sum(dtype=np.int64))
        self.norms += int(np.rint(users.norms.astype(np.float64) / NORM).astype(np.int64).sum())
        # No event of an LTE is dated on D or later: the gate of lte_snapshots checks that.
        ages = np.bincount(np.maximum(users.ages, 0), minlength=len(self.ages))
        ages[: len(self.ages)] += self.ages
        self.ages = ages

    def figures(self) -> dict[str, float]:
        """The counts, and the means and quantiles over readable rows, if any."""
        counts = {name: getattr(self, name) for name in ("null_rows", "off_grid_rows", "long_rows")}
        read, up_to = int(self.ages.sum()), self.ages.cumsum()
        if not read:
            return counts
        return counts | {
            "zero_share": self.zero_rows / read,
            "events_mean": self.events / read,
            "norm_mean": self.norms * NORM / read,
            "age_mean": int(self.ages @ np.arange(len(self.ages))) / read,
            # Quantile: the smallest age that this share of users doesn't exceed.
            "age_p50": int(np.searchsorted(up_to, 0.5 * read)),
            "age_p95": int(np.searchsorted(up_to, 0.95 * read)),
        }


def read_sample(files: Listing, date: datetime.date, dimensions: int, buckets: int) -> UserVectors:
    """The users of the first `buckets` buckets."""
    wanted = pc.field("user_bucket") < buckets
    return UserVectors.together(
        [_nobody(dimensions), *(rows.users for rows in read_rows(files, date, dimensions, wanted))]
    )


def read_all(files: Listing, date: datetime.date, dimensions: int, buckets: int, tally: Tally) -> UserVectors:
    """Adds every row to the tally; returns the users of the first `buckets` buckets."""
    sample = [_nobody(dimensions)]
    for rows in read_rows(files, date, dimensions):
        tally.add(rows)
        sample.append(rows.users.where(rows.buckets < buckets))
    return UserVectors.together(sample)


def _nobody(dimensions: int) -> UserVectors:
    none = np.zeros(0, np.int32)
    return UserVectors(pa.array([], pa.string()), np.zeros((0, dimensions), np.float32), none, none)
