"""The training set as a model reads it: Delta rows become a few flat arrays, and those become padded batches.

1. `open_training_set` fixes the versions of the tables, checks that they belong together, and reads the *catalogue*:
   the items with a vector in the basis that were known before the test cut, ordered by item id. An item's row
   number in the catalogue stands for it from here on.
2. `TrainingSet.cases` reads one split: per case (one user at one snapshot date D) the sequence, the LTEs of D, which
   it takes from `lte_snapshots`, and the target. Events of items outside the catalogue are dropped from a sequence; a
   case whose *target* is outside it is dropped whole and counted, for otherwise another item would pass for its target.
3. The policy says what a sequence is: `lagged` leaves the events of [D−L, D) alone, `newest` all that the row holds.
   In training the events of [D−L, D) are the targets under both; what comes before is read and never predicted.
4. A target is predicted from the events before it, or, as `training.predict_from` has it, from those of the days before
   its own alone: at a date D no item of a basket is known when the others are asked for.
5. `Cases.windows` cuts what is longer than a model reads, so that each target is trained on once; `Cases.batch` and
   `Cases.training_batch` pad; `epoch_batches` says which cases go together.

Nothing here holds a Python object per event: a million events take thirteen megabytes.
"""

import dataclasses
import datetime
import hashlib
from dataclasses import dataclass
from typing import Literal

import deltalake
import numpy as np
import polars as pl
import torch

from lte_model.basis import chosen_basis, to_vector
from lte_model.errors import LTEError
from lte_model.model import Batch, LTEKind
from lte_model.popularity import popularity_matrix
from lte_model.representations import REPRESENTATIONS
from lte_model.settings import Settings
from lte_model.users import Users, gaps_to_next
from lte_model.windows import TrainingDates, training_dates

Split = Literal["train", "refit", "validation", "test"]

WRITTEN_BY = {
    "events": "jobs.ingest_events",
    "items": "jobs.ingest_items",
    "semantic_bases": "jobs.fit_basis",
    "item_embeddings": "jobs.embed_items",
    "item_popularity": "jobs.count_popularity",
    "lte_snapshots": "jobs.snapshot_lte",
    "training_set": "jobs.build_training_set",
}
"""The tables that are read here and in the evaluation, and what to run where one is missing."""

