"""Which code made something: on record with every model version."""

import hashlib
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def code_version() -> str:
    """The commit of the checkout, with `-dirty` where a file differs from it; without a checkout, as in an image, the
    hash of the package's sources."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=PACKAGE,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return f"sha256:{_sources_hash()}"
    return described.stdout.strip()


def _sources_hash() -> str:
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
