"""The version of the code, recorded with every model version and every commit of a table."""

import hashlib
import subprocess

from lte_model.files import PACKAGE


def code_version() -> str:
    """The commit of the checkout, with `-dirty` if a file differs from it.

    Without a checkout, as in an image, it is a hash of the sources of `lte_model`, and of `jobs` if they are beside it.
    """
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
    for file in sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "jobs").rglob("*.py")]):
        digest.update(file.relative_to(PACKAGE.parent).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
