"""Runs a temporary PostgreSQL: Debian's programs, on a free port of loopback, in a temporary folder.

    with PostgresServer("airflow", "mlflow") as server:
        server.url("airflow")     # postgresql+psycopg://lte:…@127.0.0.1:…/airflow, with a password made for this server
        server.restart()          # as an administrator does; kill() and start() as a crash and a reboot do

Port, password and data stay the same until the context ends.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.loopback import free_port

MISSING = "no PostgreSQL is installed: apt-get install postgresql"
USER = "lte"


def binaries() -> Path | None:
    """The folder with the programs of the newest PostgreSQL among Debian's packages; None if there is none."""
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    return max(versions, key=lambda path: float(path.parent.name), default=None)


def installed() -> bool:
    return binaries() is not None


class PostgresServer:
    """A context manager: a server with these empty databases, all owned by user `lte`."""

    def __init__(self, *databases: str):
        self.databases = databases
        self.password = secrets.token_urlsafe(18)
        self.port = free_port()
        self.folder: Path
        self._server: subprocess.Popen | None = None

    def url(self, database: str, driver: str = "psycopg") -> str:
        """A database's SQLAlchemy URL; `driver` may be empty."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def log(self) -> Path:
        return self.folder / "postgres.log"

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        try:
            self._make_cluster()
            self.start()
            for database in self.databases:
                self._client("createdb", database)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    def start(self) -> None:
        """Starts the server and waits until it accepts connections; after a `kill` it recovers first."""
        with self.log.open("ab") as log:
            self._server = self._own(["postgres", "-D", str(self._data)], stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while self._ready() != 0:
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not answer: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Shuts the server down: closes connections, rolls transactions back, writes everything to disk."""
        if self._server:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(timeout=60)
            self._server = None

    def restart(self, seconds_down: float = 0) -> None:
        self.stop()
        time.sleep(seconds_down)
        self.start()

    def kill(self) -> None:
        """Sends SIGKILL to all of the server's processes at once; returns when none is left."""
        if self._server:
            # Backends run in their own sessions, and a new server refuses to start beside an old backend.
            family = psutil.Process(self._server.pid)
            for process in (family, *(children := family.children(recursive=True))):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._server.wait()
            psutil.wait_procs(children, timeout=30)
            self._server = None

    def sql(self, database: str, statement: str) -> str:
        """The output of `psql` for a statement: a line per row, columns separated by |."""
        return self._client("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement, database)

    def dump(self, database: str) -> str:
        """The whole database, as SQL."""
        return self._client("pg_dump", database)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _make_cluster(self) -> None:
        if user := _owner():
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        password = self.folder / "password"
        password.write_text(self.password)
        password.chmod(0o644)  # only the owner can enter the folder
        made = self._own(
            [
                "initdb",
                "-D",
                str(self._data),
                "-U",
                USER,
                "-A",
                "scram-sha-256",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "--pwfile",
                str(password),
                "--no-sync",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = made.communicate()
        if made.returncode != 0:
            raise RuntimeError(f"initdb failed: {output.decode(errors='replace')}")
        password.unlink()
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write(
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\n"
                # The kernel keeps a killed process' writes; only a crash of the machine loses them.
                "fsync = off\n"
            )

    def _own(self, command: list[str], **options) -> subprocess.Popen:
        """Starts one of PostgreSQL's programs as a user other than root, which they refuse."""
        user = _owner()
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
        return subprocess.Popen(
            [str(binaries() / command[0]), *command[1:]],
            cwd=self.folder,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **identity,
            **options,
        )

    def _client(self, program: str, *arguments: str) -> str:
        return subprocess.run(
            [str(binaries() / program), "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, *arguments],
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "PGPASSWORD": self.password},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout

    def _ready(self) -> int:
        command = [str(binaries() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode

    def _remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _owner() -> pwd.struct_passwd | None:
    """The server's user: None for the current one; if that is root, the Debian package's user or nobody."""
    if os.geteuid() != 0:
        return None
    names = {user.pw_name: user for user in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]
