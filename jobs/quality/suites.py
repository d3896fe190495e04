"""What must hold of each table, as Great Expectations suites, and the rows that they look at.

A batch is a frame of the checked rows with a few derived columns; vectors never enter it, only their length and norm.
Each suite is built for one date, so that a rule can name the very day: the leak rule says that the newest event in the
snapshot of D is dated before D−L.
"""

import datetime
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import polars as pl
from deltalake import DeltaTable
from great_expectations import expectations as gxe
from great_expectations.expectations.expectation import Expectation

from lte_model.basis import CONTENT_COLUMNS, GRID, MAX_EVENTS, chosen_basis
from lte_model.errors import LTEError
from lte_model.representations import AUTOENCODER, REPRESENTATIONS
from lte_model.settings import Settings
from lte_model.windows import ONE_DAY, training_dates


@dataclass(frozen=True)
class Batch:
    """Rows of one table and one date, and the rules for them. `keys` name a row where it breaks one."""

    name: str
    rows: pl.LazyFrame
    keys: tuple[str, ...]
    rules: tuple[Expectation, ...]


def scan(settings: Settings, table: str) -> pl.LazyFrame:
    """The table's rows, read without a JVM. Raises `LTEError` where the table isn't there."""
    path = settings.table_path(table)
    if not DeltaTable.is_deltatable(path):
        raise LTEError(f"table {table} does not exist at {path}; run the job that writes it")
    return pl.scan_delta(path)


def _present(*columns: str) -> list[Expectation]:
    return [gxe.ExpectColumnValuesToNotBeNull(column=column) for column in columns]


def _at_least_one_row() -> Expectation:
    return gxe.ExpectTableRowCountToBeBetween(min_value=1)


def _later(column: str, than: str, or_equal: bool = False) -> Expectation:
    """One value, mostly a date, is after another.

    A missing one is not compared; `_present` asks for it where it must be there.
    """
    return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A=column, column_B=than, or_equal=or_equal, ignore_row_if="either_value_is_missing"
    )


def events(settings: Settings, date: datetime.date, since: datetime.date | None) -> list[Batch]:
    """The events of the days that the run of `date` brought, or of those since `since`, and the account of them."""
    first = since or _first_day_brought(settings, date)
    of_the_days = pl.col("known_date").is_between(first, date, closed="left")
    known_items = scan(settings, "items").select("item_id", item_known=pl.lit(True))
    rows = (
        scan(settings, "events")
        .filter(of_the_days)
        .select("user_id", "item_id", "event_ts", "event_date", "known_date", "price")
        .join(known_items, "item_id", "left")
        .with_columns(pl.col("item_known").fill_null(False))
    )
    accounts = (
        scan(settings, "ingested_days")
        .filter(of_the_days & (pl.col("feed") == "events"))
        .select(pl.col("known_date", "rows_read", "rows_kept", "rows_quarantined", "exact_duplicates"))
        .sum()
        .with_columns(
            known_date=pl.lit(date - ONE_DAY),
            quarantined_share=pl.col("rows_quarantined") / pl.col("rows_read").clip(lower_bound=1),
            unaccounted=pl.col("rows_read")
            - pl.col("rows_kept")
            - pl.col("rows_quarantined")
            - pl.col("exact_duplicates"),
        )
    )
    return [
        Batch(
            "events",
            rows,
            ("user_id", "item_id", "event_ts", "known_date"),
            (
                _at_least_one_row(),
                *_present("user_id", "item_id", "event_ts", "event_date", "known_date"),
                _later("known_date", "event_date", or_equal=True),
                gxe.ExpectColumnValuesToBeBetween(column="price", min_value=0),
                gxe.ExpectColumnValuesToBeInSet(
                    column="item_known", value_set=[True], mostly=1 - settings.gates.max_unknown_item_share
                ),
            ),
        ),
        Batch(
            "ingested_days",
            accounts,
            ("known_date",),
            (
                gxe.ExpectColumnValuesToBeBetween(column="rows_read", min_value=1),
                gxe.ExpectColumnValuesToBeInSet(column="unaccounted", value_set=[0]),
                gxe.ExpectColumnValuesToBeBetween(
                    column="quarantined_share", max_value=settings.gates.max_quarantined_share
                ),
            ),
        ),
    ]


