"""Rules for the files of a production: no unneeded privileges, limits on resources, and no secrets.

`make check-infra` validates each file against its schema; the last test runs it too.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from airflow.configuration import conf
from airflow.providers_manager import ProvidersManager

from infra.checks.files import COMPOSE, SECRETS, VALUES
from tests.environment_files import environment_of
from tests.repository import REPOSITORY

INFRA = REPOSITORY / "infra"
ENVIRONMENTS = sorted(file.name for file in (INFRA / "airflow").glob("*.env"))
MANIFESTS = sorted([*(INFRA / "kubernetes").glob("*.yaml"), *(INFRA / "airflow").rglob("*.yaml")])
IS_SECRET = re.compile(r"PASSWORD|SECRET|FERNET|_KEY\b|SQL_ALCHEMY_CONN|BROKER_URL|RESULT_BACKEND|CONNECTION$")

OUR_SECRETS = "|".join(SECRETS)


def compose_file():
    return yaml.safe_load((REPOSITORY / COMPOSE).read_text(encoding="utf-8"))


def services():
    return compose_file()["services"]


def manifests():
    """Every Kubernetes object in the files, with its file's name."""
    return [
        (file.name, found)
        for file in MANIFESTS
        for found in yaml.safe_load_all(file.read_text(encoding="utf-8"))
        if found
    ]


def pods():
    """{name: pod specification} of each pod and deployment."""
    found = {}
    for file, manifest in manifests():
        if manifest["kind"] == "Pod":
            found[file] = manifest["spec"]
        elif manifest["kind"] == "Deployment":
            found[file] = manifest["spec"]["template"]["spec"]
    return found


# Compose.


@pytest.mark.parametrize("name", services())
def test_a_service_has_no_rights_and_no_more_room_than_it_is_given(name):
    service = services()[name]
    assert service["user"] not in ("root", "0", "0:0")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "network_mode", "devices"} & set(service)
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", ()))
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory", "pids"} <= set(limits)
    if name != "airflow-init":  # it runs once and exits
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", services())
def test_a_service_takes_its_secrets_from_outside(name):
    service = services()[name]
    for variable, value in service.get("environment", {}).items():
        if IS_SECRET.search(variable):
            assert re.search(rf"\$\{{({OUR_SECRETS}):[?-]", str(value)), variable
    if name != "redis":  # only starts with its profile
        assert not re.search(rf"\$\{{({OUR_SECRETS})(:-[^}}]*)?\}}", json.dumps(service).replace("$$", ""))
    assert not re.search(rf"[^$]\$\{{?({OUR_SECRETS})", json.dumps(service.get("command", "")))


@pytest.mark.parametrize("name", services())
def test_what_a_service_publishes_is_on_loopback_unless_told_otherwise(name):
    for port in services()[name].get("ports", ()):
        assert port.startswith("${PUBLISH:-127.0.0.1}:"), port


def test_third_parties_are_pinned_and_what_is_ours_is_built():
    for name, service in services().items():
        image = service["image"]
        assert re.fullmatch(r"lte-(worker|mlflow):\$\{LTE_VERSION:-latest\}|[a-z]+:\d[\w.-]*", image), (name, image)


# Images.


DOCKERFILE = (INFRA / "images" / "Dockerfile").read_text(encoding="utf-8")
IMAGES = {"airflow", "jobs", "training", "mlflow", "worker"}


def stages():
    """{stage: its lines, with continued lines joined}, and {stage: its base image}."""
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE)).splitlines()
    found, parents, name = {}, {}, None
    for line in lines:
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            parents[match.group(2)], name = match.groups()
            found[name] = []
        elif name and line.strip():
            found[name].append(line)
    return found, parents


def test_images_run_without_rights():
    found, _ = stages()
    for image in IMAGES:
        users = [line for line in found[image] if line.startswith("USER")]
        assert users == ["USER 10001:10001"]
        assert not re.search(r"\b(chmod|chown)\b", " ".join(found[image]))


def test_an_image_holds_what_its_commands_need_and_no_more():
    found, parents = stages()

    def holds(image, what):
        return any(what in line for line in found[image] if line.startswith("COPY"))

    assert {name for name in IMAGES if parents[name] == "java"} == {"jobs", "worker"}
    for image in IMAGES - {"worker"}:
        environments = {name for name in IMAGES if holds(image, f"/opt/envs/{name} ")}
        assert environments == {image}
    assert not any(holds("airflow", what) for what in ("jobs jobs", "lte_model"))
    assert not holds("training", " jobs")
    extras = {
        image: set(re.findall(r"--extra (\S+?)\"?(?= |$)", " ".join(found[f"{image}-packages"])))
        for image in IMAGES - {"worker"}
    }
    assert extras["airflow"] == {"airflow", "kubernetes", "airflow-server"}
    assert extras["jobs"] == {"jobs"}
    assert extras["training"] == {"training"}
    assert extras["mlflow"] == {"mlflow-server"}


