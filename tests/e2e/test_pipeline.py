"""Runs the whole pipeline on a tiny shop in a real Airflow: bootstrap, a backfill, a training, an approval.

The steps are fixtures, so that each runs once and in order, whichever test is chosen. If chromium is installed, the
test starts the backfill in it, as a person would, and keeps screenshots (SCREENSHOTS=folder).

Longer than 350 lines, because each step continues from the one before, in one Airflow.
"""

import json
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

from infra.local.airflow_api import FINISHED
from infra.local.ports import Ports
from infra.local.stack import LocalStack
from infra.runs.airflow_runs import ANSWER_AFTER
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.tracking.code_version import code_version
from tests.lte_model.registered import register_again

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REASON = "the cohort of new users looks odd; don't"
NO_CHROMIUM = "no chromium on PATH: install it (Debian: apt-get install chromium) to test what a person sees"


@pytest.fixture(scope="module")
def page(installation):
    """A browser page that is logged in to Airflow; None without chromium."""
    if CHROMIUM is None:
        yield None
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(60_000)
        page.goto(f"{installation.stack.airflow_url}/dags/lte_daily")
        page.locator("input[name=username]").fill("admin")
        page.locator("input[name=password]").fill(installation.stack.password)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/dags/lte_daily")
        yield page
        browser.close()


@pytest.fixture(scope="module")
def bootstrapped(installation):
    date = installation.training_date - 2 * ONE_DAY
    run_id = installation.stack.api.trigger("lte_bootstrap", date, {"since": installation.first_event.isoformat()})
    installation.progress.follow("lte_bootstrap", {run_id: "lte_bootstrap"})
    return run_id


def _watched(installation, date):
    """A run of `lte_watch` for `date`, and how it ended."""
    api = installation.stack.api
    api.unpause("lte_watch")
    run_id = api.trigger("lte_watch", date)
    while (state := api.run_of("lte_watch", date)["state"]) not in FINISHED:
        time.sleep(0.5)
    return run_id, state


@pytest.fixture(scope="module")
def watched_too_early(installation, bootstrapped):
    """A run of `lte_watch` for a day on which nothing is live yet (a day after the feed's end would get no run)."""
    return _watched(installation, installation.training_date - ONE_DAY)


@pytest.fixture(scope="module")
def backfilled(installation, watched_too_early, page, screenshots):
    """The dates of a finished backfill of `lte_daily`."""
    dates = [installation.training_date - ONE_DAY, installation.training_date]
    api = installation.stack.api
    if page is None:
        api.unpause("lte_daily")
        api.backfill("lte_daily", dates[0], dates[-1])
    else:
        _backfill_in_the_browser(page, installation.stack, dates, screenshots)
    runs = {
        run["dag_run_id"]: f"lte_daily {run['logical_date'][:10]}" for run in _await_runs(api, "lte_daily", len(dates))
    }
    installation.progress.follow("lte_daily", runs)
    return dates


def _backfill_in_the_browser(page, stack, dates, screenshots):
    page.goto(f"{stack.airflow_url}/dags/lte_daily")
    page.get_by_role("button", name="Trigger").first.click()
    page.get_by_text("Backfill", exact=True).last.click()
    for date in dates:
        page.get_by_text("Select date and time").first.click()
        page.get_by_placeholder("YYYY/MM/DD").last.fill(f"{date:%Y/%m/%d}")
        page.get_by_placeholder("HH:mm").last.fill("00:00")
        page.get_by_text("Reprocess Behavior").click()
    page.get_by_text("2 runs will be triggered.").wait_for()
    page.screenshot(path=screenshots / "backfill-form.png")
    page.get_by_role("button", name="Run Backfill").click()
    page.get_by_role("dialog").wait_for(state="hidden")
    page.goto("about:blank")  # Airflow's pages poll all the time, which takes CPU from the runs


def _await_runs(api, dag_id, count):
    deadline = time.monotonic() + 60
    while len(runs := api.runs(dag_id)) < count:
        assert time.monotonic() < deadline, f"{dag_id} has {len(runs)} runs, not {count}"
        time.sleep(0.5)
    return runs


@pytest.fixture(scope="module")
def trained(installation, backfilled):
    api = installation.stack.api
    api.unpause("lte_training")
    run_id = api.trigger("lte_training", installation.training_date)
    installation.progress.follow("lte_training", {run_id: "lte_training"})
    return installation.training_date


@pytest.fixture(scope="module")
def question(installation, trained, page, screenshots):
    """The promotion's question to a person. The training's asset started the promotion."""
    api = installation.stack.api
    (promotion,) = _await_runs(api, "lte_promotion", 1)
    run_id = promotion["dag_run_id"]
    while True:
        states = {task["task_id"]: task["state"] for task in api.tasks("lte_promotion", run_id)}
        assert states["gate"] != "failed", api.log("lte_promotion", run_id, "gate", 1)
        if states["approve"] == "awaiting_input":
            break
        time.sleep(0.5)
    if page is not None:
        page.goto(f"{installation.stack.airflow_url}/dags/lte_promotion/runs/{run_id}/tasks/approve/required_actions")
        page.get_by_role("button", name="Approve").wait_for()
        page.screenshot(path=screenshots / "approval.png")
        # The reason is optional: a required field would disable both buttons.
        assert all(page.get_by_role("button", name=name).is_enabled() for name in ("Approve", "Reject"))
        page.goto("about:blank")
    return run_id, api.question("lte_promotion", run_id, "approve")


