"""Makes the LTE snapshots of one date, of every k-th date of a range, or of all dates that a training reads.

LTE(D) of a user is the average of the vectors of the user's events dated in [D−L−W, D−L), known before D, of items
known before D. For each basis in force and each representation of the settings, or of the command line, the job

1. refuses to average over a day that is missing or only partly ingested;
2. starts from the nearest snapshot whose inputs are unchanged, and reads only the days that differ. Without such a
   snapshot it reads all days once, however many dates it makes. Representations with event weights are always made
   from all days;
3. writes the rows of its dates, and then an account of what they were made from.

Both ways give bit-identical rows. jobs/engine computes them, and jobs/recipes/weighted.py where events have weights.
For the autoencoder, the engine sums the item vectors of the newest encoder fitted on D or before; dates with different
encoders are made in separate runs.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.engine.calendar import Calendar
from jobs.engine.files import Listing, list_files
from jobs.engine.inputs import Inputs
from jobs.engine.items import ItemIndex, ItemVectors
from jobs.engine.plan import choose_plan, days_seen, in_words, needed
from jobs.engine.run import run_engine
from jobs.ingest_events import FEED
from jobs.recipes.bases import basis_in_force, load_vectors
from jobs.recipes.encoders import made_with, with_encoder
from jobs.recipes.recipe import Recipe, recipes
from jobs.recipes.weighted import run_weighted
from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse, dated
from lte_model.command_line import CommandParser, asked_bases, asked_representations, run
from lte_model.domain.representations import require_distinct
from lte_model.errors import LTEError
from lte_model.settings import Settings, Window
from lte_model.warehouse.tables import EVENTS, INGESTED_DAYS, LTE_SNAPSHOTS, SNAPSHOT_ACCOUNTS


@dataclass(frozen=True)
class SnapshotAccount:
    """How a snapshot was made.

    `made_from` is the date of the snapshot it starts from; None: all events of its window. `encoder_id` is the encoder
    whose item vectors it sums; None: those of the basis.
    """

    representation: str
    snapshot_date: datetime.date
    inputs: str
    made_from: datetime.date | None
    users: int
    encoder_id: str | None = None


def snapshot_lte(
    warehouse: Warehouse,
    dates: Sequence[datetime.date],
    full: bool = False,
    representations: Sequence[str] | None = None,
    basis_id: str = "",
) -> list[SnapshotAccount]:
    """Runs the job for `dates` and `representations` in one basis; None and "" stand for those of the settings.

    `full` makes the snapshots from all events of their windows. Raises `LTEError` if a needed encoder is missing, a day
    is missing or partial, or no date has an event to average.
    """
    names = representations or warehouse.settings.model.representations
    require_distinct(names)
    basis_id = basis_in_force(warehouse, basis_id)
    # All recipes first, so that a missing encoder is found before anything is written.
    due = [part for name in names for part in recipes(warehouse, basis_id, name, sorted(set(dates))).items()]
    vectors = load_vectors(warehouse, basis_id)
    inputs = read_inputs(warehouse, vectors.index, basis_id)
    accounts = []
    for recipe, its_dates in due:
        if recipe.representation.exact:
            accounts += _by_the_engine(warehouse, recipe, its_dates, vectors, inputs, full)
        else:
            accounts += _by_weights(warehouse, recipe, its_dates, vectors, inputs)
    return accounts


def _by_the_engine(
    warehouse: Warehouse,
    recipe: Recipe,
    dates: Sequence[datetime.date],
    vectors: ItemVectors,
    inputs: Inputs,
    full: bool,
) -> list[SnapshotAccount]:
    """Makes an exact representation's dates, from the nearest snapshot of the same recipe if there is one."""
    there = {} if full else _possible_bases(warehouse, recipe)
    window = Window(lag_days=recipe.lag_days, window_days=recipe.window_days)
    plan = choose_plan(dates, window, there, lambda date: recipe.hash(inputs, date))
    calendar = plan.calendar
    events = _complete_events(warehouse, inputs, calendar)
    print(f"{recipe.representation.name}: {plan.reason}", flush=True)

    base = None
    if calendar.base is not None:
        base = list_files(warehouse.path(LTE_SNAPSHOTS)).of(recipe.partition(calendar.dates[calendar.base]))
    if recipe.encoder:
        vectors = with_encoder(warehouse, vectors, recipe.encoder)
    files, condition = needed(events, calendar, vectors.index)
    rows = run_engine(warehouse.spark, files, condition, base, vectors, calendar)
    return write_snapshots(warehouse, rows, calendar, recipe, inputs, events.version)


