"""One S3 URL works for every reader; each reader's options come from the settings and AWS's variables."""

import os

import pytest

from jobs.spark.session import _configuration
from lte_model import object_store
from lte_model.errors import LTEError
from lte_model.settings import load_settings

AWS = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ALLOW_HTTP")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A function that loads settings without AWS's variables; the environment is restored afterwards."""
    for name in AWS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def settings_of(text):
        file = tmp_path / "settings.toml"
        file.write_text(text)
        return load_settings(file)

    return settings_of


def test_hadoops_spellings_become_that_of_all_others(load):
    assert object_store.one_spelling("s3a://lake/a folder/x") == "s3://lake/a folder/x"
    assert object_store.one_spelling("abfss://lake/x") == "abfss://lake/x"
    settings = load('warehouse = "s3a://lake/lte"\n[mlflow]\nartifacts = "s3n://lake/mlartifacts"\n')
    assert settings.table_path("events") == "s3://lake/lte/events"
    assert settings.mlflow.artifacts == "s3://lake/mlartifacts"


@pytest.mark.parametrize("name", ["home", "checkpoints", "reports", "data_docs"])
def test_what_must_lie_on_a_disk_is_named(load, name):
    with pytest.raises(LTEError, match=f"{name} = 's3://lake/x': .*it must lie on a disk; give a folder"):
        load(f'{name} = "s3://lake/x"\n')


def test_the_settings_reach_every_reader(load):
    settings = load('[s3]\nendpoint = "http://127.0.0.1:1"\nregion = "eu-west-9"\n')
    assert {name: os.environ[name] for name in AWS} == {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_REGION": "eu-west-9",
        "AWS_DEFAULT_REGION": "eu-west-9",
        "AWS_ALLOW_HTTP": "true",
    }
    spark = _configuration(settings)
    assert spark["spark.hadoop.fs.s3a.endpoint"] == "http://127.0.0.1:1"
    assert spark["spark.hadoop.fs.s3a.endpoint.region"] == spark["spark.executorEnv.AWS_REGION"] == "eu-west-9"


def test_without_settings_the_environment_is_left_as_it_is(load, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example.org")
    load("")
    assert os.environ["AWS_ENDPOINT_URL"] == "https://s3.example.org"
    assert "AWS_ALLOW_HTTP" not in os.environ
    assert object_store.spark_options()["spark.hadoop.fs.s3a.endpoint"] == "https://s3.example.org"


def test_no_secret_is_an_option_of_spark(load, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    assert not {"an-id", "a-secret"} & set(_configuration(load("")).values())


def test_a_secret_in_the_settings_is_refused_and_not_shown(load):
    named = "spark.conf: spark.hadoop.fs.s3a.bucket.lake.secret.key is a secret; put it into AWS_SECRET_ACCESS_KEY"
    with pytest.raises(LTEError, match=named) as refused:
        load('[spark.conf]\n"spark.hadoop.fs.s3a.bucket.lake.secret.key" = "abracadabra"\n')
    assert "abracadabra" not in str(refused.value)


def test_a_url_that_readers_take_for_different_ones_is_refused(load):
    with pytest.raises(LTEError, match=r"warehouse = 's3://lake/a b': .*use only letters, digits and -._~/ in a url"):
        load('warehouse = "s3://lake/a b"\n')
