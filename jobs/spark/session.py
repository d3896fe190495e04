"""The Spark session of a job."""

import datetime
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from py4j.java_gateway import JavaObject
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from jobs.spark.commits import commit_note
from jobs.spark.shipping import ship_code
from lte_model import object_store
from lte_model.errors import LTEError
from lte_model.settings import Settings

JAVA = 17
"""The oldest Java that Spark 4.2 runs on."""

BUNDLED_WITH_SPARK = (
    "com.fasterxml.jackson.core:jackson-annotations",
    "com.fasterxml.jackson.core:jackson-core",
    "com.fasterxml.jackson.core:jackson-databind",
    "com.fasterxml.jackson.datatype:jackson-datatype-jdk8",
    "com.google.code.findbugs:jsr305",
    "org.apache.hadoop:hadoop-client-api",
    "org.apache.hadoop:hadoop-client-runtime",
    "org.apache.logging.log4j:log4j-api",
    "org.apache.logging.log4j:log4j-core",
    "org.apache.logging.log4j:log4j-slf4j2-impl",
    "org.apache.parquet:parquet-hadoop",
    "org.roaringbitmap:RoaringBitmap",
    "org.roaringbitmap:shims",
    "org.slf4j:slf4j-api",
)
"""Dependencies of the settings' packages that PySpark already bundles, in another version."""

_DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
_EVERYWHERE = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.ui.showConsoleProgress": "false",
    # Vectors don't repeat. Small row groups let a reader of some days or users skip the rest.
    "spark.hadoop.parquet.enable.dictionary#vector_sum.list.element": "false",
    "spark.hadoop.parquet.enable.dictionary#vector.list.element": "false",
    "spark.hadoop.parquet.block.size": str(16 * 2**20),
    # Rows of many dates are written to open files directly; otherwise Spark would sort them by date first.
    "spark.sql.maxConcurrentOutputFileWriters": "64",
}
_LOCAL = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "2g",
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "4",
    "spark.python.unix.domain.socket.enabled": "true",
    # Delta's defaults are for a cluster: 50 tasks to read its log, 10,000 to list files.
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "4",
}


@contextmanager
def spark_session(settings: Settings, job: str, *dates: datetime.date) -> Iterator[SparkSession]:
    """A Spark session for the job, stopped afterwards.

    Its commits carry the note of jobs/spark/commits.py: job, `dates`, run and code. Under spark-submit, the command
    line sets the cluster, jars and memory. The executors of a cluster get the project's code from the driver. An
    `LTEError` raised in a worker process is raised again here.
    """
    require_java()
    os.environ.setdefault("PYSPARK_PYTHON", str(settings.spark.conf.get("spark.pyspark.python", sys.executable)))
    builder = SparkSession.builder.appName(job)
    noted = {"spark.databricks.delta.commitInfo.userMetadata": commit_note(job, *dates)}
    for key, value in (_configuration(settings) | noted).items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    try:
        if not is_local(str(spark.sparkContext.master)):
            ship_code(spark)
        yield spark
    except PySparkException as error:
        message = re.search(r"lte_model\.errors\.LTEError: (.*)", str(error))
        if message is None:
            raise
        raise LTEError(message.group(1)) from None
    finally:
        spark.stop()


def _configuration(settings: Settings) -> dict[str, str]:
    configuration = _DELTA | _EVERYWHERE | object_store.spark_options()
    under_spark_submit = "PYSPARK_GATEWAY_PORT" in os.environ
    if not under_spark_submit:
        configuration |= {"spark.master": settings.spark.master} | _jars(settings)
        if is_local(settings.spark.master):
            configuration |= _LOCAL | {"spark.driver.extraJavaOptions": java_options(settings)}
    return configuration | {key: str(value) for key, value in settings.spark.conf.items()}


def hadoop_files(spark: SparkSession, place: str) -> tuple[JavaObject, JavaObject]:
    """The Hadoop file system of `place`, a path or any Hadoop URL, and `place` as a Hadoop path."""
    jvm = spark.sparkContext._jvm
    if jvm is None:
        raise LTEError("Spark has no JVM; start a session first")
    path = jvm.org.apache.hadoop.fs.Path(place)
    return path.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration()), path


def is_local(master: str) -> bool:
    """Whether the driver is also the executor. `local-cluster` counts as a cluster."""
    return master == "local" or master.startswith("local[")


def _jars(settings: Settings) -> dict[str, str]:
    """Delta's jars: on the class path of a local driver, else sent to the executors."""
    if not settings.spark.jars:
        return {
            "spark.jars.packages": ",".join(settings.spark.packages),
            "spark.jars.excludes": ",".join(BUNDLED_WITH_SPARK),
        }
    jars = sorted(str(jar) for jar in Path(settings.spark.jars).glob("*.jar"))
    if not jars:
        raise LTEError(f"there are no jars in {settings.spark.jars}; run `make setup`, or python -m jobs.prepare")
    if is_local(settings.spark.master):
        return {"spark.driver.extraClassPath": ":".join(jars)}
    return {"spark.jars": ",".join(jars)}


def java_options(settings: Settings) -> str:
    """The options of a local session's JVM."""
    logging = Path(__file__).with_name("log4j2.properties")
    options = [f"-Dlog4j2.configurationFile={logging}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off", "-XX:+UseSerialGC"]
    # Without the optimising compiler, a JVM reserves 48 MB for compiled code. A few dozen queries fill it, and then a
    # third of a session's time was spent sweeping it.
    options.append("-XX:ReservedCodeCacheSize=240m")
    archive = settings.spark.class_data_archive
    if archive and Path(archive).exists():
        options += [f"-XX:SharedArchiveFile={archive}", "-Xshare:auto"]
    return " ".join(options)


def require_java() -> None:
    """Raises `LTEError`, with how to install it, if Java 17 or later isn't in JAVA_HOME or on PATH."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    way_out = (
        f"Spark 4.2 needs Java {JAVA} or later: install it (Debian: apt-get install openjdk-17-jre-headless, "
        "macOS: brew install openjdk@17), put it on PATH or set JAVA_HOME"
    )
    if java is None:
        raise LTEError(f"Java was not found {f'in JAVA_HOME={home}' if home else 'on PATH'}. {way_out}")
    answer = subprocess.run([java, "-version"], check=False, capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', answer)
    if version is None or int(version.group(1)) < JAVA:
        raise LTEError(f"{java} is {answer.splitlines()[0] if answer else 'not a Java that answers'}. {way_out}")
