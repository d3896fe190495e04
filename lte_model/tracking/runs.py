"""The MLflow runs of trainings, ablations, drills, online tests, basis maps and monitoring.

Each training date has a run `training` with a child run per side, each ablation a run `ablation` with a child run per
variant and seed, and each version of a drill a run `drill` with children likewise. These runs are found by their tags
`lte.training_date` and `lte.side`, so that a retry of a task continues the run of its first try instead of leaving a
broken one behind. The read-out of an online test is a run found by the test's name and the date, and the map between
two bases is one found by its name. One run `monitoring` has metrics with a value per date.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow.data.delta_dataset_source import DeltaDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Experiment, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from lte_model.errors import LTEError
from lte_model.files import one_at_a_time
from lte_model.settings import Settings

PARENT_SIDE = "training"
ABLATION_SIDE = "ablation"
DRILL_SIDE = "drill"
DATE_TAG = "lte.training_date"
SIDE_TAG = "lte.side"
TEST_TAG = "lte.online_test"
READ_OUT_TAG = "lte.read_out_date"
MONITORING_TAG = "lte.monitoring"
BASIS_MAP_TAG = "lte.basis_map"


def configure(settings: Settings) -> Experiment:
    """Points MLflow at the settings' server or file and activates their experiment, which it creates if needed.

    Raises `LTEError` where the experiment was deleted.
    """
    mlflow.set_tracking_uri(settings.mlflow.tracking_uri)
    mlflow.set_registry_uri(settings.mlflow.tracking_uri)
    name = settings.mlflow.experiment
    with _alone(settings):
        client = MlflowClient()
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            with contextlib.suppress(MlflowException):  # on a server, another process may have created it meanwhile
                client.create_experiment(name, artifact_location=_location(settings.mlflow.artifacts))
            experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        raise LTEError(
            f"experiment {name!r} of {settings.mlflow.place} can't be used (deleted?); "
            "restore it in MLflow or change mlflow.experiment"
        )
    mlflow.set_experiment(experiment_id=experiment.experiment_id)
    return experiment


@contextlib.contextmanager
def training_run(
    settings: Settings, training_date: datetime.date, side: str, anew: bool = False
) -> Iterator[mlflow.ActiveRun]:
    """The active run of `side` for the training of `training_date`; found or created, and ended with the block.

    A side is a child of the run of `parent_of(side)`, which ends with the child's status. `anew` always begins a new
    run: a training that starts over with other parameters doesn't overwrite the record of the old ones.
    """
    run_id = find_or_create_run(settings, training_date, side, anew)
    try:
        with mlflow.start_run(run_id=run_id) as run:
            yield run
    finally:
        if parent_of(side):
            # A parent has the status of the child that ended last.
            client = MlflowClient()
            ended = client.get_run(run_id)
            client.set_terminated(ended.data.tags[MLFLOW_PARENT_RUN_ID], ended.info.status)


def parent_of(side: str) -> str:
    """The side of the parent run: `ablation` for `ablation/…`, `drill` for `drill/…`, else `training`.

    A side that is a parent itself has none ("").
    """
    if side in (PARENT_SIDE, ABLATION_SIDE, DRILL_SIDE):
        return ""
    holder = side.partition("/")[0]
    return holder if holder in (ABLATION_SIDE, DRILL_SIDE) else PARENT_SIDE


def find_or_create_run(settings: Settings, training_date: datetime.date, side: str, anew: bool = False) -> str:
    """The id of the run of `side`, found or created, but not started."""
    experiment_id = configure(settings).experiment_id
    parent = parent_of(side)
    parent_id = find_or_create_run(settings, training_date, parent) if parent else None
    found = find_runs(experiment_id, training_date, side)
    if found and not anew:
        return (found[-1] if parent else found[0]).info.run_id
    tags = {
        DATE_TAG: str(training_date),
        SIDE_TAG: side,
        MLFLOW_RUN_NAME: f"{side} {training_date}",
        **({MLFLOW_PARENT_RUN_ID: parent_id} if parent_id else {}),
    }
    created = MlflowClient().create_run(experiment_id, tags=tags).info.run_id
    if not parent:
        # Two sides that start at once may both have created their parent: both then take the older one.
        return find_runs(experiment_id, training_date, side)[0].info.run_id
    return created


def find_runs(experiment_id: str, training_date: datetime.date, side: str) -> list[Run]:
    """The runs of that side and date, oldest first."""
    return list(
        MlflowClient().search_runs(
            [experiment_id],
            filter_string=f"tags.`{DATE_TAG}` = '{training_date}' AND tags.`{SIDE_TAG}` = '{side}'",
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
        )
    )


@contextlib.contextmanager
def read_out_run(settings: Settings, test: str, date: datetime.date) -> Iterator[mlflow.ActiveRun]:
    """The active run for the read-out of an online test on `date`; found or created, and ended with the block."""
    tags = {TEST_TAG: test, READ_OUT_TAG: str(date)}
    with mlflow.start_run(run_id=_run_with(settings, tags, f"read-out of {test} {date}")) as run:
        yield run


@contextlib.contextmanager
def monitoring_run(settings: Settings) -> Iterator[mlflow.ActiveRun]:
    """The active run of the installation's monitoring; found or created, and ended with the block."""
    with mlflow.start_run(run_id=_run_with(settings, {MONITORING_TAG: "daily"}, "monitoring")) as run:
        yield run