def _by_weights(
    warehouse: Warehouse, recipe: Recipe, dates: Sequence[datetime.date], vectors: ItemVectors, inputs: Inputs
) -> list[SnapshotAccount]:
    """Makes the dates of a representation with event weights, from all events of their windows."""
    calendar = Calendar(tuple(dates), recipe.lag_days, recipe.window_days)
    listing = _complete_events(warehouse, inputs, calendar)
    print(f"{recipe.representation.name}: {in_words(dates)}: in full, as always where events have weights", flush=True)
    # Pin the version that was found complete: an ingest may be writing a later one.
    events = (
        warehouse.spark.read.format("delta")
        .option("versionAsOf", listing.version)
        .load(warehouse.path(EVENTS))
        .select("user_id", "item_id", "event_date", "known_date")
    )
    half_life_days = warehouse.settings.representations.half_life_days
    rows = run_weighted(warehouse.spark, events, listing.records, vectors, dates, recipe, half_life_days)
    return write_snapshots(warehouse, rows, calendar, recipe, inputs, listing.version)


def _complete_events(warehouse: Warehouse, inputs: Inputs, calendar: Calendar) -> Listing:
    """The files of table `events`. Raises `LTEError` if a day that the calendar reads is missing or partial."""
    events = list_files(warehouse.path(EVENTS))
    inputs.require_complete(events, days_seen(calendar))
    return events


def _possible_bases(warehouse: Warehouse, recipe: Recipe) -> dict[datetime.date, str]:
    """The existing snapshots that use the recipe's encoder: date → hash of the inputs."""
    there = snapshots_there(warehouse, recipe.basis_id, recipe.representation.name)
    if recipe.encoder is None:
        return there
    used = made_with(warehouse, recipe.basis_id)
    return {date: inputs for date, inputs in there.items() if used.get(date) == recipe.encoder.encoder_id}


def read_inputs(warehouse: Warehouse, index: ItemIndex, basis_id: str) -> Inputs:
    """The accounts of the ingested events, and the items with a vector."""
    warehouse.require(EVENTS, INGESTED_DAYS)
    accounts = (
        pl.scan_delta(warehouse.path(INGESTED_DAYS))
        .filter(pl.col("feed") == FEED)
        .select("known_date", "content_hash", rows=pl.col("rows_kept") - pl.col("rows_erased"))
        .sort("known_date")
        .collect()
    )
    return Inputs(basis_id, accounts, index)


def snapshots_there(warehouse: Warehouse, basis_id: str, representation: str) -> dict[datetime.date, str]:
    """The existing snapshots: date → hash of the inputs."""
    if not warehouse.exists(SNAPSHOT_ACCOUNTS):
        return {}
    accounts = pl.scan_delta(warehouse.path(SNAPSHOT_ACCOUNTS)).filter(basis_id=basis_id, representation=representation)
    return dict(accounts.select("snapshot_date", "inputs").collect().iter_rows())


