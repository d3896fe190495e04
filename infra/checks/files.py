"""Validates the files of infra/ with those of their tools that are installed: `make check-infra`.

    python -m infra.checks.files [--tools .cache/checks] [--chart FOLDER|TGZ]

Prints a line per check: ok, what is wrong, or which tool is missing. Exits with 1 if something is wrong. No tool checks
that every container runs without privileges and within limits: tests/infra/test_production_files.py does.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.repository import REPOSITORY

COMPOSE = "infra/compose.yaml"
VALUES = "infra/helm/airflow.yaml"
KUBERNETES_VERSION = "1.33.0"
"""The Kubernetes version that the chart is rendered for."""

SECRETS = (
    "POSTGRES_PASSWORD", "AIRFLOW_FERNET_KEY", "AIRFLOW_SECRET_KEY", "AIRFLOW_JWT_SECRET", "MLFLOW_SECRET_KEY",
    "UI_PASSWORD", "REDIS_PASSWORD",
)  # fmt: skip
"""The secrets that compose.yaml reads from its environment."""

CUSTOM = ("kueue.yaml", "kustomization.yaml")
"""Files of custom resource kinds, which Kubernetes' own schemas don't describe."""


@dataclass(frozen=True)
class FileCheck:
    """One command. It is skipped if `missing` gives a reason."""

    name: str
    command: list[str]
    missing: str = ""
    environment: dict[str, str] | None = None


def main() -> None:
    """Reads the command line and runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", default=".cache/checks", help="the environment of infra/checks/requirements.txt")
    parser.add_argument("--chart", default="", help="Airflow's official Helm chart, a folder or .tgz")
    arguments = parser.parse_args()
    tools = str(REPOSITORY / arguments.tools / "bin")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for check in checks(tools, arguments.chart, Path(folder)):
            if check.missing:
                print(f"skipped  {check.name}: {check.missing}", flush=True)
                continue
            environment = os.environ | (check.environment or {})
            done = subprocess.run(
                check.command, cwd=REPOSITORY, env=environment, check=False, capture_output=True, text=True
            )
            print(f"{'WRONG' if done.returncode else 'ok':<8} {check.name}", flush=True)
            if done.returncode:
                wrong += 1
                print((done.stdout + done.stderr).strip(), flush=True)
    sys.exit(1 if wrong else 0)


def checks(tools: str, chart: str, folder: Path) -> Iterator[FileCheck]:
    """All checks, in order. The chart is rendered into `folder`, and the last check validates it there."""
    path = os.pathsep.join((tools, os.environ.get("PATH", "")))

    def found(tool: str, how: str) -> tuple[str, str]:
        program = shutil.which(tool, path=path)
        return program or tool, "" if program else f"no {tool}; {how}"

    packages = "make check-infra brings it"
    hadolint, missing = found("hadolint", packages)
    yield FileCheck("Dockerfile, hadolint", [hadolint, "infra/images/Dockerfile"], missing)

    schema, missing = found("check-jsonschema", packages)
    by_schema = [schema, "--builtin-schema", "vendor.compose-spec", COMPOSE]
    yield FileCheck("compose.yaml, schema of the Compose specification", by_schema, missing)
    yield _compose_config(path)

    validate, missing = found("kubernetes-validate", packages)
    files = [*(REPOSITORY / "infra/kubernetes").glob("*.yaml"), REPOSITORY / "infra/airflow/worker_pod.yaml"]
    files += [*(REPOSITORY / "infra/airflow/pods").glob("*.yaml"), *(REPOSITORY / "infra/settings").glob("*.yaml")]
    manifests = sorted(str(file.relative_to(REPOSITORY)) for file in files if file.name not in CUSTOM)
    yield FileCheck("Kubernetes manifests, its own schemas", [validate, "--strict", "--quiet", *manifests], missing)

    helm, missing_helm = found("helm", "make check-infra builds it where there is Go")
    if not chart:
        missing_helm = missing_helm or "no chart; CHART=FOLDER|TGZ: helm pull airflow --version 1.22.0"
    rendered = folder / "airflow.yaml"
    render = (
        f'"{helm}" template airflow "{chart}" --namespace lte --kube-version {KUBERNETES_VERSION} --values {VALUES}'
    )
    yield FileCheck("Helm values, the chart's schema", ["bash", "-c", f'{render} > "{rendered}"'], missing_helm)
    validated = [validate, "--strict", "--quiet", str(rendered)]
    yield FileCheck("what the chart makes of them, Kubernetes' schemas", validated, missing or missing_helm)


def _compose_config(path: str) -> FileCheck:
    """Checks interpolation, anchors and dependencies, which a schema can't. Dummy values stand in for the secrets."""
    name = "compose.yaml, docker compose config"
    values = dict.fromkeys(SECRETS, "x")
    docker, compose = (shutil.which(program, path=path) for program in ("docker", "docker-compose"))
    options = ["-f", COMPOSE, "--profile", "redis", "config", "--quiet"]
    if compose:
        return FileCheck(name, [compose, *options], environment=values)
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return FileCheck(name, [docker, "compose", *options], environment=values)
    return FileCheck(name, [], "no docker compose")


if __name__ == "__main__":
    main()
