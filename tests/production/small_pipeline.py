"""Runs the whole pipeline on a small feed in one process: every table, a training, a registered model, scored users.

python -m tests.production.small_pipeline --date 2024-12-31 --since 2023-01-02 --settings FILE
"""

import tempfile
from pathlib import Path

from mlflow.tracking import MlflowClient

from jobs.audit_lte import audit_lte, require_clean
from jobs.maintain_tables import maintain
from jobs.monitor_lte import monitor
from jobs.prepare import run_all_jobs
from jobs.quality.check import check
from jobs.quality.suites.by_table import SUITES
from jobs.score_users import read_champion, score_users
from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse
from lte_model.command_line import CommandParser, run
from lte_model.domain.windows import parse_date
from lte_model.evaluation.evaluate import evaluate
from lte_model.registry import versions
from lte_model.tracking import lineage
from lte_model.training.train import train
from lte_model.warehouse.tables import TABLES


def main() -> None:
    parser = CommandParser(__doc__, "the last day of the feed")
    parser.add_argument("--since", type=parse_date, required=True, help="its first day")
    arguments, settings, date = parser.read()
    with spark_session(settings, "small_pipeline") as spark:
        warehouse = Warehouse(spark, settings)
        run_all_jobs(warehouse, arguments.since, date)
        for live in (False, True):
            require_clean(audit_lte(warehouse, date, share=1.0, live=live))
        monitor(settings, date)
        for table in ("item_embeddings", "lte_snapshots"):
            options = {"anchors": False} if table == "lte_snapshots" else {}
            check(settings, table, SUITES[table](settings, date, **options), date)
        for side in ("prefix", "none"):
            train(settings, date, side)
        evaluate(settings, date)
        version = versions.register(settings, date)
        MlflowClient().set_registered_model_alias(version.name, lineage.CHAMPION, version.version)
        with tempfile.TemporaryDirectory() as folder:
            score_users(
                warehouse, date, read_champion(settings, lineage.version_with(settings, lineage.CHAMPION), Path(folder))
            )
        for table in TABLES.values():
            maintain(warehouse, table, date, lineage.registered_versions(settings))
    print(f"{version.name} version {version.version} of {date}")


if __name__ == "__main__":
    run(main)
