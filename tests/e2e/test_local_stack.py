"""`make up` and Ctrl-C in a terminal: one command starts the stack, and no process is left afterwards."""

import datetime
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from infra.local.airflow_api import AirflowAPI
from infra.local.ports import Ports
from infra.runs.installation import make_shop, settings_text
from tests.repository import REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.production, pytest.mark.timeout(400)]


def _left_of(home):
    """The processes that were started with this AIRFLOW_HOME."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if process.environ().get("AIRFLOW_HOME") == str(home / "airflow"):
                found.append(process.info)
        except psutil.Error:
            continue
    return found


def test_ctrl_c_leaves_no_process_and_the_next_start_goes_on(tmp_path):
    make_shop(tmp_path / "source", 150, 80)
    (tmp_path / "settings.toml").write_text(settings_text(tmp_path / "source", 30, 365, 30, 2), encoding="utf-8")
    ports = Ports.free()
    environment = {
        **os.environ,
        "AIRFLOW_PORT": str(ports.airflow),
        "MLFLOW_PORT": str(ports.mlflow),
        "PAGES_PORT": str(ports.pages),
    }
    command = [sys.executable, "-m", "infra.local.stack", "--settings", str(tmp_path / "settings.toml")]
    first = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        shown = ""
        while "Ctrl-C stops all of it." not in shown:
            line = first.stdout.readline()
            assert line, f"make up ended early: {shown}"
            shown += line
        address, password = re.search(r"(http://\S+) +user admin, password (\S+)", shown).groups()
        for port in (ports.airflow, ports.mlflow, ports.pages):
            assert f"http://127.0.0.1:{port}" in shown

        api = AirflowAPI(address, "admin", password)
        run_id = api.trigger("lte_bootstrap", datetime.date(2024, 12, 1), {"since": "2024-11-01"})
        # Stop it during a Spark job, because a JVM is the process most likely to survive.
        family = psutil.Process(first.pid)
        deadline = time.monotonic() + 120
        while not any(process.name() == "java" for process in family.children(recursive=True)):
            assert time.monotonic() < deadline, api.tasks("lte_bootstrap", run_id)
            time.sleep(0.2)
        children = family.children(recursive=True)

        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=60) == 0
        assert [process for process in children if process.is_running() and process.status() != "zombie"] == []
        assert _left_of(tmp_path) == []
    finally:
        first.kill()
        first.wait()

    second = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        while "Ctrl-C stops all of it." not in (line := second.stdout.readline()):
            assert line, "make up ended early"
        api = AirflowAPI(address, "admin", password)
        deadline = time.monotonic() + 180
        while True:
            states = {task["task_id"]: task["state"] for task in api.tasks("lte_bootstrap", run_id)}
            assert "failed" not in states.values(), states
            if states["ingest_items"] == "success":
                break
            assert time.monotonic() < deadline, states
            time.sleep(0.5)
    finally:
        second.send_signal(signal.SIGTERM)
        second.wait(timeout=60)
    assert _left_of(tmp_path) == []
