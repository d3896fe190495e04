"""The rules of vectors: bases, item embeddings and encodings, LTEs."""

import datetime
import itertools
from collections.abc import Iterable, Sequence

import polars as pl
from great_expectations import expectations as gxe
from great_expectations.expectations.expectation import Expectation

from jobs.quality.suites.rules import CheckedRows, at_least_one_row, later, present
from lte_model.domain.basis import GRID, MAX_EVENTS, chosen_basis
from lte_model.domain.representations import AUTOENCODER, REPRESENTATIONS
from lte_model.settings import Settings
from lte_model.warehouse.reading import scan


def bases(settings: Settings, asked: Sequence[str] = ()) -> dict[str, int]:
    """The bases `asked` for, or else those in force, with their dimensions.

    Raises `LTEError` for a basis that isn't registered.
    """
    registered = dict(
        scan(settings, "semantic_bases").select("basis_id", "dimensions").sort("basis_id").collect().rows()
    )
    place = settings.table_path("semantic_bases")
    wanted = [chosen_basis([*registered], one, place) for one in asked or settings.basis.in_force]
    return {basis_id: registered[basis_id] for basis_id in wanted}


def _with_dimensions_of_basis(settings: Settings, rows: pl.LazyFrame) -> pl.LazyFrame:
    """The rows with the dimensions of their basis; null if the basis isn't registered."""
    registered = scan(settings, "semantic_bases").select("basis_id", dimensions_of_basis=pl.col("dimensions"))
    return rows.join(registered, "basis_id", "left")


def item_embeddings(settings: Settings, date: datetime.date, asked: Sequence[str] = ()) -> list[CheckedRows]:
    """All vectors, and the coverage of items known before `date` in each basis `asked` for, or in force."""
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
        at_least_one_row(),
        *present("basis_id", "item_id", "dimensions"),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=["basis_id", "item_id"]),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="dimensions", column_B="dimensions_of_basis"),
        gxe.ExpectColumnValuesToBeBetween(column="squared_norm", min_value=0.99, max_value=1.01),
        gxe.ExpectColumnValuesToBeInSet(column="off_grid", value_set=[0]),
    )
    coverage = gxe.ExpectColumnValuesToBeInSet(
        column="has_vector", value_set=[True], mostly=1 - settings.gates.max_unknown_item_share
    )
    return [
        CheckedRows("item_embeddings", embeddings, ("basis_id", "item_id"), rules),
        CheckedRows("items_with_a_vector", covered, ("basis_id", "item_id"), (coverage,)),
    ]


def item_encodings(
    settings: Settings, date: datetime.date, anchors: bool, asked: Sequence[str] = ()
) -> list[CheckedRows]:
    """The encoder of `date`, or with `anchors` of every date that the training of `date` reads.

    Each date must have one, in the bases `asked` for, or else in that of the trainings. There is nothing to check if
    the settings don't ask for the autoencoder.
    """
    if AUTOENCODER not in settings.model.representations:
        return []
    dates = settings.training_set.dates(date).snapshot_dates if anchors else (date,)
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
        at_least_one_row(),
        *present(*keys, "encoder_id", "dimensions"),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="dimensions", column_B="dimensions_of_basis"),
        gxe.ExpectColumnValuesToBeInSet(column="off_grid", value_set=[0]),
        gxe.ExpectColumnValuesToBeBetween(column="largest", max_value=1),
        gxe.ExpectColumnValuesToBeInSet(column="embedded", value_set=[True]),
    )
    one_each = (*present("encoders"), gxe.ExpectColumnPairValuesToBeEqual(column_A="encoders", column_B="bases"))
    return [
        CheckedRows("item_encodings", rows, keys, rules),
        CheckedRows("item_encodings_dates", encoders, ("fitted_on",), one_each),
    ]