def _first_day_brought(settings: Settings, date: datetime.date) -> datetime.date:
    """The day before `date`, or an earlier one if the run of `date` made up for days that were missing."""
    of_run = (pl.col("feed") == "events") & (pl.col("ingested_for") == date)
    days = scan(settings, "ingested_days").filter(of_run).select(pl.col("known_date").min()).collect()
    return days.item() or date - ONE_DAY


def items(settings: Settings, date: datetime.date) -> list[Batch]:
    """The items known before `date`."""
    rows = (
        scan(settings, "items")
        .filter(pl.col("known_date") < date)
        .with_columns(content_length=pl.concat_str(CONTENT_COLUMNS, ignore_nulls=True).str.len_chars())
        .select("item_id", "price", "known_date", "content_length")
    )
    rules = (
        _at_least_one_row(),
        *_present("item_id", "known_date"),
        gxe.ExpectColumnValuesToBeUnique(column="item_id"),
        gxe.ExpectColumnValuesToBeBetween(column="content_length", min_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="price", min_value=0),
    )
    return [Batch("items", rows, ("item_id",), rules)]


def bases(settings: Settings, asked: Sequence[str] = ()) -> dict[str, int]:
    """The bases that are `asked` for, or those in force, with their dimensions. Raises `LTEError` for one that isn't
    registered."""
    registered = dict(
        scan(settings, "semantic_bases").select("basis_id", "dimensions").sort("basis_id").collect().rows()
    )
    place = settings.table_path("semantic_bases")
    wanted = [chosen_basis([*registered], one, place) for one in asked or settings.basis.in_force]
    return {basis_id: registered[basis_id] for basis_id in wanted}


def _with_dimensions_of_basis(settings: Settings, rows: pl.LazyFrame) -> pl.LazyFrame:
    """The rows with the dimensions that their basis has; none for a basis that isn't registered."""
    registered = scan(settings, "semantic_bases").select("basis_id", dimensions_of_basis=pl.col("dimensions"))
    return rows.join(registered, "basis_id", "left")


def item_embeddings(settings: Settings, date: datetime.date, asked: Sequence[str] = ()) -> list[Batch]:
    """The vectors of every basis, and every item known before `date` in each of the bases `asked` for, or in force."""
    vector = pl.col("vector")
    vectors = _with_dimensions_of_basis(settings, scan(settings, "item_embeddings"))
    embeddings = vectors.select(
        "basis_id",
        "dimensions_of_basis",
        "item_id",
        dimensions=vector.list.len(),
        squared_norm=vector.list.eval(pl.element().cast(pl.Float64).pow(2)).list.sum(),
        off_grid=vector.list.eval((pl.element() * GRID) != (pl.element() * GRID).round()).list.sum(),
    )
    known = scan(settings, "items").filter(pl.col("known_date") < date).select("item_id")
    covered = (
        known.join(pl.LazyFrame({"basis_id": [*bases(settings, asked)]}), how="cross")
        .join(embeddings.select("basis_id", "item_id", has_vector=True).unique(), ["basis_id", "item_id"], "left")
        .with_columns(pl.col("has_vector").fill_null(False))
    )
    rules = (
        _at_least_one_row(),
        *_present("basis_id", "item_id", "dimensions"),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=["basis_id", "item_id"]),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="dimensions", column_B="dimensions_of_basis"),
        gxe.ExpectColumnValuesToBeBetween(column="squared_norm", min_value=0.99, max_value=1.01),
        gxe.ExpectColumnValuesToBeInSet(column="off_grid", value_set=[0]),
    )
    coverage = gxe.ExpectColumnValuesToBeInSet(
        column="has_vector", value_set=[True], mostly=1 - settings.gates.max_unknown_item_share
    )
    return [
        Batch("item_embeddings", embeddings, ("basis_id", "item_id"), rules),
        Batch("items_with_a_vector", covered, ("basis_id", "item_id"), (coverage,)),
    ]


