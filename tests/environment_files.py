"""Reads the files of NAME=value lines in infra/, as Docker and systemd do."""

from tests.repository import REPOSITORY


def environment_of(file: str) -> dict[str, str]:
    """The variables in a file, given by its path from the repository's root."""
    lines = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