def test_what_images_copy_and_install_is_there():
    found, _ = stages()
    for lines in found.values():
        for line in lines:
            if line.startswith("COPY") and "--from" not in line:
                for source in line.split()[1:-1]:
                    assert (REPOSITORY / source).exists(), source
    known = set(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert set(re.findall(r"--extra ([a-z][a-z0-9-]*)", DOCKERFILE)) <= known


def test_mlflows_image_holds_the_files_that_the_pages_import():
    found, _ = stages()
    copied = {word for line in found["mlflow"] if line.startswith("COPY infra/") for word in line.split()[1:-1]}
    program = (
        "import sys, infra.local.pages\n"
        "print(*(module.__file__ for name, module in sys.modules.items() if name.partition('.')[0] == 'infra'))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    imported = {str(Path(file).relative_to(REPOSITORY)) for file in done.stdout.split()}
    assert imported == {file for file in copied if file.endswith(".py")}


# Kubernetes.


@pytest.mark.parametrize("name", pods())
def test_a_pod_has_no_rights_and_no_more_room_than_it_is_given(name):
    """Checks the rules of the namespace's Pod Security level `restricted`, and that resources have limits."""
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        for variable in container.get("env", ()):
            assert not (IS_SECRET.search(variable["name"]) and "value" in variable), variable["name"]
    for volume in pod.get("volumes", ()):
        assert "hostPath" not in volume


def test_kustomize_takes_every_file_but_those_of_optional_parts():
    kustomization = next(found for _, found in manifests() if found["kind"] == "Kustomization")
    files = {file.name for file in (INFRA / "kubernetes").glob("*.yaml")}
    assert files - set(kustomization["resources"]) == {"kustomization.yaml", "kueue.yaml"}


def test_servers_are_asked_how_they_are():
    for _, manifest in manifests():
        if manifest["kind"] == "Deployment":
            for container in manifest["spec"]["template"]["spec"]["containers"]:
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)


def test_no_secret_is_in_a_manifest():
    assert [file for file, manifest in manifests() if manifest["kind"] == "Secret"] == []


def test_pods_run_as_accounts_that_are_made():
    made = {manifest["metadata"]["name"] for _, manifest in manifests() if manifest["kind"] == "ServiceAccount"}
    assert {pod["serviceAccountName"] for pod in pods().values()} <= made


def test_the_gpus_of_the_pool_the_quota_and_the_queue_are_the_same():
    pools = json.loads((INFRA / "airflow" / "pools.json").read_text())
    by_kind = {manifest["kind"]: manifest for _, manifest in manifests()}
    slots = str(pools["gpu"]["slots"])
    assert by_kind["ResourceQuota"]["spec"]["hard"]["requests.nvidia.com/gpu"] == slots
    resources = by_kind["ClusterQueue"]["spec"]["resourceGroups"][0]["flavors"][0]["resources"]
    assert {found["name"]: found["nominalQuota"] for found in resources}["nvidia.com/gpu"] == slots


def test_a_training_finds_a_gpu():
    """Its node selector and toleration match the queue's flavour, its queue exists, and it requests one GPU."""
    pod = yaml.safe_load((INFRA / "airflow" / "pods" / "training.yaml").read_text())
    by_kind = {manifest["kind"]: manifest for _, manifest in manifests()}
    flavour = by_kind["ResourceFlavor"]["spec"]
    assert pod["spec"]["nodeSelector"] == flavour["nodeLabels"]
    assert pod["spec"]["tolerations"] == flavour["tolerations"]
    assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == by_kind["LocalQueue"]["metadata"]["name"]
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


# Airflow.


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_airflow_knows_what_its_environment_files_set(name):
    ProvidersManager().initialize_providers_configuration()
    for variable, value in environment_of(f"infra/airflow/{name}").items():
        assert value, variable
        if variable.startswith("AIRFLOW__"):
            section, key = variable.removeprefix("AIRFLOW__").lower().split("__")
            known = section == "lte" or key in conf.configuration_description.get(section, {}).get("options", {})
            assert known, f"[{section}] {key}"
            assert not IS_SECRET.search(variable), variable


def test_the_chart_gets_no_secret_and_the_same_airflow():
    values = yaml.safe_load((REPOSITORY / VALUES).read_text(encoding="utf-8"))
    for key in ("fernetKey", "apiSecretKey", "jwtSecret", "webserverSecretKey", "extraSecrets"):
        assert key not in values
    assert set(values["data"]) == {"metadataSecretName"}
    assert values["createUserJob"]["enabled"] is False
    versions = (INFRA / "constraints.txt").read_text().splitlines()
    assert f"apache-airflow=={values['airflowVersion']}" in versions
    common = environment_of("infra/airflow/production.env")
    for section in ("core", "api", "scheduler"):
        for key, value in values["config"][section].items():
            assert common.get(f"AIRFLOW__{section}__{key}".upper(), value) == value


@pytest.mark.skipif(not (REPOSITORY / ".cache/checks/installed").exists(), reason="no validators: make check-infra")
def test_the_tools_that_know_these_files_find_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "infra.checks.files"],
        cwd=REPOSITORY,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("ok ") >= 3