def lte_snapshots(
    settings: Settings, date: datetime.date, anchors: bool, asked: Sequence[str] = ()
) -> list[CheckedRows]:
    """The snapshots of `date`, or with `anchors` of every date that the training of `date` reads.

    Each representation of the settings must be there in each basis `asked` for. The default is every basis in force, or
    with `anchors` that of the trainings.
    """
    dates = settings.training_set.dates(date).snapshot_dates if anchors else (date,)
    keys = ("basis_id", "representation", "snapshot_date", "user_id")
    asked = asked or settings.basis.in_force[: 1 if anchors else None]
    rows = _ltes(settings, "lte_snapshots", keys).filter(pl.col("snapshot_date").is_in(dates))
    return [
        CheckedRows("lte_snapshots", rows, keys, _rules_of_ltes(settings, keys)),
        CheckedRows(
            "lte_snapshots_representations",
            _per_representation(rows, settings.model.representations, bases(settings, asked)),
            ("basis_id", "representation"),
            tuple(present("users")),
        ),
    ]


def lte_live(settings: Settings, date: datetime.date) -> list[CheckedRows]:
    """The live rows on `date`.

    Each publishable representation of the settings must be live in each basis in force; no unpublishable one may be.
    """
    keys = ("basis_id", "representation", "user_id")
    rows = _ltes(settings, "lte_live", (*keys, "snapshot_date"))
    never = [kind.name for kind in REPRESENTATIONS.values() if not kind.publishable]
    wanted = [name for name in settings.model.representations if name not in never]
    published = scan(settings, "lte_live").select(*keys)
    return [
        CheckedRows("lte_live", rows, keys, _rules_of_ltes(settings, keys)),
        CheckedRows(
            "lte_live_representations",
            _per_representation(rows, wanted, bases(settings)),
            ("basis_id", "representation"),
            tuple(present("users")),
        ),
        CheckedRows(
            "lte_live_published",
            published,
            keys,
            (gxe.ExpectColumnValuesToNotBeInSet(column="representation", value_set=never),),
        ),
    ]


def _ltes(settings: Settings, table: str, keys: Sequence[str]) -> pl.LazyFrame:
    """An LTE table's rows of the settings' representations, with the columns that `_rules_of_ltes` checks."""
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
            window_start=window_end() - pl.duration(days=pl.col("window_days")),
            window_end=window_end(),
            dimensions=sums.list.len(),
            norm=squared_sum.sqrt() / pl.col("event_count"),
            largest_norm="largest_norm",
            dimensions_of_basis="dimensions_of_basis",
        )
    )


def _rules_of_ltes(settings: Settings, keys: Sequence[str]) -> tuple[Expectation, ...]:
    """The rules for every row of LTEs, of any representation; `keys` identify a row."""
    return (
        at_least_one_row(),
        *present("user_id", "event_count", "newest_event_date", "dimensions"),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
        # The leak rule: the newest event in the LTE of D is dated before D−L. (L is 0 without a lag.)
        later("window_end", "newest_event_date"),
        later("newest_event_date", "window_start", or_equal=True),
        gxe.ExpectColumnValuesToBeBetween(column="event_count", min_value=1, max_value=MAX_EVENTS),
        later("largest_norm", "norm"),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="dimensions", column_B="dimensions_of_basis"),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="lag_days", column_B="lag_days_of_settings"),
        gxe.ExpectColumnValuesToBeInSet(column="window_days", value_set=[settings.window.window_days]),
    )


def _per_representation(rows: pl.LazyFrame, names: Sequence[str], in_bases: Iterable[str]) -> pl.LazyFrame:
    """(basis_id, representation, users) for each name in each basis; `users` is null without rows."""
    keys = ("basis_id", "representation")
    wanted = pl.LazyFrame(list(itertools.product(in_bases, names)), dict.fromkeys(keys, pl.String), orient="row")
    return wanted.join(rows.group_by(keys).agg(users=pl.len()), keys, "left")


def window_end() -> pl.Expr:
    """D−L, the first day that the LTE of D must not see."""
    return pl.col("snapshot_date") - pl.duration(days=pl.col("lag_days"))