def write_snapshots(
    warehouse: Warehouse, rows: DataFrame, calendar: Calendar, recipe: Recipe, inputs: Inputs, events_version: int
) -> list[SnapshotAccount]:
    """Writes the rows of the calendar's made dates, then their accounts; returns the accounts."""
    made_from = None if calendar.base is None else calendar.dates[calendar.base]
    encoder_id = recipe.encoder.encoder_id if recipe.encoder else None
    of_dates = f"{recipe.condition} AND {dated('snapshot_date', calendar.made)}"
    hashes = {date: recipe.hash(inputs, date) for date in calendar.made}
    there = snapshots_there(warehouse, recipe.basis_id, recipe.representation.name)
    if any(there.get(date, hashes[date]) != hashes[date] for date in calendar.made):
        # Delete outdated accounts first: one must never describe other rows, wherever the job is killed.
        warehouse.create(SNAPSHOT_ACCOUNTS)  # adds the columns that an older table lacks
        warehouse.replace(SNAPSHOT_ACCOUNTS, warehouse.read(SNAPSHOT_ACCOUNTS).where("false"), of_dates)
    warehouse.replace(LTE_SNAPSHOTS, rows.withColumns(recipe.columns), of_dates)
    written = list_files(warehouse.path(LTE_SNAPSHOTS))
    accounts = [
        SnapshotAccount(
            recipe.representation.name,
            date,
            hashes[date],
            made_from,
            written.of(recipe.partition(date)).records,
            encoder_id,
        )
        for date in calendar.made
    ]
    if not any(account.users for account in accounts):
        window = calendar.window(calendar.made[-1])
        raise LTEError(
            f"no event is dated in {window}, the window of the snapshot of {calendar.made[-1]}; ingest the history "
            "with jobs.ingest_events --since, or take a later date"
        )
    frame = warehouse.spark.createDataFrame(
        [(account.snapshot_date, account.inputs, account.made_from, account.users) for account in accounts],
        "snapshot_date DATE, inputs STRING, made_from DATE, users BIGINT",
    )
    made_with = {
        "events_version": F.lit(events_version).cast("bigint"),
        "encoder_id": F.lit(encoder_id).cast("string"),
    }
    frame = frame.withColumns(recipe.columns | made_with)
    warehouse.replace(SNAPSHOT_ACCOUNTS, frame, of_dates)
    return accounts


Due = tuple[str, Sequence[datetime.date], Sequence[str]]
"""Snapshots to make: (basis, dates, representations)."""


def due_of_training(settings: Settings, date: datetime.date, names: Sequence[str]) -> list[Due]:
    """The snapshots that the training of `date` reads.

    No training runs in a basis of `basis.beside`. Models of an alias that the new model is compared with read only the
    test cut's LTEs in it; a basis that no model reads adds nothing. Raises `LTEError` if MLflow doesn't answer.
    """
    dates = settings.training_set.dates(date)
    due: list[Due] = [(settings.basis.basis_id, dates.snapshot_dates, names)]
    for beside in settings.basis.beside:
        from lte_model.registry.in_force import representations_read  # MLflow takes seconds to import

        if read := representations_read(settings, beside):
            due.append((beside, (dates.test.start,), read))
    return due


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__, "the snapshot date", ranges=True)
    parser.add_argument(
        "--anchors",
        action="store_true",
        help="every date that the training of --date reads instead; of the bases beside, its test cut for the models "
        "that read them",
    )
    parser.add_representations("make this representation")
    parser.add_bases("make LTEs of this basis")
    parser.add_argument("--full", action="store_true", help="read all days, even where a snapshot is near")
    arguments, settings, dates = parser.read_dates()
    if arguments.anchors and arguments.start:
        raise LTEError("--anchors are those of one training; give --date, not a range")
    names = asked_representations(arguments, settings)
    if arguments.anchors:
        dates = settings.training_set.dates(arguments.date).snapshot_dates
    due: list[Due] = [(basis_id, dates, names) for basis_id in asked_bases(arguments, settings)]
    if arguments.anchors and not arguments.bases:
        due = due_of_training(settings, arguments.date, names)
    with spark_session(settings, "snapshot_lte", *dates) as spark:
        for basis_id, its_dates, its_names in due:
            for account in snapshot_lte(Warehouse(spark, settings), its_dates, arguments.full, its_names, basis_id):
                of_basis = f" in basis {basis_id}" if basis_id else ""
                print(f"{account.representation} LTE of {account.snapshot_date}{of_basis}: {account.users:,} users")


if __name__ == "__main__":
    run(main)
