"""The processes of the local stack, and how they are stopped without a trace."""

import contextlib
import os
import signal
import threading
from collections.abc import Collection

import psutil

MARK = "LOCAL_STACK"
"""A variable in the environment of every process of a stack, by which the last of them is found."""

STOP_TIMEOUT = 10.0
"""Seconds that processes have to end when they are asked to."""


def processes_of(components: Collection[int], mark: str) -> list[psutil.Process]:
    """Every process that came of a stack: by its parent, by its session, or by the mark in its environment.

    `components` are the process ids that the stack started, each the leader of a session. `mark` is the stack's value
    of `MARK`. Airflow starts a task's command in a session of its own, and its workers overwrite their environment with
    their title: none of the three ways finds all processes.
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
    """Ends every process that came of a stack, as `processes_of` finds them."""
    # Workers go first, and at once: asked kindly they would finish their tasks, and told by a dying command
    # they would book the task as failed. A worker that is gone leaves its task to the next scheduler.
    for process in processes_of(components, mark):
        if process.pid not in components and session_of(process) in components:
            send_signal(process, signal.SIGKILL)
    for process in processes_of(components, mark):
        send_signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes_of(components, mark), timeout=STOP_TIMEOUT)
    for process in (*alive, *processes_of(components, mark)):
        send_signal(process, signal.SIGKILL)


def session_of(process: psutil.Process) -> int | None:
    """The process id of the leader of its session; None where it has ended."""
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def is_spark_driver(process: psutil.Process) -> bool:
    """A JVM of Spark; not the copy of itself that it is for a moment when it starts another program."""
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
    """An event that SIGINT and SIGTERM set."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped
