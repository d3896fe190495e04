"""Chooses where a command runs, by `[lte] runner` in airflow.cfg. DAGs and command lines don't depend on it.

    bash            a process on the Airflow worker (the default)
    spark-submit    like bash, but Spark jobs go through `[lte] spark_submit`, whose options name the cluster
    kubernetes      a pod per command, from an image that holds the command's packages: pods.py

A command needs one of two environments (a Python or an image): that of jobs/ or that of lte_model/. Each command has
one of three kinds, which chooses its resources: its pod's template, or its workers' queue.
"""

from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk.configuration import conf

REPOSITORY = Path(__file__).resolve().parent.parent

RUNNERS = ("bash", "spark-submit", "kubernetes")

WITHOUT_SPARK = ("jobs.quality.check", "jobs.monitor_lte", "jobs.push_lte", "jobs.check_freshness")
"""Jobs that need no JVM."""

WITH_GPU = (
    "lte_model.training.autoencoder",
    "lte_model.training.train",
    "lte_model.evaluation.evaluate",
    "lte_model.studies.ablation train",
)


def kind_of(command: str) -> str:
    """`spark`: a driver and its executors; `training`: torch, on a GPU; `light`: a task of seconds, without either."""
    if command.startswith("jobs.") and command.split()[0] not in WITHOUT_SPARK:
        return "spark"
    return "training" if command.startswith(WITH_GPU) else "light"


def runner(command: str) -> tuple[type[BashOperator], dict[str, Any]]:
    """The operator that runs `python -m command`, and its arguments; all accept `env` and `output_processor`.

    Raises `ValueError` for an unknown runner.
    """
    name = _setting("runner", "bash")
    if name not in RUNNERS:
        raise ValueError(f"[lte] runner = {name!r} in airflow.cfg: it is one of {', '.join(RUNNERS)}")
    kind, room = kind_of(command), "jobs" if command.startswith("jobs.") else "training"
    queue = _setting(f"{kind}_queue")
    placed = {"queue": queue} if queue else {}
    if name == "kubernetes":
        from pods import CommandPod  # its provider is installed only for this runner

        templates = Path(_setting("pod_templates", str(REPOSITORY / "infra/airflow/pods")))
        return CommandPod, placed | {
            "command": f"python -m {command}",
            "image": _setting(f"{room}_image", f"lte-{room}"),
            "namespace": _setting("namespace") or None,
            "pod_template_file": str(templates / f"{kind}.yaml"),
        }
    line = f"{_setting(f'{room}_python', 'python')} -m {command}"
    if name == "spark-submit" and kind == "spark":
        module, _, arguments = command.partition(" ")
        # The driver runs here with the repository's code; it sends the code to executors (jobs/spark/session.py).
        line = f"PYTHONPATH=. {_setting('spark_submit', 'spark-submit')} {module.replace('.', '/')}.py {arguments}"
    return BashOperator, placed | {"bash_command": line, "cwd": str(REPOSITORY), "append_env": True}


def _setting(key: str, default: str = "") -> str:
    return conf.get("lte", key, fallback=default) or default
