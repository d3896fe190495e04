"""Shared by the tests of the DAGs: the DAGs' folder, the pools, and the context that renders a run's templates."""

import copy
import datetime
import json
from types import SimpleNamespace

from tests.repository import REPOSITORY

DAGS = REPOSITORY / "dags"
POOLS = json.loads((REPOSITORY / "infra/airflow/pools.json").read_text())
CONTEXT = {
    "dag_run": SimpleNamespace(logical_date=datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)),
    "params": {
        "since": "2023-01-01",
        "from": "2024-01-01",
        "to": "2024-05-01",
        "step": 7,
        "users": "/lists/of 1 May.txt",
        "test": "lte-prefix",
        "control": "no lte",
        "shares": "no lte=0.9,lte=0.1",
        "uplift": 0.0116,
        "rehearse": True,
        "variants": "none,prefix@20",
        "seeds": 2,
        "reason": 'it\'s a "test"; $(false)',
        "version": 3,
        "dimensions": 128,
        "text_template": '{title} "new"; $(false)',
        "basis": "3f2ac41b907d0e55",
    },
    "ti": SimpleNamespace(
        xcom_pull=lambda task_ids: {
            "challenger": [{"VERSION": "3", "TRAINING_DATE": "2024-05-01", "CHAMPION": ""}],
            "approve": {"chosen_options": ["Reject"], "responded_by_user": None, "params_input": {"reason": "why not"}},
            "new_basis": [{"BASIS": "3f2ac41b907d0e55"}],
        }[task_ids]
    ),
}
ENTRY = {"VARIANT": "prefix@20", "SEED": "1"}
"""The environment of one mapped task."""


def filled(dag, params):
    """The validated params of a run that is started with `params`."""
    given = copy.deepcopy(dag.params)
    given.update(params)
    return given.validate()
