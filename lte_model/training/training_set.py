"""The training set as a model reads it: Delta rows become a few flat arrays, and those become padded batches.

1. `open_training_set` fixes the versions of the tables, checks that they belong together, and reads the *catalogue*:
   the items with a vector in the basis that were known before the test cut, ordered by item id. An item's row
   number in the catalogue stands for it from here on.
2. `TrainingSet.cases` reads one split. A case is one user at one snapshot date D: the sequence, the LTEs of D from
   `lte_snapshots`, and the target. Events of items outside the catalogue are dropped from a sequence. A case whose
   *target* is outside it is dropped and counted; otherwise another item would pass for its target.
3. The policy decides what a sequence is: `lagged` keeps only the events of [D−L, D), `newest` all events of the row.
   In training the events of [D−L, D) are the targets under both; earlier events are inputs and never targets.
4. A target is predicted from the events before it, or, by `training.predict_from`, only from those of earlier days: at
   a date D no item of a basket is known when the others are predicted.
5. `Cases.windows` cuts sequences that are longer than a model reads, so that each target is trained on once.
   `Cases.batch` and `Cases.training_batch` pad; `epoch_batches` decides which cases share a batch.

Nothing here holds a Python object per event: a million events take thirteen megabytes.
"""

import dataclasses
import datetime
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from lte_model.domain.basis import to_vector
from lte_model.domain.kind import LTEKind
from lte_model.domain.representations import REPRESENTATIONS, join_names
from lte_model.domain.windows import TrainingDates
from lte_model.errors import LTEError
from lte_model.ranker.batches import gaps_to_next
from lte_model.ranker.cases import Cases, first_places
from lte_model.settings import Settings
from lte_model.warehouse.catalogue import Catalogue, as_matrix, read_catalogue
from lte_model.warehouse.popularity import popularity_matrix
from lte_model.warehouse.reading import Tables

Split = Literal["train", "refit", "validation", "test"]


@dataclass(frozen=True)
class TrainingSet:
    """The training set of one date, with the kind of its LTEs and the catalogue that its models rank."""

    tables: Tables
    training_date: datetime.date
    dates: TrainingDates
    kind: LTEKind
    catalogue: Catalogue

    def in_basis(self, basis_id: str) -> "TrainingSet":
        """This training set, with the catalogue and the LTEs of the basis `basis_id`."""
        if basis_id == self.kind.basis_id:
            return self
        return dataclasses.replace(
            self,
            kind=dataclasses.replace(self.kind, basis_id=basis_id),
            catalogue=read_catalogue(self.tables, basis_id, self.dates.test.start),
        )

    def rows(self, *splits: Split) -> pl.LazyFrame:
        """The table's rows of `splits`, as a lazy frame."""
        return _rows(self.tables, self.training_date).filter(pl.col("split").is_in(splits))

    def cases(self, *splits: Split) -> Cases:
        """The cases of one split, or of `train` and `refit` together, under the policy `model.sequence`.

        Leaves out training cases without a target. Raises `LTEError` if no case is left, if a snapshot that the cases
        need is missing or has another lag or window, and if an LTE doesn't have the dimensions of the basis.
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
        """Item popularity before each of `dates`, (dates, counts, items), from lte_model/warehouse/popularity.py."""
        return popularity_matrix(self.tables.scan("item_popularity"), self.catalogue.rows, dates, self.training_date)

    def ltes(self, cases: pl.DataFrame, needed: list[datetime.date]) -> tuple[np.ndarray, np.ndarray]:
        """The LTEs (N, representations, dimensions) of `cases` (snapshot_date, user_id), and their event counts.

        `needed` are the dates on which some case has an event before D−L: their snapshots can't be empty.
        """
        representations, dimensions = self.kind.representations, self.catalogue.vectors.shape[1]
        lte = np.zeros((len(cases), len(representations), dimensions), dtype=np.float32)
        event_counts = np.zeros(lte.shape[:2], dtype=np.int64)
        for number, representation in enumerate(representations):
            snapshots = self._snapshots(representation, cases["snapshot_date"].unique().to_list(), needed)
            joined = cases.lazy().join(
                snapshots.select("snapshot_date", "user_id", "vector_sum", "event_count"),
                on=["snapshot_date", "user_id"],
                how="left",
                maintain_order="left",
            )
            found = joined.select("vector_sum", pl.col("event_count").fill_null(0)).collect()
            has_lte = found["event_count"].to_numpy() > 0
            event_counts[:, number] = found["event_count"].to_numpy()
            vectors = found["vector_sum"].filter(pl.Series(has_lte))
            lte[has_lte, number] = to_vector(
                as_matrix(vectors, dimensions, f"lte_snapshots, representation {representation},"),
                event_counts[has_lte, number],
            )
        return lte, event_counts

    def _snapshots(self, representation: str, dates: list[datetime.date], needed: list[datetime.date]) -> pl.LazyFrame:
        """The snapshots of `dates`.

        Raises `LTEError` if one of `needed` is missing, and for another lag or window. Only `leaking` has a lag of 0.
        """
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
    """The training set of `training_date`.

    Raises `LTEError` for a missing table, a date without rows, rows of several bases, lags or windows, an unregistered
    basis, and cuts that differ from those of the settings.
    """
    tables = Tables(settings)
    dates = settings.training_set.dates(training_date)
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
    return LTEKind(basis_id, join_names(tables.settings.model.representations), lag_days, window_days)


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
