"""Measures how fast a snapshot is made, compared with other ways, at two sizes: `make bench-snapshot`.

The large shop has 200,000 users, 50,000 items and 20 million events, all in the window of one date. Every side reads
the same Delta table and writes every user's row; its rows are compared with the floor's.

    full, incremental, sweep_30   the job: from all days, from yesterday's snapshot, thirty dates in one pass
    rewrite                       Spark copies yesterday's rows to today: a lower bound for a daily run
    spark_vector_avg              events ⋈ vectors, then `vector_avg` by user
    spark_array_avg               the same join, then one average per component
    spark_posexplode              the same join, then one row per component; at the small size only
    duckdb, polars                one process: counts of (user, item), ⋈ vectors, one sum per component
    floor                         one process: pyarrow reads, scipy multiplies, pyarrow writes

Each side runs in its own process; Spark sides have a warm-up run. The slowest (sweep_30, and Spark's own ways at the
full size) run only once, without a warm-up. `--explain` prints the plan of `full`.

Longer than 350 lines, because all sides of the comparison are in one file.
"""

import argparse
import datetime
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import scipy.sparse
from deltalake import DeltaTable

from lte_model.domain.basis import GRID
from lte_model.domain.windows import ONE_DAY, lte_window
from lte_model.settings import Settings, load_settings
from tests.repository import REPOSITORY

HOME = REPOSITORY / ".lte" / "bench"
USERS = {"small": 4_000, "2m": 20_000, "5m": 50_000, "20m": 200_000}
ITEMS = 50_000
DATE = datetime.date(2024, 12, 30)
LAG, WINDOW = 30, 730
"""Lag and window in days: the window holds all but the last month of the shop's two years."""

DAILY = 30
DIMENSIONS = (64, 384)
SPARK_SIDES = ("full", "incremental", "sweep_30", "rewrite", "spark_vector_avg", "spark_array_avg")
OTHER_SIDES = ("duckdb", "polars", "floor")
SIDES = (*SPARK_SIDES, "spark_posexplode", *OTHER_SIDES)


def settings_of(size: str, dimensions: int) -> Settings:
    """The settings of one size's installation: one warehouse, with a basis for each number of dimensions."""
    home = HOME / size
    home.mkdir(parents=True, exist_ok=True)
    cache = REPOSITORY / ".cache"
    (home / "settings.toml").write_text(
        f"""
[window]
lag_days = {LAG}
window_days = {WINDOW}
[basis]
basis_id = "bench{dimensions}"
dimensions = {dimensions}
[spark]
jars = "{cache / "jars"}"
class_data_archive = "{cache / "classes.jsa"}"
[spark.conf]
"spark.driver.memory" = "8g"
"""
    )
    return load_settings(home / "settings.toml")


# The tables.


