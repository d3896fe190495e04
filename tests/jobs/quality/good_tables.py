"""Rows that every gate passes."""

import datetime
from decimal import Decimal

import polars as pl

from lte_model.domain.windows import ONE_DAY
from lte_model.settings import Settings

ALWAYS = datetime.date(1970, 1, 1)
UNIT = 2**14


def good_tables(settings: Settings, date: datetime.date) -> dict[str, pl.DataFrame]:
    """{table: rows} for every table that a gate of `date` checks or reads."""
    dates = settings.training_set.dates(date)
    lag = ONE_DAY * settings.window.lag_days

    def example(split, snapshot_date, target=None):
        event = datetime.datetime.combine(snapshot_date - ONE_DAY, datetime.time(), datetime.UTC)
        return {
            "training_date": date,
            "split": split,
            "snapshot_date": snapshot_date,
            "user_id": "u",
            "item_ids": ["a"],
            "event_times": [event],
            "target_count": 1,
            "oldest_target_date": snapshot_date - ONE_DAY,
            "target_item_id": "b" if target else None,
            "target_date": target,
            "lag_days": settings.window.lag_days,
            "basis_id": "b",
        }

    ltes = pl.DataFrame(
        {
            "user_id": ["u", "v"],
            "vector_sum": [[UNIT, -UNIT, 0, 0], [UNIT, 0, 0, 0]],
            "event_count": [2, 1],
            "newest_event_date": [date - lag - ONE_DAY] * 2,
            "lag_days": [settings.window.lag_days] * 2,
            "window_days": [settings.window.window_days] * 2,
            "snapshot_date": [date] * 2,
            "basis_id": ["b"] * 2,
            "representation": ["uniform"] * 2,
        },
        schema_overrides={"vector_sum": pl.List(pl.Int32)},
    )

    return {
        "events": pl.DataFrame(
            {
                "user_id": ["u", "v", "w"],
                "item_id": ["a", "b", "a"],
                "event_ts": [datetime.datetime(2024, 2, 29, n, tzinfo=datetime.UTC) for n in range(3)],
                "event_date": [date - ONE_DAY] * 3,
                "known_date": [date - ONE_DAY] * 3,
                "price": [None, 2.0, 3.0],
            }
        ),
        "ingested_days": pl.DataFrame(
            {
                "feed": ["events"],
                "known_date": [date - ONE_DAY],
                "ingested_for": [date],
                "rows_read": [5],
                "rows_kept": [3],
                "rows_quarantined": [1],
                "exact_duplicates": [1],
            }
        ),
        "items": pl.DataFrame(
            {
                "item_id": ["a", "b"],
                "title": ["Red shirt", "Blue coat"],
                "description": [None, "warm"],
                "category": ["x", None],
                "brand": ["y", "z"],
                "price": [1.0, None],
                "known_date": [ALWAYS, ALWAYS],
            }
        ),
        "semantic_bases": pl.DataFrame({"basis_id": ["b"], "dimensions": [4]}),
        "item_embeddings": pl.DataFrame(
            {"basis_id": ["b", "b"], "item_id": ["a", "b"], "vector": [[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0]]},
            schema_overrides={"vector": pl.List(pl.Float32)},
        ),
        "item_encodings": pl.DataFrame(
            {
                "basis_id": ["b", "b"],
                "encoder_id": ["e", "e"],
                "fitted_on": [date, date],
                "item_id": ["a", "b"],
                "vector": [[1.0, 0.5, 0.0, 0.0], [0.0, -1.0, 0.0, 1.0]],
            },
            schema_overrides={"vector": pl.List(pl.Float32)},
        ),
        "lte_live": ltes,
        "lte_snapshots": ltes,
        "item_popularity": pl.DataFrame(
            {
                "snapshot_date": [date, date],
                "item_id": ["a", "b"],
                "events_7d": [0, 1],
                "events_30d": [2, 1],
                "events_180d": [2, 1],
                "events_window": [0, 1],
            }
        ),
        "recommendations": pl.DataFrame(
            {
                "date": [date, date],
                "user_id": ["u", "v"],
                "item_ids": [["b", "a"], ["a"]],
                "scores": [[0.5, 0.5], [-1.0]],
                "candidate_items": [2, 1],
                "model_name": ["ranker"] * 2,
                "model_version": [3, 3],
                "basis_id": ["b"] * 2,
                "representation": ["uniform"] * 2,
            },
            schema_overrides={"scores": pl.List(pl.Float32)},
        ),
        "test_measurements": pl.DataFrame(
            [
                {
                    "test_name": "t",
                    "measured_for": date,
                    "test_start": date - ONE_DAY * 2,
                    "test_end": date,
                    "day": day,
                    "variant": variant,
                    "metric": metric,
                    "users": 3,
                    "sum_y": Decimal(6 * 10**4),
                    "sum_yy": Decimal(14 * 10**8),
                    "sum_x": Decimal(-3),
                    "sum_xx": Decimal(5),
                    "sum_xy": Decimal(0),
                }
                for variant in ("control", "lte")
                for metric in ("engagement", "revenue")
                for day in (date - ONE_DAY * 2, date - ONE_DAY)
            ]
        ),
        "training_set": pl.DataFrame(
            [example("train", anchor) for anchor in dates.anchors]
            + [
                example("validation", dates.validation.start, dates.validation.start),
                example("test", dates.test.start, dates.test.end - ONE_DAY),
            ]
        ),
    }
