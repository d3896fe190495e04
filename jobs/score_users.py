"""Recommends items to every user: the champion ranks its items for `--date`; `recommendations` holds the best ones.

1. The model is the registry's version with the alias `champion`; the job ships its weights to the executors. Today's
   champion ranks, also for a past date, and each row names it.
2. All other inputs are as of the date D. LTEs come from `lte_snapshots`: the values that `lte_live` has once D is
   published, unaffected by later dates. The sequence holds events dated and known before D, by the model's own policy
   and length, as in training and evaluation; the time of the query is D 00:00 UTC. The model ranks its own items that
   were known before D. Its item bias, if any, is that of its training's newest date, as in serving.
3. Every user with an LTE of D or an event in the sequence is scored. All users with neither would get the same list, so
   they have no row.
4. Users are scored in groups by their ids, in the order of ids: the same inputs and model give the same bits, whatever
   the partitions and executors. (On one kind of processor only: others have other kernels.)

The job is idempotent: it replaces the rows of the date in one commit.
"""

import datetime
import itertools
import tempfile
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from mlflow.entities.model_registry import ModelVersion
from pyspark import SparkFiles
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.build_training_set import items_with_vectors, sequences
from jobs.engine.calendar import day_number
from jobs.engine.packing import BUCKETS
from jobs.engine.run import user_bucket
from jobs.recipes.bases import basis_in_force, load_index
from jobs.recipes.recipe import lte_of
from jobs.spark.session import spark_session
from jobs.spark.shipping import served_folder
from jobs.spark.warehouse import Warehouse, sql_date
from lte_model.command_line import CommandParser, run
from lte_model.domain.kind import KIND_FIELDS, LTEKind, require_kind
from lte_model.domain.windows import lte_window, target_window
from lte_model.errors import LTEError
from lte_model.registry import versions
from lte_model.registry.version_tags import own_tags
from lte_model.settings import Settings, Window
from lte_model.tracking.lineage import CHAMPION, version_with
from lte_model.warehouse.tables import EVENTS, LTE_SNAPSHOTS, RECOMMENDATIONS, SNAPSHOT_ACCOUNTS

if TYPE_CHECKING:  # torch is imported only if there is a champion
    from lte_model.ranker.model import Ranker
    from lte_model.ranker.recommender import Recommender

USERS_OF_A_GROUP = 2048
"""About how many users are ranked together: enough to batch users with sequences of similar length."""

GROUPS_OF_A_TASK = 24
"""About the most groups of a task, which it holds in memory and writes to one file."""

RANKED_ROWS = "user_id STRING, item_ids ARRAY<STRING>, scores ARRAY<FLOAT>, candidate_items INT"


@dataclass(frozen=True)
class Champion:
    """The model that scores: its registered name and version, the directory of its files, and the ranker."""

    name: str
    version: int
    directory: Path
    ranker: "Ranker"


def read_champion(settings: Settings, version: ModelVersion, folder: Path) -> Champion:
    """Fetches the version into `folder` and loads it. Raises `LTEError` if it isn't ours, or can't be fetched."""
    from lte_model.ranker.saved import load_ranker

    own_tags(version)
    directory = versions.fetch(settings, version, folder)
    return Champion(version.name, int(version.version), directory, load_ranker(directory))


def users_with_ltes(warehouse: Warehouse, kind: "LTEKind", date: datetime.date) -> int:
    """The number of users with the first LTE that a model of `kind` reads, on `date`.

    Raises `LTEError` if there is no LTE of the date, or if its basis, representation, lag or window aren't the model's.
    If several bases are in force, the LTEs of the model's own basis count.
    """
    warehouse.require(SNAPSHOT_ACCOUNTS)
    of_date = pl.scan_delta(warehouse.path(SNAPSHOT_ACCOUNTS)).filter(snapshot_date=date)
    made_in = of_date.select("basis_id").unique().collect()["basis_id"].to_list()
    basis_id = kind.basis_id if kind.basis_id in made_in else basis_in_force(warehouse)
    there = of_date.filter(basis_id=basis_id).select(*KIND_FIELDS, "users").sort("representation").collect()
    if there.is_empty():
        raise LTEError(
            f"table lte_snapshots holds no LTE of {date} in basis {basis_id}; run jobs.snapshot_lte --date {date}"
        )
    users = []
    for name in kind.representations:
        of_name = there.filter(representation=name)
        *found, with_lte = (there if of_name.is_empty() else of_name).row(0)
        require_kind(kind.of(name), LTEKind(*found), f"the LTE of {date}")
        users.append(with_lte)
    return users[0]


