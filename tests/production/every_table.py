"""Runs every job of the pipeline for two dates of a small shop, by its command line, in one process.

    python -m tests.production.every_table SETTINGS [SETTINGS_OF_SCORING | --dags]

It makes every table. The JVM outlives a job's session, so that a job costs seconds. With SETTINGS_OF_SCORING nothing is
trained: the scoring job uses those settings, and the models are those in `checkpoints` and `[mlflow]`. With `--dags`
only the jobs of lte_bootstrap and lte_daily run.
"""

import datetime
import os
import runpy
import shlex
import sys
from pathlib import Path
from unittest import mock

import polars as pl
from mlflow.tracking import MlflowClient

from jobs.demo_shop.feed import write_demo_shop
from jobs.demo_shop.spec import ShopSpec
from lte_model.domain.windows import ONE_DAY
from lte_model.settings import load_settings
from lte_model.tracking.lineage import CHAMPION

FIRST = datetime.date(2024, 7, 1)
SECOND = FIRST + ONE_DAY
SINCE = FIRST - 60 * ONE_DAY
SHOP = ShopSpec(users=120, items=150, events_per_user=150, bot_weight=5)

TRAINING = (
    "lte_model.training.train --date {first} --integration prefix",
    "lte_model.training.train --date {first} --integration none",
    "lte_model.evaluation.evaluate --date {first}",
    "lte_model.evaluation.report --date {first}",
    "lte_model.registry.versions register --date {first}",
)
BOOTSTRAP = (
    "jobs.ingest_items --date {first}",
    "jobs.ingest_events --date {first} --since {since}",
    "jobs.fit_basis --date {first}",
    "jobs.embed_items --date {first}",
)
DAILY = (
    "jobs.ingest_items --date {second}",
    "jobs.ingest_events --date {second}",
    "jobs.embed_items --date {second}",
    "jobs.snapshot_lte --date {second}",
    "jobs.monitor_lte --date {second}",
    "jobs.publish_lte --date {second}",
)
COMMANDS = (
    *BOOTSTRAP,
    "lte_model.training.autoencoder --date {first}",
    "jobs.encode_items --date {first}",
    "jobs.snapshot_lte --date {first} --anchors",
    "jobs.snapshot_lte --date {first} --representation uniform --representation recency --representation autoencoder",
    "jobs.publish_lte --date {first}",
    "jobs.count_popularity --date {first} --anchors",
    "jobs.build_training_set --date {first}",
    *TRAINING,
    *DAILY,
    "jobs.score_users --date {second}",
    "jobs.audit_lte --date {second} --live --share 0.2",
    "jobs.measure_test --date {second} --test t --from {since} --to {second} --rehearse",
    "jobs.erase_users --users {home}/erased.txt --table events",
    "jobs.maintain_tables --date {second} --table lte_snapshots",
)


def write_feeds(folder: Path) -> None:
    """Writes the shop's feeds, plus an online test's outcomes derived from its events."""
    write_demo_shop(SHOP, folder)
    events = pl.read_parquet(folder / "events.parquet").drop_nulls(["user_id", "event_ts"])
    engagement, revenue = pl.lit(1.0).alias("engagement"), pl.col("price").fill_null(0.0).alias("revenue")
    outcomes = events.select("user_id", pl.col("event_ts").alias("outcome_ts"), engagement, revenue)
    outcomes.write_parquet(folder / "outcomes.parquet")


def run_command(line: str) -> None:
    """Runs a command line like `python -m`. Raises `SystemExit` if the command fails."""
    module, *arguments = shlex.split(line)
    with mock.patch.object(sys, "argv", [module, *arguments]), mock.patch.dict(os.environ):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def make_champion(settings_file: str) -> None:
    """Makes the registered version champion without the gate, which two tiny trainings might not pass."""
    settings = load_settings(settings_file)
    client = MlflowClient(settings.mlflow.tracking_uri, settings.mlflow.tracking_uri)
    client.set_registered_model_alias(settings.mlflow.model_name, CHAMPION, "1")


def main() -> None:
    settings, *of_scoring = (argument for argument in sys.argv[1:] if argument != "--dags")
    for command in (*BOOTSTRAP, *DAILY) if "--dags" in sys.argv else COMMANDS:
        if of_scoring and command.startswith(("lte_model.training.autoencoder", *TRAINING)):
            continue
        line = command.format(first=FIRST, second=SECOND, since=SINCE, home=Path(settings).parent)
        scores = of_scoring and command.startswith("jobs.score_users")
        print(f"$ {line}", flush=True)
        run_command(f"{line} --settings {of_scoring[0] if scores else settings}")
        if command == TRAINING[-1]:
            make_champion(settings)


if __name__ == "__main__":
    main()