POOLED_BATCHES = 32
"""So many batches' cases are drawn at random and then sorted by length, which spares padding and keeps chance."""


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
class Cases(Users):
    """The cases of one split, ordered by snapshot date and user: N users, each at one date D.

    Of the events of case i the newest `target_counts[i]` are dated in [D−L, D); its LTEs are averages of
    `event_counts[i]` events. `dates[i]` is the row of `popularity` (dates, counts, items), None where the settings want
    none. `targets[i]` is the row of the event to predict, −1 in the training split, where the `target_counts[i]` newest
    events are predicted. What predicts event e of a case are those before the place `inputs_end[e]`.
    """

    user_ids: pl.Series
    inputs_end: np.ndarray
    target_counts: np.ndarray
    event_counts: np.ndarray
    dates: np.ndarray
    popularity: np.ndarray | None
    targets: np.ndarray
    history_counts: np.ndarray
    seen: np.ndarray
    dropped_unknown_target: int

    def sequence(self, case: int) -> np.ndarray:
        """The rows of all events of one case, oldest first."""
        return self.items[self.starts[case] : self.ends[case]]

    @property
    def input_lengths(self) -> np.ndarray:
        """How many events predict the newest target of each training case."""
        return self.inputs_end[self.ends - 1] - self.starts

    def windows(self, max_events: int, last_only: bool = False) -> "Cases":
        """Training cases of which none has a target that a model of `max_events` can't reach.

        A sequence whose inputs are more than `max_events` is cut from its end into windows; each predicts what has an
        input within its reach, so that every target is predicted once, after at least one event that came before it.
        `last_only` keeps the newest target of each case alone.
        """
        numbers, ends, targets = [], [], []
        number = np.arange(len(self))
        end, left = self.ends.copy(), np.minimum(self.target_counts, 1) if last_only else self.target_counts.copy()
        while len(number):
            oldest = self.inputs_end[end - 1] - max_events
            reached = np.searchsorted(self.inputs_end, oldest, side="right")
            first = np.where(oldest <= self.starts[number], end - left, reached)
            taken = np.minimum(left, end - first)
            numbers.append(number)
            ends.append(end)
            targets.append(taken)
            more = left > taken
            number, end, left = number[more], (end - taken)[more], (left - taken)[more]
        number = np.concatenate(numbers)
        order = np.argsort(number, kind="stable")
        return dataclasses.replace(
            self.taken(number[order]),
            ends=np.concatenate(ends)[order],
            target_counts=np.concatenate(targets)[order],
        )

    def taken(self, numbers: np.ndarray) -> "Cases":
        """The cases of those numbers, over the same events."""
        per_case = (
            "starts", "ends", "target_counts", "lte", "has_lte", "event_counts", "dates", "targets", "history_counts",
        )  # fmt: skip
        return dataclasses.replace(
            self,
            user_ids=self.user_ids.gather(numbers),
            **{name: getattr(self, name)[numbers] for name in per_case},
        )

    def batch_before(self, ends: np.ndarray, numbers: np.ndarray, most_events: int | None, older_events: int) -> Batch:
        """As that of `Users`, with the dates."""
        batch = super().batch_before(ends, numbers, most_events, older_events)
        return dataclasses.replace(batch, dates=torch.from_numpy(self.dates[numbers]))

    def training_batch(self, numbers: np.ndarray, most_events: int, older_events: int = 0) -> Batch:
        """Of cases that `windows` cut: what predicts their newest targets, and all targets."""
        ends, counts = self.ends[numbers], self.target_counts[numbers]
        input_ends = self.inputs_end[ends - 1]
        batch = self.batch_before(input_ends, numbers, most_events, older_events)
        users = np.repeat(np.arange(len(numbers)), counts)
        events = np.arange(len(users)) + np.repeat(ends - counts.cumsum(), counts)
        oldest = input_ends - batch.lengths.numpy()
        return dataclasses.replace(
            batch,
            targets=torch.from_numpy(self.items[events].astype(np.int64)),
            target_users=torch.from_numpy(users),
            target_places=torch.from_numpy(self.inputs_end[events] - oldest[users]),
        )

    def popularity_on(self, device: torch.device) -> torch.Tensor | None:
        """What `Ranker.loss` and `Ranker.scores` take beside a batch of these cases."""
        return None if self.popularity is None else torch.from_numpy(self.popularity).to(device)

    def digest(self) -> bytes:
        """A hash of everything that a model learns from these cases."""
        content = hashlib.sha256()
        for array in (
            self.items, self.inputs_end, self.gaps, self.starts, self.ends, self.target_counts, self.lte, self.has_lte,
            self.dates, self.targets, self.seen,
        ):  # fmt: skip
            content.update(np.ascontiguousarray(array))
        if self.popularity is not None:
            content.update(np.ascontiguousarray(self.popularity))
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

    def in_basis(self, basis_id: str) -> "TrainingSet":
        """The same users and events, with the catalogue and the LTEs of the basis `basis_id`."""
        if basis_id == self.kind.basis_id:
            return self
        return dataclasses.replace(
            self,
            kind=dataclasses.replace(self.kind, basis_id=basis_id),
            catalogue=read_catalogue(self.tables, basis_id, self.dates.test.start),
        )

    def rows(self, *splits: Split) -> pl.LazyFrame:
        """The rows of these splits, as the table holds them."""
        return _rows(self.tables, self.training_date).filter(pl.col("split").is_in(splits))

    def cases(self, *splits: Split) -> Cases:
        """The cases of `splits`, by the policy `model.sequence`: of one, or of `train` and `refit` together.

        A training case without a target is left out.

        Raises `LTEError` where no case is left, where a snapshot that the cases need isn't there or is of another lag
        or window, and where an LTE doesn't have the basis' dimensions.
        """
        settings, rows = self.tables.settings, self.catalogue.rows
        trains = splits[0] in ("train", "refit")
        frame = (
            self.rows(*splits)
            .select(
                "user_id",
                "snapshot_date",
                "item_ids",
                "event_times",
                pl.col("target_count").cast(pl.Int64),
                pl.col("target_item_id").cast(rows, strict=False).to_physical().cast(pl.Int64).alias("target"),
                "history_count",
            )
            .sort("snapshot_date", "user_id")
            .collect()
        )
        read = len(frame)
        # Flat arrays of all events; `case` is the row of the frame that an event belongs to.
        events = frame.select(
            item=pl.col("item_ids").explode(empty_as_null=False).cast(rows, strict=False).to_physical(),
            minute=(pl.col("event_times").explode(empty_as_null=False).dt.epoch("s") // 60).cast(pl.Int32),
        )
        lengths = frame["item_ids"].list.len().to_numpy().astype(np.int64)
        target_counts = frame["target_count"].to_numpy()
        case = np.repeat(np.arange(read), lengths)
        from_the_end = np.repeat(lengths.cumsum(), lengths) - np.arange(len(case))  # 1 is the newest
        after_lag = from_the_end <= target_counts[case]
        kept = events["item"].is_not_null().to_numpy()
        target_counts = np.bincount(case[kept & after_lag], minlength=read)
        wanted = target_counts > 0 if trains else frame["target"].is_not_null().to_numpy()
        if not wanted.any():
            raise LTEError(
                f"training_set of {self.training_date} has no {splits[0]} case with an event to predict among the "
                f"{len(self.catalogue)} items of the catalogue ({read} rows read); ingest more days or move the date"
            )
        kept &= wanted[case]
        seen = np.bincount(events["item"].to_numpy()[kept].astype(np.int64), minlength=len(self.catalogue)) > 0
        needed = frame["snapshot_date"].gather(np.unique(case[kept & ~after_lag])).unique().sort().to_list()
        if settings.model.sequence == "lagged":
            kept &= after_lag
        ends = np.bincount(case[kept], minlength=read).cumsum()[wanted]
        frame, target_counts = frame.filter(wanted), target_counts[wanted]
        lengths = np.bincount(case[kept], minlength=read)[wanted]
        minutes = events["minute"].to_numpy()[kept]
        by_day = settings.training.predict_from == "earlier_days"
        dates = frame["snapshot_date"].unique().sort()
        popularity = self.popularity(dates.to_list()) if settings.model.popularity_bias else None
        lte, event_counts = self.ltes(frame.select("snapshot_date", "user_id"), needed)
        return Cases(
            user_ids=frame["user_id"],
            items=events["item"].to_numpy()[kept].astype(np.int32),
            inputs_end=first_places(case[kept], minutes // (24 * 60)) if by_day else np.arange(len(minutes)),
            gaps=gaps_to_next(minutes, ends, lengths, frame["snapshot_date"].to_physical().to_numpy() * 24 * 60),
            starts=ends - lengths,
            ends=ends,
            target_counts=target_counts,
            lte=lte,
            has_lte=event_counts > 0,
            event_counts=event_counts,
            dates=dates.search_sorted(frame["snapshot_date"]).to_numpy().astype(np.int64),
            popularity=popularity,
            targets=frame["target"].fill_null(-1).to_numpy(),
            history_counts=frame["history_count"].to_numpy(),
            seen=seen,
            dropped_unknown_target=0 if trains else read - len(frame),
        )

    def popularity(self, dates: list[datetime.date]) -> np.ndarray:
        """What sold before each of `dates`: (dates, counts, items), as popularity.py has it."""
        return popularity_matrix(self.tables.scan("item_popularity"), self.catalogue.rows, dates, self.training_date)

    def ltes(self, cases: pl.DataFrame, needed: list[datetime.date]) -> tuple[np.ndarray, np.ndarray]:
        """The LTEs (N, representations, dimensions) of `cases` (snapshot_date, user_id) and the events in each.

        `needed` are the dates of which some case has an event before D−L: a snapshot of them can't be empty.
        """
        representations, dimensions = self.kind.representations, self.catalogue.vectors.shape[1]
        lte = np.zeros((len(cases), len(representations), dimensions), dtype=np.float32)
        event_counts = np.zeros(lte.shape[:2], dtype=np.int64)
        for number, representation in enumerate(representations):
            snapshots = self._snapshots(representation, cases["snapshot_date"].unique().to_list(), needed)
            found = cases.lazy().join(
                snapshots.select("snapshot_date", "user_id", "vector_sum", "event_count"),
                on=["snapshot_date", "user_id"],
                how="left",
                maintain_order="left",
            )
            found = found.select("vector_sum", pl.col("event_count").fill_null(0)).collect()
            has_lte = found["event_count"].to_numpy() > 0
            event_counts[:, number] = found["event_count"].to_numpy()
            vectors = found["vector_sum"].filter(pl.Series(has_lte))
            lte[has_lte, number] = to_vector(
                _matrix(vectors, dimensions, f"lte_snapshots, representation {representation},"),
                event_counts[has_lte, number],
            )
        return lte, event_counts

    def _snapshots(self, representation: str, dates: list[datetime.date], needed: list[datetime.date]) -> pl.LazyFrame:
        """The snapshots of `dates`. Raises `LTEError` where one of `needed` is missing, and for another lag or window:
        a lag of 0 is that of `leaking`, and of it alone."""
        snapshots = self.tables.scan("lte_snapshots").filter(
            pl.col("basis_id") == self.kind.basis_id,
            pl.col("representation") == representation,
            pl.col("snapshot_date").is_in(dates),
        )
        found = snapshots.select("snapshot_date", "lag_days", "window_days").unique().sort(pl.all()).collect()
        again = (
            f"run python -m jobs.snapshot_lte --date {self.training_date} --anchors --representation {representation} "
            f"--basis {self.kind.basis_id}"
        )
        missing = [str(date) for date in needed if date not in found["snapshot_date"]]
        if missing:
            raise LTEError(
                f"lte_snapshots holds no LTE of {', '.join(missing)} in basis {self.kind.basis_id}, representation "
                f"{representation}; {again}"
            )
        wanted_lag = REPRESENTATIONS[representation].lag_days(self.kind.lag_days)
        for date, lag_days, window_days in found.rows():
            if (lag_days, window_days) != (wanted_lag, self.kind.window_days):
                raise LTEError(
                    f"the {representation} LTE of {date} in lte_snapshots has lag {lag_days} and window {window_days}, "
                    f"where the training_set of {self.training_date} asks for {wanted_lag} and "
                    f"{self.kind.window_days}; {again}, then "
                    f"python -m jobs.build_training_set --date {self.training_date}"
                )
        return snapshots


def open_training_set(settings: Settings, training_date: datetime.date) -> TrainingSet:
    """The training set of `training_date`. Raises `LTEError` for a missing table, a date without rows, rows of several
    bases, lags or windows, an unregistered basis, and cuts that are not those of the settings."""
    tables = Tables(settings)
    dates = training_dates(training_date, settings.training_set)
    kind = _kind(tables, training_date)
    _require_cuts(tables, training_date, dates)
    if kind.basis_id not in tables.scan("semantic_bases").select("basis_id").collect()["basis_id"]:
        raise LTEError(
            f"basis {kind.basis_id} of the training_set of {training_date} is not registered in table semantic_bases; "
            "run jobs.fit_basis, then jobs.build_training_set for that date"
        )
    return TrainingSet(tables, training_date, dates, kind, read_catalogue(tables, kind.basis_id, dates.test.start))


def _rows(tables: Tables, training_date: datetime.date) -> pl.LazyFrame:
    return tables.scan("training_set").filter(pl.col("training_date") == training_date)


def _kind(tables: Tables, training_date: datetime.date) -> LTEKind:
    kinds = (
        _rows(tables, training_date)
        .select("basis_id", "lag_days", "window_days")
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
        listed = "; ".join(f"{basis}, lag {lag}, window {window}" for basis, lag, window in kinds)
        raise LTEError(
            f"training_set of {training_date} mixes LTEs that no one model can read ({listed}); "
            f"run jobs.build_training_set --date {training_date} again"
        )
    ((basis_id, lag_days, window_days),) = kinds
    return LTEKind(basis_id, "+".join(tables.settings.model.representations), lag_days, window_days)


def _require_cuts(tables: Tables, training_date: datetime.date, dates: TrainingDates) -> None:
    cuts = {"validation": dates.validation.start, "test": dates.test.start}
    found = (
        _rows(tables, training_date).filter(pl.col("split").is_in(list(cuts))).select("split", "snapshot_date").unique()
    )
    for split, cut in sorted(found.collect().rows()):
        if cut != cuts[split]:
            raise LTEError(
                f"training_set of {training_date} was built with the {split} cut {cut}, but the settings say "
                f"{cuts[split]}; run jobs.build_training_set --date {training_date} again"
            )


def first_places(*keys: np.ndarray) -> np.ndarray:
    """For each row of columns in which equal rows stand together: the place of the first row like it."""
    another = np.ones(len(keys[0]), dtype=bool)
    another[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return np.maximum.accumulate(np.where(another, np.arange(len(another)), 0))


def basis_in_force(tables: Tables, wanted: str = "") -> str:
    """The basis `wanted`, else the `basis_id` of the settings, or of the one that is registered; as the jobs have it."""
    registered = tables.scan("semantic_bases").select("basis_id").sort("basis_id").collect()["basis_id"].to_list()
    settings = tables.settings
    return chosen_basis(registered, wanted or settings.basis.basis_id, settings.table_path("semantic_bases"))


def read_catalogue(tables: Tables, basis_id: str, known_before: datetime.date) -> Catalogue:
    """The items with a vector in the basis that were known before that day. Raises `LTEError` where there are none."""
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


def epoch_batches(
    lengths: np.ndarray, target_counts: np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """The case numbers of each batch of an epoch: every case once, in an order that `seed` and `epoch` decide.

    A batch holds about as many targets as `batch_size` cases hold on average, so that every step weighs its targets
    alike: of cases with few targets it takes more, of those with many fewer. Cases of one length go together.
    """
    random = np.random.default_rng((seed, epoch))
    targets = max(1, round(batch_size * target_counts.mean()))
    order = random.permutation(len(lengths))
    batches = []
    for pool in np.array_split(order, max(1, round(len(order) / (batch_size * POOLED_BATCHES)))):
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batch_of_case = (target_counts[pool].cumsum() - 1) // targets
        batches += np.split(pool, np.flatnonzero(np.diff(batch_of_case)) + 1)
    return [batches[i] for i in random.permutation(len(batches))]