def prepare(size: str) -> None:
    """Makes one size's warehouse, unless it exists, with the demo shop's events in the layout of `ingest_events`."""
    done = HOME / size / "prepared"
    if done.exists():
        return
    from pyspark.sql import functions as F

    from jobs.demo_shop.feed import write_demo_shop
    from jobs.demo_shop.spec import ShopSpec
    from jobs.spark.session import spark_session
    from jobs.spark.warehouse import Warehouse
    from lte_model.warehouse.tables import EVENTS, INGESTED_DAYS, ITEM_EMBEDDINGS, SEMANTIC_BASES
    from lte_model.warehouse.tables import ITEMS as ITEMS_TABLE

    settings = settings_of(size, 64)
    shop = HOME / size / "shop"
    print(f"making the shop of {USERS[size]:,} users", flush=True)
    write_demo_shop(ShopSpec(users=USERS[size], items=ITEMS), shop)
    with spark_session(settings, "bench") as spark:
        warehouse = Warehouse(spark, settings)
        feed = spark.read.parquet(str(shop / "events.parquet")).withColumn(
            "event_ts", F.col("event_ts").try_cast("timestamp")
        )
        clean = feed.where("user_id IS NOT NULL AND item_id IS NOT NULL AND event_ts IS NOT NULL").distinct()
        clean = clean.withColumns({"event_date": F.col("event_ts").cast("date"), "rating": F.lit(None).cast("double")})
        warehouse.replace(EVENTS, clean.repartitionByRange("known_date").sortWithinPartitions("known_date"), "true")
        accounts = (
            warehouse.read(EVENTS)
            .groupBy("known_date")
            .count()
            .selectExpr(
                "'events' AS feed",
                "known_date",
                "known_date AS ingested_for",
                "count AS rows_read",
                "count AS rows_kept",
                "0L AS rows_quarantined",
                "0L AS exact_duplicates",
                "0L AS rows_erased",
                "CAST(count AS DECIMAL(38, 0)) AS content_hash",
            )
        )
        warehouse.replace(INGESTED_DAYS, accounts.coalesce(1), "true")
        items = spark.read.parquet(str(shop / "items.parquet"))
        columns = {field.name for field in items.schema}
        kept = [
            f"CAST({name if name in columns else 'NULL'} AS STRING) AS {name}"
            for name in ("title", "description", "category", "brand")
        ]
        warehouse.replace(
            ITEMS_TABLE,
            items.selectExpr("item_id", *kept, "CAST(NULL AS DOUBLE) AS price", "DATE'2020-01-01' AS known_date"),
            "true",
        )
        item_ids = [row[0] for row in items.select("item_id").orderBy("item_id").collect()]
        for dimensions in DIMENSIONS:
            basis_id = f"bench{dimensions}"
            vectors = pa.FixedSizeListArray.from_arrays(
                pa.array(vectors_of(len(item_ids), dimensions).ravel()), dimensions
            )
            file = HOME / size / "vectors.parquet"
            pq.write_table(pa.table({"item_id": item_ids, "vector": vectors.cast(pa.list_(pa.float32()))}), file)
            frame = spark.read.parquet(str(file)).withColumn("basis_id", F.lit(basis_id))
            warehouse.replace(ITEM_EMBEDDINGS, frame, f"basis_id = '{basis_id}'")
            basis = spark.createDataFrame(
                [(basis_id, "made-up", dimensions, "", DATE, len(item_ids), bytearray(b""))],
                "basis_id STRING, encoder STRING, dimensions INT, text_template STRING, fitted_on DATE, "
                "fitted_items LONG, state BINARY",
            )
            warehouse.replace(SEMANTIC_BASES, basis, f"basis_id = '{basis_id}'")
    shutil.rmtree(shop)
    done.touch()


def vectors_of(items: int, dimensions: int) -> np.ndarray:
    """Unit vectors on the grid, (items, dimensions) float32."""
    vectors = np.random.default_rng(dimensions).standard_normal((items, dimensions))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (np.rint(vectors * GRID) / GRID).astype(np.float32)


# The sides. Each is a function that runs once and returns the location of its rows.

Run = Callable[[], Path]


@contextmanager
def side(name: str, settings: Settings) -> Iterator[Run]:
    """A function that runs the side once and returns its rows' Parquet files or Delta partition."""
    target = Path(settings.home, f"{name}.parquet")
    if name in OTHER_SIDES:
        yield lambda: {"duckdb": duckdb_run, "polars": polars_run, "floor": floor_run}[name](settings, target)
        return
    from jobs.spark.session import spark_session
    from jobs.spark.warehouse import Warehouse

    with spark_session(settings, name) as spark:
        if name.startswith("spark_"):
            yield lambda: spark_run(Warehouse(spark, settings), name, target)
        else:
            if name == "sweep_30":  # no warm-up: thirty dates take too long
                job_run(Warehouse(spark, settings), "full")
            yield lambda: job_run(Warehouse(spark, settings), name)


def files_and_condition(settings: Settings) -> tuple[list[str], pc.Expression]:
    """The Parquet files of `events`, and a filter for rows in the window of `DATE`."""
    window = lte_window(DATE, LAG, WINDOW)
    inside = (pc.field("event_date") >= window.start) & (pc.field("event_date") < window.end)
    return DeltaTable(settings.table_path("events")).file_uris(), inside & (pc.field("known_date") < DATE)


def embeddings(settings: Settings) -> pl.DataFrame:
    rows = pl.scan_delta(settings.table_path("item_embeddings")).filter(pl.col("basis_id") == settings.basis.basis_id)
    return rows.select("item_id", "vector").sort("item_id").collect()