def users_of(
    events: DataFrame,
    items: DataFrame,
    ltes: Mapping[str, DataFrame],
    date: datetime.date,
    window: Window,
    policy: str,
    max_length: int,
    with_seen: bool,
) -> DataFrame:
    """The ranker's input for each user on `date`: the columns of lte_model/serving/pyfunc.py.

    Missing values are null. `with_seen` adds the user's `seen_items`. `items` (item_id, item_known_date) have a vector;
    `ltes` maps representations, in the model's order, to the LTE rows of the date.
    """
    start = lte_window(date, window.lag_days, window.window_days).start
    # A condition on the dates only, so that Delta skips files of other days.
    history = events.where((F.col("event_date") >= start) & (F.col("event_date") < date) & (F.col("known_date") < date))
    read = history
    if policy == "lagged":
        read = history.where(F.col("event_date") >= target_window(date, window.lag_days).start)
    users = sequences(read, items, [date], window, max_length).select(
        "user_id", "item_ids", F.transform("event_times", lambda time: F.unix_seconds(time)).alias("event_times")
    )
    for number, (name, lte) in enumerate(ltes.items()):
        suffix = f"_{name}" if number else ""
        columns = [F.col(column).alias(f"{column}{suffix}") for column in ("vector_sum", "event_count")]
        users = users.join(lte.select("user_id", *columns), "user_id", "full")
    if with_seen:
        seen = history.groupBy("user_id").agg(F.collect_set("item_id").alias("seen_items"))
        users = users.join(seen, "user_id", "left")
    return users.withColumn("query_time", F.lit(day_number(date) * 24 * 60 * 60).cast("bigint"))


def ship(spark: SparkSession, directory: Path) -> str:
    """Ships a model's files to every executor; returns the folder's name for `SparkFiles.get`."""
    folder = served_folder()
    name = f"{uuid.uuid4().hex}.zip"
    with zipfile.ZipFile(folder / name, "w") as archive:
        for file in directory.iterdir():
            archive.write(file, file.name)
    spark.sparkContext.addArchive(str(folder / name))
    return name


