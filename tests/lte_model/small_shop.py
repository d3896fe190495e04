"""A small shop as Delta tables, written without Spark.

`write_warehouse` is the jobs' oracle in miniature: it goes through users and events one by one where the jobs join
and shuffle, and writes the same tables.
"""

import datetime
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import polars as pl

from lte_model.basis import GRID, SemanticBasis
from lte_model.settings import Settings, TrainingSet, Window
from lte_model.windows import Interval, lte_window, target_window, training_dates

TRAINING_DATE = datetime.date(2024, 12, 1)
REPRESENTATION = "uniform"
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown", "grey")
KINDS = ("shirt", "dress", "shoe", "coat", "hat", "skirt", "belt", "scarf", "sock", "bag")

SETTINGS = """
[window]
lag_days = 20
window_days = 200
[basis]
dimensions = 8
[training_set]
anchors = 3
anchor_every_days = 20
test_days = 20
max_length = 12
[model]
width = 16
[training]
epochs = 4
batch_size = 32
threads = 2
learning_rate = 0.005
[evaluation]
cutoffs = [5, 40]
bootstrap_samples = 200
"""


def make_shop(users: int, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events and items: every user likes one colour and, for some weeks at a time, one kind of thing.

    A third of them comes every few days, and a third so rarely that the short sequence is mostly empty. Some come
    for the first time after an anchor; the newest items arrive near the end.
    """
    random = np.random.default_rng(seed)
    items = pl.DataFrame(
        {
            "item_id": [f"i{n:03}" for n in range(80)],
            "title": [f"{COLOURS[n % 8]} {KINDS[n // 8]}" for n in range(80)],
            "description": [f"a {KINDS[n // 8]} in {COLOURS[n % 8]}" for n in range(80)],
            "category": [KINDS[n // 8] for n in range(80)],
            "brand": [f"brand {n % 3}" for n in range(80)],
            "price": random.uniform(5, 50, 80).round(2),
            "known_date": [TRAINING_DATE - datetime.timedelta(days=30 if n % 16 == 7 else 500) for n in range(80)],
        }
    )
    rows = []
    for user in range(users):
        colour, kind = random.integers(8), random.integers(10)
        day = TRAINING_DATE - datetime.timedelta(days=int(random.integers(30, 300)))
        while day < TRAINING_DATE:
            for _ in range(random.integers(1, 4)):
                kind = random.integers(10) if random.random() < 0.2 else kind
                colour_now = random.integers(8) if random.random() < 0.3 else colour
                moment = datetime.datetime.combine(day, datetime.time(int(random.integers(24))), datetime.UTC)
                rows.append((f"u{user:03}", f"i{kind * 8 + colour_now:03}", moment))
            day += datetime.timedelta(days=int(random.integers(1, (4, 20, 60)[user % 3])))
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "event_ts"], orient="row")
    return events.with_columns(event_type=pl.lit("view")), items


def write_warehouse(
    settings: Settings, events: pl.DataFrame, items: pl.DataFrame, training_date: datetime.date
) -> None:
    """The tables that training and evaluation read, for the training of `training_date`."""
    basis = SemanticBasis.fit(items.to_dicts(), settings.basis.text_template, settings.basis.dimensions)
    vectors, known = basis.encode(items.to_dicts())
    write_table(settings, "items", items)
    write_table(
        settings,
        "semantic_bases",
        pl.DataFrame({"basis_id": [basis.basis_id], "encoder": ["hashed-text"], "dimensions": [basis.dimensions]}),
    )
    write_table(
        settings,
        "item_embeddings",
        pl.DataFrame(
            {
                "basis_id": [basis.basis_id] * int(known.sum()),
                "item_id": items.filter(pl.Series(known))["item_id"],
                "vector": pl.Series(vectors[known].tolist(), dtype=pl.List(pl.Float32)),
            }
        ),
    )
    events = events.with_columns(
        event_date=pl.col("event_ts").dt.date(),
        known_date=pl.col("event_ts").dt.date(),
        price=pl.lit(None, pl.Float64),
        quantity=pl.lit(None, pl.Float64),
        rating=pl.lit(None, pl.Float64),
    )
    write_table(settings, "events", events, partition_by=["known_date"])
    in_basis = {item: vector for item, vector, has in zip(items["item_id"], vectors, known, strict=True) if has}
    rows = training_rows(events, in_basis, settings.window, settings.training_set, training_date)
    write_table(
        settings,
        "training_set",
        pl.DataFrame(rows, schema=TRAINING_SET_COLUMNS).with_columns(
            training_date=pl.lit(training_date),
            lag_days=pl.lit(settings.window.lag_days, pl.Int32),
            window_days=pl.lit(settings.window.window_days, pl.Int32),
            basis_id=pl.lit(basis.basis_id),
            representation=pl.lit(REPRESENTATION),
        ),
        partition_by=["training_date", "split"],
    )


TRAINING_SET_COLUMNS = {
    "split": pl.String,
    "snapshot_date": pl.Date,
    "user_id": pl.String,
    "item_ids": pl.List(pl.String),
    "event_times": pl.List(pl.Datetime("us", "UTC")),
    "oldest_event_date": pl.Date,
    "target_item_id": pl.String,
    "target_date": pl.Date,
    "history_count": pl.Int32,
    "vector_sum": pl.List(pl.Int32),
    "event_count": pl.Int32,
    "newest_lte_event_date": pl.Date,
}


def training_rows(
    events: pl.DataFrame,
    vectors: dict[str, np.ndarray],
    window: Window,
    options: TrainingSet,
    training_date: datetime.date,
) -> list[dict]:
    """The rows of the training set, user by user."""
    dates = training_dates(training_date, options)
    units = {item: np.rint(vector * GRID).astype(np.int64) for item, vector in vectors.items()}
    by_user = defaultdict(list)
    for user, item, moment, day in events.select("user_id", "item_id", "event_ts", "event_date").sort(
        "user_id", "event_ts", "item_id"
    ).iter_rows():  # fmt: skip
        by_user[user].append((item, moment, day))
    rows = []
    for split, cut, targets in (
        *(("train", anchor, None) for anchor in dates.anchors),
        ("validation", dates.validation.start, dates.validation),
        ("test", dates.test.start, dates.test),
    ):
        for user, history in by_user.items():
            row = _case(history, cut, targets, units, window, options.max_length)
            if row:
                rows.append({"split": split, "snapshot_date": cut, "user_id": user, **row})
    return rows


def _case(
    history: Sequence[tuple[str, datetime.datetime, datetime.date]],
    cut: datetime.date,
    targets: Interval | None,
    units: dict[str, np.ndarray],
    window: Window,
    max_length: int,
) -> dict | None:
    short, distant = target_window(cut, window.lag_days), lte_window(cut, window.lag_days, window.window_days)
    sequence = [event for event in history if event[2] in short and event[0] in units][-max_length:]
    target = next((event for event in history if targets and event[2] in targets), None)
    seen = sum(distant.start <= day < cut for _, _, day in history)
    if (targets and not (target and seen)) or (not targets and not sequence):
        return None
    averaged = [event for event in history if event[2] in distant and event[0] in units]
    return {
        "item_ids": [item for item, _, _ in sequence],
        "event_times": [moment for _, moment, _ in sequence],
        "oldest_event_date": sequence[0][2] if sequence else None,
        "target_item_id": target[0] if target else None,
        "target_date": target[2] if target else None,
        "history_count": seen,
        "vector_sum": sum(units[item] for item, _, _ in averaged).tolist() if averaged else None,
        "event_count": len(averaged),
        "newest_lte_event_date": averaged[-1][2] if averaged else None,
    }


def write_table(
    settings: Settings, table: str, frame: pl.DataFrame, partition_by: Sequence[str] = (), mode: str = "overwrite"
) -> None:
    frame.write_delta(
        settings.table_path(table),
        mode=mode,
        delta_write_options={"partition_by": list(partition_by)} if partition_by else {},
    )
