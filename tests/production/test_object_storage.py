"""The pipeline with its tables and model files on S3: the same rows as on disk, even when S3 fails.

The tests start a real server; `make object-storage` installs it, and Hadoop's S3 client.
"""

import datetime
import io
import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable
from pandas.testing import assert_frame_equal

from infra.local.stack import LocalStack
from infra.runs.airflow_runs import FollowedRuns
from jobs.demo_shop.feed import write_demo_shop
from jobs.demo_shop.spec import ShopSpec
from jobs.erase_users import TABLES_WITH_USERS
from lte_model.domain.windows import ONE_DAY
from lte_model.registry import versions
from lte_model.settings import Settings, load_settings
from lte_model.tracking.runs import configure
from lte_model.warehouse.tables import TABLES
from tests.production import s3_server
from tests.production.s3_weather import s3_weather
from tests.repository import REPOSITORY

JARS = REPOSITORY / ".cache" / "jars-s3"

pytestmark = [
    pytest.mark.production,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not s3_server.installed(), reason=s3_server.MISSING),
    pytest.mark.skipif(not any(JARS.glob("*hadoop-aws*.jar")), reason="no hadoop-aws in .cache: make object-storage"),
]

SHOP = ShopSpec(users=100, items=60, events_per_user=60)  # somebody buys on each of the last days
DAYS_LEFT = 2
"""Days of the feed that the pipeline leaves for later tests."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline that ran on `settings_file` in `environment`, up to `date`; `said` is its output."""

    settings_file: Path
    environment: dict[str, str]
    date: datetime.date
    said: str

    @property
    def settings(self) -> Settings:
        return load_settings(self.settings_file)

    def command(self, *arguments: str) -> str:
        """Runs `python -m …` with the pipeline's settings; returns its output."""
        return command(self.settings_file, self.environment, *arguments)