def item_encodings(settings: Settings, date: datetime.date, anchors: bool, asked: Sequence[str] = ()) -> list[Batch]:
    """The encoder of `date`, or those of every date that the training of `date` reads, in the basis of the trainings or
    in those `asked` for. Every date must have one.

    Nothing to check where the settings don't ask for the autoencoder.
    """
    if AUTOENCODER not in settings.model.representations:
        return []
    dates = training_dates(date, settings.training_set).snapshot_dates if anchors else (date,)
    vector, wanted = pl.col("vector"), [*bases(settings, asked or settings.basis.in_force[:1])]
    rows = (
        _with_dimensions_of_basis(settings, scan(settings, "item_encodings"))
        .filter(pl.col("fitted_on").is_in(dates), pl.col("basis_id").is_in(wanted))
        .join(
            scan(settings, "item_embeddings").select("basis_id", "item_id", embedded=True),
            ["basis_id", "item_id"],
            "left",
        )
        .select(
            "basis_id",
            "encoder_id",
            "fitted_on",
            "item_id",
            pl.col("embedded").fill_null(False),
            "dimensions_of_basis",
            dimensions=vector.list.len(),
            largest=vector.list.eval(pl.element().abs()).list.max(),
            off_grid=vector.list.eval((pl.element() * GRID) != (pl.element() * GRID).round()).list.sum(),
        )
    )
    encoders = pl.LazyFrame({"fitted_on": dates}).join(
        rows.group_by("fitted_on").agg(
            encoders=pl.struct("basis_id", "encoder_id").n_unique(), bases=pl.col("basis_id").n_unique()
        ),
        "fitted_on",
        "left",
    )
    keys = ("basis_id", "fitted_on", "item_id")
    rules = (
        _at_least_one_row(),
        *_present(*keys, "encoder_id", "dimensions"),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="dimensions", column_B="dimensions_of_basis"),
        gxe.ExpectColumnValuesToBeInSet(column="off_grid", value_set=[0]),
        gxe.ExpectColumnValuesToBeBetween(column="largest", max_value=1),
        gxe.ExpectColumnValuesToBeInSet(column="embedded", value_set=[True]),
    )
    one_each = (*_present("encoders"), gxe.ExpectColumnPairValuesToBeEqual(column_A="encoders", column_B="bases"))
    return [
        Batch("item_encodings", rows, keys, rules),
        Batch("item_encodings_dates", encoders, ("fitted_on",), one_each),
    ]


def lte_snapshots(settings: Settings, date: datetime.date, anchors: bool, asked: Sequence[str] = ()) -> list[Batch]:
    """The snapshots of `date`, of all representations of the settings in each of the bases `asked` for, or in force; or
    those that the training of `date` reads, in the basis of the trainings."""
    dates = training_dates(date, settings.training_set).snapshot_dates if anchors else (date,)
    keys = ("basis_id", "representation", "snapshot_date", "user_id")
    asked = asked or settings.basis.in_force[: 1 if anchors else None]
    rows = _ltes(settings, "lte_snapshots", keys).filter(pl.col("snapshot_date").is_in(dates))
    return [
        Batch("lte_snapshots", rows, keys, _rules_of_ltes(settings, keys)),
        Batch(
            "lte_snapshots_representations",
            _per_representation(rows, settings.model.representations, bases(settings, asked)),
            ("basis_id", "representation"),
            tuple(_present("users")),
        ),
    ]


def lte_live(settings: Settings, date: datetime.date) -> list[Batch]:
    """What is live on `date`, of all representations of the settings in each basis in force; of one that is never
    published, nothing."""
    keys = ("basis_id", "representation", "user_id")
    rows = _ltes(settings, "lte_live", (*keys, "snapshot_date"))
    never = [kind.name for kind in REPRESENTATIONS.values() if not kind.publishable]
    wanted = [name for name in settings.model.representations if name not in never]
    published = scan(settings, "lte_live").select(*keys)
    return [
        Batch("lte_live", rows, keys, _rules_of_ltes(settings, keys)),
        Batch(
            "lte_live_representations",
            _per_representation(rows, wanted, bases(settings)),
            ("basis_id", "representation"),
            tuple(_present("users")),
        ),
        Batch(
            "lte_live_published",
            published,
            keys,
            (gxe.ExpectColumnValuesToNotBeInSet(column="representation", value_set=never),),
        ),
    ]


