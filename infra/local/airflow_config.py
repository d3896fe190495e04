"""Configures the local stack's Airflow: airflow.cfg, its keys, and its user's password."""

import base64
import configparser
import datetime
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from infra.local.pages import USER
from infra.repository import REPOSITORY

KEYS = (("core", "fernet_key"), ("api", "secret_key"), ("api_auth", "jwt_secret"))
"""The secret options in airflow.cfg."""


@dataclass(frozen=True)
class AirflowConfig:
    """The files that configure an Airflow whose AIRFLOW_HOME is `home`.

    Its API listens on `host` and `port`; clients reach it at `url`. With `has_password`, FAB keeps a hash of the user's
    password; without, the simple auth manager reads a password generated here. `lte` gives options for section `[lte]`;
    `feed_end`, if given, is one more.
    """

    home: Path
    host: str
    port: int
    url: str
    has_password: bool
    lte: Mapping[str, str]
    feed_end: datetime.date | None = None

    def write(self) -> None:
        """Writes airflow.cfg, and a password if one is missing; keeps keys and section `[lte]` of an earlier file."""
        file = self.home / "airflow.cfg"
        config = configparser.RawConfigParser()
        config.read(file)
        old = {section: dict(config[section]) for section in config.sections()}
        config.clear()
        config.read_dict(self._options())
        config.read_dict(
            {
                "core": {"fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()},
                "api": {"secret_key": secrets.token_hex(32)},
                "api_auth": {"jwt_secret": secrets.token_hex(32)},
                "lte": {"feed_end": ""} | old.get("lte", {}) | dict(self.lte),
            }
        )
        if self.feed_end:
            config["lte"]["feed_end"] = self.feed_end.isoformat()
        for section, key in KEYS:
            if is_given(section, key):
                del config[section][key]
            elif key in old.get(section, {}):
                config[section][key] = old[section][key]
        with private_file(file) as stream:
            config.write(stream)
        if not self.has_password and not self._password_file.exists():
            with private_file(self._password_file) as stream:
                json.dump({USER: secrets.token_urlsafe(9)}, stream)

    def generated_password(self) -> str:
        """The password that `write` generated, in this or an earlier run."""
        return json.loads(self._password_file.read_text())[USER]

    @property
    def _password_file(self) -> Path:
        return self.home / "passwords.json"

    def _options(self) -> dict[str, dict[str, object]]:
        return {
            "core": {
                "dags_folder": REPOSITORY / "dags",
                "load_examples": False,
                "executor": "LocalExecutor",
                "parallelism": max(2, os.cpu_count() or 2),
                "dags_are_paused_at_creation": True,
                **(
                    {"auth_manager": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"}
                    if self.has_password
                    else {
                        "simple_auth_manager_users": f"{USER}:admin",
                        "simple_auth_manager_passwords_file": self._password_file,
                    }
                ),
                "execution_api_server_url": f"{self.url}/execution/",
                # Airflow's default looks up this machine's full name in DNS.
                "hostname_callable": "socket.gethostname",
            },
            "database": {"sql_alchemy_conn": f"sqlite:///{self.home / 'airflow.db'}"},
            "api": {"host": self.host, "port": self.port, "base_url": self.url, "workers": 1},
            "api_auth": {},
            "logging": {"base_log_folder": self.home / "logs", "colored_console_log": False},
            # One person waits for one chain of tasks: schedule often, and rarely parse unchanged DAGs again.
            # A killed scheduler's tasks restart when the next scheduler finds them: by default it looks every 300 s.
            "scheduler": {"scheduler_idle_sleep_time": 0.25, "orphaned_tasks_check_interval": 30},
            "dag_processor": {
                "parsing_processes": 1,
                "refresh_interval": 5,
                "bundle_refresh_check_interval": 2,
                "min_file_process_interval": 60,
                "dag_bundle_storage_path": self.home / "bundles",
            },
            # An API server that shares the cores with a JVM can be slow: the default timeout is five seconds.
            "workers": {"execution_api_timeout": 60},
        }


def is_given(section: str, key: str) -> bool:
    """Whether an environment variable sets this Airflow option: its value, a command or a secrets backend."""
    name = f"AIRFLOW__{section}__{key}".upper()
    return any(name + source in os.environ for source in ("", "_CMD", "_SECRET"))


def private_file(file: Path) -> IO[str]:
    """Truncates `file` and opens it for writing; only its owner may read it."""
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8")
