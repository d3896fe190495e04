"""The processes of the local stack, and how they are stopped without a trace."""

import os
import signal
import threading

import psutil

MARK = "LOCAL_STACK"
"""A variable in the environment of every process of a stack, by which the last of them is found."""


def session_of(process: psutil.Process) -> int | None:
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
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped
