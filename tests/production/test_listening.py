"""The addresses on which the stack listens, and its authentication."""

import base64
import http.client
import json
import socket

import psutil
import pytest

from infra.local.airflow_api import AirflowAPI
from infra.local.stack import LocalStack
from lte_model.errors import LTEError

pytestmark = [pytest.mark.production, pytest.mark.timeout(600)]

PASSWORD = "correct horse battery"
ELSEWHERE = "127.0.0.2"
"""Stands for an address that others reach: it isn't 127.0.0.1, so it needs a password."""


def basic(credentials):
    return {"Authorization": "Basic " + base64.b64encode(credentials.encode()).decode()}


def _answer(address, path, headers=None, method="GET", body=None):
    connection = http.client.HTTPConnection(*address.removeprefix("http://").split(":"), timeout=60)
    connection.request(method, path, body=body, headers=headers or {})
    answer = connection.getresponse()
    content = answer.read().decode(errors="replace")
    connection.close()
    return answer.status, content


def _listening(stack):
    """The addresses on which the stack's processes and the pages listen."""
    processes = [*stack._processes(), psutil.Process()]
    return {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN and connection.type == socket.SOCK_STREAM
    }


def test_on_loopback_nothing_listens_elsewhere_and_airflow_asks_who_it_is(tmp_path):
    (tmp_path / "settings.toml").write_text("")
    with LocalStack(tmp_path / "settings.toml") as stack:
        assert _listening(stack) == {"127.0.0.1"}
        assert _answer(stack.airflow_url, "/api/v2/dags")[0] == 401
        with pytest.raises(LTEError, match="401"):
            AirflowAPI(stack.airflow_url, "admin", "wrong")


def test_on_another_address_each_of_the_three_asks_for_the_password(tmp_path, monkeypatch):
    (tmp_path / "settings.toml").write_text("")
    monkeypatch.setenv("UI_PASSWORD", PASSWORD)
    with LocalStack(tmp_path / "settings.toml", host=ELSEWHERE) as stack:
        assert _listening(stack) == {ELSEWHERE}
        asked = [
            (stack.airflow_url, "/api/v2/dags"),
            (stack.airflow_url, "/api/v2/config"),
            (stack.mlflow_url, "/"),
            (stack.mlflow_url, "/api/2.0/mlflow/experiments/search?max_results=1"),
            (stack.mlflow_url, "/api/2.0/mlflow-artifacts/artifacts"),
            (stack.pages_url, "/"),
            (stack.pages_url, "/reports/"),
        ]
        for address, path in asked:
            assert _answer(address, path)[0] == 401, path
        for address in (stack.mlflow_url, stack.pages_url):
            for credentials in ("admin:wrong", "admin:", "admin:password1234"):
                assert _answer(address, "/", basic(credentials))[0] == 401
        with pytest.raises(LTEError, match="401"):
            AirflowAPI(stack.airflow_url, "admin", "wrong")

        right = basic(f"admin:{PASSWORD}")
        assert _answer(stack.pages_url, "/reports/", right)[0] == 200
        assert _answer(stack.mlflow_url, asked[3][1], right)[0] == 200
        assert len(stack.api.call("GET", "/dags")["dags"]) >= 11

        # An MLflow user other than admin has no permissions until they are granted.
        made = json.dumps({"username": "guest", "password": "another long one"})
        created = _answer(
            stack.mlflow_url, "/api/2.0/mlflow/users/create", right | {"Content-Type": "application/json"}, "POST", made
        )
        assert created[0] == 200, created
        guest = basic("guest:another long one") | {"Content-Type": "application/json"}
        assert _answer(stack.mlflow_url, "/api/2.0/mlflow/experiments/get?experiment_id=0", guest)[0] == 403

        shown = [" ".join(process.cmdline()) for process in stack._processes()]
        assert shown and not any(PASSWORD in line for line in shown)
    monkeypatch.setenv("UI_PASSWORD", "another password")
    with LocalStack(tmp_path / "settings.toml", host=ELSEWHERE) as stack:
        assert _answer(stack.mlflow_url, asked[3][1], right)[0] == 401
        assert _answer(stack.mlflow_url, asked[3][1], basic("admin:another password"))[0] == 200
        with pytest.raises(LTEError, match="401"):
            AirflowAPI(stack.airflow_url, "admin", PASSWORD)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file for file in files if PASSWORD.encode() in file.read_bytes()] == []