def recommended(users: DataFrame, model: str, k: int, allowed: np.ndarray, groups: int, partitions: int) -> DataFrame:
    """(user_id, item_ids, scores, candidate_items) of the users with an LTE or an event of one of the model's items.

    `model` is the name that `ship` returned; `allowed` (items,) bool selects the items to rank. The number of `groups`
    can change the last bits of a score; the number of `partitions` can't.
    """
    group = F.floor(user_bucket() * groups / BUCKETS).cast("int")

    def rank_partition(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from lte_model.ranker.recommender import open_recommender

        tables = [pa.Table.from_batches([batch]) for batch in batches]
        if not tables:
            return
        recommender = open_recommender(SparkFiles.get(model))
        rows = pa.concat_tables(tables).sort_by([("group", "ascending"), ("user_id", "ascending")])
        bounds = np.flatnonzero(np.diff(rows["group"].to_numpy(), prepend=-1, append=groups))
        for start, end in itertools.pairwise(bounds.tolist()):
            for batch in rows.slice(start, end - start).combine_chunks().to_batches():
                yield ranked(recommender, batch, k, allowed)

    return users.withColumn("group", group).repartitionById(partitions, "group").mapInArrow(rank_partition, RANKED_ROWS)


def ranked(recommender: "Recommender", rows: pa.RecordBatch, k: int, allowed: np.ndarray) -> pa.RecordBatch:
    """The rows of `recommendations` for the users of a group."""
    users = recommender.read(rows)
    hidden = rows["seen_items"] if "seen_items" in rows.schema.names else None
    best = recommender.best(users, k, None if allowed.all() else allowed, hidden)
    columns = {
        "user_id": rows["user_id"],
        "item_ids": best.item_ids,
        "scores": best.scores,
        "candidate_items": pa.array(best.candidates, pa.int32()),
    }
    is_known = (users.lengths > 0) | users.has_lte.any(axis=1)
    return pa.RecordBatch.from_pydict(columns).filter(pa.array(is_known))


def known_items(warehouse: Warehouse, ranker: "Ranker", date: datetime.date) -> np.ndarray:
    """(items,) bool: the model's items known before `date`. Raises `LTEError` if there are none."""
    index = load_index(warehouse, ranker.kind.basis_id)
    known = index.item_ids.filter(pa.array(index.known_day < day_number(date)))
    found = pc.is_in(pa.array(ranker.item_ids, pa.string()), value_set=known).to_numpy(zero_copy_only=False)
    if not found.any():
        raise LTEError(
            f"none of the {len(found):,} items that the model ranks is one that table items knew before {date}; take a "
            "later date, or train a model on this shop's items"
        )
    return found


def score_users(warehouse: Warehouse, date: datetime.date, champion: Champion) -> int:
    """Runs the job; returns how many users were scored.

    Raises `LTEError` if the model can't read the LTEs of the date.
    """
    settings, ranker = warehouse.settings, champion.ranker
    kind, window = ranker.kind, Window(lag_days=ranker.kind.lag_days, window_days=ranker.kind.window_days)
    groups = min(BUCKETS, max(1, -(-users_with_ltes(warehouse, kind, date) // USERS_OF_A_GROUP)))
    partitions = max(min(groups, warehouse.spark.sparkContext.defaultParallelism), -(-groups // GROUPS_OF_A_TASK))
    of_date = warehouse.read(LTE_SNAPSHOTS).where(f"snapshot_date = {sql_date(date)}")
    users = users_of(
        warehouse.read(EVENTS),
        items_with_vectors(warehouse, kind.basis_id),
        {name: of_date.where(lte_of(kind.basis_id, name)) for name in kind.representations},
        date,
        window,
        ranker.config.sequence,
        settings.training_set.max_length,
        with_seen=settings.scoring.seen_items == "drop",
    )
    allowed = known_items(warehouse, ranker, date)
    model = ship(warehouse.spark, champion.directory)
    named = {
        "date": date,
        "seen_items": settings.scoring.seen_items,
        "model_name": champion.name,
        "model_version": champion.version,
        **asdict(kind),
    }
    rows = recommended(users, model, settings.scoring.k, allowed, groups, partitions)
    rows = rows.withColumns({column: F.lit(value) for column, value in named.items()})
    warehouse.replace(RECOMMENDATIONS, rows, f"date = {sql_date(date)}")
    return warehouse.read(RECOMMENDATIONS).where(f"date = {sql_date(date)}").count()


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__, "the day that the recommendations are for")
    parser.add_argument("--if-champion", action="store_true", help="only where the registry has a champion")
    arguments, settings, date = parser.read()
    version = version_with(settings, CHAMPION)
    if version is None:
        nobody = f"no version of model {settings.mlflow.model_name} is {CHAMPION}"
        if not arguments.if_champion:
            raise LTEError(f"{nobody} in {settings.mlflow.place}; run lte_promotion first")
        print(f"nothing to score with: {nobody}")
        return
    with tempfile.TemporaryDirectory() as folder:
        champion = read_champion(settings, version, Path(folder))
        with spark_session(settings, "score_users", date) as spark:
            users = score_users(Warehouse(spark, settings), date, champion)
    print(
        f"recommendations of {date}: {users:,} users, up to {settings.scoring.k} items each, "
        f"by {champion.name} version {champion.version}"
    )


if __name__ == "__main__":
    run(main)
