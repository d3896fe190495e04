"""The table versions that registered models name, and the erasure of users from their trainings' files."""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from lte_model.evaluation import erasure, report, results
from lte_model.figures import to_json
from lte_model.settings import Settings
from lte_model.tracking import lineage, runs
from tests.lte_model.evaluation.test_report import DATES, evaluation  # noqa: F401 - a fixture

DATE = datetime.date(2026, 3, 1)
GONE, STAYS = "17841", "12748"


@pytest.fixture
def used(trainable_shop):
    """Two versions of a model in MLflow. The first was trained on training_set 5 and evaluated on 6."""
    settings = trainable_shop
    client = None
    for tables in ({"training_set": 6, "events": 41}, {"training_set": 7}):
        with runs.training_run(settings, DATE, "prefix", anew=True) as run:
            runs.log_dataset(settings, "training_set", tables["training_set"] - 1, "training")
            runs.log_dataset(settings, "items", 0, "training")
        client = client or MlflowClient(settings.mlflow.tracking_uri)
        if tables["training_set"] == 6:
            client.create_registered_model(name(settings))
        tags = {f"delta_version.{table}": str(number) for table, number in tables.items()}
        client.create_model_version(name(settings), "nowhere", run.info.run_id, tags | {"training_date": str(DATE)})
    return settings.model_copy(update={"mlflow": settings.mlflow.model_copy(update={"model_name": name(settings)})})


def name(settings):
    """The model's name, unique to the test: other tests share the MLflow database."""
    return f"lineage-{settings.mlflow.experiment}"


def test_a_version_names_the_tables_of_its_training_and_of_its_evaluation(used):
    first, second = lineage.registered_versions(used)
    assert (first.version, second.version, first.training_date) == (1, 2, DATE)
    assert first.tables == {"events": (41,), "items": (0,), "training_set": (5, 6)}
    in_use = lineage.tables_in_use([first, second])
    assert in_use["training_set"] == {5: [first], 6: [first, second], 7: [second]}
    assert in_use["items"] == {0: [first, second]}


def test_a_version_says_what_an_erasure_did_to_it(used):
    first, _ = lineage.registered_versions(used)
    assert lineage.erasures([first]) == []
    for _ in range(2):
        lineage.leave_tag(used, first, lineage.ERASED_TAG, "2026-04-01")
        lineage.leave_tag(used, first, f"{lineage.UNREADABLE_TAG}events", "41")
    (line,) = lineage.erasures(lineage.registered_versions(used))
    assert line.startswith(f"{first}, training of 2026-03-01: trained on users erased on 2026-04-01 or later; ")
    assert line.endswith("the tables it names: events 41")


def test_where_mlflow_was_never_used_nothing_is_named_and_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in (f"sqlite:///{tmp_path}/mlflow.db", f"file://{tmp_path}/mlruns", f"{tmp_path}/mlruns"):
        settings = Settings(home=str(tmp_path), mlflow={"tracking_uri": uri})
        assert lineage.registered_versions(settings) == []
        assert erasure.erase_from_artifacts(settings, frozenset({"u"})) == []
    assert list(tmp_path.iterdir()) == []


def test_an_mlflow_without_the_experiment_or_the_model_gets_neither(used):
    other = used.mlflow.model_copy(update={"experiment": "never made", "model_name": "never registered"})
    settings = used.model_copy(update={"mlflow": other})
    assert lineage.registered_versions(settings) == []
    assert erasure.erase_from_artifacts(settings, frozenset({"u"})) == []
    assert MlflowClient(settings.mlflow.tracking_uri).get_experiment_by_name("never made") is None


def test_a_job_needs_no_torch_for_it():
    imports = "import sys, lte_model.tracking.lineage, lte_model.evaluation.erasure"
    program = f"{imports}; print(*{{'torch', 'airflow'}} & set(sys.modules))"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.fixture
def shown(trainable_shop, evaluation):  # noqa: F811
    """Writes a training's evaluation and report, as files and as artifacts of its MLflow run."""
    settings = trainable_shop
    path = results.evaluation_path(settings, DATE)
    path.parent.mkdir(parents=True)
    path.write_text(to_json(evaluation), encoding="utf-8")
    page = results.report_path(settings, DATE)
    weeks = tuple(DATE - datetime.timedelta(weeks=week) for week in (60, 30, 0))
    coverage = (report.Coverage("test", DATES.test.start, 3, 1.0, 0.5, 7.0),)
    glance = report.Glance((), 9, 3, 5, weeks[0], weeks[-1], weeks, (3, 3, 3), coverage)
    page.write_text(report.render(evaluation, glance), encoding="utf-8")
    with runs.training_run(settings, DATE, "evaluation") as run:
        for file in (path, page):
            mlflow.log_artifact(str(file))
    return settings, Path(run.info.artifact_uri.removeprefix("file://"))


def test_no_report_shows_an_erased_user_and_all_else_stays(shown):
    settings, artifacts = shown
    unfinished = results.report_path(settings, DATE).with_suffix(".html.unfinished")
    unfinished.write_text(results.report_path(settings, DATE).read_text()[:-100])
    before = results.report_path(settings, DATE).read_text()
    users = frozenset({GONE, "nobody"})
    assert len(erasure.erase_from_reports(settings, users)) == 3 and not unfinished.exists()
    assert len(erasure.erase_from_artifacts(settings, users)) == 2
    for folder in (Path(settings.reports) / str(DATE), artifacts):
        kept = json.loads((folder / "evaluation.json").read_text())
        assert [user["user_id"] for user in kept["users"]] == [STAYS, "u-new"]
        page = (folder / "report.html").read_text()
        assert GONE not in page and STAYS in page
        start = before.index('<article class="user">')
        end = before.index('<article class="user">', start + 1)
        assert page.replace(" ", "") == (before[:start] + before[end:]).replace(" ", "")
        assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "report.html"]
    assert erasure.erase_from_reports(settings, users) == erasure.erase_from_artifacts(settings, users) == []


def test_a_file_that_cannot_be_mended_is_deleted(shown):
    settings, _ = shown
    path = results.evaluation_path(settings, DATE)
    path.write_text(path.read_text()[:-50])
    assert erasure.erase_from_reports(settings, frozenset({GONE})) == [
        f"{path}: deleted",
        f"{results.report_path(settings, DATE)}: users taken out",
    ]
