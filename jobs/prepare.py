"""Prepares a machine for the jobs: checks Java, fetches Delta's jars, and writes the JVM's class data archive.

Both are made once, in the places that the settings name. The archive holds the classes that the jobs load, so that
a JVM need not find, parse and verify them again at each start. It is recorded while all jobs run over a tiny shop.
"""

import datetime
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pyspark import SparkContext

from jobs.build_training_set import build_training_set
from jobs.count_popularity import count_popularity
from jobs.demo_shop.feed import write_demo_shop
from jobs.demo_shop.spec import ShopSpec
from jobs.embed_items import embed_items
from jobs.feeds.accounts import days_known
from jobs.fit_basis import fit_basis, register
from jobs.ingest_events import ingest_events
from jobs.ingest_items import ingest_items
from jobs.publish_lte import publish_lte
from jobs.snapshot_lte import snapshot_lte
from jobs.spark.session import BUNDLED_WITH_SPARK, java_options, require_java, spark_session
from jobs.spark.warehouse import Warehouse
from lte_model.command_line import CommandParser, run
from lte_model.domain.windows import ONE_DAY, parse_date
from lte_model.errors import LTEError
from lte_model.files import UNFINISHED
from lte_model.settings import Basis, Settings, Sources
from lte_model.warehouse.tables import SEMANTIC_BASES

EXIT_SECONDS = 120
"""The longest time that the JVM may take to exit, during which it writes the archive."""


def fetch_jars(settings: Settings) -> None:
    """Fetches the packages that the settings name into the folder `spark.jars`, by Spark's own resolver."""
    folder = Path(settings.spark.jars)
    with tempfile.TemporaryDirectory() as cache:
        configuration = {
            "spark.master": "local[1]",
            "spark.ui.enabled": "false",
            "spark.jars.ivy": cache,
            "spark.jars.packages": ",".join(settings.spark.packages),
            "spark.jars.excludes": ",".join(BUNDLED_WITH_SPARK),
        }
        program = "from pyspark.sql import SparkSession as S\nb = S.builder\n" + "".join(
            f"b = b.config({key!r}, {value!r})\n" for key, value in configuration.items()
        )
        done = subprocess.run(
            [sys.executable, "-c", program + "b.getOrCreate().stop()"], check=False, capture_output=True, text=True
        )
        jars = sorted(Path(cache, "jars").glob("*.jar"))
        if done.returncode or not jars:
            raise LTEError(f"{settings.spark.packages} could not be fetched: {(done.stdout + done.stderr)[-600:]}")
        folder.mkdir(parents=True, exist_ok=True)
        for jar in jars:
            # Renamed when complete: a folder with half a jar would look prepared.
            Path(shutil.copy(jar, folder / f"{jar.name}{UNFINISHED}")).replace(folder / jar.name)


def write_class_data_archive(settings: Settings) -> None:
    """Writes the class data archive. Raises `LTEError` if the JVM writes none."""
    archive = Path(settings.spark.class_data_archive)
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, "classes.jsa")
        options = {"spark.driver.extraJavaOptions": f"{java_options(settings)} -XX:ArchiveClassesAtExit={part}"}
        shop = settings.model_copy(
            update={
                "warehouse": f"{folder}/warehouse",
                "sources": Sources(events=f"{folder}/shop/events.parquet", items=f"{folder}/shop/items.parquet"),
                "basis": Basis(dimensions=8),
                "spark": settings.spark.model_copy(update={"conf": settings.spark.conf | options}),
            }
        )
        planted = write_demo_shop(ShopSpec(users=40, items=40), Path(folder, "shop"))
        with spark_session(shop, "class-data-archive") as spark:
            first, last = parse_date(planted.first_event_date), parse_date(planted.last_event_date)
            run_all_jobs(Warehouse(spark, shop), first, last)
        _end_jvm()
        if not part.exists():
            raise LTEError('the JVM wrote no class data archive; set spark.class_data_archive = "" to go without')
        shutil.move(part, archive)


def run_all_jobs(warehouse: Warehouse, since: datetime.date, date: datetime.date) -> None:
    """Runs every job once, from the feed to the training set, in one session."""
    settings = warehouse.settings
    ingest_items(warehouse, settings, date)
    ingest_events(warehouse, settings, days_known(date, since))
    warehouse.create(SEMANTIC_BASES)
    basis, fitted_items = fit_basis(warehouse, date)
    register(warehouse, basis, date, fitted_items)
    embed_items(warehouse, date)
    anchors = settings.training_set.dates(date).snapshot_dates
    snapshot_lte(warehouse, anchors)
    for day in (date - ONE_DAY, date):
        snapshot_lte(warehouse, [day])
        publish_lte(warehouse, day)
    count_popularity(warehouse, anchors)
    build_training_set(warehouse, date)


def _end_jvm() -> None:
    """Ends the JVM, which outlives its session, and waits while it writes the archive."""
    gateway = SparkContext._gateway
    if gateway is not None:
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait(timeout=EXIT_SECONDS)
    SparkContext._gateway = SparkContext._jvm = None


def main() -> None:
    """Reads the command line and runs the job."""
    _, settings = CommandParser(__doc__).read_settings()
    require_java()
    if settings.spark.jars and not any(Path(settings.spark.jars).glob("*.jar")):
        print(f"fetching {', '.join(settings.spark.packages)} into {settings.spark.jars}", flush=True)
        fetch_jars(settings)
    if settings.spark.class_data_archive and not Path(settings.spark.class_data_archive).exists():
        print(f"writing the class data archive {settings.spark.class_data_archive}", flush=True)
        write_class_data_archive(settings)


if __name__ == "__main__":
    run(main)
