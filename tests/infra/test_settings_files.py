"""Every settings file loads, uses keys that Spark declares, and asks for pods that Kubernetes accepts."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from kubernetes.client import ApiClient, V1Pod

from jobs.spark.session import is_local
from lte_model.settings import load_settings
from tests.jobs.conftest import spark  # noqa: F401 – a fixture
from tests.repository import REPOSITORY

SETTINGS = REPOSITORY / "infra/settings"
CLUSTERS = ("standalone", "kubernetes", "yarn")
CONFIGURATIONS = (
    "org.apache.spark.internal.config.package$",
    "org.apache.spark.internal.config.Python$",
    "org.apache.spark.deploy.k8s.Config$",
    "org.apache.spark.sql.internal.SQLConf$",
    "org.apache.spark.sql.internal.StaticSQLConf$",
)
"""The Scala objects that declare Spark's keys."""

UNDECLARED = {"spark.cores.max", "spark.yarn.dist.archives", "spark.yarn.queue", "spark.default.parallelism"}
"""Documented keys that Spark reads but doesn't declare in these objects."""


@pytest.mark.parametrize("place", CLUSTERS)
def test_the_settings_of_a_cluster_load(place):
    settings = load_settings(SETTINGS / f"{place}.toml")
    assert not is_local(settings.spark.master)
    assert "://" in settings.warehouse, "driver and executors share no disk"


@pytest.mark.spark
def test_spark_knows_the_keys(spark):  # noqa: F811
    jvm = spark.sparkContext._jvm
    for name in CONFIGURATIONS:
        jvm.java.lang.Class.forName(name)  # loading the class declares its keys
    entries = jvm.org.apache.spark.internal.config.ConfigEntry
    keys = {key for place in CLUSTERS for key in load_settings(SETTINGS / f"{place}.toml").spark.conf}
    assert {key for key in keys - UNDECLARED if entries.findEntry(key) is None} == set()
    assert entries.findEntry("spark.executor.memry") is None


@pytest.mark.spark
def test_spark_reads_the_name_of_its_pod_from_the_environment(spark):  # noqa: F811
    jvm, key = spark.sparkContext._jvm, "spark.kubernetes.driver.pod.name"
    jvm.java.lang.Class.forName("org.apache.spark.deploy.k8s.Config$")
    conf = tomllib.loads((SETTINGS / "kubernetes.toml").read_text())["spark"]["conf"]
    given = jvm.org.apache.spark.SparkConf(False).set(key, conf[key].replace("POD_NAME", "PATH"))
    entry = jvm.org.apache.spark.internal.config.ConfigEntry.findEntry(key)
    assert given.get(entry).get() == os.environ["PATH"]


def test_an_executor_is_what_kubernetes_knows():
    pod = yaml.safe_load((SETTINGS / "executor.yaml").read_text())
    read = ApiClient()._ApiClient__deserialize(pod, V1Pod)
    assert ApiClient().sanitize_for_serialization(read) == pod
    conf = tomllib.loads((SETTINGS / "kubernetes.toml").read_text())["spark"]["conf"]
    assert conf["spark.kubernetes.executor.podTemplateFile"].endswith("infra/settings/executor.yaml")


def test_an_executor_starts_as_the_driver_asks(tmp_path):
    """Runs the executor's shell line in a shell, with a `java` that prints its arguments."""
    (container,) = yaml.safe_load((SETTINGS / "executor.yaml").read_text())["spec"]["containers"]
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    java.chmod(0o755)
    asked = {"DRIVER_URL": "spark://d:1", "EXECUTOR_ID": "3", "EXECUTOR_CORES": "4", "EXECUTOR_MEMORY": "8g"}
    asked |= {"APPLICATION_ID": "app", "EXECUTOR_POD_IP": "10.0.0.1", "RESOURCE_PROFILE_ID": "0"}
    asked |= {"EXECUTOR_POD_NAME": "pod", "JAVA_OPT_0": "-Dfirst=a b", "JAVA_OPT_1": "--add-opens=x=y"}
    environment = {f"SPARK_{name}": value for name, value in asked.items()}
    environment["PATH"] = f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin"
    # Spark adds the argument that its own images' entry point expects.
    command = [*container["command"], "executor"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    options = done.stdout.splitlines()
    assert options[:4] == ["-Dfirst=a b", "--add-opens=x=y", "-Xms8g", "-Xmx8g"]
    assert options[5].endswith("/pyspark/jars/*") and Path(options[5]).parent.is_dir()
    given = dict(zip(options[7::2], options[8::2], strict=True))
    assert given == {
        "--driver-url": "spark://d:1",
        "--executor-id": "3",
        "--cores": "4",
        "--app-id": "app",
        "--hostname": "10.0.0.1",
        "--resourceProfileId": "0",
        "--podName": "pod",
    }
