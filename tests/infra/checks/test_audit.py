"""What an audit finds, and that an audit which could not run doesn't report success."""

import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from infra.checks import audit
from tests.repository import REPOSITORY

ADVISORY = """
id: PYSEC-2024-51
aliases: [CVE-2024-4263]
affected:
- package: {ecosystem: PyPI, name: mlflow}
  ranges:
  - type: GIT
    events: [{introduced: "0"}, {fixed: b43e0e3de5b5}]
  - type: ECOSYSTEM
    events: [{introduced: "0"}, {fixed: 2.10.1}]
  versions: [2.9.2, "1.13"]
"""


def test_advisories_are_found_by_version(tmp_path):
    (tmp_path / "vulns" / "mlflow").mkdir(parents=True)
    (tmp_path / "vulns" / "mlflow" / "PYSEC-2024-51.yaml").write_text(ADVISORY)
    found = {version: list(audit.known_advisories({"mlflow": version}, tmp_path)) for version in ("2.9.2", "2.10.1")}
    assert found == {"2.9.2": ["mlflow 2.9.2: PYSEC-2024-51, CVE-2024-4263"], "2.10.1": []}
    withdrawn = ADVISORY + "withdrawn: 2024-06-01T00:00:00Z\n"
    (tmp_path / "vulns" / "mlflow" / "PYSEC-2024-51.yaml").write_text(withdrawn)
    assert list(audit.known_advisories({"mlflow": "2.9.2"}, tmp_path)) == []


@given(st.lists(st.integers(0, 9), min_size=2, max_size=6, unique=True), st.integers(0, 9), st.randoms())
def test_a_version_is_affected_from_each_introduction_to_its_fix(bounds, version, random):
    bounds = sorted(bounds)[: len(bounds) // 2 * 2]
    spans = list(zip(bounds[::2], bounds[1::2], strict=True))
    events = [{"introduced": str(first)} for first, _ in spans] + [{"fixed": str(fixed)} for _, fixed in spans]
    random.shuffle(events)
    affected = {"ranges": [{"type": "ECOSYSTEM", "events": events}]}
    assert audit.affects(affected, str(version)) == any(first <= version < fixed for first, fixed in spans)
    last = {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"last_affected": str(bounds[0])}]}]}
    assert audit.affects(last, str(version)) == (version <= bounds[0])


FOUND_AND_PASSED_OVER = """{"dependencies": [
    {"name": "six", "version": "1.17.0", "vulns": [{"id": "PYSEC-1", "fix_versions": []}]},
    {"name": "a", "skip_reason": "unknown"}]}"""


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ('{"dependencies": [{"name": "six", "version": "1.17.0", "vulns": []}]}', 0),
        ('{"dependencies": [{"name": "six", "skip_reason": "Dependency not found on PyPI"}]}', 2),
        ("", 2),
        (FOUND_AND_PASSED_OVER, 1),
    ],
)
def test_only_what_was_audited_is_well(tmp_path, monkeypatch, capsys, answer, code):
    """pip-audit itself exits with 0 if the service answers for no package."""
    program = tmp_path / "bin" / "pip-audit"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setattr(audit, "FILES", ("infra/checks/constraints.txt",))
    monkeypatch.setattr(audit, "index_problems", lambda file: [])
    monkeypatch.setattr(sys, "argv", ["audit", "--tools", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        audit.main()
    assert ended.value.code == code
    assert ("NOT AUDITED" in capsys.readouterr().out) == ("skip_reason" in answer or not answer)


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on PATH")
def test_a_version_that_is_not_there_is_named(tmp_path):
    (tmp_path / "constraints.txt").write_text("six==999.0\n")
    (problem,) = audit.index_problems(tmp_path / "constraints.txt")
    assert "six" in problem


@pytest.mark.parametrize("file", audit.FILES)
def test_every_line_is_one_version(file):
    lines = [line for line in (REPOSITORY / file).read_text().splitlines() if line and not line.startswith(("#", " "))]
    versions = audit.pinned("\n".join(lines))
    assert len(versions) == len(lines) > 20
    assert all(Version(version) for version in versions.values())
