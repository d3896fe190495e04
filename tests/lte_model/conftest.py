"""Fixtures: the small shop's tables, written once, and folders of its own for each test's outputs."""

from pathlib import Path

import pytest

from lte_model.registry import versions
from lte_model.settings import MLflow, Settings, load_settings
from lte_model.training.training_set import open_training_set
from tests.lte_model.registered import JANUARY, trained
from tests.lte_model.small_shop import (
    SETTINGS,
    TRAINING_DATE,
    make_shop,
    write_warehouse,
)


def write_shop(folder: Path, tracking_uri: str, users: int, seed: int) -> Settings:
    (folder / "settings.toml").write_text(SETTINGS)
    settings = load_settings(folder / "settings.toml")
    write_warehouse(settings, *make_shop(users, seed), TRAINING_DATE)
    mlflow = settings.mlflow.model_copy(update={"tracking_uri": tracking_uri, "experiment": folder.name})
    return settings.model_copy(update={"mlflow": mlflow})


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite file for all tests: creating MLflow's tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory, tracking_uri: str) -> Settings:
    """Settings of a read-only warehouse with a shop of 150 users and 80 items."""
    return write_shop(tmp_path_factory.mktemp("shop"), tracking_uri, users=150, seed=0)


@pytest.fixture(scope="session")
def smaller_shop(tmp_path_factory: pytest.TempPathFactory, tracking_uri: str) -> Settings:
    """Settings of a read-only warehouse with a shop of 60 users, for tests that train many times."""
    return write_shop(tmp_path_factory.mktemp("smaller"), tracking_uri, users=60, seed=0)


@pytest.fixture
def own_shop(tmp_path: Path, tracking_uri: str) -> Settings:
    """Settings of a shop of 30 users, whose tables a test may change."""
    return write_shop(tmp_path, tracking_uri, users=30, seed=1)


@pytest.fixture
def trainable_shop(shop: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """The shop's tables, with the test's own checkpoints, reports, MLflow experiment and model."""
    return shop.model_copy(
        update={
            "checkpoints": str(tmp_path / "checkpoints"),
            "reports": str(tmp_path / "reports"),
            "mlflow": named_after(request, tmp_path, shop.mlflow.tracking_uri),
        }
    )


@pytest.fixture
def installation(tmp_path: Path, tracking_uri: str, request: pytest.FixtureRequest) -> Settings:
    """An installation without tables."""
    return Settings(
        home=str(tmp_path),
        warehouse=str(tmp_path / "warehouse"),
        checkpoints=str(tmp_path / "checkpoints"),
        reports=str(tmp_path / "reports"),
        mlflow=named_after(request, tmp_path, tracking_uri),
    )


def named_after(request: pytest.FixtureRequest, folder: Path, tracking_uri: str) -> MLflow:
    """MLflow settings whose experiment and model are named after the test."""
    name = request.node.name.replace("[", "-").replace("]", "")
    return MLflow(tracking_uri=tracking_uri, artifacts=str(folder / "artifacts"), experiment=name, model_name=name)


@pytest.fixture(scope="module")
def registered(tmp_path_factory, tracking_uri):
    """An installation with one version, for tests that don't change it."""
    folder = tmp_path_factory.mktemp("served")
    options = MLflow(tracking_uri=tracking_uri, artifacts=str(folder / "a"), experiment="served", model_name="served")
    settings = Settings(checkpoints=str(folder / "checkpoints"), reports=str(folder / "reports"), mlflow=options)
    trained(settings, JANUARY)
    versions.register(settings, JANUARY)
    return settings


@pytest.fixture(scope="module")
def training_set(shop):
    return open_training_set(shop, TRAINING_DATE)
