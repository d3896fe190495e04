"""Fixtures of the drills: the small shop, an installation, one Spark session, and an unreliable MLflow server."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.jobs.conftest import spark
from tests.loopback import free_port
from tests.lte_model.conftest import installation, shop, tracking_uri, trainable_shop
from tests.production.drills.unreliable import UnreliableServer

__all__ = ["installation", "shop", "spark", "trackable", "tracking_uri", "trainable_shop"]


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory) -> Iterator[UnreliableServer]:
    """A real MLflow server behind a proxy that can make it unavailable."""
    home = tmp_path_factory.mktemp("mlflow-server")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{home}/mlflow.db",
        "--artifacts-destination",
        str(home / "artifacts"),
    ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = (home / "log").open("wb")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _await(f"http://127.0.0.1:{port}/health", process)
        with UnreliableServer(port) as server:
            yield server
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)
        log.close()


def _await(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None and time.monotonic() < deadline, f"nothing answers at {url}"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)


@pytest.fixture
def trackable(mlflow_server, monkeypatch):
    """The healthy MLflow server, and clients that don't retry."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow_server.heal()
    yield mlflow_server
    mlflow_server.heal()
