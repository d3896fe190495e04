"""Airflow and MLflow on PostgreSQL, with a Celery worker and Redis; no secret may leak.

All tests share one installation of a tiny shop, from its bootstrap to a rollback. Every secret comes from the
environment; afterwards none of them is in a file, a log, a database or the command line of a process.
"""

import base64
import contextlib
import datetime
import json
import secrets
import subprocess
import sys
import threading
import urllib.parse
from dataclasses import dataclass

import psutil
import pytest
from mlflow import MlflowClient

from infra.local.stack import LocalStack
from infra.runs.airflow_runs import FollowedRuns, follow_promotion, run_once
from infra.runs.installation import demo_training, make_shop, read_feed, settings_text
from lte_model.domain.windows import ONE_DAY
from tests import redis_server as redis
from tests.environment_files import environment_of
from tests.lte_model.registered import register_again
from tests.production import postgres_server
from tests.production.postgres_server import PostgresServer
from tests.repository import REPOSITORY

FEAST = REPOSITORY / ".cache/feast/venv/bin/python"

pytestmark = [
    pytest.mark.production,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not postgres_server.installed(), reason=postgres_server.MISSING),
    pytest.mark.skipif(not redis.installed(), reason=redis.MISSING),
    pytest.mark.skipif(not FEAST.is_file(), reason="Feast has no environment: make online-store"),
]


@dataclass(frozen=True)
class Production:
    stack: LocalStack
    postgres: PostgresServer
    progress: FollowedRuns
    date: datetime.date
    secrets: dict[str, str]
    """{what it opens: secret}."""
    shown: set[str]
    """The command lines of all of the stack's processes."""

    def aliases(self):
        settings = self.stack.settings.mlflow
        found = MlflowClient(settings.tracking_uri).get_registered_model(settings.model_name).aliases
        return {alias: str(number) for alias, number in found.items()}


@pytest.fixture(scope="module")
def production(tmp_path_factory):
    home = tmp_path_factory.mktemp("production")
    make_shop(home / "source", 150, 80)
    feed = read_feed(home / "source" / "events.parquet")
    text = settings_text(home / "source", 30, 365, 30, anchors=2, model=demo_training(epochs=2))
    text += "\n[model]\nwidth = 16\nblocks = 1\n\n[basis]\ndimensions = 16\n"
    text += f'\n[online_store]\ntype = "redis"\npython = {json.dumps(str(FEAST))}\n'
    (home / "settings.toml").write_text(text, encoding="utf-8")
    with contextlib.ExitStack() as started:
        postgres = started.enter_context(PostgresServer("airflow", "mlflow"))
        planted = {
            "PostgreSQL": postgres.password,
            "broker": secrets.token_urlsafe(18),
            "online store": secrets.token_urlsafe(18),
            "AWS key id": "AKIA" + secrets.token_hex(8).upper(),
            "AWS key": secrets.token_urlsafe(30),
            "fernet key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "session key": secrets.token_hex(32),
            "token key": secrets.token_hex(32),
            "mail": secrets.token_urlsafe(18),
        }
        broker = started.enter_context(redis.redis_server(planted["broker"])).partition(",")[0]
        store = started.enter_context(redis.redis_server(planted["online store"]))
        environment = started.enter_context(pytest.MonkeyPatch.context())
        given = environment_of("infra/airflow/celery.env") | {
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": postgres.url("airflow"),
            "AIRFLOW__CORE__FERNET_KEY": planted["fernet key"],
            "AIRFLOW__API__SECRET_KEY": planted["session key"],
            "AIRFLOW__API_AUTH__JWT_SECRET": planted["token key"],
            "AIRFLOW__CELERY__BROKER_URL": f"redis://:{planted['broker']}@{broker}/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{postgres.url('airflow')}",
            "AIRFLOW_CONN_SMTP_DEFAULT": f"smtp://lte:{planted['mail']}@127.0.0.1:25",
            "AWS_ACCESS_KEY_ID": planted["AWS key id"],
            "AWS_SECRET_ACCESS_KEY": planted["AWS key"],
            "LTE_MLFLOW__TRACKING_URI": postgres.url("mlflow"),
            "LTE_ONLINE_STORE__CONNECTION": store,
        }
        for name, value in given.items():
            environment.setenv(name, value)
        date = feed.last + ONE_DAY
        stack = started.enter_context(LocalStack(home / "settings.toml", feed_end=date))
        worker = [sys.executable, "-m", "airflow", "celery", "worker", "--skip-serve-logs", "--without-gossip"]
        stack._start("worker", worker)
        yield Production(stack, postgres, FollowedRuns(stack), date, planted, started.enter_context(_watched(stack)))


