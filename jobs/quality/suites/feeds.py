"""The rules of the tables made from the feeds: events and items."""

import datetime

import polars as pl
from great_expectations import expectations as gxe

from jobs.quality.suites.rules import CheckedRows, at_least_one_row, later, present
from lte_model.domain.basis import CONTENT_COLUMNS
from lte_model.domain.windows import ONE_DAY
from lte_model.settings import Settings
from lte_model.warehouse.reading import scan


def events(settings: Settings, date: datetime.date, since: datetime.date | None) -> list[CheckedRows]:
    """The events of the days that the run of `date` ingested, or since `since`, and their account."""
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
        CheckedRows(
            "events",
            rows,
            ("user_id", "item_id", "event_ts", "known_date"),
            (
                at_least_one_row(),
                *present("user_id", "item_id", "event_ts", "event_date", "known_date"),
                later("known_date", "event_date", or_equal=True),
                gxe.ExpectColumnValuesToBeBetween(column="price", min_value=0),
                gxe.ExpectColumnValuesToBeInSet(
                    column="item_known", value_set=[True], mostly=1 - settings.gates.max_unknown_item_share
                ),
            ),
        ),
        CheckedRows(
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
    """The day before `date`, or an earlier one if the run of `date` ingested missing days too."""
    of_run = (pl.col("feed") == "events") & (pl.col("ingested_for") == date)
    days = scan(settings, "ingested_days").filter(of_run).select(pl.col("known_date").min()).collect()
    return days.item() or date - ONE_DAY


def items(settings: Settings, date: datetime.date) -> list[CheckedRows]:
    """The items known before `date`."""
    rows = (
        scan(settings, "items")
        .filter(pl.col("known_date") < date)
        .with_columns(content_length=pl.concat_str(CONTENT_COLUMNS, ignore_nulls=True).str.len_chars())
        .select("item_id", "price", "known_date", "content_length")
    )
    rules = (
        at_least_one_row(),
        *present("item_id", "known_date"),
        gxe.ExpectColumnValuesToBeUnique(column="item_id"),
        gxe.ExpectColumnValuesToBeBetween(column="content_length", min_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="price", min_value=0),
    )
    return [CheckedRows("items", rows, ("item_id",), rules)]
