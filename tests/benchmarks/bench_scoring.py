"""Measures how many users per second the job ranks, compared with the bare model: `make bench-scoring`.

It ranks the best 100 items for each user of a synthetic shop of 20,000 users and 3,399 items, by a model with random
weights and the settings' sizes (width 64, 2 blocks, 2 heads, 50 tokens). Sequences have realistic lengths
(bench_training.py): the newest 49 events; half of the users have fewer than 40. All sides rank the same rows on a CPU.

    spark_1, spark_2   the job, from users' rows to rows of `recommendations`, in 1 partition and in 2
    ranker             the model alone: scores and topk in one process and thread, all users sorted by length
    served             `predict` of the served model in one process and thread, on frames as large as the job's groups

Each side runs in its own process, with one warm-up run. Figures are medians of the repeats.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.score_users import USERS_OF_A_GROUP, recommended, ship
from jobs.spark.session import spark_session
from lte_model.domain.basis import GRID
from lte_model.domain.kind import LTEKind
from lte_model.ranker.batches import scored
from lte_model.ranker.model import Ranker
from lte_model.ranker.recommender import open_recommender
from lte_model.ranker.saved import save_ranker
from lte_model.serving.pyfunc import ARTIFACT, ServedRanker
from lte_model.settings import Model, load_settings
from tests.benchmarks.bench_training import DIMENSIONS, figure, made_up
from tests.lte_model.configs import ranker_config
from tests.repository import REPOSITORY

USERS, ITEMS, LENGTH = 20_000, 3_399, 49
K = 100
SIDES = ("spark_1", "spark_2", "ranker", "served")
KIND = LTEKind("made up", "uniform", 30, 365)


def prepare(folder: Path, users: int, items: int, length: int) -> None:
    """Writes the users' rows, the model, and settings for Spark."""
    events = made_up(users, items).sort("user_id", "event_ts")
    newest = events.group_by("user_id", maintain_order=True).agg(pl.col("item_id").tail(length))
    sums = np.random.default_rng(1).integers(-GRID, GRID, (users, DIMENSIONS), dtype=np.int32)
    rows = {
        "user_id": newest["user_id"].to_arrow().cast(pa.string()),
        "item_ids": newest["item_id"].to_arrow().cast(pa.list_(pa.string())),
        "vector_sum": pa.array(list(sums), pa.list_(pa.int32())),
        "event_count": pa.array([20] * users, pa.int32()),
    }
    pq.write_table(pa.table(rows), folder / "users.parquet")
    torch.manual_seed(0)
    sizes = Model(max_tokens=length + 1).model_dump(exclude={"representations"})
    content = torch.nn.functional.normalize(torch.randn(items, DIMENSIONS), dim=1)
    config = ranker_config(items=items, dimensions=DIMENSIONS, **sizes)
    ranker = Ranker(config, KIND, [str(row) for row in range(items)], content)
    torch.nn.init.normal_(ranker.id_embedding, std=0.1)
    save_ranker(ranker, folder / "model")
    cache = REPOSITORY / ".cache"
    (folder / "settings.toml").write_text(
        f'[spark]\njars = "{cache / "jars"}"\nclass_data_archive = "{cache / "classes.jsa"}"\n'
    )


def measured(side: str, folder: Path, repeats: int) -> list[float]:
    """Runs a side in this process; returns each repeat's seconds."""
    if side.startswith("spark"):
        return on_spark(folder, int(side.removeprefix("spark_")), repeats)
    recommender = open_recommender(str(folder / "model"))
    table = pq.read_table(folder / "users.parquet").combine_chunks()
    if side == "ranker":
        users = recommender.read(table.to_batches()[0])

        def score() -> None:
            for _, scores in scored(recommender.ranker, users, torch.device("cpu"), table=recommender.table):
                scores.topk(K)

        return timed(score, repeats)
    served = ServedRanker()
    served.load_context(SimpleNamespace(artifacts={ARTIFACT: str(folder / "model")}))
    users = table.to_pandas().assign(**vars(KIND))
    frames = [users[start : start + USERS_OF_A_GROUP] for start in range(0, len(users), USERS_OF_A_GROUP)]
    return timed(lambda: [served.predict(None, frame, {"k": K}) for frame in frames], repeats)


def on_spark(folder: Path, partitions: int, repeats: int) -> list[float]:
    settings = load_settings(folder / "settings.toml")
    spark_settings = settings.spark.model_copy(update={"master": f"local[{partitions}]"})
    with spark_session(settings.model_copy(update={"spark": spark_settings}), "bench") as spark:
        users = spark.read.parquet(str(folder / "users.parquet")).cache()
        groups = -(-users.count() // USERS_OF_A_GROUP)
        model = ship(spark, folder / "model")
        allowed = np.ones(len(open_recommender(str(folder / "model")).item_ids), dtype=bool)

        def score() -> None:
            found = recommended(users, model, K, allowed, groups, partitions)
            found.write.format("noop").mode("overwrite").save()

        return timed(score, repeats)


def timed(score: Callable[[], object], repeats: int) -> list[float]:
    score()  # to warm up
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        score()
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures how many users a second are recommended to.")
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--length", type=int, default=LENGTH, help="the most events of a sequence")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", default=",".join(SIDES), help=f"some of {', '.join(SIDES)}")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        side, folder = arguments.one
        print(json.dumps(measured(side, Path(folder), arguments.repeats)))
        return
    sides = [side for side in SIDES if side in arguments.sides.split(",")]
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), arguments.users, arguments.items, arguments.length)
        for side in sides:
            command = [sys.executable, "-m", "tests.benchmarks.bench_scoring", "--one", side, folder]
            command += ["--repeats", str(arguments.repeats)]
            printed = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout
            rates = [arguments.users / seconds for seconds in json.loads(printed.splitlines()[-1])]
            figures.append(figure("scored_users_per_second", side, statistics.median(rates), "users/s"))
            listed = ", ".join(f"{rate:,.0f}" for rate in rates)
            print(f"{side:<8} {statistics.median(rates):10,.0f} users/s ({listed})", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