@contextlib.contextmanager
def _watched(stack):
    """Collects the command lines of the stack's processes until the block ends."""
    shown, ended = set(), threading.Event()

    def watch():
        while not ended.wait(0.3):
            for process in stack._processes():
                with contextlib.suppress(psutil.Error):
                    shown.add(" ".join(process.cmdline()))

    thread = threading.Thread(target=watch)
    thread.start()
    yield shown
    ended.set()
    thread.join()


@pytest.fixture(scope="module")
def day(production):
    """Runs the bootstrap and a day of the pipeline, including the push to the online store."""
    progress, date = production.progress, production.date
    first = read_feed(production.stack.settings_file.parent / "source" / "events.parquet").first
    run_once(progress, "lte_bootstrap", date - ONE_DAY, {"since": first.isoformat()})
    run_once(progress, "lte_daily", date)
    return date


@pytest.fixture(scope="module")
def promoted(production, day):
    """Runs a training and promotes its model."""
    api, progress = production.stack.api, production.progress
    run_once(progress, "lte_training", day)
    api.unpause("lte_promotion")
    assert follow_promotion(progress, training_before=False) is None
    return production.aliases()


@pytest.fixture(scope="module")
def replaced(production, promoted):
    """Promotes a second version, made of the same files, over the first; then rolls back."""
    api = production.stack.api
    register_again(production.stack.settings, "1")
    run_id = api.trigger("lte_promotion", production.date)
    production.progress.follow("lte_promotion", {run_id: "lte_promotion again"})
    moved = production.aliases()
    run_id = api.trigger("lte_rollback", production.date, {"reason": "clicks fell"})
    production.progress.follow("lte_rollback", {run_id: "lte_rollback"})
    return moved, production.aliases()


def test_a_model_is_promoted(production, promoted):
    assert promoted == {"challenger": "1", "champion": "1"}


def test_aliases_move_on_and_back(production, replaced):
    moved, back = replaced
    assert moved == {"challenger": "2", "champion": "2", "previous": "1"}
    assert back == {"challenger": "2", "champion": "1", "previous": "2"}


def test_all_of_it_was_in_postgres_and_by_the_worker(production, replaced):
    postgres, home = production.postgres, production.stack.settings_file.parent
    assert list(home.rglob("*.db")) == [home / "online_store" / "registry.db"]
    states = postgres.sql("airflow", "select distinct state from task_instance where dag_id = 'lte_promotion'").split()
    assert states == ["success"]
    by_celery = postgres.sql("airflow", "select count(*) from celery_taskmeta where status = 'SUCCESS'")
    assert int(by_celery) > 30
    assert int(postgres.sql("mlflow", "select count(*) from model_versions")) == 2
    assert int(postgres.sql("mlflow", "select count(*) from runs")) >= 4


def test_no_secret_is_in_a_file_a_log_a_database_or_a_command_line(production, day, outcome):
    home = production.stack.settings_file.parent
    places = {str(file): file.read_bytes() for file in home.rglob("*") if file.is_file() and not file.is_symlink()}
    assert sum("/logs/" in place for place in places) > 30
    places |= {f"database {name}": production.postgres.dump(name).encode() for name in ("airflow", "mlflow")}
    places |= {"command lines": "\n".join(production.shown).encode()}
    assert b"celery" in places["command lines"]
    found = [
        f"{what} in {place}"
        for what, secret in production.secrets.items()
        for form in (secret, urllib.parse.quote(secret, safe=""), base64.b64encode(secret.encode()).decode())
        for place, content in places.items()
        if form.encode() in content
    ]
    outcome("Secrets planted", times=len(production.secrets), lost=len(found), of=f"finds in {len(places)} places")
    assert found == []


def test_an_error_shows_no_secret(production, day, monkeypatch):
    """Triggers the error by a store that doesn't answer."""
    monkeypatch.setenv("LTE_ONLINE_STORE__CONNECTION", f"127.0.0.1:1,password={production.secrets['online store']}")
    command = [sys.executable, "-m", "jobs.push_lte", "--date", str(day), "--full"]
    command += ["--settings", str(production.stack.settings_file)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    shown = done.stdout + done.stderr
    assert [what for what, secret in production.secrets.items() if secret in shown] == []
