"""The rules of tables that models read or write: popularity, training set, recommendations."""

import datetime

import polars as pl
from great_expectations import expectations as gxe

from jobs.quality.suites.rules import CheckedRows, at_least_one_row, first_value, later, present
from jobs.quality.suites.vectors import window_end
from lte_model.domain.representations import JOINT
from lte_model.settings import Settings
from lte_model.warehouse.popularity import POPULARITY_COUNTS
from lte_model.warehouse.reading import exists, scan


def item_popularity(settings: Settings, date: datetime.date, anchors: bool) -> list[CheckedRows]:
    """The counts of `date`, or of every date that the training of `date` reads. Each date must have some."""
    dates = settings.training_set.dates(date).snapshot_dates if anchors else (date,)
    keys = ("snapshot_date", "item_id")
    counts = scan(settings, "item_popularity").filter(pl.col("snapshot_date").is_in(dates))
    rows = counts.select(*keys, *POPULARITY_COUNTS)
    days = pl.LazyFrame({"snapshot_date": dates}).join(
        rows.group_by("snapshot_date").agg(items=pl.len()), "snapshot_date", "left"
    )
    rules = (
        at_least_one_row(),
        *present(*keys, *POPULARITY_COUNTS),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
        gxe.ExpectColumnValuesToBeBetween(column="events_7d", min_value=0),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="events_30d", column_B="events_7d", or_equal=True),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="events_180d", column_B="events_30d", or_equal=True),
    )
    return [
        CheckedRows("item_popularity", rows, keys, rules),
        CheckedRows("item_popularity_dates", days, ("snapshot_date",), tuple(present("items"))),
    ]


def training_set(settings: Settings, date: datetime.date) -> list[CheckedRows]:
    """The training set of `date`, all splits; each row is checked against the dates of its anchor or cut."""
    dates = settings.training_set.dates(date)
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
            window_end=window_end(),
            target_end=pl.col("split").replace_strict(ends, default=None, return_dtype=pl.Date),
            length=pl.col("item_ids").list.len().cast(pl.Int64),
            times=pl.col("event_times").list.len(),
        )
    )
    evaluates = rows.filter(pl.col("split").is_in(list(ends)))
    trains = rows.filter(~pl.col("split").is_in(list(ends)))
    return [
        CheckedRows(
            "training_set",
            rows,
            keys,
            (
                at_least_one_row(),
                *present(*keys, "basis_id"),
                gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
                gxe.ExpectColumnValuesToBeInSet(column="split", value_set=["train", "refit", *ends]),
                gxe.ExpectColumnValuesToBeInSet(column="basis_id", value_set=first_value(rows, "basis_id")),
                gxe.ExpectColumnPairValuesToBeEqual(column_A="length", column_B="times"),
                gxe.ExpectColumnValuesToBeBetween(column="length", max_value=settings.training_set.max_length),
                gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="length", column_B="target_count", or_equal=True),
                # The leak rule: no target is dated before D−L, where the window of the LTE ends. The suite of
                # lte_snapshots has the other half: no event of an LTE is dated on or after that day.
                later("oldest_target_date", "window_end", or_equal=True),
                later("snapshot_date", "newest_event_date"),
            ),
        ),
        CheckedRows(
            "training_set_targets",
            evaluates,
            keys,
            (
                at_least_one_row(),
                *present("target_item_id", "target_date"),
                later("target_date", "snapshot_date", or_equal=True),
                later("target_end", "target_date"),
            ),
        ),
        CheckedRows(
            "training_set_sequences",
            trains,
            keys,
            (
                at_least_one_row(),
                *present("oldest_target_date"),
                gxe.ExpectColumnValuesToBeBetween(column="target_count", min_value=1),
            ),
        ),
    ]


def recommendations(settings: Settings, date: datetime.date) -> list[CheckedRows]:
    """The recommendations of `date`, and whether every user with an LTE has some.

    There is nothing to check if there are none and no model is champion.
    """
    there = exists(settings, "recommendations")
    if not there or scan(settings, "recommendations").filter(date=date).head(1).collect().is_empty():
        from lte_model.tracking.lineage import CHAMPION, version_with  # MLflow takes seconds to import

        if version_with(settings, CHAMPION) is None:
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
        at_least_one_row(),
        *present(*keys, *model),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=list(keys)),
        *(gxe.ExpectColumnValuesToBeInSet(column=column, value_set=first_value(rows, column)) for column in model),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="length", column_B="wanted_length"),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="length", column_B="distinct_items"),
        gxe.ExpectColumnPairValuesToBeEqual(column_A="length", column_B="score_count"),
        gxe.ExpectColumnValuesToBeInSet(column="unknown_items", value_set=[0]),
        gxe.ExpectColumnValuesToBeInSet(column="descending", value_set=[True]),
        gxe.ExpectColumnValuesToBeInSet(column="finite", value_set=[True]),
    )
    read = of_date.select("basis_id", pl.col("representation").str.split(JOINT)).unique().explode("representation")
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
        CheckedRows("recommendations", rows, keys, rules),
        CheckedRows("recommendations_coverage", covered, ("user_id",), (coverage,)),
    ]
