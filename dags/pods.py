"""Runs a command in its own pod. A template in infra/airflow/pods sets its resources; the DAG gives the command.

Imported only if `[lte] runner = kubernetes`.
"""

from collections.abc import Callable
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import Context
from airflow.sdk.execution_time.context import context_to_airflow_vars
from kubernetes.client import V1EnvVar, V1Pod

NOTHING_TO_DO = 99
"""The exit code for a skipped task, the same as BashOperator's."""

START_SECONDS = 30 * 60
"""Seconds that a pod may wait for a node: a GPU node is often started on demand."""

LAST_LINE = (
    "import json; lines = open('/airflow/xcom/lines').read().splitlines(); "
    "json.dump(lines[-1] if lines else '', open('/airflow/xcom/return.json', 'w'))"
)
WITH_OUTPUT = f'set -o pipefail; {{command}} | tee /airflow/xcom/lines && python -c "{LAST_LINE}"'
"""Runs the command and writes its last line to return.json, from which the provider's sidecar returns it to Airflow."""


SIDECAR_CONTEXT = {
    "runAsNonRoot": True,
    "runAsUser": 65534,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}
"""Satisfies Kubernetes' policy `restricted`: by default the sidecar's image runs as root."""


class CommandPod(KubernetesPodOperator):
    """Runs a shell command in a pod, with BashOperator's arguments `env` and `output_processor`.

    `env` adds variables to those of the template. With `output_processor` the last line that the command prints is the
    task's output, as with BashOperator; without it the pod needs no second container.
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
        """Runs the pod; returns its last line after `output_processor`, or None without one."""
        line = super().execute(context)
        return self.output_processor(line) if self.output_processor else None

    def build_pod_request_obj(self, context: Context | None = None, **options: Any) -> V1Pod:
        """The pod, with variables that identify the DAG run: AIRFLOW_CTX_DAG_ID and others."""
        pod = super().build_pod_request_obj(context, **options)
        if context:
            run = context_to_airflow_vars(context, in_env_var_format=True)
            container = next(each for each in pod.spec.containers if each.name == self.base_container_name)
            container.env = [*(container.env or []), *(V1EnvVar(name, value) for name, value in run.items())]
        return pod
