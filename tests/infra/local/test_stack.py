"""The environment and files of a stack's processes. tests/e2e runs the stack itself."""

import socket
import subprocess

import pytest

from infra.local.stack import LocalStack
from lte_model.errors import LTEError


def test_no_shell_of_a_task_reads_the_rc_file_of_its_user(tmp_path, monkeypatch):
    """Bash reads ~/.bashrc if it is the first shell and its input is a socket, as with Airflow's workers."""
    (tmp_path / "settings.toml").write_text("")
    (tmp_path / ".bashrc").write_text("echo read the rc file")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHLVL", "0")
    stack = LocalStack(tmp_path / "settings.toml")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = subprocess.run(
            ["bash", "-c", "echo the command"],
            env=stack._environment(),
            stdin=theirs,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    assert command.stdout == "the command\n"


def test_no_stack_on_another_address_without_a_password(tmp_path, monkeypatch):
    (tmp_path / "settings.toml").write_text("")
    monkeypatch.delenv("UI_PASSWORD", raising=False)
    with pytest.raises(
        LTEError, match=r"host 0\.0\.0\.0 is not 127\.0\.0\.1, and Airflow, MLflow and the pages would be"
    ):
        LocalStack(tmp_path / "settings.toml", host="0.0.0.0")


@pytest.mark.parametrize("source", ["", "_CMD", "_SECRET"])
def test_what_the_environment_gives_is_written_nowhere(tmp_path, monkeypatch, source):
    """The keys and passwords that the stack generates are readable by their owner only."""
    (tmp_path / "settings.toml").write_text("")
    stack = LocalStack(tmp_path / "settings.toml")
    stack.logs.mkdir(parents=True)
    stack._config.write()
    config = (tmp_path / "airflow" / "airflow.cfg").read_text()
    assert all(key in config for key in ("fernet_key", "secret_key", "jwt_secret"))
    given = {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql+psycopg://lte:s3cret-database@db/airflow",
        "AIRFLOW__CORE__FERNET_KEY": "s3cret-fernet",
        "AIRFLOW__API__SECRET_KEY": "s3cret-session",
        "AIRFLOW__API_AUTH__JWT_SECRET": "s3cret-token",
        "LTE_MLFLOW__TRACKING_URI": "postgresql+psycopg://lte:s3cret-mlflow@db/mlflow",
        "LTE_ONLINE_STORE__CONNECTION": "redis:6379,password=s3cret-redis",
    }
    for name, value in given.items():
        monkeypatch.setenv(name + source if name.startswith("AIRFLOW__") else name, value)
    stack = LocalStack(tmp_path / "settings.toml")
    stack._config.write()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file for file in files if "s3cret" in file.read_text()] == []
    private = {file.name for file in files if file.stat().st_mode & 0o077 == 0}
    assert private == {"airflow.cfg", "passwords.json"}
    config = (tmp_path / "airflow" / "airflow.cfg").read_text()
    assert not any(key in config for key in ("fernet_key", "secret_key", "jwt_secret"))
