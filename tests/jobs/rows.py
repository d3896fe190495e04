"""Rows of any table from dicts: columns that a test leaves out are null or get a valid default."""

import datetime
from decimal import Decimal

import pyarrow as pa
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from lte_model.domain.windows import ONE_DAY

DAY = datetime.date(2024, 3, 1)


def frame(warehouse, table, rows):
    """A table's rows from dicts; missing columns are null."""
    schema = to_arrow_schema(StructType.fromDDL(table.columns.replace(" NOT NULL", "")), timezone="UTC")
    return warehouse.spark.createDataFrame(pa.Table.from_pylist(rows, schema))


def event(user, day, second=0):
    moment = datetime.datetime.combine(day, datetime.time(1, 0, second), datetime.UTC)
    return {"user_id": user, "item_id": "i", "event_ts": moment, "event_date": day, "known_date": day}


def account(day, kept, erased=0):
    counts = {
        "rows_read": kept,
        "rows_kept": kept,
        "rows_quarantined": 0,
        "exact_duplicates": 0,
        "content_hash": Decimal(1),
    }
    return {"feed": "events", "known_date": day, "ingested_for": day, "rows_erased": erased} | counts


def lte(user, date):
    sums = {"user_bucket": 7, "vector_sum": [1, 2], "event_count": 1, "newest_event_date": date - ONE_DAY * 9}
    kind = {"lag_days": 3, "window_days": 10, "basis_id": "b", "representation": "uniform"}
    return {"user_id": user, "snapshot_date": date} | sums | kind


def case(user, split):
    return lte(user, DAY) | {
        "training_date": DAY,
        "split": split,
        "item_ids": ["i"],
        "event_times": [datetime.datetime(2024, 2, 1, tzinfo=datetime.UTC)],
        "target_count": 1,
        "history_count": 1,
    }


def recommendation(user, date):
    kind = {"lag_days": 3, "window_days": 10, "basis_id": "b", "representation": "uniform"}
    model = {"model_name": "ranker", "model_version": 1, "seen_items": "keep", "candidate_items": 1}
    return {"date": date, "user_id": user, "item_ids": ["i"], "scores": [1.0]} | model | kind
