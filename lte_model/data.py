"""The training set as a model reads it: Delta rows become a few flat arrays, and those become padded batches.

1. `open_training_set` fixes the versions of the tables, checks that they belong together, and reads the *catalogue*:
   the items with a vector in the basis that were known before the test cut, ordered by item id. An item's row
   number in the catalogue stands for it from here on.
2. `TrainingSet.cases` reads one split: per case (one user at one snapshot date) the sequence, the LTE and the target.
   Events of items outside the catalogue are dropped from a sequence; a case whose *target* is outside it is dropped
   whole and counted, for otherwise another item would pass for its target.
3. `Cases.batch` pads; `epoch_batches` says which cases go together.

Nothing here holds a Python object per event: a million events take four megabytes.
"""

import datetime
import hashlib
from dataclasses import dataclass
from typing import Literal

import deltalake
import numpy as np
import polars as pl
import torch

from lte_model.basis import to_vector
from lte_model.errors import LTEError
from lte_model.model import LTEKind
from lte_model.settings import Settings
from lte_model.windows import TrainingDates, training_dates

Split = Literal["train", "validation", "test"]

WRITTEN_BY = {
    "events": "jobs.ingest_events",
    "items": "jobs.ingest_items",
    "semantic_bases": "jobs.fit_basis",
    "item_embeddings": "jobs.embed_items",
    "training_set": "jobs.build_training_set",
}
"""The tables that are read here and in the evaluation, and what to run where one is missing."""

POOLED_BATCHES = 32
"""So many batches' cases are drawn at random and then sorted by length, which spares padding and keeps chance."""