def floor_run(settings: Settings, target: Path) -> Path:
    files, inside = files_and_condition(settings)
    form = ds.ParquetFileFormat(read_options=ds.ParquetReadOptions(dictionary_columns={"user_id", "item_id"}))
    events = ds.dataset(files, format=form).to_table(columns=["user_id", "item_id"], filter=inside)
    events = events.unify_dictionaries().combine_chunks()
    table = embeddings(settings)
    units = np.rint(table["vector"].explode().to_numpy().reshape(len(table), -1) * GRID).astype(np.int32)
    users, items = events["user_id"].chunk(0), events["item_id"].chunk(0)
    number = (
        pc.index_in(items.dictionary, value_set=table["item_id"].to_arrow().cast(pa.string())).fill_null(-1).to_numpy()
    )
    item, user = number[items.indices.to_numpy()], users.indices.to_numpy()
    known = item >= 0
    item, user = item[known], user[known]
    counts = scipy.sparse.csr_matrix(
        (np.ones(len(user), np.int32), (user, item)), shape=(len(users.dictionary), len(units))
    )
    sums, events_of_user = counts @ units, np.bincount(user, minlength=counts.shape[0])
    alive = np.flatnonzero(events_of_user)
    sums = sums[alive] if len(alive) < len(sums) else sums
    vectors = pa.ListArray.from_arrays(np.arange(len(sums) + 1, dtype=np.int32) * units.shape[1], sums.ravel())
    user_ids = users.dictionary.take(pa.array(alive))
    rows = pa.table({"user_id": user_ids, "vector_sum": vectors, "event_count": events_of_user[alive]})
    pq.write_table(rows, target, use_dictionary=False)
    return target


def polars_run(settings: Settings, target: Path) -> Path:
    window = lte_window(DATE, LAG, WINDOW)
    vectors = embeddings(settings)
    width = len(vectors["vector"][0])
    components = vectors.lazy().select(
        "item_id", *[pl.col("vector").list.get(number).alias(f"v{number}") for number in range(width)]
    )
    (
        pl.scan_parquet(DeltaTable(settings.table_path("events")).file_uris())
        .filter(
            pl.col("event_date").is_between(window.start, window.end, closed="left") & (pl.col("known_date") < DATE)
        )
        .group_by("user_id", "item_id")
        .agg(n=pl.len().cast(pl.Float32))
        .join(components, on="item_id")
        .group_by("user_id")
        .agg(
            *[(pl.col("n") * pl.col(f"v{number}")).sum().alias(f"v{number}") for number in range(width)],
            event_count=pl.col("n").sum(),
        )
        .sink_parquet(target)
    )
    return target


def duckdb_run(settings: Settings, target: Path) -> Path:
    import duckdb

    window = lte_window(DATE, LAG, WINDOW)
    vectors = embeddings(settings)
    width = len(vectors["vector"][0])
    database = duckdb.connect()
    database.register("embeddings", vectors.to_arrow())
    listed = ", ".join(f"vector[{number + 1}] AS v{number}" for number in range(width))
    database.execute(f"CREATE TABLE components AS SELECT item_id, {listed} FROM embeddings")
    sums = ", ".join(f"sum(n * v{number}) AS v{number}" for number in range(width))
    database.execute(
        f"""
        COPY (
            WITH counts AS (
                SELECT user_id, item_id, count(*)::FLOAT AS n
                FROM read_parquet({DeltaTable(settings.table_path("events")).file_uris()!r})
                WHERE event_date >= DATE '{window.start}' AND event_date < DATE '{window.end}'
                  AND known_date < DATE '{DATE}'
                GROUP BY user_id, item_id
            )
            SELECT user_id, {sums}, sum(n) AS event_count
            FROM counts JOIN components USING (item_id) GROUP BY user_id
        ) TO '{target}' (FORMAT parquet)
        """
    )
    return target


