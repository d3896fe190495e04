"""Writes the live LTEs of `--date` to the online store, for services that read a user's vector in milliseconds.

    lock ─► what does the store hold? ─► note what is coming ─► write rows, remove users ─► note that it is done

1. The job does nothing if the store already holds this version of `lte_live`, or if a newer date than `--date` is live.
   An older date replaces a newer one only with `--allow-older`: the store then gets all rows of that date, from
   `lte_snapshots` if they aren't live any more.
2. If the store holds an earlier version of `lte_live`, only the rows changed since then are written, and users who have
   left are removed. Otherwise, with `--full`, or if the earlier date was published again, all rows are written, and
   rows of any other version are removed.
3. A killed push stays noted as incomplete; the next one is full.

Rows are sent in Arrow batches, without a JVM. `jobs.erase_users` removes erased users from the store.
"""

import dataclasses
import datetime
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from jobs.engine.packing import group_buckets
from lte_model.command_line import CommandParser, asked_bases, asked_representations, run
from lte_model.domain.basis import chosen_basis
from lte_model.domain.representations import UNIFORM
from lte_model.errors import LTEError
from lte_model.serving.online_store import LTE_FEATURES, READ_FROM, USER, OnlineStore, Pushed, continue_in_feast
from lte_model.settings import Settings
from lte_model.warehouse.reading import place_of

if TYPE_CHECKING:
    from feast import FeatureView

ROWS_AT_ONCE = 5_000
USERS_AT_ONCE = 1_000_000
"""The number of users whose ids are compared at a time."""

PUSHED_COLUMNS = (USER, *(name for name in LTE_FEATURES if name != READ_FROM))


@dataclass(frozen=True)
class Push:
    """The date that the store holds now (None: nothing), the rows written, and the users removed."""

    date: datetime.date | None
    written: int = 0
    removed: int = 0