def _ltes(settings: Settings, table: str, keys: Sequence[str]) -> pl.LazyFrame:
    """The rows of a table of LTEs that are of the settings' representations, as `_rules_of_ltes` looks at them."""
    sums = pl.col("vector_sum")
    squared_sum = sums.list.eval((pl.element().cast(pl.Float64) / GRID).pow(2)).list.sum()
    kinds = {name: REPRESENTATIONS[name] for name in settings.model.representations}
    lags = {name: kind.lag_days(settings.window.lag_days) for name, kind in kinds.items()}
    registered = scan(settings, "semantic_bases").select("basis_id", "dimensions").collect().rows()
    longest = pl.LazyFrame(
        [(basis, name, kind.largest_norm(size)) for basis, size in registered for name, kind in kinds.items()],
        {"basis_id": pl.String, "representation": pl.String, "largest_norm": pl.Float64},
        orient="row",
    )
    return (
        _with_dimensions_of_basis(settings, scan(settings, table))
        .join(longest, ["basis_id", "representation"], "left")
        .filter(pl.col("representation").is_in(list(lags)))
        .select(
            *keys,
            "event_count",
            "newest_event_date",
            "lag_days",
            "window_days",
            lag_days_of_settings=pl.col("representation").replace_strict(lags, default=None, return_dtype=pl.Int32),
            window_start=_window_end() - pl.duration(days=pl.col("window_days")),
            window_end=_window_end(),
            dimensions=sums.list.len(),
            norm=squared_sum.sqrt() / pl.col("event_count"),
            largest_norm="largest_norm",
            dimensions_of_basis="dimensions_of_basis",
        )
    )


def _rules_of_ltes(settings: Settings, keys: Sequence[str]) -> tuple[Expectation, ...]:
    """What holds of every row of LTEs, of whatever representation; `keys` name a row once."""
    return (
        _at_least_one_row(),
        *_present("user_id", "event_count", "newest_event_date", "dimensions"),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
        # The leak rule: the newest event in the LTE of D is dated before D−L. (A representation without lag says so.)
        _later("window_end", "newest_event_date"),
        _later("newest_event_date", "window_start", or_equal=True),
        gxe.ExpectColumnValuesToBeBetween(column="event_count", min_value=1, max_value=MAX_EVENTS),
        _later("largest_norm", "norm"),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="dimensions", column_B="dimensions_of_basis"),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="lag_days", column_B="lag_days_of_settings"),
        gxe.ExpectColumnValuesToBeInSet(column="window_days", value_set=[settings.window.window_days]),
    )


def _per_representation(rows: pl.LazyFrame, names: Sequence[str], in_bases: Iterable[str]) -> pl.LazyFrame:
    """(basis_id, representation, users) of each of the names in each basis; no number where it has no row."""
    keys = ("basis_id", "representation")
    wanted = pl.LazyFrame(list(itertools.product(in_bases, names)), dict.fromkeys(keys, pl.String), orient="row")
    return wanted.join(rows.group_by(keys).agg(users=pl.len()), keys, "left")


def item_popularity(settings: Settings, date: datetime.date, anchors: bool) -> list[Batch]:
    """The counts of `date`, or those that the training of `date` reads. Every date must have some."""
    dates = training_dates(date, settings.training_set).snapshot_dates if anchors else (date,)
    keys = ("snapshot_date", "item_id")
    counted = ("events_7d", "events_30d", "events_180d", "events_window")
    rows = scan(settings, "item_popularity").filter(pl.col("snapshot_date").is_in(dates)).select(*keys, *counted)
    days = pl.LazyFrame({"snapshot_date": dates}).join(
        rows.group_by("snapshot_date").agg(items=pl.len()), "snapshot_date", "left"
    )
    rules = (
        _at_least_one_row(),
        *_present(*keys, *counted),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
        gxe.ExpectColumnValuesToBeBetween(column="events_7d", min_value=0),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="events_30d", column_B="events_7d", or_equal=True),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="events_180d", column_B="events_30d", or_equal=True),
    )
    return [
        Batch("item_popularity", rows, keys, rules),
        Batch("item_popularity_dates", days, ("snapshot_date",), tuple(_present("items"))),
    ]