def spark_run(warehouse, name: str, target: Path) -> Path:
    from pyspark.sql import functions as F

    from lte_model.warehouse.tables import EVENTS, ITEM_EMBEDDINGS

    window, width = lte_window(DATE, LAG, WINDOW), warehouse.settings.basis.dimensions
    vectors = warehouse.read(ITEM_EMBEDDINGS).where(F.col("basis_id") == warehouse.settings.basis.basis_id)
    events = warehouse.read(EVENTS).where(
        (F.col("event_date") >= window.start) & (F.col("event_date") < window.end) & (F.col("known_date") < DATE)
    )
    joined = events.select("user_id", "item_id").join(F.broadcast(vectors.select("item_id", "vector")), "item_id")
    if name == "spark_vector_avg":
        rows = joined.groupBy("user_id").agg(F.expr("vector_avg(vector) AS mean"), F.count("*").alias("event_count"))
    elif name == "spark_array_avg":
        means = F.array(*[F.avg(F.col("vector")[number]) for number in range(width)])
        rows = joined.groupBy("user_id").agg(means.alias("mean"), F.count("*").alias("event_count"))
    else:
        components = joined.select("user_id", F.posexplode("vector").alias("place", "value"))
        means = components.groupBy("user_id", "place").agg(
            F.avg("value").alias("value"), F.count("*").alias("event_count")
        )
        in_place = F.sort_array(F.collect_list(F.struct("place", "value")))
        rows = means.groupBy("user_id").agg(
            F.transform(in_place, lambda entry: entry["value"]).alias("mean"), F.max("event_count").alias("event_count")
        )
    rows.write.mode("overwrite").parquet(str(target))
    return target


def job_run(warehouse, name: str) -> Path:
    from pyspark.sql import functions as F

    from jobs.recipes.recipe import lte_of
    from jobs.snapshot_lte import snapshot_lte
    from jobs.spark.warehouse import sql_date
    from lte_model.warehouse.tables import LTE_SNAPSHOTS

    basis_id = warehouse.settings.basis.basis_id
    place = Path(
        warehouse.path(LTE_SNAPSHOTS), f"basis_id={basis_id}", "representation=uniform", f"snapshot_date={DATE}"
    )
    if name == "rewrite":
        rows = warehouse.read(LTE_SNAPSHOTS).where(
            f"{lte_of(basis_id, 'uniform')} AND snapshot_date = {sql_date(DATE - ONE_DAY)}"
        )
        today = f"{lte_of(basis_id, 'uniform')} AND snapshot_date = {sql_date(DATE)}"
        warehouse.replace(LTE_SNAPSHOTS, rows.withColumn("snapshot_date", F.lit(DATE)), today)
    elif name == "sweep_30":
        snapshot_lte(warehouse, [DATE - ONE_DAY * days for days in range(DAILY)], full=True)
    else:
        [account] = snapshot_lte(warehouse, [DATE], full=name == "full")
        assert (account.made_from is None) == (name == "full"), account
    return place


def prepare_base(settings: Settings) -> None:
    """Makes yesterday's snapshot, from which `incremental` starts and which `rewrite` copies."""
    from jobs.snapshot_lte import snapshot_lte
    from jobs.spark.session import spark_session
    from jobs.spark.warehouse import Warehouse

    with spark_session(settings, "base") as spark:
        snapshot_lte(Warehouse(spark, settings), [DATE - ONE_DAY], full=True)


def explain(settings: Settings) -> None:
    """Prints the plan that Spark runs for `full`."""
    from jobs.engine.calendar import Calendar
    from jobs.engine.files import list_files
    from jobs.engine.plan import needed
    from jobs.engine.run import run_engine
    from jobs.recipes.bases import load_vectors
    from jobs.spark.session import spark_session
    from jobs.spark.warehouse import Warehouse
    from lte_model.warehouse.tables import EVENTS

    with spark_session(settings, "explain") as spark:
        warehouse = Warehouse(spark, settings)
        vectors, calendar = load_vectors(warehouse, settings.basis.basis_id), Calendar((DATE,), LAG, WINDOW)
        files, condition = needed(list_files(warehouse.path(EVENTS)), calendar, vectors.catalogue)
        run_engine(spark, files, condition, None, vectors, calendar).explain()


# Measuring: one process per side and size.


def measure_here(name: str, size: str, dimensions: int, repeats: int, warm: bool) -> dict[str, object]:
    """Runs the side in this process; returns each repetition's seconds and the location of its rows."""
    settings = settings_of(size, dimensions)
    if name in ("incremental", "rewrite"):
        prepare_base(settings)
    with side(name, settings) as run:
        if warm:
            run()
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            rows = run()
            seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "rows": str(rows)}


