"""Audits the package versions pinned in every constraints.txt: `make audit`.

    python -m infra.checks.audit [--advisories FOLDER]

1. uv checks that the package index has each version and that none was yanked.
2. pip-audit asks the index's advisory service for known advisories. On a machine that reaches no service, a copy of
   PyPA's advisory database (its folder `vulns`, YAML in the OSV format) takes its place.

Exits with 1 if something is found, and with 2 if a package could not be audited: a package that was not looked up is
not known to be safe.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from infra.repository import REPOSITORY

FILES = (
    "infra/constraints.txt",
    "infra/feast/constraints.txt",
    "infra/checks/constraints.txt",
    "tests/benchmarks/rectools/constraints.txt",
)
FOUND, NOT_AUDITED = 1, 2


def main() -> None:
    """Reads the command line and runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", default=".cache/checks", help="the environment of infra/checks/requirements.txt")
    parser.add_argument("--advisories", type=Path, help="a copy of PyPA's advisory database, in the place of a service")
    arguments = parser.parse_args()
    code = 0
    for name in FILES:
        file = REPOSITORY / name
        count = len(pinned(file.read_text(encoding="utf-8")))
        problems = index_problems(file)
        if arguments.advisories:
            found, reason = list(known_advisories(pinned(file.read_text(encoding="utf-8")), arguments.advisories)), ""
        else:
            found, reason = asked_service(file, REPOSITORY / arguments.tools / "bin" / "pip-audit")
        print(f"{name}: {count} versions", flush=True)
        for line in (*problems, *found):
            print(f"  {line}", flush=True)
        if reason:
            print(f"  NOT AUDITED for advisories: {reason}", flush=True)
        code = FOUND if problems or found or code == FOUND else NOT_AUDITED if reason or code else 0
    sys.exit(code)


def pinned(text: str) -> dict[str, str]:
    """{package: version} of the `name==version` lines."""
    return {
        canonicalize_name(name): version for name, version in re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^\s;]+)", text)
    }


def index_problems(file: Path) -> list[str]:
    """A line for each version in the file that was yanked, or that the package index doesn't have."""
    command = ["uv", "pip", "compile", "--no-deps", "--no-header", "--no-annotate", "--color", "never", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    said = [line.strip() for line in done.stderr.splitlines()]
    yanked = [line.removeprefix("warning: ") for line in said if "is yanked" in line]
    return yanked if done.returncode == 0 else [*yanked, " ".join(said[-2:])]


def asked_service(file: Path, pip_audit: Path) -> tuple[list[str], str]:
    """(a line for each advisory, why packages were not audited).

    pip-audit skips a package that the service doesn't answer for, and still exits with 0.
    """
    command = [str(pip_audit), "--requirement", str(file), "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run([*command, "--progress-spinner", "off"], check=False, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        return [], (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
    found = [
        f"{package['name']} {package['version']}: {advisory['id']}, "
        f"fixed in {', '.join(advisory['fix_versions']) or '–'}"
        for package in packages
        for advisory in package.get("vulns", ())
    ]
    passed_over = [package["skip_reason"] for package in packages if "skip_reason" in package]
    reason = f"{len(passed_over)} of {len(packages)} packages, for one: {passed_over[0]}" if passed_over else ""
    return found, reason


def known_advisories(versions: Mapping[str, str], folder: Path) -> Iterator[str]:
    """A line for each advisory in `folder` that affects one of `versions`."""
    for file in sorted(folder.rglob("*.yaml")):
        if file.parent.name not in versions:
            continue
        advisory = yaml.safe_load(file.read_text(encoding="utf-8"))
        for affected in advisory.get("affected", ()):
            name = canonicalize_name(affected["package"]["name"])
            if "withdrawn" not in advisory and name in versions and affects(affected, versions[name]):
                yield f"{name} {versions[name]}: {advisory['id']}, {', '.join(advisory.get('aliases', ()))}".rstrip(
                    ", "
                )


def affects(affected: Mapping[str, Any], version: str) -> bool:
    """Whether an OSV record's `affected` entry covers the version, in its list or in one of its ranges."""
    if version in map(str, affected.get("versions", ())):
        return True
    for versions in affected.get("ranges", ()):
        if versions["type"] == "ECOSYSTEM" and _in_range(versions["events"], Version(version)):
            return True
    return False


def _in_range(events: list[dict[str, Any]], version: Version) -> bool:
    """Whether an OSV range covers the version. Its events come in any order; each starts or ends affected versions."""
    inside = False
    for kind, bound in sorted(
        ((kind, _version(bound)) for event in events for kind, bound in event.items()), key=lambda event: event[1]
    ):
        if kind == "introduced" and bound <= version:
            inside = True
        elif (kind == "fixed" and bound <= version) or (kind == "last_affected" and bound < version):
            inside = False
    return inside


def _version(text: Any) -> Version:
    try:
        return Version(str(text))
    except InvalidVersion:  # a version from before PEP 440 is older than any installed one
        return Version("0")


if __name__ == "__main__":
    main()
