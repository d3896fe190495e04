"""A client for the calls to Airflow's REST API that the demo and the end-to-end test make.

Routes and bodies: `/docs` of a running api-server, or airflow/api_fastapi/core_api/routes/public.
"""

import datetime
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from typing import Any

from lte_model.errors import LTEError

FINISHED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""The final states of a run or a task."""


class AirflowAPI:
    """One user's session with one api-server. Every method raises `LTEError` with the server's message."""

    def __init__(self, address: str, user: str, password: str):
        self.address = address
        answer = self._request("POST", "/auth/token", {"username": user, "password": password})
        self._token = answer["access_token"]

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The parsed JSON answer of `/api/v2<path>`. Retries while the server is busy (SQLite has one writer)."""
        target = "/api/v2" + path + ("?" + urllib.parse.urlencode(query) if query else "")
        for wait in (0.5, 1, 2, 4, None):
            try:
                return self._request(method, target, body)
            except _Busy as busy:
                if wait is None:
                    raise LTEError(f"Airflow at {self.address} stays busy: {busy}; look at its logs") from None
                time.sleep(wait)

    def import_pools(self, pools: dict[str, dict[str, Any]]) -> None:
        """Creates or overwrites the pools, given in the format of `airflow pools import`."""
        entities = [{"name": name, **pool} for name, pool in pools.items()]
        action = {"action": "create", "action_on_existence": "overwrite", "entities": entities}
        outcome = self.call("PATCH", "/pools", {"actions": [action]})
        if errors := (outcome.get("create") or {}).get("errors"):
            raise LTEError(f"Airflow refused the pools: {errors}; see infra/airflow/pools.json")

    def wait_for_dags(self, dag_ids: Iterable[str], timeout: float) -> None:
        """Returns once the DAG processor has read all of `dag_ids`."""
        deadline = time.monotonic() + timeout
        while missing := set(dag_ids) - {dag["dag_id"] for dag in self.call("GET", "/dags", limit=100)["dags"]}:
            for error in self.call("GET", "/importErrors")["import_errors"]:
                raise LTEError(f"DAG file {error['filename']} doesn't import: {error['stack_trace']}")
            if time.monotonic() > deadline:
                raise LTEError(f"Airflow has not read {sorted(missing)} after {timeout:.0f} s; see dag-processor.log")
            time.sleep(0.3)

    def unpause(self, dag_id: str) -> None:
        """Lets the scheduler run the DAG."""
        self.call("PATCH", f"/dags/{dag_id}", {"is_paused": False})

    def trigger(self, dag_id: str, date: datetime.date, conf: dict[str, Any] | None = None) -> str:
        """Starts a run with logical date `date`, 00:00 UTC. Returns its run id."""
        body = {"logical_date": _midnight(date), "conf": conf or {}}
        return self.call("POST", f"/dags/{dag_id}/dagRuns", body)["dag_run_id"]

    def backfill(self, dag_id: str, first: datetime.date, last: datetime.date) -> int:
        """Starts the runs of [first, last] that have not succeeded yet. Returns the backfill's id."""
        body = {
            "dag_id": dag_id,
            "from_date": _midnight(first),
            "to_date": _midnight(last),
            "reprocess_behavior": "failed",
        }
        return self.call("POST", "/backfills", body)["id"]

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """The DAG's runs: `dag_run_id`, `logical_date`, `state`, `start_date`, `end_date`, …; newest first."""
        return self.call("GET", f"/dags/{dag_id}/dagRuns", limit=100, order_by="-run_after")["dag_runs"]

    def run_of(self, dag_id: str, date: datetime.date) -> dict[str, Any] | None:
        """The run with logical date `date`, 00:00 UTC; None if there is none."""
        return next(
            (run for run in self.runs(dag_id) if (run["logical_date"] or "").startswith(f"{date}T00:00:00")), None
        )

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances: `task_id`, `state`, `start_date`, `end_date`, `duration`, `try_number` and more."""
        path = f"/dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id)}/taskInstances"
        return self.call("GET", path, limit=100)["task_instances"]

    def clear(self, dag_id: str, run_id: str) -> None:
        """Queues a run's failed tasks again."""
        path = f"/dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id)}/clear"
        self.call("POST", path, {"dry_run": False, "only_failed": True})

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int, map_index: int = -1) -> list[str]:
        """The log lines of one try of a task, without time stamps; `map_index` picks one instance of a mapped task."""
        path = f"/dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id)}/taskInstances/{task_id}/logs/{try_number}"
        content = self.call("GET", path, map_index=map_index)["content"]
        return [line["event"] if isinstance(line, dict) else str(line) for line in content]

    def question(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """The question that a task asks a person: `subject`, `body`, `options`."""
        return self.call("GET", self._question_path(dag_id, run_id, task_id))

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str, reason: str = "") -> None:
        """Answers a task that waits for a person."""
        body = {"chosen_options": [option], "params_input": {"reason": reason}}
        self.call("PATCH", self._question_path(dag_id, run_id, task_id), body)

    @staticmethod
    def _question_path(dag_id: str, run_id: str, task_id: str) -> str:
        run = urllib.parse.quote(run_id)
        return f"/dags/{dag_id}/dagRuns/{run}/taskInstances/{task_id}/-1/hitlDetails"

    def _request(self, method: str, target: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if target.startswith("/api/"):
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + target, data, headers, method=method)  # noqa: S310 – our stack's
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                text = response.read()
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")
            if error.code >= 500:
                raise _Busy(f"{method} {target}: {error.code} {reason}") from None
            raise LTEError(f"Airflow refused {method} {target}: {error.code} {reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Busy(f"{method} {target}: {error}") from None
        return json.loads(text) if text else None


class _Busy(Exception):
    """The server didn't answer, or answered with a 5xx status."""


def _midnight(date: datetime.date) -> str:
    return f"{date.isoformat()}T00:00:00Z"
