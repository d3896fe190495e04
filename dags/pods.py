"""A command in a pod of its own: what it may use is in a template, infra/airflow/pods; what it runs comes from the DAG.

Imported only where `[lte] runner = kubernetes`.
"""

from collections.abc import Callable
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import Context
from airflow.sdk.execution_time.context import context_to_airflow_vars
from kubernetes.client import V1EnvVar, V1Pod

NOTHING_TO_DO = 99
"""The exit code that Airflow shows as skipped, as BashOperator has it."""

START_SECONDS = 30 * 60
"""How long a pod may wait for a node: one with a GPU is often started for it."""

LAST_LINE = (
    "import json; lines = open('/airflow/xcom/lines').read().splitlines(); "
    "json.dump(lines[-1] if lines else '', open('/airflow/xcom/return.json', 'w'))"
)
WITH_OUTPUT = f'set -o pipefail; {{command}} | tee /airflow/xcom/lines && python -c "{LAST_LINE}"'
"""The sidecar of Airflow's provider reads return.json; a shell that only ran the command would give nothing back."""


SIDECAR_CONTEXT = {
    "runAsNonRoot": True,
    "runAsUser": 65534,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}
"""What Kubernetes' policy `restricted` asks of each container; the sidecar's image would run as root."""


class CommandPod(KubernetesPodOperator):
    """A shell command in a pod, with the arguments that BashOperator has for it.

    `env` is what it finds in its environment, beside what the template gives it. With `output_processor` the last line
    that it prints is the task's output, as it is of every BashOperator; without, the pod needs no second container.
    """

    def __init__(
        self,
        *,
        command: str,
        env: dict[str, str] | None = None,
        output_processor: Callable[[str], Any] | None = None,
        **pod: Any,
    ):
        super().__init__(
            cmds=["bash", "-c"],
            arguments=[WITH_OUTPUT.replace("{command}", command) if output_processor else command],
            env_vars=env,
            do_xcom_push=output_processor is not None,
            xcom_sidecar_container_security_context=SIDECAR_CONTEXT,
            skip_on_exit_code=NOTHING_TO_DO,
            startup_timeout_seconds=START_SECONDS,
            **pod,
        )
        self.command = command
        self.env = env
        self.output_processor = output_processor

    def execute(self, context: Context) -> Any:
        """Run the pod; returns its last line as `output_processor` reads it, or None."""
        line = super().execute(context)
        return self.output_processor(line) if self.output_processor else None

    def build_pod_request_obj(self, context: Context | None = None, **options: Any) -> V1Pod:
        """The pod, which also knows of which run it is: AIRFLOW_CTX_DAG_ID and its like."""
        pod = super().build_pod_request_obj(context, **options)
        if context:
            run = context_to_airflow_vars(context, in_env_var_format=True)
            container = next(each for each in pod.spec.containers if each.name == self.base_container_name)
            container.env = [*(container.env or []), *(V1EnvVar(name, value) for name, value in run.items())]
        return pod
