"""Settings come from one file, then the environment; an unknown key gives a one-line error that names it."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from lte_model.errors import LTEError
from lte_model.ranker.integrations import INTEGRATIONS
from lte_model.ranker.model import LONG_MEMORIES, RankerConfig
from lte_model.settings import Model, load_settings
from tests.repository import REPOSITORY


def settings_file(folder: Path, text: str) -> Path:
    file = folder / "settings.toml"
    file.write_text(text)
    return file


def test_the_file_then_the_environment(tmp_path, monkeypatch):
    file = settings_file(tmp_path, "[window]\nlag_days = 7\nwindow_days = 100\n")
    monkeypatch.setenv("LTE_WINDOW__LAG_DAYS", "14")
    monkeypatch.setenv("LTE_SETTINGS", str(file))
    window = load_settings().window
    assert (window.lag_days, window.window_days) == (14, 100)


def test_relative_paths_start_at_home_and_urls_stay(tmp_path):
    file = settings_file(
        tmp_path,
        'home = "shop"\ncheckpoints = "../runs"\nwarehouse = "s3a://lake/lte"\n'
        '[sources]\nevents = "table:shop.events"\n',
    )
    settings = load_settings(file)
    assert settings.home == str(tmp_path / "shop")
    assert settings.checkpoints == str(tmp_path / "runs")
    assert settings.sources.items == str(tmp_path / "shop" / "source" / "items.parquet")
    assert settings.sources.events == "table:shop.events"
    assert settings.table_path("events") == "s3://lake/lte/events"
    assert settings.mlflow.tracking_uri == f"sqlite:///{tmp_path}/shop/mlflow.db"


def test_the_connection_of_the_online_store_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("LTE_ONLINE_STORE__CONNECTION", "redis:6379,password=secret")
    settings = load_settings(settings_file(tmp_path, '[online_store]\ntype = "redis"\n'))
    assert settings.online_store.connection == "redis:6379,password=secret"
    assert "secret" not in repr(settings)
    assert settings.online_store.registry == str(tmp_path / "online_store" / "registry.db")


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("postgresql+psycopg://lte:s3cret@db:5432/mlflow", "postgresql+psycopg://db:5432/mlflow"),
        ("https://user:s3cret@mlflow.shop", "https://mlflow.shop"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
    ],
)
def test_the_password_of_mlflow_is_not_shown(tmp_path, monkeypatch, uri, place):
    monkeypatch.setenv("LTE_MLFLOW__TRACKING_URI", uri)
    settings = load_settings(settings_file(tmp_path, ""))
    assert (settings.mlflow.tracking_uri, settings.mlflow.place) == (uri, place)
    assert "s3cret" not in repr(settings)


def test_a_secret_in_the_wrong_place_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("LTE_MLFLOW", "postgresql://lte:s3cret@db/mlflow")
    with pytest.raises(LTEError, match="mlflow: input should be") as refused:
        load_settings(settings_file(tmp_path, ""))
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("place", ["file", "environment"])
@pytest.mark.parametrize(
    "form",
    [
        "__import__('os').system('touch {proof}')",
        "$(touch {proof})",
        "`touch {proof}`",
        "; touch {proof};",
        "{{{{ cycler.__init__.__globals__.os.system('touch {proof}') }}}}",
        "{{0.__class__.__init__.__globals__}}",
        "${{HOME}}",
        "%(home)s",
        "~",
        '!!python/object/apply:os.system ["touch {proof}"]',
    ],
)
def test_settings_are_never_evaluated(tmp_path, monkeypatch, place, form):
    """Values are plain data: text that would be code to a shell, a template, YAML or Python stays text."""
    proof = tmp_path / "proof"
    code = form.format(proof=proof)
    if place == "environment":
        monkeypatch.setenv("LTE_MLFLOW__EXPERIMENT", code)
        settings = load_settings(settings_file(tmp_path, ""))
    else:
        settings = load_settings(settings_file(tmp_path, f"[mlflow]\nexperiment = '''{code}'''\n"))
    assert settings.mlflow.experiment == code
    assert not proof.exists()
    with pytest.raises(LTEError, match=r"window.lag_days = "):
        load_settings(settings_file(tmp_path, "[window]\nlag_days = '1 + 1'\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[window]\nlag = 7\n", "unknown key 'window.lag'"),
        ("[windows]\nlag_days = 7\n", "unknown key 'windows'"),
        ("[window]\nlag_days = 0\n", "window.lag_days = 0: input should be greater than or equal to 1"),
        ("[window\n", "is not TOML"),
        ('[mlflow]\nmodel_name = "l\'ranker"\n', 'mlflow.model_name = "l\'ranker": string should match pattern'),
        ('[model]\nrepresentations = ["unifrom"]\n', "there is no representation 'unifrom'; take some of uniform, rec"),
        ('[model]\nrepresentations = ["uniform", "uniform"]\n', "'uniform' is named 2 times; once is enough"),
        ('[basis]\nbeside = ["b"]\n', "with bases beside it, basis_id must name the one that models are trained in"),
        ('[basis]\nbasis_id = "b"\nbeside = ["a", "b"]\n', "a basis is named twice among basis_id and beside: b, a, b"),
        ("[representations]\nhalf_life_days = 0\n", "representations.half_life_days = 0: input should be greater"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, message):
    with pytest.raises(LTEError, match=message):
        load_settings(settings_file(tmp_path, text))


def test_a_mistake_in_the_environment_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LTE_WINDOW__LAGDAYS", "14")
    with pytest.raises(LTEError, match=r"unknown key 'window.lagdays'"):
        load_settings(settings_file(tmp_path, ""))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        LTEError, match=r"there is no settings file '.*nowhere.toml'; give --settings or set LTE_SETTINGS"
    ):
        load_settings(tmp_path / "nowhere.toml")


def test_every_settings_file_of_the_project_loads():
    for file in (REPOSITORY / "infra" / "settings").glob("*.toml"):
        load_settings(file)


def test_the_settings_and_the_model_know_the_same_choices():
    fields = Model.model_fields
    assert set(get_args(fields["integration"].annotation)) == set(INTEGRATIONS)
    assert set(get_args(fields["long_memory"].annotation)) == set(LONG_MEMORIES)
    made_elsewhere = {"items", "dimensions", "popularity_counts"}
    assert {field.name for field in dataclasses.fields(RankerConfig)} - made_elsewhere == set(fields)