@contextlib.contextmanager
def basis_map_run(settings: Settings, name: str) -> Iterator[mlflow.ActiveRun]:
    """The active run of the map between two bases; found or created, and ended with the block."""
    with mlflow.start_run(run_id=_run_with(settings, {BASIS_MAP_TAG: name}, f"basis map {name}")) as run:
        yield run


def _run_with(settings: Settings, tags: Mapping[str, str], name: str) -> str:
    """The id of the oldest run with these tags, or of a new one."""
    experiment_id = configure(settings).experiment_id
    client = MlflowClient()
    wanted = " AND ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
    found = client.search_runs([experiment_id], filter_string=wanted, order_by=["attributes.start_time ASC"])
    if found:
        return found[0].info.run_id
    return client.create_run(experiment_id, tags={**tags, MLFLOW_RUN_NAME: name}).info.run_id


def log_dataset(settings: Settings, table: str, version: int, context: str) -> None:
    """Records a Delta table at a version as an input of the active run."""
    source = DeltaDatasetSource(path=settings.table_path(table), delta_table_version=version)
    # MLflow omits version 0 from the source, so the digest, which its UI shows beside the name, holds it too.
    dataset = MetaDataset(source, name=table, digest=f"v{version}")  # type: ignore[abstract]  # has no profile to make
    with _alone(settings):
        try:
            mlflow.log_input(dataset, context=context)
        except MlflowException:  # on a server, another process may have named the same version meanwhile
            mlflow.log_input(dataset, context=context)


def log_metrics(run_id: str, metrics: Mapping[str, float]) -> None:
    """Adds metrics to a run that may have ended. `ndcg@10` is logged as `ndcg_at_10`: MLflow refuses the @."""
    now = int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)
    MlflowClient().log_batch(
        run_id, metrics=[Metric(name.replace("@", "_at_"), value, now, 0) for name, value in metrics.items()]
    )


def log_metrics_of_date(run_id: str, metrics: Mapping[str, float], date: datetime.date) -> None:
    """Adds the metrics of a date: the step is its days since 1970-01-01, the timestamp its midnight in UTC.

    Idempotent. MLflow can't delete a value, so a changed value gets a timestamp one millisecond later, which makes it
    the current one.
    """
    client = MlflowClient()
    midnight = datetime.datetime.combine(date, datetime.time(), datetime.UTC)
    time, step = int(midnight.timestamp() * 1000), (date - datetime.date(1970, 1, 1)).days
    added = []
    for name, value in metrics.items():
        there = [metric for metric in client.get_metric_history(run_id, name) if metric.step == step]
        newest = max(there, key=lambda metric: metric.timestamp, default=None)
        if newest is None or newest.value != value:
            added.append(Metric(name, value, newest.timestamp + 1 if newest else time, step))
    client.log_batch(run_id, metrics=added)


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Locks MLflow for the block if it is a file; a server needs no lock.

    There, if two processes create its tables or record the same dataset version at once, one of them fails.
    """
    uri = settings.mlflow.tracking_uri
    if not uri.startswith("sqlite:///"):
        yield
        return
    with one_at_a_time(Path(f"{uri.removeprefix('sqlite:///')}.lock")):
        yield


def _location(artifacts: str) -> str:
    # Unlike Path.resolve, abspath keeps symbolic links: MLflow has recorded the URI with them.
    return artifacts if urlsplit(artifacts).scheme else Path(os.path.abspath(artifacts)).as_uri()  # noqa: PTH100
