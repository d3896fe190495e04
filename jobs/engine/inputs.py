"""Checks whether the inputs of a snapshot are complete, and whether they have changed since it was made.

The accounts of the ingested days answer both. A day without an account, between the first account and the snapshot
date, is missing. A day whose account differs from the rows in table `events` was partly ingested. While the hash of the
accounts and items that a snapshot reads stays the same, making the snapshot again gives the same bits.
"""

import datetime
import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from jobs.engine.calendar import day_number
from jobs.engine.files import Listing
from jobs.engine.items import ItemIndex
from lte_model.domain.windows import ONE_DAY, Interval, every, lte_window
from lte_model.errors import LTEError

DAYS_NAMED = 10


@dataclass(frozen=True)
class Inputs:
    """The accounts of the feed `events`, by day (known_date, rows, content_hash), and the items with a vector.

    `rows` counts the rows that were kept and not erased since.
    """

    basis_id: str
    accounts: pl.DataFrame
    index: ItemIndex

    def hash(self, date: datetime.date, lag_days: int, window_days: int, choices: str = "") -> str:
        """16 hex digits of the SHA-256 of the inputs, lag and window of the snapshot of `date`.

        `choices` names whatever else decides its bits: the encoder, the event weights.
        """
        window = lte_window(date, lag_days, window_days)
        content = hashlib.sha256(f"{self.basis_id} {window} {date}\n".encode())
        if choices:
            content.update(f"{choices}\n".encode())
        seen = self.accounts.filter(pl.col("known_date").is_between(window.start, date, closed="left"))
        for day, content_hash in seen.select("known_date", "content_hash").iter_rows():
            content.update(f"{day} {content_hash}\n".encode())
        known = np.flatnonzero(self.index.known_day < day_number(date))
        content.update(self.index.known_day[known].astype(np.int32).tobytes())
        content.update("\n".join(self.index.item_ids.take(pa.array(known)).to_pylist()).encode())
        return content.hexdigest()[:16]

    def require_complete(self, listing: Listing, days: Interval) -> None:
        """Raises `LTEError` that names the days in `days` that are missing or partly ingested.

        Days before the first account are before the shop's history. `listing` has the files of table `events`: their
        min and max days and row counts suffice, so that no file is read.
        """
        ingested: set[datetime.date] = set(self.accounts["known_date"])
        if not ingested:
            raise LTEError("table ingested_days has no account of events; run jobs.ingest_events --since")
        missing = [day for day in every(1, max(min(ingested), days.start), days.end) if day not in ingested]
        if missing:
            raise LTEError(
                f"the events known on {_named(missing)} are missing, and the snapshot would average over the gap; "
                f"run jobs.ingest_events --date {missing[-1] + ONE_DAY} --since {missing[0]}"
            )
        for span, held, accounted in self._spans(listing):
            if held != accounted and span.start < days.end and span.end > days.start:
                raise LTEError(
                    f"table events holds {held:,} rows known in {span}, and the accounts of these days say "
                    f"{accounted:,}: an ingest or an erasure was broken off. Run it again: jobs.ingest_events "
                    f"--date {span.end} --since {span.start}, or jobs.erase_users with its list"
                )

    def _spans(self, listing: Listing) -> list[tuple[Interval, int, int]]:
        """(days, rows in the files, rows in the accounts) of each range of days that share files."""
        spans: list[tuple[Interval, int]] = [(Interval(day, day + ONE_DAY), 0) for day in self.accounts["known_date"]]
        spans += [
            (Interval(low, high + ONE_DAY), records)
            for low, high, records in listing.files.select(
                "min.known_date", "max.known_date", "num_records"
            ).iter_rows()
        ]
        merged: list[tuple[Interval, int]] = []
        for span, records in sorted(spans, key=lambda entry: (entry[0].start, entry[0].end)):
            if merged and span.start < merged[-1][0].end:
                last, held = merged[-1]
                merged[-1] = Interval(last.start, max(last.end, span.end)), held + records
            else:
                merged.append((span, records))
        rows_of = dict(self.accounts.select("known_date", "rows").iter_rows())
        return [
            (span, held, sum(rows_of.get(day, 0) for day in every(1, span.start, span.end))) for span, held in merged
        ]


def _named(days: list[datetime.date]) -> str:
    more = f" and {len(days) - DAYS_NAMED} more days" if len(days) > DAYS_NAMED else ""
    return ", ".join(map(str, days[:DAYS_NAMED])) + more