def training_set(settings: Settings, date: datetime.date) -> list[Batch]:
    """The training set of `date`, all splits, each row against the dates of its own anchor or cut."""
    dates = training_dates(date, settings.training_set)
    ends = {"validation": dates.validation.end, "test": dates.test.end}
    keys = ("split", "snapshot_date", "user_id")
    rows = (
        scan(settings, "training_set")
        .filter(pl.col("training_date") == date)
        .select(
            *keys,
            "basis_id",
            "target_item_id",
            "target_date",
            "oldest_target_date",
            "target_count",
            newest_event_date=pl.col("event_times").list.last().dt.date(),
            window_end=_window_end(),
            target_end=pl.col("split").replace_strict(ends, default=None, return_dtype=pl.Date),
            length=pl.col("item_ids").list.len().cast(pl.Int64),
            times=pl.col("event_times").list.len(),
        )
    )
    evaluates = rows.filter(pl.col("split").is_in(list(ends)))
    trains = rows.filter(~pl.col("split").is_in(list(ends)))
    return [
        Batch(
            "training_set",
            rows,
            keys,
            (
                _at_least_one_row(),
                *_present(*keys, "basis_id"),
                gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
                gxe.ExpectColumnValuesToBeInSet(column="split", value_set=["train", "refit", *ends]),
                gxe.ExpectColumnValuesToBeInSet(column="basis_id", value_set=_first_value(rows, "basis_id")),
                gxe.ExpectColumnPairValuesToBeEqual(column_A="length", column_B="times"),
                gxe.ExpectColumnValuesToBeBetween(column="length", max_value=settings.training_set.max_length),
                gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="length", column_B="target_count", or_equal=True),
                # The leak rule: no target is dated before D−L, where the window of the LTE ends. The suite of
                # lte_snapshots has the other half: no event of an LTE is dated on or after that day.
                _later("oldest_target_date", "window_end", or_equal=True),
                _later("snapshot_date", "newest_event_date"),
            ),
        ),
        Batch(
            "training_set_targets",
            evaluates,
            keys,
            (
                _at_least_one_row(),
                *_present("target_item_id", "target_date"),
                _later("target_date", "snapshot_date", or_equal=True),
                _later("target_end", "target_date"),
            ),
        ),
        Batch(
            "training_set_sequences",
            trains,
            keys,
            (
                _at_least_one_row(),
                *_present("oldest_target_date"),
                gxe.ExpectColumnValuesToBeBetween(column="target_count", min_value=1),
            ),
        ),
    ]


def recommendations(settings: Settings, date: datetime.date) -> list[Batch]:
    """The recommendations of `date`, and whether everybody with an LTE has some.

    Nothing to check where there are none, and no model is champion.
    """
    there = DeltaTable.is_deltatable(settings.table_path("recommendations"))
    if not there or scan(settings, "recommendations").filter(date=date).head(1).collect().is_empty():
        from lte_model import lineage, registry  # MLflow takes seconds to import

        if registry.find(settings, lineage.CHAMPION) is None:
            return []
    keys = ("date", "user_id")
    model = ("model_name", "model_version", "basis_id", "representation")
    item_ids, scores = pl.col("item_ids"), pl.col("scores")
    known = scan(settings, "items").filter(pl.col("known_date") < date).select("item_id").collect()["item_id"]
    of_date = scan(settings, "recommendations").filter(date=date)
    rows = of_date.select(
        *keys,
        *model,
        length=item_ids.list.len(),
        wanted_length=pl.min_horizontal(pl.lit(settings.scoring.k), "candidate_items"),
        distinct_items=item_ids.list.n_unique(),
        unknown_items=item_ids.list.eval(~pl.element().is_in(known.implode())).list.sum(),
        score_count=scores.list.len(),
        descending=(scores.list.diff().list.max() <= 0).fill_null(True),
        finite=scores.list.eval(pl.element().is_finite()).list.all(),
    )
    rules = (
        _at_least_one_row(),
        *_present(*keys, *model),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
        *(gxe.ExpectColumnValuesToBeInSet(column=column, value_set=_first_value(rows, column)) for column in model),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="length", column_B="wanted_length"),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="length", column_B="distinct_items"),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="length", column_B="score_count"),
        gxe.ExpectColumnValuesToBeInSet(column="unknown_items", value_set=[0]),
        gxe.ExpectColumnValuesToBeInSet(column="descending", value_set=[True]),
        gxe.ExpectColumnValuesToBeInSet(column="finite", value_set=[True]),
    )
    read = of_date.select("basis_id", pl.col("representation").str.split("+")).unique().explode("representation")
    with_lte = scan(settings, "lte_snapshots").filter(pl.col("snapshot_date") == date)
    covered = (
        with_lte.join(read, ["basis_id", "representation"], "semi")
        .select("user_id")
        .unique()
        .join(of_date.select("user_id", has_list=True).unique(), "user_id", "left")
        .with_columns(pl.col("has_list").fill_null(False))
    )
    coverage = gxe.ExpectColumnValuesToBeInSet(column="has_list", value_set=[True])
    return [
        Batch("recommendations", rows, keys, rules),
        Batch("recommendations_coverage", covered, ("user_id",), (coverage,)),
    ]


