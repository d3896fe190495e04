"""# lte_promotion

Asks a person whether a challenger becomes champion. It starts when `lte_training` has registered one, or by hand.

1. **challenger** names the challenger's version, and the champion that it would replace. Later tasks use these two.
2. **check_bases** prints the state of a change of basis, and fails if an alias reads a basis that isn't in force.
3. **check_training_set** checks again the rows that the challenger was trained and tested on.
4. **gate** compares the challenger with the model without LTE, with popularity, and with the champion on the same test
   users. Each model reads the LTEs of its own basis. If the bases differ, both must be in force and live for the same
   users.
5. **approve** waits for a person, one day at most: *Required Actions*, in this run. No answer counts as *Reject*.
6. **answer** records the person's answer and reason on the version in MLflow.
7. **promote** moves the alias `champion` to the version, or is skipped. It fails if the champion has changed meanwhile.

**To roll back:** run `lte_rollback`.
"""

import datetime

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, Param

from commands import CHALLENGER, OWNER, REPORTS_URL, gate, job, listing

VERSION = "{{ ti.xcom_pull(task_ids='challenger')[0]['VERSION'] }}"
TRAINING_DATE = "{{ ti.xcom_pull(task_ids='challenger')[0]['TRAINING_DATE'] }}"
CHAMPION = "{{ ti.xcom_pull(task_ids='challenger')[0]['CHAMPION'] }}"
SAID = "ti.xcom_pull(task_ids='approve')"
ANSWER = f"{{{{ {SAID}['chosen_options'][0] }}}}"

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
    challenger = listing(
        "challenger",
        "lte_model.registry.promotion challenger",
        on_failure="No version is challenger: run `lte_training`. Is MLflow up? Then clear the task.",
        pool="model_registry",
    )
    check_bases = gate(
        "check_bases",
        "lte_model.registry.basis_change status",
        on_failure="The log names the alias, the basis that it reads, and what to do; the notes of `lte_basis_change` "
        "too.",
        pool="model_registry",
    )
    check_training_set = gate(
        "check_training_set",
        f"jobs.quality.check training_set --date {TRAINING_DATE}",
        on_failure="The rows that it was trained on are not what they must be: train again.",
    )
    compare = gate(
        "gate",
        f"lte_model.registry.promotion gate --version {VERSION}",
        on_failure="The challenger is worse, or of another basis; the log says which. The champion stays.",
        pool="model_registry",
        is_quoted=True,
    )
    # Not an ApprovalOperator: that leaves no record of a refusal for later tasks.
    approve = HITLOperator(
        task_id="approve",
        subject="Promote the challenger to champion?",
        body=f"{{{{ ti.xcom_pull(task_ids='gate') }}}}\n\n[Reports]({REPORTS_URL})",
        options=["Approve", "Reject"],
        defaults="Reject",
        params={
            "reason": Param(
                None,
                type=["null", "string"],
                title="Reason",
                description="Kept with the version in MLflow; may be empty",
            )
        },
        response_timeout=datetime.timedelta(days=1),
        doc_md="Waits for a person; takes no worker while it waits.\n\n"
        "**When it fails:** clear it, and the question is put again.",
    )
    answer = job(
        "answer",
        f'lte_model.registry.promotion answer --version {VERSION} --answer="$ANSWER" --by="$BY" --reason="$REASON"',
        writes="model_registry",
        environment={
            "ANSWER": ANSWER,
            "BY": f"{{{{ ({SAID}['responded_by_user'] or {{}}).get('name', '') }}}}",
            "REASON": f"{{{{ {SAID}['params_input'].get('reason') or '' }}}}",
        },
        on_failure="Nothing has moved; the answer itself is in the log of `approve`. Is MLflow up? Clear the task.",
    )
    promote = job(
        "promote",
        f"lte_model.registry.promotion promote --version {VERSION} --over='{CHAMPION}' --answer=\"$ANSWER\"",
        writes="model_registry",
        environment={"ANSWER": ANSWER},
        on_failure="The alias is as it was. Another version became champion meanwhile? Run `lte_promotion` again.",
    )

    challenger >> check_bases >> check_training_set >> compare >> approve >> answer >> promote
