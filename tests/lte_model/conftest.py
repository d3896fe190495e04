"""The small shop's tables, written once, and a place of its own for what a test makes of them."""

from pathlib import Path

import pytest

from lte_model.settings import Settings, load_settings
from tests.lte_model.small_shop import SETTINGS, TRAINING_DATE, make_shop, write_warehouse


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings whose warehouse holds a shop of 150 users and 80 items. Not to be written to."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "settings.toml").write_text(SETTINGS)
    settings = load_settings(folder / "settings.toml")
    write_warehouse(settings, *make_shop(users=150, seed=0), TRAINING_DATE)
    return settings


@pytest.fixture
def own_shop(tmp_path: Path) -> Settings:
    """A smaller shop, whose tables a test may change."""
    (tmp_path / "settings.toml").write_text(SETTINGS)
    settings = load_settings(tmp_path / "settings.toml")
    write_warehouse(settings, *make_shop(users=30, seed=1), TRAINING_DATE)
    return settings


@pytest.fixture
def trainable_shop(shop: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """The shop's tables, with checkpoints, reports and an MLflow experiment of the test's own."""
    # One SQLite file for all tests: creating MLflow's tables takes seconds.
    return shop.model_copy(
        update={
            "checkpoints": str(tmp_path / "checkpoints"),
            "reports": str(tmp_path / "reports"),
            "mlflow": shop.mlflow.model_copy(
                update={"experiment": request.node.name, "artifacts": str(tmp_path / "artifacts")}
            ),
        }
    )
