"""Jobs lose their driver, an executor, disk space or the clock; the tables must equal those of an undisturbed run."""

import shutil
import time
from pathlib import Path

import psutil
import pytest
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from jobs.spark.warehouse import Warehouse
from lte_model.errors import LTEError
from lte_model.settings import load_settings
from tests.jobs.kills import (
    STEPS,
    Outcome,
    Undisturbed,
    Victim,
    difference,
    kill_jobs,
    rows_of,
    run_again,
    run_quietly,
    run_undisturbed,
)
from tests.production.drills.unreliable import resize, small_disk
from tests.repository import REPOSITORY

pytestmark = [pytest.mark.production, pytest.mark.spark, pytest.mark.timeout(1800)]

FAKETIME = str(next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), ""))


@pytest.fixture(scope="module")
def undisturbed(spark, tmp_path_factory) -> Undisturbed:
    return run_undisturbed(spark, tmp_path_factory.mktemp("undisturbed"))


def number_of(kind: str) -> int:
    """The number of the last step of a kind."""
    return max(number for number, step in enumerate(STEPS) if step.kind == kind)


def test_killed_drivers(spark, undisturbed, tmp_path, outcome):
    kills = list(kill_jobs(spark, undisturbed, kills=6, seed=7, folder=tmp_path))
    wrong = [str(kill) for kill in kills if kill.wrong]
    hit = sum(kill.outcome is not Outcome.AFTER for kill in kills)
    outcome("Spark driver killed", times=hit, lost=len(wrong), of="jobs whose tables differ after they ran again")
    assert hit and not wrong


def wrong_at_the_end(victim: Victim, undisturbed: Undisturbed, number: int) -> list[str]:
    """What is wrong after the victim has finished without a kill."""
    if not victim.wait_until_done():
        return [f"{STEPS[number]}: the job did not end"]
    differs = difference(rows_of(victim.settings.parent / "warehouse"), rows_of(undisturbed.states[number + 1]))
    return [f"{STEPS[number]}: {differs}"] if differs else []


def executors_of(victim: Victim) -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process(victim.process.pid).children(recursive=True)
        if process.name() == "java" and any("CoarseGrainedExecutorBackend" in word for word in process.cmdline())
    ]


def test_killed_executors(undisturbed, tmp_path, outcome):
    """The job goes on; its tasks run again on another executor."""
    kills, wrong = 0, []
    for kind in ("ingest_events", "snapshot_lte, full"):
        number = number_of(kind)
        environment = {
            "LTE_SPARK__MASTER": "local-cluster[2,1,1024]",
            "PYTHONPATH": str(REPOSITORY),
            "SPARK_WORKER_DIR": str(tmp_path / "workers"),
        }
        victim = Victim(undisturbed, number, tmp_path / str(number), environment)
        try:
            victim.wait_until_ready()
            time.sleep(undisturbed.seconds[number] / 4)
            first, *_ = executors_of(victim)
            first.kill()
            kills += 1
            wrong += wrong_at_the_end(victim, undisturbed, number)
        finally:
            victim.bury()
    outcome("Spark executor killed", times=kills, lost=len(wrong), of="jobs whose tables differ")
    assert kills == 2 and not wrong


def size_of(folder: Path) -> int:
    """The bytes that a folder's files take on a disk with pages of 4 KiB."""
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in folder.rglob("*") if file.is_file())


def test_a_full_disk(spark, undisturbed, tmp_path, outcome):
    full, wrong = 0, []
    for kind in ("ingest_events", "snapshot_lte, full", "publish_lte"):
        number = number_of(kind)
        before, after = (size_of(state) for state in undisturbed.states[number : number + 2])
        roomy = 4 * after + 2**24
        for share in (0.1, 0.5, 0.9):
            with small_disk(tmp_path / f"{number}-{share}", roomy) as disk:
                settings = load_settings(undisturbed.copy(number, disk / "home"))
                resize(disk, shutil.disk_usage(disk).used + int(share * (after - before)))
                try:
                    run_quietly(STEPS[number], Warehouse(spark, settings))
                except (LTEError, PySparkException, Py4JError, OSError):
                    full += 1
                resize(disk, roomy)
                differs = run_again(spark, STEPS[number], settings, undisturbed.states[number + 1])
                wrong += [f"{STEPS[number]}, {share}: {differs}"] if differs else []
    outcome("Disk full", times=full, lost=len(wrong), of="jobs whose tables differ after they ran again")
    assert full >= 5 and not wrong


@pytest.fixture
def java_with(tmp_path):
    """Writes a JAVA_HOME whose Java reads the time from a file (libfaketime); returns both paths.

    The driver's Python keeps the real clock, because its sleep fails under libfaketime. Python workers are children of
    the JVM and see the fake clock.
    """

    def write(name: str) -> tuple[Path, Path]:
        clock, java = tmp_path / name / "clock", tmp_path / name / "java" / "bin" / "java"
        java.parent.mkdir(parents=True)
        clock.write_text("+0d\n")
        faked = f"LD_PRELOAD={FAKETIME} FAKETIME_TIMESTAMP_FILE={clock} FAKETIME_CACHE_DURATION=1"
        # Without the last option waits end too soon, and the JVM spins.
        faked += " FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_FORCE_MONOTONIC_FIX=0"
        java.write_text(f'#!/bin/sh\nexec env {faked} {shutil.which("java")} "$@"\n')
        java.chmod(0o755)
        return clock, java.parents[1]

    return write


@pytest.mark.skipif(not FAKETIME, reason="no libfaketime (Debian: apt-get install libfaketime) to move a clock with")
@pytest.mark.parametrize("jump", ["+400d", "-300d"])
def test_a_clock_that_jumps(undisturbed, tmp_path, outcome, java_with, jump):
    """A run's date comes from its command line, so the clock doesn't affect the rows."""
    wrong = []
    kinds = ("ingest_events", "snapshot_lte, incremental", "publish_lte")
    for kind in kinds:
        number = number_of(kind)
        clock, java_home = java_with(f"of-{number}")
        victim = Victim(undisturbed, number, tmp_path / str(number), {"JAVA_HOME": str(java_home)})
        try:
            victim.wait_until_ready()
            time.sleep(undisturbed.seconds[number] / 4)
            clock.write_text(f"{jump}\n")
            wrong += wrong_at_the_end(victim, undisturbed, number)
        finally:
            victim.bury()
    outcome(f"Clock jumps by {jump}", times=len(kinds), lost=len(wrong), of="jobs whose tables differ")
    assert not wrong
