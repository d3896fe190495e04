"""MLflow's server as in compose.yaml, on a PostgreSQL: its authentication, and a promotion through it."""

import contextlib
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from infra.checks.files import COMPOSE
from infra.local.ports import Ports
from infra.local.stack import LOOPBACK
from lte_model.registry import promotion, versions
from lte_model.settings import load_settings
from lte_model.tracking.lineage import CHAMPION
from tests.lte_model.registered import aliases, promoted, registered_of_shop
from tests.lte_model.small_shop import SETTINGS, TRAINING_DATE, make_shop, write_warehouse
from tests.production import postgres_server
from tests.production.postgres_server import PostgresServer
from tests.repository import REPOSITORY

pytestmark = [
    pytest.mark.production,
    pytest.mark.skipif(not postgres_server.installed(), reason=postgres_server.MISSING),
]


@contextlib.contextmanager
def mlflow_server(postgres, password, log):
    """The address of compose.yaml's service `mlflow`: runs its command, with test values in its environment."""
    service = yaml.safe_load((REPOSITORY / COMPOSE).read_text(encoding="utf-8"))["services"]["mlflow"]
    values = {
        "POSTGRES_PASSWORD": postgres.password,
        "UI_PASSWORD": password,
        "MLFLOW_SECRET_KEY": secrets.token_hex(32),
        "MLFLOW_HOST": "localhost",
    }
    port = Ports.free().mlflow
    environment = {
        name: re.sub(r"\$\{(\w+):[?-][^}]*\}", lambda found: values[found.group(1)], value)
        for name, value in service["environment"].items()
    }
    environment |= {
        "PGHOST": LOOPBACK,
        "PGPORT": str(postgres.port),
        "MLFLOW_AUTH_CONFIG_PATH": environment["MLFLOW_AUTH_CONFIG_PATH"].replace("/opt/lte", str(REPOSITORY)),
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{LOOPBACK}:{port}",
    }
    command = [{"0.0.0.0": LOOPBACK, "5000": str(port)}.get(word, word) for word in service["command"]]
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", *command], env=os.environ | environment, stdout=stream, stderr=subprocess.STDOUT,
            cwd=log.parent, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while status(f"http://{LOOPBACK}:{port}/health") != 200:
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield f"http://{LOOPBACK}:{port}", command
        finally:
            os.killpg(server.pid, 15)
            server.wait()


def status(url):
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.mark.timeout(600)
def test_a_model_is_promoted_and_rolled_back_by_the_server_and_by_nobody_else(tmp_path, monkeypatch):
    password = secrets.token_urlsafe(12)
    with PostgresServer("mlflow", "mlflow_users") as postgres:
        with mlflow_server(postgres, password, tmp_path / "server.log") as (address, command):
            (tmp_path / "settings.toml").write_text(f'{SETTINGS}\n[mlflow]\ntracking_uri = "{address}"\n')
            settings = load_settings(tmp_path / "settings.toml")
            write_warehouse(settings, *make_shop(60, 0), TRAINING_DATE)
            asked = "/api/2.0/mlflow/registered-models/search"
            assert [status(address + path) for path in ("/health", "/", asked)] == [200, 401, 401]
            for name, given in (("admin", "wrong"), ("nobody", password)):
                monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
                monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", given)
                with pytest.raises(MlflowException, match="401"):
                    MlflowClient(address).search_registered_models()

            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            first, second = (registered_of_shop(settings, 1, seed=seed) for seed in range(2))
            promoted(settings, first)
            promoted(settings, second, over=first)
            assert aliases(settings) == {"challenger": 2, "champion": 2, "previous": 1}
            assert str(promotion.rollback(settings, "clicks fell").version) == first
            model = versions.load(settings, CHAMPION)
            assert len(model.predict(model.input_example)) == 2
        log = (tmp_path / "server.log").read_text()
        assert password not in log and postgres.password not in log
        assert not any(secret in " ".join(command) for secret in (password, postgres.password))
        rows = postgres.sql("mlflow", "select alias, version from registered_model_aliases order by alias").split()
        assert rows == ["challenger|2", "champion|1", "previous|2"]
        assert postgres.sql("mlflow_users", "select username, is_admin from users").split() == ["admin|t"]