@pytest.fixture(scope="module")
def rejected(installation, question):
    """The aliases after a rejection, and the tags that it leaves on the version."""
    run_id, _ = question
    time.sleep(ANSWER_AFTER)
    installation.stack.api.answer("lte_promotion", run_id, "approve", "Reject", REASON)
    installation.progress.follow("lte_promotion", {run_id: "lte_promotion"})
    return _aliases(installation), _version(installation, "challenger").tags


@pytest.fixture(scope="module")
def promoted(installation, rejected):
    """The result of a second promotion of the same challenger, which is approved."""
    run_id = installation.stack.api.trigger("lte_promotion", installation.training_date)
    installation.progress.follow("lte_promotion", {run_id: "lte_promotion"})
    return _aliases(installation)


@pytest.fixture(scope="module")
def replaced(installation, promoted):
    """The result of promoting a second version, made of the same files, over the first."""
    register_again(installation.settings, "1")
    # A DAG has one run per logical date, and the training's date is taken.
    run_id = installation.stack.api.trigger("lte_promotion", installation.training_date - ONE_DAY)
    installation.progress.follow("lte_promotion", {run_id: "lte_promotion again"})
    return _aliases(installation)


@pytest.fixture(scope="module")
def rolled_back(installation, replaced):
    run_id = installation.stack.api.trigger("lte_rollback", installation.training_date, {"reason": REASON})
    installation.progress.follow("lte_rollback", {run_id: "lte_rollback"})
    return _aliases(installation)


def _registry(installation):
    from mlflow import MlflowClient

    return MlflowClient(installation.settings.mlflow.tracking_uri)


def _aliases(installation):
    aliases = _registry(installation).get_registered_model(installation.settings.mlflow.model_name).aliases
    return {alias: str(number) for alias, number in aliases.items()}


def _version(installation, alias):
    return _registry(installation).get_model_version_by_alias(installation.settings.mlflow.model_name, alias)


def _table(installation, name):
    return pl.scan_delta(installation.settings.table_path(name))


def test_the_bootstrap_fills_the_tables(installation, bootstrapped):
    for name in ("events", "items", "semantic_bases", "item_embeddings", "quarantine"):
        assert _table(installation, name).select(pl.len()).collect().item() > 0, name


def test_each_date_of_a_backfill_has_its_snapshot(installation, backfilled):
    snapshots = _table(installation, "lte_snapshots").select("snapshot_date", "newest_event_date").collect()
    assert set(backfilled) <= set(snapshots["snapshot_date"])
    measured = _table(installation, "lte_monitoring").select("snapshot_date").collect()["snapshot_date"]
    assert set(measured) == set(backfilled)
    lag = installation.settings.window.lag_days
    for date in backfilled:
        of_date = snapshots.filter(pl.col("snapshot_date") == date)
        assert of_date["newest_event_date"].max() < date - lag * ONE_DAY
    assert _table(installation, "lte_live").select(pl.col("snapshot_date").max()).collect().item() == backfilled[-1]


def test_a_person_starts_the_backfill_in_a_browser(installation, backfilled, page, screenshots):
    if page is None:
        pytest.skip(NO_CHROMIUM)
    stack = installation.stack
    page.goto(f"{stack.airflow_url}/dags/lte_daily/backfills")
    page.get_by_text(re.compile("completed|success", re.IGNORECASE)).first.wait_for()
    page.screenshot(path=screenshots / "backfills.png")
    runs = stack.api.runs("lte_daily")
    assert {run["run_type"] for run in runs} == {"backfill"}
    assert {run["triggering_user_name"] for run in runs} == {"admin"}
    run = runs[0]["dag_run_id"]
    page.goto(f"{stack.airflow_url}/dags/lte_daily/runs/{run}")
    page.get_by_text("publish_lte").first.wait_for()
    page.screenshot(path=screenshots / "finished-run.png")
    page.get_by_role("button", name=re.compile("graph", re.IGNORECASE)).first.click()
    page.locator(".react-flow__node").get_by_text("publish_lte").wait_for()
    page.wait_for_timeout(1500)  # the graph is animated
    page.screenshot(path=screenshots / "graph.png")
    page.goto("about:blank")


def test_what_is_live_is_fresh_on_its_day(installation, backfilled):
    _, state = _watched(installation, backfilled[-1])
    assert state == "success"