def command(settings_file: Path, environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments, "--settings", str(settings_file)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def settings_text(source: Path, places: str) -> str:
    return f"""
{places}
[sources]
events = "{source / "events.parquet"}"
items = "{source / "items.parquet"}"
[window]
lag_days = 30
window_days = 200
[basis]
dimensions = 8
[training_set]
anchors = 2
max_length = 20
[model]
width = 16
blocks = 1
max_tokens = 12
[training]
epochs = 1
threads = 1
[evaluation]
bootstrap_samples = 20
[gates]
max_quarantined_share = 0.5
max_unknown_item_share = 0.5
[spark]
jars = "{JARS}"
class_data_archive = "{REPOSITORY / ".cache" / "classes-s3.jsa"}"
[spark.conf]
"spark.driver.defaultJavaOptions" = "-XX:TieredStopAtLevel=1"
"""


@pytest.fixture(scope="module")
def s3():
    """A server with bucket `lte`; environment variables make it reachable for this process and its children."""
    with s3_server.s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        server.make_bucket("lte")
        yield server


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    return folder, write_demo_shop(SHOP, folder)


@pytest.fixture(scope="module")
def run_pipeline(shop, tmp_path_factory):
    folder, planted = shop

    def run(places: str, environment: dict[str, str]) -> Pipeline:
        file = tmp_path_factory.mktemp("installation") / "settings.toml"
        file.write_text(settings_text(folder, places), encoding="utf-8")
        date = datetime.date.fromisoformat(planted.last_event_date) - DAYS_LEFT * ONE_DAY
        days = ["--date", str(date), "--since", planted.first_event_date]
        said = command(file, environment, "tests.production.small_pipeline", *days)
        return Pipeline(file, environment, date, said)

    return run


@pytest.fixture(scope="module")
def on_disk(run_pipeline):
    return run_pipeline("", {})


@pytest.fixture(scope="module")
def on_s3(run_pipeline, s3):
    places = 'warehouse = "s3a://lte/warehouse"\n[mlflow]\nartifacts = "s3://lte/mlartifacts"\n'
    return run_pipeline(places, s3.environment)


def rows(settings: Settings, table: str) -> pl.DataFrame:
    """All rows of a table, sorted by their values."""
    frame = pl.scan_delta(settings.table_path(table)).collect()
    return frame.select(sorted(frame.columns)).sort(pl.struct(pl.all()).map_elements(repr, pl.String))


def commits(s3: s3_server.S3Server, table: str) -> list[dict]:
    """The commit info of each of a table's versions, from 0 on; fails if a version is missing."""
    log = f"warehouse/{table}/_delta_log/"
    names = sorted(key for key in s3.objects("lte", log) if key.removeprefix(log).removesuffix(".json").isdigit())
    assert names == [f"{log}{version:020}.json" for version in range(len(names))]
    return [
        next(
            action["commitInfo"]
            for action in map(json.loads, s3.read("lte", name).splitlines())
            if "commitInfo" in action
        )
        for name in names
    ]


def test_every_table_has_the_rows_that_it_has_on_a_disk(on_disk, on_s3, outcome):
    ours, theirs = on_s3.settings, on_disk.settings
    assert ours.warehouse == "s3://lte/warehouse"
    made = [name for name in TABLES if DeltaTable.is_deltatable(theirs.table_path(name))]
    assert {"events", "lte_snapshots", "lte_live", "lte_monitoring", "training_set", "recommendations"} <= set(made)
    different = [name for name in made if not rows(ours, name).equals(rows(theirs, name))]
    outcome("warehouse on S3 in place of a disk", times=len(made), lost=len(different), of="tables that differ")
    assert different == []
    assert not Path(ours.home, "warehouse").exists() and not Path(ours.home, "mlartifacts").exists()


def test_the_registered_model_is_loaded_from_s3_and_ranks_as_the_one_on_a_disk(on_disk, on_s3, s3):
    assert any(key.startswith("mlartifacts/") for key in s3.objects("lte", "mlartifacts/"))
    ranked = []
    for pipeline in (on_s3, on_disk):
        configure(pipeline.settings)
        model = versions.load(pipeline.settings, "champion")
        ranked.append(model.predict(model.input_example))
    assert len(ranked[0]) > 0
    assert_frame_equal(*ranked)


def test_a_job_gets_through_where_s3_refuses_requests_and_is_slow(on_disk, on_s3, s3, outcome):
    """S3 refuses before or after it handles a request; after, a commit exists, but its writer gets an error."""
    dates = [on_s3.date - days * ONE_DAY for days in (3, 2)]
    job = "jobs.snapshot_lte"
    on_disk.command(job, "--from", str(dates[0]), "--to", str(dates[-1] + ONE_DAY))
    before = len(commits(s3, "lte_snapshots"))
    with s3_weather(s3) as weather, weather.slow(seconds=0.02):
        for date, after in zip(dates, (False, True), strict=True):
            with weather.failing(share=0.15, after=after):
                command(on_s3.settings_file, weather.environment, job, "--date", str(date))
        refused = weather.counts()["refused"]
    of_dates = pl.col("snapshot_date").is_in(dates)
    ours, theirs = (rows(pipeline.settings, "lte_snapshots").filter(of_dates) for pipeline in (on_s3, on_disk))
    lost = len(theirs) - len(ours.join(theirs, on=["snapshot_date", "user_id"], how="semi"))
    outcome("requests refused by S3 in two snapshots", times=refused, lost=lost, of="rows")
    assert refused > 0 and len(theirs) > 0
    assert ours.equals(theirs)
    assert len(commits(s3, "lte_snapshots")) == before + 2


@pytest.mark.e2e
def test_two_backfills_at_once_lose_no_commit_and_log_to_s3(on_s3, s3, monkeypatch, outcome):
    for name, value in {
        "REMOTE_LOGGING": "True",
        "REMOTE_BASE_LOG_FOLDER": "s3://lte/logs",
        "REMOTE_LOG_CONN_ID": "aws_default",
    }.items():
        monkeypatch.setenv(f"AIRFLOW__LOGGING__{name}", value)
    before = {name: len(commits(s3, name)) for name in ("events", "lte_snapshots", "snapshot_accounts")}
    daily = [on_s3.date + days * ONE_DAY for days in range(1, DAYS_LEFT + 1)]
    weekly = [on_s3.date - days * ONE_DAY for days in (20, 13)]
    with LocalStack(on_s3.settings_file, mlflow_ui=False, feed_end=daily[-1]) as stack:
        api, progress = stack.api, FollowedRuns(stack)
        api.unpause("lte_daily")
        api.backfill("lte_daily", daily[0], daily[-1])
        given = {"from": str(weekly[0]), "to": str(weekly[-1] + ONE_DAY), "step": 7}
        other = api.trigger("lte_backfill", daily[-1], given)
        deadline = time.monotonic() + 60
        while len(runs := api.runs("lte_daily")) < len(daily):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        progress.follow("lte_daily", {run["dag_run_id"]: run["logical_date"][:10] for run in runs})
        progress.follow("lte_backfill", {other: "lte_backfill"})
        started = api.runs("lte_daily") + api.runs("lte_backfill")
        assert max(run["start_date"] for run in started) < min(run["end_date"] for run in started), "not at once"
        tasks = [
            {**task, "dag_id": run["dag_id"]}
            for run in started
            for task in api.tasks(run["dag_id"], run["dag_run_id"])
            if task["state"] == "success"
        ]
        said = api.log("lte_backfill", other, "snapshot_range", 1)
    writers = sorted((t["start_date"], t["end_date"]) for t in tasks if t["pool"] == "lte_snapshots")
    assert len(writers) == 3 and all(task["try_number"] == 1 for task in tasks)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(writers)), "the pool let two in"

    # Each task makes one commit: the ingest of a day, the snapshots of a date or a range, and their accounts.
    new = {name: commits(s3, name)[count:] for name, count in before.items()}
    expected = {"events": len(daily), "lte_snapshots": 3, "snapshot_accounts": 3}
    lost = sum(abs(len(new[name]) - count) for name, count in expected.items())
    outcome("two backfills at once on S3", times=len(tasks), lost=lost, of="commits lost or doubled")
    assert {name: len(found) for name, found in new.items()} == expected
    written = [commit["operationParameters"]["predicate"] for commit in new["lte_snapshots"]]
    for date in (*daily, *weekly):
        assert sum(str(date) in predicate for predicate in written) == 1, date
    assert {*daily, *weekly} <= set(rows(on_s3.settings, "lte_snapshots")["snapshot_date"])
    for date in (daily[-1], weekly[0]):
        audited = on_s3.command("jobs.audit_lte", "--date", str(date), "--share", "1")
        assert "audited: 0 mismatched (0.00%), 0 missing (0.00%), 0 extra (0.00%)" in audited

    log = f"logs/dag_id=lte_backfill/run_id={other}/task_id=snapshot_range/attempt=1.log"
    assert log in s3.objects("lte", "logs/")
    for date in weekly:
        assert any(f"uniform LTE of {date}" in line for line in said), said


