"""Writes small feeds as a shop would deliver them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from jobs.spark.warehouse import Warehouse

EVENT_COLUMNS = ("user_id", "item_id", "event_ts", "event_type", "price", "known_date")


def event(user="u1", item="i1", ts="2024-02-29T12:00:00Z", known="2024-02-29", kind="view", price=None) -> dict:
    """A row of an events feed; every value is text, as in CSV."""
    return dict(zip(EVENT_COLUMNS, (user, item, ts, kind, price, known), strict=True))


def write_parquet(path: Path, rows: list[dict], columns=EVENT_COLUMNS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {column: pa.array([row.get(column) for row in rows], pa.string()) for column in columns}
    pq.write_table(pa.table(table), path)
    return path


def write_csv(path: Path, rows: list[dict], columns=EVENT_COLUMNS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {column: pa.array([row.get(column) for row in rows], pa.string()) for column in columns}
    pyarrow.csv.write_csv(pa.table(table), path)
    return path


def write_json_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reads(warehouse: Warehouse, events: Path | str | None = None, items: Path | str | None = None) -> None:
    """Points the warehouse's settings at the feeds."""
    changes = {name: str(path) for name, path in (("events", events), ("items", items)) if path is not None}
    sources = warehouse.settings.sources.model_copy(update=changes)
    warehouse.settings = warehouse.settings.model_copy(update={"sources": sources})
