"""A standalone Spark cluster: a master and two workers as processes on loopback, from the installed PySpark.

    with StandaloneCluster(folder, hidden=[REPOSITORY]) as cluster:
        …  # spark.master = cluster.master

Each worker stands for another machine: it starts with an empty environment, in its own folder. If this process may
(root on Linux), each worker also gets its own mount namespace, in which `hidden` folders are empty: an executor that
reads the driver's disk by accident finds nothing.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import pyspark

from tests.loopback import LOOPBACK, free_port, free_ports

START_SECONDS = 120
CLEANUP = {"enabled": "true", "interval": 30, "appDataTtl": 300}
"""`spark.worker.cleanup.*`, in seconds: every job leaves an unpacked environment of 860 MB with each worker."""


class StandaloneCluster:
    """A context manager: a cluster with `workers` of one core each; its files and logs are in `folder`."""

    def __init__(self, folder: Path, hidden: Sequence[Path] = (), workers: int = 2, worker_memory: str = "1500m"):
        self.folder = folder
        self.hidden = hidden
        self.workers = workers
        self.worker_memory = worker_memory
        self.port, self._page = free_ports(2)
        self.master = f"spark://{LOOPBACK}:{self.port}"
        self._processes: dict[str, subprocess.Popen] = {}
        # Every node has Spark and a Python, at other paths than the driver's.
        self._nodes = {folder / "spark": Path(pyspark.__file__).parent, folder / "python": Path(sys.prefix)}
        self._hides = bool(hidden) and can_hide()
        self.python = folder / "python/bin/python"

    def __enter__(self) -> Self:
        try:
            for place, source in self._nodes.items():
                place.mkdir() if self._hides else place.symlink_to(source)
            options = f"--host {LOOPBACK} --port {self.port} --webui-port {self._page}"
            self._start("master", f"org.apache.spark.deploy.master.Master {options}")
            self._await(lambda state: True)
            for number in range(self.workers):
                self._start_worker(number)
            self._await(lambda state: state["aliveworkers"] == self.workers)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def state(self) -> dict:
        """The master's state: its workers and applications."""
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self._page}/json/", timeout=10) as answer:
            return json.load(answer)

    def executors(self) -> list[psutil.Process]:
        """The executors that run now."""
        return [
            process
            for worker in self._processes.values()
            for process in psutil.Process(worker.pid).children(recursive=True)
            if _is_executor(process)
        ]

    def sees(self, folder: Path) -> list[str]:
        """The names that the first worker sees in `folder`."""
        worker = self._processes["worker-0"].pid
        within = ["nsenter", "--mount", "--target", str(worker)] if self._hides else []
        done = subprocess.run([*within, "ls", str(folder)], check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    def stop(self) -> None:
        """Stops every process of the cluster, including executors, and returns when they are gone."""
        family = [psutil.Process(process.pid) for process in self._processes.values() if process.poll() is None]
        family += [child for process in family for child in process.children(recursive=True)]
        for process in family:
            _signal(process, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=10)
        for process in alive:
            _signal(process, signal.SIGKILL)
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def _start_worker(self, number: int) -> None:
        home = self.folder / f"worker-{number}"
        (home / "work").mkdir(parents=True)
        options = f"--host {LOOPBACK} --cores 1 --memory {self.worker_memory} --work-dir {home / 'work'}"
        page = free_port()
        self._start(
            f"worker-{number}", f"org.apache.spark.deploy.worker.Worker {options} --webui-port {page} {self.master}"
        )

    def _start(self, name: str, command: str) -> None:
        home = self.folder / name
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        shell = [f"mount --bind {source} {place}" for place, source in self._nodes.items()] if self._hides else []
        shell += [f"mount -t tmpfs none {folder}" for folder in self.hidden] if self._hides else []
        shell.append(f"exec {self.folder}/spark/bin/spark-class {command}")
        java = shutil.which("java")
        environment = {
            "SPARK_HOME": f"{self.folder}/spark",
            "JAVA_HOME": os.environ.get("JAVA_HOME") or str(Path(os.path.realpath(java)).parents[1]),
            "PATH": "/usr/bin:/bin",
            "SPARK_LOCAL_DIRS": f"{home}/tmp",
            "SPARK_LOCAL_IP": LOOPBACK,
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_WORKER_OPTS": " ".join(f"-Dspark.worker.cleanup.{key}={value}" for key, value in CLEANUP.items()),
            "TMPDIR": f"{home}/tmp",
        }
        unshare = ["unshare", "--mount", "--propagation", "private"] if self._hides else []
        with (home / "log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [*unshare, "bash", "-ec", "\n".join(shell)],
                cwd=home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _await(self, is_so) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended: {(self.folder / name / 'log').read_text()[-2000:]}")
            try:
                if is_so(self.state()):
                    return
            except (OSError, ValueError):  # it listens before it can answer
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"the cluster in {self.folder} isn't up after {START_SECONDS} s")
            time.sleep(0.2)


def can_hide() -> bool:
    """Whether this process may create a mount namespace."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    trial = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(trial, check=False, capture_output=True).returncode == 0


def _is_executor(process: psutil.Process) -> bool:
    try:
        return "org.apache.spark.executor.CoarseGrainedExecutorBackend" in process.cmdline()
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
