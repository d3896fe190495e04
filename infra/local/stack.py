"""Runs Airflow, MLflow's UI and the pages (Data Docs, reports) of one installation on loopback.

    make up                                           # or: python -m infra.local.stack --settings FILE [--host ADDRESS]

1. `<home>/airflow` becomes the AIRFLOW_HOME: airflow.cfg, keys and password are written there, readable by their owner
   alone, and SQLite is migrated. Environment variables (AIRFLOW__DATABASE__SQL_ALCHEMY_CONN, keys, an executor) take
   precedence and are not written to disk.
2. api-server, scheduler and DAG processor start, but no triggerer: no task here defers. Pools and DAGs are loaded.
3. Ctrl-C stops every process of the stack, including the commands of running tasks. The next `make up` restarts tasks
   that were stopped.

On any address but 127.0.0.1 all three ask for user `admin` and the password in UI_PASSWORD, and nothing starts without
one. MLflow uses its basic-auth app. Airflow uses FAB, which stores a hash; the simple auth manager would store the
password itself.

The demo and the end-to-end test use the same class as a context manager.
"""

import datetime
import fcntl
import http.server
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Self

import psutil

from infra.local.airflow_api import AirflowAPI
from infra.local.airflow_config import AirflowConfig, is_given, private_file
from infra.local.pages import LOOPBACK, USER, pages_server, required_password
from infra.local.ports import Ports, answers_at, reached_at
from infra.local.processes import MARK, is_spark_driver, processes_of, stop_on_signals, stop_processes
from infra.repository import REPOSITORY
from lte_model.command_line import CommandParser, run
from lte_model.errors import LTEError
from lte_model.settings import SETTINGS_VARIABLE, load_settings

DAG_IDS = (
    "lte_bootstrap", "lte_daily", "lte_backfill", "lte_audit", "lte_training", "lte_promotion", "lte_rollback",
    "lte_maintenance", "lte_erasure", "lte_read_out", "lte_ablation", "lte_basis_change", "lte_basis_retirement",
    "lte_watch",
)  # fmt: skip

START_TIMEOUT = 120.0