def test_an_erased_user_is_in_no_file_of_the_bucket(on_s3, s3, tmp_path):
    settings = on_s3.settings
    user = rows(settings, "lte_live")["user_id"][0]
    tables = [name for name in TABLES_WITH_USERS if DeltaTable.is_deltatable(settings.table_path(name))]
    assert any(user in str(_columns_of_text(s3, name)) for name in tables)
    (tmp_path / "users").write_text(f"{user}\n", encoding="utf-8")
    on_s3.command("jobs.erase_users", "--users", str(tmp_path / "users"))
    assert [name for name in tables if user in str(_columns_of_text(s3, name))] == []


def _columns_of_text(s3: s3_server.S3Server, table: str) -> set[str]:
    """Every text value in every Parquet file of a table, including files of old versions."""
    found: set[str] = set()
    for key in s3.objects("lte", f"warehouse/{table}/"):
        if key.endswith(".parquet"):
            frame = pl.read_parquet(io.BytesIO(s3.read("lte", key)))
            found.update(str(value) for column in frame.select(pl.col(pl.String)) for value in column)
    return found


def test_no_secret_is_in_what_was_written_or_said(on_s3, s3):
    secret = s3_server.SECRET_KEY
    assert secret not in on_s3.said
    home = Path(on_s3.settings.home)
    holders = [str(file) for file in home.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]
    holders += [key for key in s3.objects("lte") if secret.encode() in s3.read("lte", key)]
    assert holders == []
