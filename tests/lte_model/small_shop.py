"""A small shop as Delta tables, written without Spark.

`write_warehouse` is a small oracle for the jobs: it loops over users and events where the jobs join and shuffle, and
writes the same tables.
"""

import datetime
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import polars as pl

from lte_model.domain.basis import GRID, SemanticBasis
from lte_model.domain.windows import Interval, TrainingDates, lte_window, target_window
from lte_model.settings import Settings, TrainingSetSettings, Window

TRAINING_DATE = datetime.date(2024, 12, 1)
REPRESENTATION = "uniform"
OTHER_REPRESENTATION = "recency"
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
max_length = 30
[model]
width = 16
max_tokens = 12
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
    """Events and items of a shop: every user likes one colour and, for some weeks at a time, one kind of thing.

    A third of the users come every few days; a third come so rarely that their short sequence is mostly empty. Some
    users come for the first time after an anchor. The newest items arrive near the end.
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
    """Writes the tables that the training and evaluation of `training_date` read."""
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
    dates = settings.training_set.dates(training_date)
    same_in_all = {
        "lag_days": pl.lit(settings.window.lag_days, pl.Int32),
        "window_days": pl.lit(settings.window.window_days, pl.Int32),
        "basis_id": pl.lit(basis.basis_id),
    }
    rows = training_rows(events, in_basis, settings.window, settings.training_set, training_date)
    write_table(
        settings,
        "training_set",
        pl.DataFrame(rows, schema=TRAINING_SET_COLUMNS).with_columns(
            training_date=pl.lit(training_date), **same_in_all
        ),
        partition_by=["training_date", "split"],
    )
    lte = lte_rows(events, in_basis, settings.window, dates.snapshot_dates)
    write_table(
        settings,
        "lte_snapshots",
        pl.concat(
            pl.DataFrame(lte, schema=LTE_COLUMNS)
            .with_columns(representation=pl.lit(name), **same_in_all)
            # The second representation of the same history only has to differ from the first.
            .with_columns(pl.col("vector_sum").list.eval(sign * pl.element()))
            for name, sign in ((REPRESENTATION, 1), (OTHER_REPRESENTATION, -1))
        ),
        partition_by=["basis_id", "representation", "snapshot_date"],
    )
    write_table(settings, "item_popularity", pl.DataFrame(popularity_rows(events, settings.window, dates)))


LTE_COLUMNS = {
    "user_id": pl.String,
    "vector_sum": pl.List(pl.Int32),
    "event_count": pl.Int32,
    "newest_event_date": pl.Date,
    "snapshot_date": pl.Date,
}
TRAINING_SET_COLUMNS = {
    "split": pl.String,
    "snapshot_date": pl.Date,
    "user_id": pl.String,
    "item_ids": pl.List(pl.String),
    "event_times": pl.List(pl.Datetime("us", "UTC")),
    "target_count": pl.Int32,
    "oldest_target_date": pl.Date,
    "target_item_id": pl.String,
    "target_date": pl.Date,
    "history_count": pl.Int32,
}


History = list[tuple[str, datetime.datetime, datetime.date]]


def histories(events: pl.DataFrame) -> dict[str, History]:
    """{user: (item, time, day) of every event, oldest first}."""
    by_user = defaultdict(list)
    for user, item, moment, day in events.select("user_id", "item_id", "event_ts", "event_date").sort(
        "user_id", "event_ts", "item_id"
    ).iter_rows():  # fmt: skip
        by_user[user].append((item, moment, day))
    return by_user


def lte_rows(
    events: pl.DataFrame, vectors: dict[str, np.ndarray], window: Window, dates: Sequence[datetime.date]
) -> list[dict]:
    """The uniform LTE of each user at each date."""
    units = {item: np.rint(vector * GRID).astype(np.int64) for item, vector in vectors.items()}
    rows = []
    for date in dates:
        distant = lte_window(date, window.lag_days, window.window_days)
        for user, history in histories(events).items():
            averaged = [event for event in history if event[2] in distant and event[0] in units]
            if averaged:
                rows.append(
                    {
                        "user_id": user,
                        "vector_sum": sum(units[item] for item, _, _ in averaged).tolist(),
                        "event_count": len(averaged),
                        "newest_event_date": averaged[-1][2],
                        "snapshot_date": date,
                    }
                )
    return rows


def popularity_rows(events: pl.DataFrame, window: Window, dates: TrainingDates) -> list[dict]:
    """The rows of `item_popularity`: each item's counts before each date."""
    spans = {"events_7d": 7, "events_30d": 30, "events_180d": 180, "events_window": window.window_days}
    counts = defaultdict(lambda: dict.fromkeys(spans, 0))
    for date in dates.snapshot_dates:
        for item, day in events.select("item_id", "event_date").iter_rows():
            for name, days in spans.items():
                if 0 < (date - day).days <= days:
                    counts[date, item][name] += 1
    return [{"snapshot_date": date, "item_id": item, **found} for (date, item), found in sorted(counts.items())]


def training_rows(
    events: pl.DataFrame,
    vectors: dict[str, np.ndarray],
    window: Window,
    options: TrainingSetSettings,
    training_date: datetime.date,
) -> list[dict]:
    """The rows of `training_set`, user by user."""
    dates = options.dates(training_date)
    rows = []
    for split, cut, targets in (
        *(("train", anchor, None) for anchor in dates.anchors),
        ("refit", dates.test.start, None),
        ("validation", dates.validation.start, dates.validation),
        ("test", dates.test.start, dates.test),
    ):
        for user, history in histories(events).items():
            row = _case(history, cut, targets, set(vectors), window, options.max_length)
            if row:
                rows.append({"split": split, "snapshot_date": cut, "user_id": user, **row})
    return rows


def _case(
    history: History,
    cut: datetime.date,
    targets: Interval | None,
    in_basis: set[str],
    window: Window,
    max_length: int,
) -> dict | None:
    after_lag, distant = target_window(cut, window.lag_days), lte_window(cut, window.lag_days, window.window_days)
    seen = [event for event in history if distant.start <= event[2] < cut]
    sequence = [event for event in seen if event[0] in in_basis][-max_length:]
    predicted = [day for _, _, day in sequence if day in after_lag]
    target = next((event for event in history if targets and event[2] in targets), None)
    if (targets and not (target and seen)) or (not targets and not predicted):
        return None
    return {
        "item_ids": [item for item, _, _ in sequence],
        "event_times": [moment for _, moment, _ in sequence],
        "target_count": len(predicted),
        "oldest_target_date": min(predicted, default=None),
        "target_item_id": target[0] if target else None,
        "target_date": target[2] if target else None,
        "history_count": len(seen),
    }


def write_table(
    settings: Settings, table: str, frame: pl.DataFrame, partition_by: Sequence[str] = (), mode: str = "overwrite"
) -> None:
    frame.write_delta(
        settings.table_path(table),
        mode=mode,
        delta_write_options={"partition_by": list(partition_by)} if partition_by else {},
    )


def with_model(shop, **options):
    return shop.model_copy(update={"model": shop.model.model_copy(update=options)})
