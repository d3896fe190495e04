"""The settings of each place: they load, Spark knows their keys, and Kubernetes the pods that they ask for."""

import tomllib

import pytest
import yaml
from kubernetes.client import ApiClient, V1Pod

from jobs.session import is_local
from lte_model.settings import load_settings
from tests.jobs.conftest import REPOSITORY, spark  # noqa: F401 – a fixture

SETTINGS = REPOSITORY / "infra/settings"
CLUSTERS = ("standalone", "kubernetes", "yarn")
CONFIGURATIONS = (
    "org.apache.spark.internal.config.package$",
    "org.apache.spark.internal.config.Python$",
    "org.apache.spark.deploy.k8s.Config$",
    "org.apache.spark.sql.internal.SQLConf$",
    "org.apache.spark.sql.internal.StaticSQLConf$",
)
"""Where Spark declares its keys."""

UNDECLARED = {"spark.cores.max", "spark.yarn.dist.archives", "spark.yarn.queue", "spark.default.parallelism"}
"""Keys that are declared elsewhere, or nowhere, and read: Spark's own documentation has them."""


@pytest.mark.parametrize("place", CLUSTERS)
def test_the_settings_of_a_cluster_load(place):
    settings = load_settings(SETTINGS / f"{place}.toml")
    assert not is_local(settings.spark.master)
    assert "://" in settings.warehouse, "driver and executors share no disk"


@pytest.mark.spark
def test_spark_knows_the_keys(spark):  # noqa: F811
    jvm = spark.sparkContext._jvm
    for name in CONFIGURATIONS:
        jvm.java.lang.Class.forName(name)  # which declares them
    entries = jvm.org.apache.spark.internal.config.ConfigEntry
    keys = {key for place in CLUSTERS for key in load_settings(SETTINGS / f"{place}.toml").spark.conf}
    assert {key for key in keys - UNDECLARED if entries.findEntry(key) is None} == set()
    assert entries.findEntry("spark.executor.memry") is None


def test_an_executor_is_what_kubernetes_knows():
    pod = yaml.safe_load((SETTINGS / "executor.yaml").read_text())
    read = ApiClient()._ApiClient__deserialize(pod, V1Pod)
    assert ApiClient().sanitize_for_serialization(read) == pod
    conf = tomllib.loads((SETTINGS / "kubernetes.toml").read_text())["spark"]["conf"]
    assert conf["spark.kubernetes.executor.podTemplateFile"].endswith("infra/settings/executor.yaml")
