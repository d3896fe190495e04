"""The note in every table commit: `userMetadata` in Delta's commit info, shown by DESCRIBE HISTORY.

    {"job": "publish_lte", "dates": ["2024-06-01"], "code": "7ad1b19c03f2",
     "run": "lte_daily scheduled__2024-06-01T00:00:00+00:00 publish_lte 1"}

`dates` are the first and the last date that the job was asked for. `run` names Airflow's DAG, run, task and try; it is
absent outside Airflow. The note holds no row data, because users couldn't be erased from the log.
"""

import datetime
import json
import os

from lte_model.tracking.code_version import code_version

RUN_VARIABLES = ("AIRFLOW_CTX_DAG_ID", "AIRFLOW_CTX_DAG_RUN_ID", "AIRFLOW_CTX_TASK_ID", "AIRFLOW_CTX_TRY_NUMBER")
"""The variables with which Airflow's BashOperator tells a command its run."""


def commit_note(job: str, *dates: datetime.date) -> str:
    """The note of the commits that `job` makes in this process for `dates`."""
    note: dict[str, object] = {"job": job}
    if dates:
        note["dates"] = [date.isoformat() for date in dict.fromkeys((min(dates), max(dates)))]
    if run := " ".join(os.environ[name] for name in RUN_VARIABLES if name in os.environ):
        note["run"] = run
    return json.dumps(note | {"code": code_version()})