@dataclass(frozen=True)
class Batch:
    """B cases as tensors: `items` (B, T) int64 oldest first and padded with 0 on the right, `lengths` (B,) int64,
    `lte` (B, dimensions) float32, zero where `has_lte` (B,) bool is false. Named as `Ranker` names its arguments."""

    items: torch.Tensor
    lengths: torch.Tensor
    lte: torch.Tensor
    has_lte: torch.Tensor

    def to(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The arguments of `Ranker.loss` and `Ranker.scores`, on `device`."""
        return {name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()}


@dataclass(frozen=True)
class Catalogue:
    """The items that can be ranked: row i is the item `item_ids[i]`, whose vector is `vectors[i]` (float32)."""

    item_ids: pl.Series
    titles: pl.Series
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def rows(self) -> pl.Enum:
        """The type whose physical value of an item id is the item's row; of any other id, null."""
        return pl.Enum(self.item_ids)

    def titles_of(self, rows: np.ndarray) -> list[str]:
        return self.titles.gather(rows).to_list()


@dataclass(frozen=True)
class Cases:
    """The cases of one split, ordered by snapshot date and user: N users, each at one date.

    Case i reads `items[offsets[i]:offsets[i + 1]]`, oldest first, and `lte[i]` if `has_lte[i]`. `targets[i]` is the
    row of the event to predict, −1 in the training split, where every event of the sequence is one.
    """

    user_ids: pl.Series
    items: np.ndarray
    offsets: np.ndarray
    lte: np.ndarray
    has_lte: np.ndarray
    event_counts: np.ndarray
    targets: np.ndarray
    history_counts: np.ndarray
    dropped_unknown_target: int

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def batch(self, cases: np.ndarray, most_events: int | None = None) -> Batch:
        """The cases of those numbers, in that order, each with its newest `most_events` events (None: all)."""
        ends = self.offsets[cases + 1]
        lengths = ends - self.offsets[cases]
        if most_events is not None:
            lengths = np.minimum(lengths, most_events)
        columns = np.arange(lengths.max(initial=0))
        real = columns < lengths[:, None]  # (B, T)
        items = np.zeros(real.shape, dtype=np.int64)
        items[real] = self.items[((ends - lengths)[:, None] + columns)[real]]
        return Batch(
            items=torch.from_numpy(items),
            lengths=torch.from_numpy(lengths.astype(np.int64)),
            lte=torch.from_numpy(self.lte[cases]),
            has_lte=torch.from_numpy(self.has_lte[cases]),
        )

    def digest(self) -> bytes:
        """A hash of everything that a model learns from these cases."""
        content = hashlib.sha256()
        for array in (self.items, self.offsets, self.lte, self.has_lte, self.targets):
            content.update(np.ascontiguousarray(array))
        return content.digest()


class Tables:
    """The Delta tables of the warehouse, each at the version that it had when it was first looked at."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.versions: dict[str, int] = {}

    def scan(self, table: str) -> pl.LazyFrame:
        """The rows of `table`, unread. Raises `LTEError` where there is no such table."""
        path = self.settings.table_path(table)
        if table not in self.versions:
            if not deltalake.DeltaTable.is_deltatable(path):
                raise LTEError(f"table {table} does not exist at {path}; run {WRITTEN_BY[table]} first")
            self.versions[table] = deltalake.DeltaTable(path).version()
        return pl.scan_delta(path, version=self.versions[table])


@dataclass(frozen=True)
class TrainingSet:
    """The training set of one date, with what its LTEs are and the catalogue that its models rank."""

    tables: Tables
    training_date: datetime.date
    dates: TrainingDates
    kind: LTEKind
    catalogue: Catalogue

    def rows(self, split: Split) -> pl.LazyFrame:
        """The rows of one split, as the table holds them."""
        return _rows(self.tables, self.training_date).filter(pl.col("split") == split)

    def cases(self, split: Split) -> Cases:
        """The cases of `split`. A training case without any event has nothing to predict and is left out.

        Raises `LTEError` where no case is left, and where an LTE doesn't have the basis' dimensions.
        """
        rows = self.catalogue.rows
        frame = (
            self.rows(split)
            .select(
                "user_id",
                "snapshot_date",
                pl.col("item_ids")
                .cast(pl.List(rows), strict=False)
                .list.drop_nulls()
                .list.tail(self.tables.settings.training_set.max_length)
                .alias("items"),
                pl.col("target_item_id").cast(rows, strict=False).to_physical().cast(pl.Int64).alias("target"),
                "vector_sum",
                "event_count",
                "history_count",
            )
            .sort("snapshot_date", "user_id")
            .collect()
        )
        read = len(frame)
        frame = frame.filter(pl.col("items").list.len() > 0 if split == "train" else pl.col("target").is_not_null())
        if frame.is_empty():
            raise LTEError(
                f"training_set of {self.training_date} has no {split} case with an event to predict among the "
                f"{len(self.catalogue)} items of the catalogue ({read} rows read); ingest more days or move the date"
            )
        items = frame["items"].explode(empty_as_null=False).to_physical().to_numpy().astype(np.int32)
        has_lte = frame["vector_sum"].is_not_null().to_numpy()
        dimensions = self.catalogue.vectors.shape[1]
        lte = np.zeros((len(frame), dimensions), dtype=np.float32)
        lte[has_lte] = to_vector(
            _matrix(frame["vector_sum"].drop_nulls(), dimensions, f"training_set of {self.training_date}"),
            frame["event_count"].to_numpy()[has_lte],
        )
        return Cases(
            user_ids=frame["user_id"],
            items=items,
            offsets=np.concatenate(([0], frame["items"].list.len().to_numpy().cumsum(dtype=np.int64))),
            lte=lte,
            has_lte=has_lte,
            event_counts=frame["event_count"].to_numpy(),
            targets=frame["target"].fill_null(-1).to_numpy(),
            history_counts=frame["history_count"].to_numpy(),
            dropped_unknown_target=0 if split == "train" else read - len(frame),
        )


def open_training_set(settings: Settings, training_date: datetime.date) -> TrainingSet:
    """The training set of `training_date`. Raises `LTEError` for a missing table, a date without rows, rows of several
    bases, representations, lags or windows, an unregistered basis, and cuts that are not those of the settings."""
    tables = Tables(settings)
    dates = training_dates(training_date, settings.training_set)
    kind = _kind(tables, training_date)
    _require_cuts(tables, training_date, dates)
    if kind.basis_id not in tables.scan("semantic_bases").select("basis_id").collect()["basis_id"]:
        raise LTEError(
            f"basis {kind.basis_id} of the training_set of {training_date} is not registered in table semantic_bases; "
            "run jobs.fit_basis, then jobs.build_training_set for that date"
        )
    return TrainingSet(tables, training_date, dates, kind, _read_catalogue(tables, kind.basis_id, dates.test.start))


def _rows(tables: Tables, training_date: datetime.date) -> pl.LazyFrame:
    return tables.scan("training_set").filter(pl.col("training_date") == training_date)


def _kind(tables: Tables, training_date: datetime.date) -> LTEKind:
    kinds = (
        _rows(tables, training_date)
        .select("basis_id", "representation", "lag_days", "window_days")
        .unique()
        .sort(pl.all())
        .collect()
        .rows()
    )
    if not kinds:
        raise LTEError(
            f"training_set has no rows of {training_date}; run jobs.build_training_set --date {training_date}"
        )
    if len(kinds) > 1:
        listed = "; ".join(f"{basis} {form}, lag {lag}, window {window}" for basis, form, lag, window in kinds)
        raise LTEError(
            f"training_set of {training_date} mixes LTEs that no one model can read ({listed}); "
            f"run jobs.build_training_set --date {training_date} again"
        )
    return LTEKind(*kinds[0])


def _require_cuts(tables: Tables, training_date: datetime.date, dates: TrainingDates) -> None:
    cuts = {"validation": dates.validation.start, "test": dates.test.start}
    found = _rows(tables, training_date).filter(pl.col("split") != "train").select("split", "snapshot_date").unique()
    for split, cut in sorted(found.collect().rows()):
        if cut != cuts[split]:
            raise LTEError(
                f"training_set of {training_date} was built with the {split} cut {cut}, but the settings say "
                f"{cuts[split]}; run jobs.build_training_set --date {training_date} again"
            )


def _read_catalogue(tables: Tables, basis_id: str, known_before: datetime.date) -> Catalogue:
    frame = (
        tables.scan("item_embeddings")
        .filter(pl.col("basis_id") == basis_id)
        .select("item_id", "vector")
        .join(
            tables.scan("items").filter(pl.col("known_date") < known_before).select("item_id", "title"),
            on="item_id",
        )
        .sort("item_id")
        .collect()
    )
    if frame.is_empty():
        raise LTEError(
            f"item_embeddings of basis {basis_id} holds no item that was known before {known_before}; "
            "run jobs.ingest_items and jobs.embed_items"
        )
    dimensions = len(frame["vector"][0])
    return Catalogue(
        item_ids=frame["item_id"],
        titles=frame.select(pl.coalesce("title", "item_id"))["title"],
        vectors=_matrix(frame["vector"], dimensions, f"item_embeddings of basis {basis_id}").astype(np.float32),
    )


def _matrix(lists: pl.Series, dimensions: int, table: str) -> np.ndarray:
    """A column of lists as a matrix (rows, dimensions)."""
    other = lists.filter(lists.list.len() != dimensions)
    if len(other):
        raise LTEError(
            f"{table} holds a vector of {len(other[0])} dimensions among those of {dimensions}; write the table again"
        )
    return lists.explode(empty_as_null=False).to_numpy().reshape(-1, dimensions)


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The case numbers of each batch of an epoch: every case once, in an order that `seed` and `epoch` decide.

    A batch holds about as many events as `batch_size` cases hold on average, so that every step weighs its targets
    alike: of short sequences it takes more cases, of long ones fewer.
    """
    random = np.random.default_rng((seed, epoch))
    events = max(1, round(batch_size * lengths.mean()))
    order = random.permutation(len(lengths))
    batches = []
    for pool in np.array_split(order, max(1, round(len(order) / (batch_size * POOLED_BATCHES)))):
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batch_of_case = (lengths[pool].cumsum() - 1) // events
        batches += np.split(pool, np.flatnonzero(np.diff(batch_of_case)) + 1)
    return [batches[i] for i in random.permutation(len(batches))]
