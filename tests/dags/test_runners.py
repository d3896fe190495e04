"""The same DAGs under every runner: each command's operator, environment and resources."""

import ast
import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import AirflowSkipException
from kubernetes.client import ApiClient, V1Pod

from tests.dags.context import CONTEXT, DAGS, ENTRY, POOLS
from tests.repository import REPOSITORY

RUNNERS = ("bash", "spark-submit", "kubernetes")
TEMPLATES = REPOSITORY / "infra/airflow/pods"


def dags_under(monkeypatch, runner, **lte):
    for key, value in {"runner": runner, **lte}.items():
        monkeypatch.setenv(f"AIRFLOW__LTE__{key.upper()}", value)
    bag = BundleDagBag(DAGS, bundle_path=DAGS)
    assert bag.import_errors == {}
    return bag.dags


def tasks_of(dags):
    """Every task that runs a command; a mapped task is expanded for one entry."""
    tasks = [task for dag in dags.values() for task in dag.tasks if task.task_type != "HITLOperator"]
    return [task.unmap({"env": ENTRY}) if isinstance(task, MappedOperator) else task for task in tasks]


@pytest.fixture(scope="module")
def commands():
    """Each task's command, without `python -m`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        tasks = tasks_of(dags_under(monkeypatch, "bash"))
    return {(task.dag_id, task.task_id): task.bash_command.removeprefix("python -m ") for task in tasks}


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_house_rules_hold_under_every_runner(monkeypatch, runner):
    here, bash = dags_under(monkeypatch, runner), dags_under(monkeypatch, "bash")
    assert set(here) == set(bash)
    for dag_id, dag in here.items():
        assert dag.task_ids == bash[dag_id].task_ids
        for task, other in zip(dag.tasks, bash[dag_id].tasks, strict=True):
            where = f"{dag_id}.{task.task_id}"
            for rule in ("pool", "retries", "retry_delay", "owner", "doc_md", "downstream_task_ids", "trigger_rule"):
                assert getattr(task, rule) == getattr(other, rule), f"{where}: {rule}"
            assert isinstance(task, MappedOperator) == isinstance(other, MappedOperator), where
            if isinstance(task, MappedOperator):
                assert task.map_index_template == other.map_index_template
                assert task.expand_input.value["env"].operator.task_id == "list_trainings"
            elif task.task_type != "HITLOperator":
                assert task.pool in POOLS and list(task.skip_on_exit_code) == [99], where
                assert (task.env or {}) == (other.env or {}), where


def test_a_runner_that_there_is_not_is_named(monkeypatch):
    monkeypatch.setenv("AIRFLOW__LTE__RUNNER", "docker")
    (error,) = BundleDagBag(DAGS / "lte_audit.py", bundle_path=DAGS).import_errors.values()
    assert "[lte] runner = 'docker' in airflow.cfg: it is one of bash, spark-submit, kubernetes" in error


def test_the_kubernetes_provider_is_not_needed_where_it_is_not_chosen():
    program = f"""
