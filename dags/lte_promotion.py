"""# lte_promotion
Puts a challenger before a person. It starts when `lte_training` has registered one, or by hand.

1. **gate** compares the challenger with the model without LTE, and with the champion. If not better, the run ends.
2. **approve** waits for a person, one day at most: *Required Actions*, in this run. No answer is a *Reject*.
3. **promote** moves the alias `champion` to the approved version.

**To roll back:** set the alias `champion` in MLflow to the version before. Each version names its `basis_id`, and
every vector of that basis fits it.
"""

import datetime

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG

from commands import CHALLENGER, OWNER, REPORTS_URL, gate, job

with DAG(
    "lte_promotion",
    description="Gate, a person's approval, alias champion",
    schedule=[CHALLENGER],
    max_active_runs=1,
    is_paused_upon_creation=False,
    default_args=OWNER,
    tags=["lte", "promotion"],
    doc_md=__doc__,
):
    compare = gate(
        "gate",
        "lte_model.registry gate",
        on_failure="The challenger isn't better, or is of another basis; the log says which. The champion stays.",
        pool="model_registry",
    )
    approve = ApprovalOperator(
        task_id="approve",
        subject="Promote the challenger to champion?",
        body=f"{{{{ ti.xcom_pull(task_ids='gate') }}}}\n\n[Reports]({REPORTS_URL})",
        defaults=ApprovalOperator.REJECT,
        response_timeout=datetime.timedelta(days=1),
        doc_md="Waits for a person; takes no worker while it waits.\n\n"
        "**When it fails:** clear it, and the question is put again.",
    )
    promote = job(
        "promote",
        "lte_model.registry promote",
        writes="model_registry",
        on_failure="The alias is as it was. Is MLflow up? Clear the task.",
    )

    compare >> approve >> promote
