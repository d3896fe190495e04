"""What the processes of a stack find around them; the stack itself is run end to end elsewhere."""

import socket
import subprocess

from infra.local_stack import LocalStack


def test_no_shell_of_a_task_reads_the_rc_file_of_its_user(tmp_path, monkeypatch):
    """bash reads it where it is the first shell and its input is a socket, as that of Airflow's workers is."""
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
