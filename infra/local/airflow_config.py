"""The configuration of the local stack's Airflow."""

import os
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).resolve().parents[2]

KEYS = (("core", "fernet_key"), ("api", "secret_key"), ("api_auth", "jwt_secret"))
"""What airflow.cfg holds that nobody may know."""


def is_given(section: str, key: str) -> bool:
    """Whether the environment has an option of Airflow's, or says which command or secrets backend does."""
    name = f"AIRFLOW__{section}__{key}".upper()
    return any(name + source in os.environ for source in ("", "_CMD", "_SECRET"))


def private_file(file: Path) -> IO[str]:
    """`file`, emptied and opened for writing, readable by its owner alone."""
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8")
