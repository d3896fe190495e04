"""# lte_rollback

Makes the previous champion champion again. Start it by hand: **Trigger**, with a reason.

The previous version is loaded from the registry as it was registered, so it gives the same scores as before.

**When it fails** no alias has moved: the version can't be loaded, or can't read the LTEs that are live now. The log
says which, and what to do.
"""

from airflow.sdk import DAG, Param

from commands import OWNER, job

with DAG(
    "lte_rollback",
    description="The champion of before is champion again",
    schedule=None,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "reason": Param(
            type="string",
            minLength=1,
            title="Reason",
            description="Kept with both versions in MLflow, for those who ask",
        ),
        "version": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            title="Version",
            description="The version to go back to; the previous champion if empty",
        ),
    },
    default_args=OWNER,
    tags=["lte", "promotion"],
    doc_md=__doc__,
):
    rollback = job(
        "rollback",
        'lte_model.registry.promotion rollback --reason="$REASON"'
        "{% if params.version %} --version={{ params.version }}{% endif %}",
        writes="model_registry",
        environment={"REASON": "{{ params.reason }}"},
        on_failure="The champion is as it was; the log says why, and what would help. Name another version?",
    )