import os, sys
sys.modules["kubernetes"] = sys.modules["airflow.providers.cncf.kubernetes.operators"] = None
sys.path.insert(0, {str(DAGS)!r})
import runners
print(runners.runner("jobs.snapshot_lte --date D")[0].__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "BashOperator"


def test_a_command_has_the_kind_of_what_it_imports(monkeypatch, commands):
    """A job that opens a Spark session is `spark`, a module that trains or evaluates `training`, all others `light`."""
    monkeypatch.syspath_prepend(DAGS)
    from runners import kind_of

    for command in set(commands.values()):
        module = command.split()[0]
        source = ast.parse(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(source) if isinstance(node, ast.ImportFrom)}
        imported |= {name.name for node in ast.walk(source) if isinstance(node, ast.Import) for name in node.names}
        if "jobs.spark.session" in imported:
            assert kind_of(command) == "spark", command
        elif "torch" in imported and not command.startswith(
            ("lte_model.studies.ablation list", "lte_model.studies.ablation report")
        ):
            assert kind_of(command) == "training", command
        elif not command.startswith(("lte_model.studies.ablation train", "lte_model.evaluation.evaluate")):
            assert kind_of(command) == "light", command


def test_each_environment_has_its_python_and_each_kind_its_queue(monkeypatch):
    pythons = {"jobs_python": "/envs/jobs/bin/python", "training_python": "/envs/training/bin/python"}
    queues = {"spark_queue": "spark", "training_queue": "gpu"}
    for task in tasks_of(dags_under(monkeypatch, "bash", **pythons, **queues)):
        python, _, module, *_ = shlex.split(task.bash_command)
        assert python == pythons["jobs_python" if module.startswith("jobs.") else "training_python"], task.task_id
        if task.task_id in ("train", "train_prefix", "fit_encoders", "evaluate"):
            assert task.queue == "gpu"
        elif module == "jobs.snapshot_lte":
            assert task.queue == "spark"
        elif module == "jobs.quality.check":
            assert task.queue == "default"


def test_spark_jobs_are_submitted_and_others_are_not(monkeypatch, commands):
    submit = "/envs/jobs/bin/spark-submit --master spark://m:7077 --conf spark.executor.memory=2g"
    for task in tasks_of(dags_under(monkeypatch, "spark-submit", spark_submit=submit)):
        command = commands[task.dag_id, task.task_id]
        module, _, arguments = command.partition(" ")
        if "jobs.spark.session" in (REPOSITORY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"):
            file = f"{module.replace('.', '/')}.py"
            assert (REPOSITORY / file).is_file()
            assert task.bash_command == f"PYTHONPATH=. {submit} {file} {arguments}"
            assert task.cwd == str(REPOSITORY)
        else:
            assert task.bash_command == f"python -m {command}"


@pytest.fixture(scope="module")
def pods():
    """Each Kubernetes task with its rendered pod, as sent to the API server."""
    images = {"jobs_image": "registry/jobs:1.2", "training_image": "registry/training:1.2", "namespace": "lte"}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes"}))
        tasks = tasks_of(dags_under(monkeypatch, "kubernetes", **images))
        for task in tasks:
            task.render_template_fields(CONTEXT)
        requests = [task.build_pod_request_obj(dry_run=True) for task in tasks]
    return list(zip(tasks, map(ApiClient().sanitize_for_serialization, requests), strict=True))


def read_back(pod):
    """The pod as Kubernetes' client parses it: an unknown field is dropped, a missing required field is an error."""
    read = ApiClient()._ApiClient__deserialize(pod, V1Pod)
    return ApiClient().sanitize_for_serialization(read)


def test_pods_are_what_kubernetes_knows(pods):
    for _, pod in pods:
        assert read_back(pod) == pod


@pytest.mark.parametrize("name", ["spark", "training", "light"])
def test_templates_are_what_kubernetes_knows(name):
    template = yaml.safe_load((TEMPLATES / f"{name}.yaml").read_text())
    assert read_back(template) == template
    changed = json.loads(json.dumps(template))
    changed["spec"]["containers"][0]["resource"] = {}
    assert read_back(changed) != changed


def test_a_pod_runs_its_command_from_its_image_with_what_its_kind_may_use(pods, commands):
    for task, pod in pods:
        command = commands[task.dag_id, task.task_id]
        container = pod["spec"]["containers"][0]
        assert container["name"] == "base" and container["command"] == ["bash", "-c"]
        assert f"python -m {task.render_template(command, CONTEXT)}" in container["args"][0]
        room = "jobs" if command.startswith("jobs.") else "training"
        assert container["image"] == f"registry/{room}:1.2"
        assert pod["metadata"]["namespace"] == "lte"
        kind = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        gpus = container["resources"]["limits"].get("nvidia.com/gpu")
        assert (gpus, bool(pod["spec"].get("nodeSelector"))) == (("1", True) if kind == "training" else (None, False))
        assert pod["spec"]["serviceAccountName"] == ("lte-spark" if kind == "spark" else "lte")
        assert pod["spec"]["restartPolicy"] == "Never" and pod["spec"]["securityContext"]["runAsNonRoot"]
        assert {"name": "home", "mountPath": "/var/lib/lte"} in container["volumeMounts"]
        assert {"name": "LTE_SETTINGS", "value": "/etc/lte/settings.toml"} in container["env"]
        if task.task_id in ("train", "train_prefix", "fit_encoders", "evaluate"):
            assert kind == "training" and pod["spec"]["tolerations"] and "kueue.x-k8s.io/queue-name" in str(pod)
        if command.startswith("jobs.snapshot_lte"):
            assert kind == "spark"


def test_pods_keep_to_the_policy_restricted(pods):
    """Kubernetes' Pod Security Standard: no root, no capabilities, no privilege escalation."""
    for task, pod in pods:
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] and context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, f"{task.task_id}: {container['name']}"
            assert context["capabilities"] == {"drop": ["ALL"]}, f"{task.task_id}: {container['name']}"


def test_what_a_person_typed_reaches_a_pod_as_it_is(pods):
    (pod,) = (pod for task, pod in pods if task.task_id == "rollback")
    assert {"name": "REASON", "value": CONTEXT["params"]["reason"]} in pod["spec"]["containers"][0]["env"]
    assert '--reason="$REASON"' in pod["spec"]["containers"][0]["args"][0]


def test_a_pod_of_a_mapped_task_has_its_entry(pods, monkeypatch):
    ((task, pod),) = ((task, pod) for task, pod in pods if (task.dag_id, task.task_id) == ("lte_ablation", "train"))
    env = {entry["name"]: entry.get("value") for entry in pod["spec"]["containers"][0]["env"]}
    assert ENTRY.items() <= env.items()
    mapped = dags_under(monkeypatch, "kubernetes")["lte_ablation"].get_task("train")
    assert task.render_template(mapped.map_index_template, {"task": task}) == "prefix@20 1"


def test_only_pods_whose_output_is_read_have_a_second_container(pods):
    """lte_promotion reads `challenger` and `gate`, lte_ablation `list_trainings`, lte_basis_change `new_basis`."""
    with_output = {task.task_id for task, pod in pods if len(pod["spec"]["containers"]) > 1}
    assert with_output == {"challenger", "gate", "list_trainings", "new_basis"}


@pytest.mark.parametrize(
    ("program", "code", "output"),
    [
        ("print('one'); print('[{\"variant\": \"a \\\\\"b\\\\\"\", \"seed\": 1}]')", 0,
         [{"VARIANT": 'a "b"', "SEED": "1"}]),
        ("print('one'); raise SystemExit(99)", 99, None),
        ("raise SystemExit(2)", 2, None),
    ],
)  # fmt: skip
def test_a_pod_gives_back_the_last_line_and_the_exit_code(pods, tmp_path, program, code, output):
    """Runs the pod's shell line in a shell."""
    ((task, pod),) = ((task, pod) for task, pod in pods if task.task_id == "list_trainings")
    line = pod["spec"]["containers"][0]["args"][0].replace("/airflow/xcom", str(tmp_path))
    command = line[line.index("python -m") : line.index(" | tee")]
    (tmp_path / "program.py").write_text(program)
    line = line.replace(command, f"python {tmp_path}/program.py").replace("python ", f"{sys.executable} ")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    if output is not None:
        assert task.output_processor(json.loads((tmp_path / "return.json").read_text())) == output


def test_a_pod_knows_of_which_run_it_is(monkeypatch):
    """Commits of a table name their DAG run from these variables, which BashOperator sets too."""
    task = dags_under(monkeypatch, "kubernetes")["lte_daily"].get_task("snapshot_lte")
    monkeypatch.setattr(type(task), "_get_ti_pod_labels", staticmethod(lambda *_, **__: {}))
    ti = SimpleNamespace(dag_id="lte_daily", task_id="snapshot_lte", try_number=2, map_index=-1, owner="x")
    context = {"ti": ti, "task_instance": ti, "run_id": "manual__1", "dag": task.dag, "task": task}
    context["dag_run"] = SimpleNamespace(run_id="manual__1", logical_date=None, run_after=None)
    pod = task.build_pod_request_obj(context, dry_run=True)
    env = {entry.name: entry.value for entry in pod.spec.containers[0].env}
    assert env["AIRFLOW_CTX_DAG_RUN_ID"] == "manual__1" and env["AIRFLOW_CTX_TRY_NUMBER"] == "2"


def test_a_pod_that_had_nothing_to_do_is_skipped(monkeypatch):
    task = dags_under(monkeypatch, "kubernetes")["lte_daily"].get_task("push_lte")
    ended = SimpleNamespace(exit_code=99)
    status = SimpleNamespace(name="base", state=SimpleNamespace(terminated=ended))
    pod = SimpleNamespace(
        metadata=SimpleNamespace(name="push", namespace="lte"),
        status=SimpleNamespace(phase="Failed", container_statuses=[status]),
        spec=SimpleNamespace(containers=[]),
    )
    monkeypatch.setattr(type(task), "process_pod_deletion", lambda *_, **__: None)
    monkeypatch.setattr(type(task), "is_istio_enabled", lambda *_: False)
    with pytest.raises(AirflowSkipException, match="99"):
        task.cleanup(pod, pod)