def push_lte(
    settings: Settings,
    store: OnlineStore,
    date: datetime.date,
    name: str = UNIFORM,
    allow_older: bool = False,
    full: bool = False,
    basis_id: str = "",
) -> Push:
    """Runs the job for one representation in one basis ("": that of the settings).

    Raises `LTEError` if `date` is not live yet, if the store holds a newer date than the live one, or if the store
    fails.
    """
    basis_id = _basis_in_force(settings, basis_id)
    with store.lock():
        published = _publications(settings, basis_id, name)
        live = max(published, default=datetime.date.min)
        if live < date:
            raise LTEError(
                f"no {name} LTE of {date} in basis {basis_id} is live; run jobs.publish_lte --date {date} "
                f"--representation {name}"
            )
        view = store.register(basis_id, name)
        held = store.pushed(view)
        if live > date and not allow_older:
            return Push(held.date if held else None)
        if held and held.date > date and not allow_older:
            raise LTEError(
                f"the online store holds the {name} LTE of {held.date}, and what is live is of {date}; give "
                "--allow-older to go back"
            )
        table = _table(settings, "lte_live" if live == date else "lte_snapshots")
        inputs, users = published[date] if live == date else ("", 0)
        target = Pushed(date, inputs, str(table.metadata().id), table.version())
        if held == target and not full:
            return Push(date)
        of_view = (pl.col("basis_id") == basis_id) & (pl.col("representation") == name)
        rows = _rows(table, target.table_version).filter(of_view)
        if live > date:
            rows = rows.filter(pl.col("snapshot_date") == date)
            _require_rows(rows, date, name)
        same_inputs = held is not None and published.get(held.date, ("",))[0] == held.inputs
        earlier = _earlier(table, held, target) if same_inputs and not full else None
        store.note(view, dataclasses.replace(target, complete=False))
        if held is None or earlier is None:
            written = _write(store, view, rows, target)
            removed = store.keep_only(view, target)
        else:
            written = _write(store, view, rows.filter(pl.col("snapshot_date") > held.date), target)
            gone = users_who_left(earlier.filter(of_view), rows, groups=1 + users // USERS_AT_ONCE)
            removed = sum(store.remove(view, some) for some in gone)
        store.note(view, target)
    return Push(date, written, removed)


def users_who_left(before: pl.LazyFrame, now: pl.LazyFrame, groups: int) -> Iterator[list[str]]:
    """The ids in `before` that aren't in `now`, as one list for each of the `groups`."""
    for group in range(groups):
        buckets = group_buckets(group, groups)
        inside = pl.col("user_bucket").is_between(buckets.start, buckets.stop - 1)
        then, today = (rows.filter(inside).select("user_id") for rows in (before, now))
        yield then.join(today, on="user_id", how="anti").collect()["user_id"].to_list()


def _write(store: OnlineStore, view: "FeatureView", rows: pl.LazyFrame, target: Pushed) -> int:
    written = 0
    for batch in rows.select(PUSHED_COLUMNS).collect_batches(chunk_size=ROWS_AT_ONCE, maintain_order=False):
        store.write(view, batch, target)
        written += len(batch)
    return written


def _basis_in_force(settings: Settings, wanted: str) -> str:
    table = _table(settings, "semantic_bases")
    registered = _rows(table, table.version()).select("basis_id").sort("basis_id").collect()["basis_id"].to_list()
    return chosen_basis(registered, wanted or settings.basis.basis_id, settings.table_path("semantic_bases"))


def _publications(settings: Settings, basis_id: str, name: str) -> dict[datetime.date, tuple[str, int]]:
    """Published date → (hash of its inputs, number of users)."""
    table = _table(settings, "publications")
    of_view = (pl.col("basis_id") == basis_id) & (pl.col("representation") == name)
    rows = _rows(table, table.version()).filter(of_view).select("snapshot_date", "inputs", "users").collect()
    return {date: (inputs, users) for date, inputs, users in rows.iter_rows()}


def _earlier(table: DeltaTable, held: Pushed | None, target: Pushed) -> pl.LazyFrame | None:
    """The table version that the store holds; None if it is unknown or can't be read any more."""
    if not (held and held.complete and held.table_id == target.table_id and held.date <= target.date):
        return None
    try:
        rows = _rows(table, held.table_version)
        rows.select(pl.col("user_bucket").sum()).collect()  # its files may be gone
    except (pl.exceptions.PolarsError, DeltaError, OSError):
        return None
    return rows


def _table(settings: Settings, name: str) -> DeltaTable:
    return DeltaTable(place_of(settings, name))


def _rows(table: DeltaTable, version: int) -> pl.LazyFrame:
    return pl.scan_delta(table.table_uri, version=version)


def _require_rows(rows: pl.LazyFrame, date: datetime.date, name: str) -> None:
    if rows.head(1).collect().is_empty():
        raise LTEError(
            f"table lte_snapshots holds no {name} LTE of {date}; "
            f"run jobs.snapshot_lte --date {date} --representation {name}"
        )


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__, "the snapshot date that is live")
    parser.add_representations("push this representation")
    parser.add_bases("push LTEs of this basis")
    parser.add_argument(
        "--allow-older", action="store_true", help="go back to --date, where the store holds a newer one"
    )
    parser.add_argument("--full", action="store_true", help="write all rows, as where the store has lost some")
    arguments, settings, date = parser.read()
    names = asked_representations(arguments, settings)
    kind = settings.online_store.type
    if kind == "none":
        print("nothing to push: online_store.type is none in the settings")
        return
    continue_in_feast(settings, "jobs.push_lte")
    store = OnlineStore(settings)
    for basis_id, name in itertools.product(asked_bases(arguments, settings), names):
        push = push_lte(settings, store, date, name, arguments.allow_older, arguments.full, basis_id)
        of_basis = f" in basis {basis_id}" if basis_id else ""
        if push.date == date:
            done = f"{push.written:,} rows written, {push.removed:,} users removed"
            print(f"{kind} holds the {name} LTE of {date}{of_basis}: {done}", flush=True)
        else:
            lte = f"the {name} LTE" + (f" of {push.date}{of_basis}" if push.date else f"{of_basis} that is live")
            print(f"{kind} {'holds' if push.date else 'waits for'} {lte}; the older {date} leaves it alone", flush=True)


if __name__ == "__main__":
    run(main)