def test_measurements(settings: Settings, date: datetime.date, test: str) -> list[Batch]:
    """The measurements of one online test as of `date`: the days, and their sums by variant and metric."""
    keys = ("variant", "metric", "day")
    sums = ("sum_y", "sum_yy", "sum_x", "sum_xx", "sum_xy")
    rows = (
        scan(settings, "test_measurements")
        .filter((pl.col("test_name") == test) & (pl.col("measured_for") == date))
        # pandas has no decimals: a rule looks at signs and orders, for which a float is near enough.
        .select(*keys, "test_start", "test_end", "users", pl.col(*sums).cast(pl.Float64))
    )
    spread = pl.col("users") * pl.col("sum_yy") - pl.col("sum_y").pow(2)
    totals = (
        rows.group_by("variant", "metric")
        .agg(pl.col("users", *sums).sum())
        .with_columns(spread=(spread / (pl.col("users") * pl.col("sum_yy")).clip(lower_bound=1)))
    )
    metrics = totals.group_by("metric").agg(variants=pl.len())
    divisions = totals.group_by("variant").agg(user_counts=pl.col("users").n_unique())
    return [
        Batch(
            "test_measurements",
            rows,
            keys,
            (
                _at_least_one_row(),
                *_present(*keys, "users", *sums),
                gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
                gxe.ExpectColumnValuesToBeBetween(column="users", min_value=0),
                _later("day", "test_start", or_equal=True),
                _later("test_end", "day"),
            ),
        ),
        Batch(
            "test_measurements_totals",
            totals,
            ("variant", "metric"),
            (
                gxe.ExpectColumnValuesToBeBetween(column="users", min_value=2),
                gxe.ExpectColumnValuesToBeBetween(column="sum_xx", min_value=0),
                # A variance is not below 0, but for what a float rounds off.
                gxe.ExpectColumnValuesToBeBetween(column="spread", min_value=-1e-9),
            ),
        ),
        Batch(
            "test_measurements_metrics",
            metrics,
            ("metric",),
            (gxe.ExpectColumnValuesToBeBetween(column="variants", min_value=2),),
        ),
        Batch(
            "test_measurements_variants",
            divisions,
            ("variant",),
            (gxe.ExpectColumnValuesToBeInSet(column="user_counts", value_set=[1]),),
        ),
    ]


def _window_end() -> pl.Expr:
    """D−L, the first day that the LTE of D must not see."""
    return pl.col("snapshot_date") - pl.duration(days=pl.col("lag_days"))


def _first_value(rows: pl.LazyFrame, column: str) -> list[object]:
    """The value of the first row; every other row must have it too."""
    return rows.select(column).head(1).collect()[column].to_list()


SUITES: dict[str, Callable[..., Sequence[Batch]]] = {
    suite.__name__: suite
    for suite in (
        events,
        items,
        item_embeddings,
        item_encodings,
        lte_snapshots,
        lte_live,
        item_popularity,
        training_set,
        recommendations,
        test_measurements,
    )
}
