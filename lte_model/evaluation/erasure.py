"""Removes users from the files that people read: evaluations, reports, and their copies in MLflow.

`evaluation.json` and `report.html` show a few test users with their ids and histories. Models, checkpoints and
metrics hold weights, item ids and counts, and no user. A report is not rendered again, because it would show today's
tables: the user's part is cut out of the page, and the rest stays as it was approved.

The clean file overwrites the artifact of the same name in MLflow. A store that keeps old versions of its objects,
such as a versioned bucket, keeps them until its own rules remove them.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from markupsafe import escape
from mlflow.entities import Run, ViewType
from mlflow.tracking import MlflowClient

from lte_model import figures
from lte_model.evaluation.results import EVALUATION_FILE, REPORT_FILE
from lte_model.files import write_atomically
from lte_model.settings import Settings
from lte_model.tracking.lineage import open_mlflow
from lte_model.tracking.runs import SIDE_TAG

_USER_OF_PAGE = re.compile(r'[ \t]*<article class="user">.*?</article>\n?', re.DOTALL)


def erase_from_reports(settings: Settings, user_ids: frozenset[str]) -> list[str]:
    """Removes the users from every file under `settings.reports`; returns the files that were changed or deleted.

    A half-written file of a killed job is deleted if it names one of the users.
    """
    return [f"{path}: {done}" for path in _files(settings.reports) if (done := _erase_from_file(path, user_ids))]


def erase_from_artifacts(settings: Settings, user_ids: frozenset[str]) -> list[str]:
    """Removes the users from the copies in MLflow; returns the artifacts that were overwritten."""
    client = open_mlflow(settings)
    experiment = client.get_experiment_by_name(settings.mlflow.experiment) if client else None
    if client is None or experiment is None:
        return []
    changed = []
    for run in _evaluation_runs(client, experiment.experiment_id):
        run_id = run.info.run_id
        there = {artifact.path for artifact in client.list_artifacts(run_id)}
        for name in sorted(there & {EVALUATION_FILE, REPORT_FILE}):
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(client.download_artifacts(run_id, name, folder))
                if not _erase_from_file(copy, user_ids):
                    continue
                if not copy.exists():
                    copy.write_text("The users whom this file showed were erased, and with them the file.\n")
                client.log_artifact(run_id, str(copy))
            changed.append(f"{run.info.artifact_uri}/{name}")
    return changed


def evaluation_without(text: str, user_ids: frozenset[str]) -> str:
    """The text of an evaluation.json without the entries of these users."""
    evaluation = json.loads(text)
    kept = [user for user in evaluation["users"] if user["user_id"] not in user_ids]
    if len(kept) == len(evaluation["users"]):
        return text
    return figures.to_json(evaluation | {"users": kept})


def page_without(page: str, user_ids: frozenset[str]) -> str:
    """The page of a report without the articles of these users."""
    marks = _marks(user_ids)
    return _USER_OF_PAGE.sub(lambda part: "" if _shows(part.group(), marks) else part.group(), page)


def _erase_from_file(path: Path, user_ids: frozenset[str]) -> str:
    """Removes the users from one file, or deletes it; returns what was done in words, "" for nothing."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        clean = {EVALUATION_FILE: evaluation_without, REPORT_FILE: page_without}[path.name](text, user_ids)
    except (KeyError, TypeError, ValueError):  # another kind of file, or a damaged one
        clean = text
    if _shows(clean, _marks(user_ids)):
        path.unlink()
        return "deleted"
    if clean == text:
        return ""
    write_atomically(path, clean)
    return "users taken out"


def _marks(user_ids: frozenset[str]) -> list[str]:
    """The forms of each id in a page and in an evaluation. A bare id such as 7 would match unrelated text."""
    pages = [f"<code>{escape(user_id)}</code>" for user_id in user_ids]
    keys = [f'"user_id": {json.dumps(user_id, ensure_ascii=False)}' for user_id in user_ids]
    return pages + keys


def _shows(text: str, marks: list[str]) -> bool:
    return any(mark in text for mark in marks)


def _files(folder: str) -> list[Path]:
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def _evaluation_runs(client: MlflowClient, experiment_id: str) -> Iterator[Run]:
    """Every run with an evaluation, deleted runs included: their artifacts stay until `mlflow gc` removes them."""
    token = None
    while True:
        page = client.search_runs([experiment_id], f"tags.`{SIDE_TAG}` = 'evaluation'", ViewType.ALL, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
