"""Tables for tests of jobs that read the warehouse: one basis, five items, and events of fifty ingested days."""

import datetime
import random

from pyspark.sql import functions as F

from lte_model.domain.windows import ONE_DAY
from lte_model.warehouse.tables import EVENTS, INGESTED_DAYS, ITEM_EMBEDDINGS, ITEMS, SEMANTIC_BASES
from tests.jobs import events as made
from tests.jobs.events import Event, events_frame, item_vectors

LAG, WINDOW = 3, 10
"""Lag and window of the small settings, in days."""

DATE = made.FIRST_DAY + datetime.timedelta(days=25)
VECTORS = item_vectors(dimensions=4)
RARE_USERS = tuple(f"rare{number}" for number in range(12))


def fill(warehouse, feed):
    """Writes tables with one basis, five items and the events of `feed`, all days ingested."""
    spark = warehouse.spark
    warehouse.replace(
        SEMANTIC_BASES,
        spark.createDataFrame(
            [("basis", "hashed-text", 4, "{title}", DATE, 5, bytearray(b"state"))],
            "basis_id STRING, encoder STRING, dimensions INT, text_template STRING, fitted_on DATE, fitted_items LONG, "
            "state BINARY",
        ),
        "true",
    )
    rows = [("basis", item, (units / 2**14).tolist()) for item, units in zip(made.ITEMS, VECTORS.units, strict=True)]
    warehouse.replace(
        ITEM_EMBEDDINGS, spark.createDataFrame(rows, "basis_id STRING, item_id STRING, vector ARRAY<FLOAT>"), "true"
    )
    items = spark.createDataFrame(
        [(item, datetime.date(1970, 1, 1)) for item in made.ITEMS], "item_id STRING, known_date DATE"
    )
    empty = "CAST(NULL AS STRING)"
    warehouse.replace(
        ITEMS,
        items.selectExpr(
            "item_id",
            "item_id AS title",
            *[f"{empty} AS {name}" for name in ("description", "category", "brand")],
            "CAST(NULL AS DOUBLE) AS price",
            "known_date",
        ),
        "true",
    )
    ingest(warehouse, feed, made.FIRST_DAY, made.FIRST_DAY + 50 * ONE_DAY)


def ingest(warehouse, feed, first, end):
    """Writes the events of `feed` that became known in [first, end), and their days' accounts."""
    measures = [f"CAST(NULL AS DOUBLE) AS {name}" for name in ("price", "quantity", "rating")]
    days = f"known_date >= DATE'{first}' AND known_date < DATE'{end}'"
    known = events_frame(warehouse.spark, feed).where(days)
    warehouse.replace(EVENTS, known.selectExpr("*", "'view' AS event_type", *measures), days)
    calendar = warehouse.spark.sql(f"SELECT explode(sequence(DATE'{first}', DATE'{end - ONE_DAY}')) AS known_date")
    accounts = (
        known.withColumn("hash", F.xxhash64("user_id", "item_id", "event_ts").cast("decimal(38, 0)"))
        .groupBy("known_date")
        .agg(F.count("*").alias("rows_kept"), F.sum("hash").cast("decimal(38, 0)").alias("content_hash"))
    )
    accounts = calendar.join(accounts, "known_date", "left").selectExpr(
        "'events' AS feed",
        "known_date",
        f"DATE'{end}' AS ingested_for",
        "coalesce(rows_kept, 0) AS rows_read",
        "coalesce(rows_kept, 0) AS rows_kept",
        "0L AS rows_quarantined",
        "0L AS exact_duplicates",
        "0L AS rows_erased",
        "CAST(coalesce(content_hash, 0) AS DECIMAL(38, 0)) AS content_hash",
    )
    warehouse.replace(INGESTED_DAYS, accounts, days)


def random_feed(seed, size=200):
    """Events of forty days, some known late; a few users have many events and many have few."""
    generator = random.Random(seed)
    feed = []
    for _ in range(size):
        user = generator.choice(made.USERS * 4 + RARE_USERS)
        day = made.FIRST_DAY + ONE_DAY * generator.randrange(40)
        known = day + ONE_DAY * generator.choice((0, 0, 0, 1, 5))
        feed.append(Event(user, generator.choice(made.ITEMS), day, known, generator.randrange(9)))
    return feed


FEED = random_feed(5)
