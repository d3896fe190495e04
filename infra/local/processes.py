"""Finds the local stack's processes and stops them all."""

import contextlib
import os
import signal
import threading
from collections.abc import Collection

import psutil

MARK = "LOCAL_STACK"
"""An environment variable that marks every process of a stack, so that none is missed."""

STOP_TIMEOUT = 10.0
"""Seconds that a process has to end after SIGTERM."""


def processes_of(components: Collection[int], mark: str) -> list[psutil.Process]:
    """Every process of a stack, found by its parent, by its session, or by the mark in its environment.

    `components` are the process ids that the stack started, each the leader of a session. `mark` is the stack's value
    of `MARK`. Airflow starts a task's command in a new session, and its workers overwrite their environment with their
    title, so none of the three ways alone finds all processes.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if session_of(process) in components or process.environ().get(MARK) == mark:
                found[process.pid] = process
                found.update((child.pid, child) for child in process.children(recursive=True))
        except psutil.Error:
            continue
    return list(found.values())


def stop_processes(components: Collection[int], mark: str) -> None:
    """Ends every process of a stack, as found by `processes_of`."""
    # SIGKILL the workers first. After SIGTERM they would finish their tasks; if the command died first, they
    # would mark the task as failed. The next scheduler restarts the task of a killed worker.
    for process in processes_of(components, mark):
        if process.pid not in components and session_of(process) in components:
            send_signal(process, signal.SIGKILL)
    for process in processes_of(components, mark):
        send_signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes_of(components, mark), timeout=STOP_TIMEOUT)
    for process in (*alive, *processes_of(components, mark)):
        send_signal(process, signal.SIGKILL)


def session_of(process: psutil.Process) -> int | None:
    """The process id of its session's leader; None if it has ended."""
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def is_spark_driver(process: psutil.Process) -> bool:
    """Whether this is a Spark driver's JVM, and not the fork that briefly exists while it starts another program."""
    try:
        return (
            process.name() == "java"
            and "org.apache.spark.deploy.SparkSubmit" in process.cmdline()
            and process.parent().name() != "java"
        )
    except (psutil.Error, AttributeError):  # it has ended, or its parent has
        return False


def send_signal(process: psutil.Process, number: signal.Signals) -> None:
    """Sends the signal, unless the process has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def stop_on_signals() -> threading.Event:
    """An event that is set on SIGINT or SIGTERM."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped
