"""Fixtures: one Spark session for all tests of the jobs, and a warehouse for each test."""

import datetime
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse
from lte_model.settings import Settings, load_settings
from tests.jobs import small_tables
from tests.repository import REPOSITORY

DAY = datetime.date(2024, 3, 1)
"""The date of most tests. In the small settings its window is ten days long and ends three days before it."""

INTERPRETED = """\
"spark.sql.codegen.wholeStage" = false
"spark.sql.codegen.factoryMode" = "NO_CODEGEN"
"""
"""Options of [spark.conf]: for a hundred rows, compiling a query takes longer than interpreting it."""


def small_settings(home: Path) -> Settings:
    """An installation in `home` with a short window, few dimensions and the prepared jars of this checkout."""
    file = home / "settings.toml"
    cache = REPOSITORY / ".cache"
    file.write_text(
        f"""
[window]
lag_days = 3
window_days = 10
[basis]
dimensions = 4
[training_set]
anchors = 2
anchor_every_days = 3
test_days = 4
max_length = 5
[gates]
max_quarantined_share = 0.5
max_unknown_item_share = 0.5
[spark]
jars = "{cache / "jars" if any((cache / "jars").glob("*.jar")) else ""}"
class_data_archive = "{cache / "classes.jsa"}"
[spark.conf]
"spark.driver.defaultJavaOptions" = "-XX:TieredStopAtLevel=1"
{INTERPRETED}"""
    )
    return load_settings(file)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    # py4j logs at exit, when pytest has closed the stream.
    logging.getLogger("py4j").setLevel(logging.ERROR)
    settings = small_settings(tmp_path_factory.mktemp("session"))
    # The optimising compiler pays off in a session of many minutes, not in a single job's.
    del settings.spark.conf["spark.driver.defaultJavaOptions"]
    with spark_session(settings, "tests") as session:
        yield session


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return small_settings(tmp_path)


@pytest.fixture
def warehouse(spark: SparkSession, settings: Settings) -> Warehouse:
    return Warehouse(spark, settings)


@pytest.fixture
def new_warehouse(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Warehouse]:
    """A function that makes an empty warehouse, for tests that compare several."""

    def make() -> Warehouse:
        return Warehouse(spark, small_settings(tmp_path_factory.mktemp("warehouse")))

    return make


@pytest.fixture(scope="session")
def template(spark, tmp_path_factory):
    """The folder of a warehouse with one basis, five items and a month of events, some of them known late."""
    warehouse = Warehouse(spark, small_settings(tmp_path_factory.mktemp("template")))
    small_tables.fill(warehouse, small_tables.FEED)
    return warehouse.settings.warehouse


@pytest.fixture
def new_filled(template, new_warehouse):
    """A function that copies the template. Delta tables can be copied, because their logs use relative paths."""

    def make():
        warehouse = new_warehouse()
        shutil.copytree(template, warehouse.settings.warehouse)
        return warehouse

    return make


@pytest.fixture
def filled(new_filled):
    return new_filled()