class LocalStack:
    """A context manager that runs the stack of the installation described by `settings_file`.

    `mlflow_ui=False` leaves MLflow's server out. `feed_end` is the last logical date of a shop whose feed has ended; it
    stays in airflow.cfg until another is given. `python` is the interpreter of Airflow's environment, by default this
    one. `lte` gives options of section `[lte]` in airflow.cfg, which say where commands run (infra/airflow/README.md).
    `host` is the address that the stack listens on.

    Raises `LTEError` for a host other than 127.0.0.1 without UI_PASSWORD. Entering it raises `LTEError` when another
    stack uses the same home, and when a component doesn't start.
    """

    def __init__(
        self,
        settings_file: str | os.PathLike,
        ports: Ports | None = None,
        mlflow_ui: bool = True,
        feed_end: datetime.date | None = None,
        python: str | os.PathLike = sys.executable,
        lte: Mapping[str, str] = MappingProxyType({}),
        host: str = LOOPBACK,
    ):
        self._password = required_password(host, "Airflow, MLflow and the pages")
        self.host = host
        self.settings_file = Path(settings_file).resolve()
        self.settings = load_settings(self.settings_file)
        self.ports = ports or Ports.free()
        self.mlflow_ui = mlflow_ui
        self.python = str(python)
        self.airflow_home = Path(self.settings.home) / "airflow"
        self.logs = self.airflow_home / "logs"
        self.airflow_url = f"http://{reached_at(host)}:{self.ports.airflow}"
        self.mlflow_url = f"http://{reached_at(host)}:{self.ports.mlflow}"
        self.pages_url = f"http://{reached_at(host)}:{self.ports.pages}"
        self.api: AirflowAPI
        self._config = AirflowConfig(
            home=self.airflow_home,
            host=host,
            port=self.ports.airflow,
            url=self.airflow_url,
            has_password=bool(self._password),
            lte={"reports_url": f"{self.pages_url}/reports/", **lte},
            feed_end=feed_end,
        )
        self._mark = uuid.uuid4().hex
        self._components: dict[str, subprocess.Popen] = {}
        self._lock: IO | None = None
        self._pages: http.server.ThreadingHTTPServer | None = None

    @property
    def password(self) -> str:
        """The password of the user `admin`."""
        return self._password or self._config.generated_password()

    def __enter__(self) -> Self:
        self._take_lock()
        try:
            self._config.write()
            self._migrate()
            if self._password:
                self._create_user()
            for component in ("api-server", "scheduler", "dag-processor"):
                # The api-server reads task logs from disk, so the scheduler need not serve them on another port.
                options = ["--skip-serve-logs"] if component == "scheduler" else []
                self._start(component, [self.python, "-m", "airflow", component, *options])
            self._serve_pages()
            self._await(self.airflow_url + "/api/v2/version", "api-server")
            self.api = AirflowAPI(self.airflow_url, USER, self.password)
            self.api.import_pools(json.loads((REPOSITORY / "infra/airflow/pools.json").read_text()))
            self.api.wait_for_dags(DAG_IDS, START_TIMEOUT)
            if self.mlflow_ui:
                self._start_mlflow()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def check(self) -> None:
        """Raises `LTEError` if a component has ended on its own."""
        for name, process in self._components.items():
            if process.poll() is not None:
                raise LTEError(f"{name} ended with code {process.returncode}; see {self._log_file(name)}")

    def spark_drivers(self) -> set[int]:
        """The process ids of the Spark drivers that run now."""
        return {process.pid for process in self._processes() if is_spark_driver(process)}

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int, map_index: int = -1) -> Path:
        """The log file of one try of a task; `map_index` picks one instance of a mapped task."""
        mapped = f"map_index={map_index}/" if map_index >= 0 else ""
        return self.logs / f"dag_id={dag_id}/run_id={run_id}/task_id={task_id}/{mapped}attempt={try_number}.log"

    def stop(self) -> None:
        """Stops the stack and returns when no process is left. Idempotent."""
        stop_processes({process.pid for process in self._components.values()}, self._mark)
        for process in self._components.values():
            process.wait()
        self._components.clear()
        if self._pages:
            self._pages.shutdown()
            self._pages.server_close()
            self._pages = None
        if self._lock:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        """Locks the home: two schedulers on one SQLite would start every task twice."""
        self.logs.mkdir(parents=True, exist_ok=True)
        file = (self.airflow_home / "stack.lock").open("a+")  # held until stop()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise LTEError(f"process {owner} runs a stack on {self.settings.home} already; stop it first") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._lock = file

    def _log_file(self, component: str) -> Path:
        return self.logs / f"{component}.log"

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join((str(Path(self.python).parent), os.environ.get("PATH", "")))
        return {
            **os.environ,
            "AIRFLOW_HOME": str(self.airflow_home),
            SETTINGS_VARIABLE: str(self.settings_file),
            "PATH": path,
            # A first bash whose standard input is a socket assumes that ssh called it and reads ~/.bashrc, which may
            # put another python on the PATH. The shells of Airflow's tasks have such an input.
            "SHLVL": "1",
            "PYTHONUNBUFFERED": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            MARK: self._mark,
        }

    def _migrate(self) -> None:
        """Migrates Airflow's database to this version. That takes seconds; a stamp file skips it the next time."""
        from importlib.metadata import version

        kept_elsewhere = is_given("database", "sql_alchemy_conn")  # may be another database each time
        users = "-users" if self._password else ""
        stamp = self.airflow_home / f"migrated-{version('apache-airflow')}{users}"
        if stamp.exists() and not kept_elsewhere:
            return
        self._start("migration", [self.python, "-m", "airflow", "db", "migrate"])
        if self._components.pop("migration").wait() != 0:
            raise LTEError(f"Airflow's database was not migrated; see {self._log_file('migration')}")
        if not kept_elsewhere:
            stamp.touch()

    def _create_user(self) -> None:
        """Creates Airflow's user; if it exists, sets its password to the current one."""
        names = ["--firstname", USER, "--lastname", USER, "--email", f"{USER}@localhost"]
        if "already exist" in self._airflow_users("create", "--role", "Admin", *names):
            self._airflow_users("reset-password")

    def _airflow_users(self, *command: str) -> str:
        """What `airflow users` prints. The password goes through standard input: `ps` shows options."""
        done = subprocess.run(
            [self.python, "-m", "airflow", "users", *command, "--username", USER],
            cwd=REPOSITORY,
            env=self._environment(),
            input=f"{self._password}\n" * 2,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # without a terminal Airflow reads the password from standard input
            check=False,
        )
        if done.returncode != 0:
            raise LTEError(f"airflow users {command[0]} failed: {done.stdout.strip()[-500:]}")
        return done.stdout

    def _start_mlflow(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", str(self.ports.mlflow)]
        command += ["--workers", "1", "--default-artifact-root", self.settings.mlflow.artifacts]
        # Not a command-line option: `ps` shows options, and a database's address contains a password.
        environment = {"MLFLOW_BACKEND_STORE_URI": self.settings.mlflow.tracking_uri}
        if self._password:
            command += ["--app-name", "basic-auth"]
            names = {self.host, reached_at(self.host), socket.gethostname(), "localhost"}
            environment["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(f"{name}:{self.ports.mlflow}" for name in names)
            environment |= self._mlflow_users()
        self._start("mlflow", command, environment)
        self._await(self.mlflow_url + "/health", "mlflow")

    def _mlflow_users(self) -> dict[str, str]:
        """The environment variables of basic-auth. Its user database is recreated with one user at each start."""
        users, file = self.airflow_home / "mlflow_users.db", self.airflow_home / "mlflow_users.ini"
        users.unlink(missing_ok=True)
        private_file(users).close()
        options = {
            "database_uri": f"sqlite:///{users}",
            "default_permission": "NO_PERMISSIONS",
            "auth_cache_ttl_seconds": 60,
        }
        file.write_text("[mlflow]\n" + "".join(f"{key} = {value}\n" for key, value in options.items()))
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(file),
            "MLFLOW_AUTH_ADMIN_USERNAME": USER,
            "MLFLOW_AUTH_ADMIN_PASSWORD": self._password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        }

    def _start(self, name: str, command: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})) -> None:
        with self._log_file(name).open("ab") as log:
            self._components[name] = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**self._environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal must reach this process only, which then stops the others in order.
                start_new_session=True,
            )

    def _await(self, url: str, component: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            self.check()
            if answers_at(url):
                return
            if time.monotonic() > deadline:
                raise LTEError(f"{component} doesn't answer at {url}; see {self._log_file(component)}")
            time.sleep(0.1)

    def _serve_pages(self) -> None:
        self._pages = pages_server(self.settings, self.host, self.ports.pages, self._password)
        threading.Thread(target=self._pages.serve_forever, name="pages", daemon=True).start()

    def _processes(self) -> list[psutil.Process]:
        return processes_of({process.pid for process in self._components.values()}, self._mark)


def main() -> None:
    """Reads the command line and runs the command."""
    parser = CommandParser(__doc__, no_settings=os.environ.get(SETTINGS_VARIABLE))
    parser.add_argument(
        "--host", default=LOOPBACK, help="the address to listen on; another than loopback takes UI_PASSWORD"
    )
    arguments = parser.parse_args()
    if not arguments.settings:
        raise LTEError(f"no settings; give --settings FILE or set {SETTINGS_VARIABLE}")

    stack = LocalStack(arguments.settings, Ports.from_environment(arguments.host), host=arguments.host)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    try:
        with stack:
            password = "in UI_PASSWORD" if arguments.host != LOOPBACK else stack.password
            print(
                f"""{stack.settings.home}, up after {time.monotonic() - started:.0f} s

  Airflow     {stack.airflow_url}            user {USER}, password {password}
  MLflow      {stack.mlflow_url}
  Gates       {stack.pages_url}/data_docs/gates.html
  Data Docs   {stack.pages_url}/data_docs/
  Reports     {stack.pages_url}/reports/
  logs        {stack.logs}

Ctrl-C stops all of it.""",
                flush=True,
            )
            stopped = stop_on_signals()
            while not stopped.wait(1):
                stack.check()
            print("stopping …", flush=True)
    except KeyboardInterrupt:
        pass
    print("stopped", flush=True)


if __name__ == "__main__":
    run(main)
