"""DAGs start by the clock of UTC, whatever the installation's own clock is."""

import json
import os
import subprocess
import sys

import pytest

from tests.dags.context import DAGS

NEXT_RUNS = f"""
import json
import pendulum
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import TimeRestriction

bag = BundleDagBag({str(DAGS)!r}, bundle_path={str(DAGS)!r})
assert not bag.import_errors, bag.import_errors
asked, found = TimeRestriction(pendulum.datetime(2026, 6, 1, 0, 0, 1), None, True), {{}}
for dag_id, dag in bag.dags.items():
    timetable = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag)).timetable
    run = timetable.next_dagrun_info(last_automated_data_interval=None, restriction=asked)
    if run:
        found[dag_id] = [time.in_timezone("UTC").isoformat() for time in (run.logical_date, run.run_after)]
print(json.dumps(found))
"""

IN_UTC = {
    "lte_daily": "2026-06-02T00:00:00+00:00",
    "lte_watch": "2026-06-01T12:00:00+00:00",
    "lte_training": "2026-06-01T03:00:00+00:00",
    "lte_audit": "2026-06-01T06:00:00+00:00",
    "lte_maintenance": "2026-06-06T06:00:00+00:00",
}
"""The first run of each DAG that has a schedule after 1 June 2026, a Monday."""


@pytest.mark.parametrize(
    "installation",
    [
        {"AIRFLOW__CORE__DEFAULT_TIMEZONE": "Asia/Tokyo"},
        {"AIRFLOW__CORE__DEFAULT_TIMEZONE": "America/New_York", "TZ": "America/New_York"},
        {"AIRFLOW__CORE__DEFAULT_TIMEZONE": "system", "TZ": "Europe/Berlin"},
        {"AIRFLOW__SCHEDULER__CREATE_CRON_DATA_INTERVALS": "True"},
        {},
    ],
    ids=lambda installation: " ".join(installation.values()) or "as Airflow comes",
)
def test_a_run_starts_at_its_time_in_utc_and_has_that_as_its_logical_date(installation):
    done = subprocess.run(
        [sys.executable, "-c", NEXT_RUNS], env=os.environ | installation, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {dag_id: [time, time] for dag_id, time in IN_UTC.items()}