def test_a_person_is_told_that_nothing_is_live(installation, watched_too_early):
    run_id, state = watched_too_early
    assert state == "failed"
    lines = "\n".join(installation.stack.api.log("lte_watch", run_id, "check_freshness", 1))
    assert "uniform: nothing was ever published; run lte_daily for it" in lines
    (message,) = [message for message in installation.mailbox.messages if "lte_watch" in message["Subject"]]
    assert message["Subject"] == f"DAG lte_watch - Task check_freshness - Run ID {run_id} in State failed"
    assert message["To"] == "team@shop.example"
    assert f"{installation.stack.airflow_url}/dags/lte_watch/runs/" in message.get_body(("html",)).get_content()


def test_the_training_is_evaluated_and_reported(installation, trained):
    folder = Path(installation.settings.reports, trained.isoformat())
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert {"prefix", "none", "popularity_30d"} <= set(evaluation["sides"])
    assert evaluation["training_date"] == trained.isoformat()
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    splits = _table(installation, "training_set").select("split").unique().collect()["split"]
    assert set(splits) == {"train", "refit", "validation", "test"}


def test_a_person_sees_what_is_asked(installation, question):
    _, asked = question
    assert asked["options"] == ["Approve", "Reject"]
    assert asked["defaults"] == ["Reject"]
    assert installation.settings.mlflow.model_name in asked["body"]
    assert f"({installation.stack.pages_url}/reports/)" in asked["body"]


def test_a_refusal_moves_nothing_and_its_reason_stays(rejected):
    aliases, tags = rejected
    assert aliases == {"challenger": "1"}
    assert tags["gate"] == "passed"
    assert tags["approval"].startswith("Reject by admin at ") and tags["approval"].endswith(f": {REASON}")


def test_the_approved_version_is_champion(promoted):
    assert promoted == {"challenger": "1", "champion": "1"}


def test_a_better_or_equal_version_takes_its_place(replaced):
    assert replaced == {"challenger": "2", "champion": "2", "previous": "1"}


def test_a_rollback_brings_the_champion_of_before_back(installation, rolled_back):
    assert rolled_back == {"challenger": "2", "champion": "1", "previous": "2"}
    assert _version(installation, "previous").tags["rolled_back_because"] == REASON


def test_every_commit_of_every_table_names_its_run_and_code(installation, rolled_back):
    runs = {
        f"{dag_id} {run['dag_run_id']}": str(run["logical_date"])[:10]
        for dag_id in ("lte_bootstrap", "lte_daily", "lte_training")
        for run in installation.stack.api.runs(dag_id)
    }
    tables = [folder for folder in Path(installation.settings.warehouse).iterdir() if folder.is_dir()]
    assert len(tables) >= 13
    for folder in tables:
        for commit in DeltaTable(str(folder)).history():
            note = json.loads(commit["userMetadata"])
            run, _, try_number = note["run"].rsplit(" ", 2)
            assert note["code"] == code_version() and try_number == "1", folder.name
            assert run in runs and note["dates"], f"{folder.name}: {note}"
            assert note["dates"] == [runs[run]] or not run.startswith("lte_daily"), f"{folder.name}: {note}"


def test_nothing_was_tried_twice(installation, rolled_back):
    api = installation.stack.api
    for dag_id in ("lte_bootstrap", "lte_daily", "lte_training", "lte_promotion", "lte_rollback"):
        for run in api.runs(dag_id):
            assert run["state"] == "success", run["dag_run_id"]
            for task in api.tasks(dag_id, run["dag_run_id"]):
                tries = 2 if task["task_id"] == "approve" else 1
                assert task["try_number"] <= tries, f"{dag_id}.{task['task_id']}"


def test_the_pages_are_served_and_nothing_else_is(installation, promoted, page, screenshots):
    stack = installation.stack
    for path in (
        "/",
        "/data_docs/index.html",
        "/data_docs/gates.html",
        "/reports/monitoring.html",
        f"/reports/{installation.training_date}/report.html",
    ):
        with urllib.request.urlopen(stack.pages_url + path) as answer:
            assert answer.status == 200
    for path in ("/airflow/airflow.cfg", "/reports/../airflow/airflow.cfg", "/reports/%2e%2e/airflow/passwords.json"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(stack.pages_url + path)
    if page is None:
        return
    for name, path in (
        ("gates", "/data_docs/gates.html"),
        ("data-docs", "/data_docs/"),
        ("monitoring", "/reports/monitoring.html"),
        ("report", f"/reports/{installation.training_date}/report.html"),
    ):
        page.goto(stack.pages_url + path)
        page.screenshot(path=screenshots / f"{name}.png", full_page=True)
    page.goto(f"{stack.mlflow_url}/#/models/{installation.settings.mlflow.model_name}")
    page.get_by_text("champion").first.wait_for()
    page.screenshot(path=screenshots / "mlflow-model.png")


def test_a_second_stack_on_the_same_home_is_refused(installation):
    with pytest.raises(LTEError, match=r"runs a stack on .* already"), LocalStack(installation.stack.settings_file):
        pass


def test_a_port_that_is_taken_is_named(installation, monkeypatch):
    port = installation.stack.ports.airflow
    monkeypatch.setenv("AIRFLOW_PORT", str(port))
    with pytest.raises(LTEError, match=f"port {port} is taken on 127.0.0.1"):
        Ports.from_environment()