def measure(name: str, size: str, dimensions: int, repeats: int) -> float:
    """Runs the side in a new process and compares its rows with the floor's; returns its median seconds."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_snapshot", "--one", name, "--size", size]
    command += ["--dimensions", str(dimensions), "--repeats", str(repeats)]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"side {name}, {size}, {dimensions} dimensions:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    if name not in ("floor", "rewrite"):
        require_same_rows(
            rows_of(Path(result["rows"]), dimensions), rows_of(HOME / size / "floor.parquet", dimensions), name
        )
    listed = ", ".join(f"{seconds:.1f}" for seconds in result["seconds"])
    median = statistics.median(result["seconds"])
    print(f"{size:>5} {dimensions:>4} dimensions {name:<17} {median:7.1f} s  ({listed})", flush=True)
    return median


def rows_of(place: Path, dimensions: int) -> tuple[pl.Series, np.ndarray, np.ndarray]:
    """(users, event counts, mean vectors) of a side's rows, sorted by user."""
    if "snapshot_date=" in place.name:
        table = DeltaTable(str(place.parents[2]))
        basis, date = place.parts[-3].partition("=")[2], place.parts[-1].partition("=")[2]
        frame = pl.scan_delta(table).filter(
            (pl.col("basis_id") == basis) & (pl.col("snapshot_date").cast(pl.String) == date)
        )
    else:
        frame = pl.scan_parquet(place / "*.parquet" if place.is_dir() else place)
    rows = frame.sort("user_id").collect()
    count = rows["event_count"].cast(pl.Float64).to_numpy()
    if "vector_sum" in rows.columns:
        means = rows["vector_sum"].explode().to_numpy().reshape(-1, dimensions) / (GRID * count[:, None])
    elif "mean" in rows.columns:
        means = rows["mean"].explode().to_numpy().reshape(-1, dimensions)
    else:
        means = rows.select(f"v{number}" for number in range(dimensions)).to_numpy() / count[:, None]
    return rows["user_id"], count, means


def require_same_rows(ours: tuple, floors: tuple, name: str) -> None:
    same = ours[0].equals(floors[0]) and np.array_equal(ours[1], floors[1])
    if not same or not np.allclose(ours[2], floors[2], atol=1e-4):
        raise SystemExit(f"side {name} has other rows than the floor: {len(ours[0])} and {len(floors[0])} users")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures a snapshot beside the other ways to make it.")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--size", choices=USERS, default="20m")
    parser.add_argument("--sides", help=f"comma-separated, of {', '.join(SIDES)} (default: all that suit the size)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dimensions", type=int, choices=DIMENSIONS, help="one width alone (default: both)")
    parser.add_argument("--explain", action="store_true", help="print the plan of the hot path, and measure nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.explain:
        prepare(arguments.size)
        explain(settings_of(arguments.size, arguments.dimensions or DIMENSIONS[0]))
        return
    if arguments.one:
        slow = arguments.one == "sweep_30" or (arguments.one.startswith("spark_") and arguments.size == "20m")
        repeats = 1 if slow else arguments.repeats
        warm = not slow and arguments.one not in OTHER_SIDES
        result = measure_here(arguments.one, arguments.size, arguments.dimensions, repeats, warm)
        print(json.dumps(result))
        return

    largest = arguments.size
    sides = (
        arguments.sides.split(",")
        if arguments.sides
        else [name for name in SIDES if name != "spark_posexplode" or largest == "small"]
    )
    sides = ["floor", *[name for name in sides if name != "floor"]]
    sizes = [size for size in ("2m", "5m", "20m") if USERS[size] <= USERS[largest]] or [largest]
    for size in {*sizes, largest}:
        prepare(size)
    figures = []
    for dimensions in (arguments.dimensions,) if arguments.dimensions else DIMENSIONS:
        seconds = {name: measure(name, largest, dimensions, arguments.repeats) for name in sides}
        figures += [figure(f"snapshot_{dimensions}", name, value) for name, value in seconds.items()]
        if "full" in seconds:
            for name, value in seconds.items():
                print(f"{'':>23} {name:<17} {value / seconds['full']:7.2f} × full", flush=True)
    for size in sizes:
        measure("floor", size, 64, 1)
        figures.append(figure(f"snapshot_{size}", "full", measure("full", size, 64, arguments.repeats)))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")


def figure(measure: str, side: str, seconds: float) -> dict[str, object]:
    return {"measure": measure, "side": side, "value": round(seconds, 3), "unit": "s"}


if __name__ == "__main__":
    main()
