"""Kills jobs with SIGKILL at random instants and reruns them; the tables must equal those of an undisturbed run.

    python -m tests.jobs.kills --kills 30 --seed 7 --json kills.json

1. Every job of two dates runs undisturbed; a copy of the warehouse is kept before and after each.
2. A victim, a process with its own JVM, rehearses its job on a copy, prints READY, and runs it on another copy. The
   rehearsal loads the JVM's classes: without it most kills would come before the first write.
3. After a random share of the job's undisturbed duration, all processes of the victim get SIGKILL at once.
4. The job runs again in this process, on the files that the victim left. Every row of every table is compared.

The next victim starts while the last one's tables are compared.

Longer than 350 lines, because the victim, its killer and their report are one program.
"""

import argparse
import collections
import datetime
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import polars as pl
import psutil
from deltalake import DeltaTable
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from jobs.demo_shop.feed import write_demo_shop
from jobs.demo_shop.spec import ShopSpec
from jobs.embed_items import embed_items
from jobs.feeds.accounts import days_known, with_missing_days
from jobs.fit_basis import fit_basis, register
from jobs.ingest_events import FEED, ingest_events
from jobs.ingest_items import ingest_items
from jobs.publish_lte import publish_lte
from jobs.snapshot_lte import snapshot_lte
from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse
from lte_model.command_line import run
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.settings import Settings, load_settings
from lte_model.warehouse.tables import SEMANTIC_BASES
from tests.jobs.conftest import small_settings
from tests.repository import REPOSITORY

FIRST = datetime.date(2024, 7, 1)
SECOND = FIRST + 7 * ONE_DAY
SINCE = FIRST - 40 * ONE_DAY
SHOP = ShopSpec(users=150, items=400, events_per_user=120, bot_weight=5)

READY, DONE = "READY", "DONE"
START_SECONDS = 180
"""Seconds that a victim may take to become ready."""

NOT_COMPARED = ("written_users",)
"""Columns that may differ: a rerun of `publish_lte` writes no rows if the first run had finished."""


@dataclass(frozen=True)
class Step:
    """A job for one date. Kills are counted by `kind`."""

    kind: str
    date: datetime.date
    run: Callable[[Warehouse, datetime.date], object]

    def __str__(self) -> str:
        return f"{self.kind} for {self.date}"


def _ingest_events(warehouse: Warehouse, date: datetime.date) -> None:
    days = with_missing_days(warehouse, FEED, days_known(date, SINCE if date == FIRST else None))
    ingest_events(warehouse, warehouse.settings, days)


def _fit_basis(warehouse: Warehouse, date: datetime.date) -> None:
    warehouse.create(SEMANTIC_BASES)
    basis, fitted_items = fit_basis(warehouse, date)
    register(warehouse, basis, date, fitted_items)


def _ingest_items(warehouse: Warehouse, date: datetime.date) -> None:
    ingest_items(warehouse, warehouse.settings, date)


def _snapshot_lte(warehouse: Warehouse, date: datetime.date) -> None:
    snapshot_lte(warehouse, [date])


STEPS = (
    Step("ingest_items", FIRST, _ingest_items),
    Step("ingest_events", FIRST, _ingest_events),
    Step("fit_basis", FIRST, _fit_basis),
    Step("embed_items", FIRST, embed_items),
    Step("snapshot_lte, full", FIRST, _snapshot_lte),
    Step("publish_lte", FIRST, publish_lte),
    Step("ingest_items", SECOND, _ingest_items),
    Step("ingest_events", SECOND, _ingest_events),
    Step("embed_items", SECOND, embed_items),
    Step("snapshot_lte, incremental", SECOND, _snapshot_lte),
    Step("publish_lte", SECOND, publish_lte),
)
KINDS = tuple(dict.fromkeys(step.kind for step in STEPS if step.kind != "fit_basis"))


class Outcome(StrEnum):
    """When a kill hit, judged by the files that the victim left."""

    BEFORE = "before any write"
    FILES = "files without a commit"
    COMMITS = "some commits"
    AFTER = "after the end"


@dataclass(frozen=True)
class Kill:
    """One kill, and what was wrong with the tables after the rerun; None if nothing."""

    step: Step
    after_seconds: float
    outcome: Outcome
    wrong: str | None

    def __str__(self) -> str:
        verdict = f"NOT THE SAME: {self.wrong}" if self.wrong else "same tables"
        return f"{self.step}: killed after {self.after_seconds:.2f} s, {self.outcome}; run again: {verdict}"


@dataclass(frozen=True)
class Undisturbed:
    """The undisturbed run: `states[n]` is the warehouse before step n, `seconds[n]` is the duration of step n."""

    settings: Path
    states: tuple[Path, ...]
    seconds: tuple[float, ...]

    def copy(self, number: int, home: Path) -> Path:
        """Makes an installation in `home` with the warehouse from before the step; returns its settings file."""
        home.mkdir(parents=True)
        shutil.copytree(self.states[number], home / "warehouse")
        return Path(shutil.copy(self.settings, home / "settings.toml"))


def run_undisturbed(spark: SparkSession, folder: Path) -> Undisturbed:
    """Runs every step once, on the demo shop's feed."""
    write_demo_shop(SHOP, folder / "shop")
    small_settings(folder)
    file = folder / "settings.toml"
    sources = "".join(f'\n{name} = "{folder / "shop" / name}.parquet"' for name in ("events", "items"))
    text = file.read_text().replace("window_days = 10", "window_days = 30")
    file.write_text(f"{text}\n[sources]{sources}\n")
    warehouse = Warehouse(spark, load_settings(file))
    place = Path(warehouse.settings.warehouse)
    place.mkdir()
    states, seconds = [], []
    for number, step in enumerate(STEPS):
        states.append(Path(shutil.copytree(place, folder / "states" / str(number))))
        begin = time.perf_counter()
        run_quietly(step, warehouse)
        seconds.append(time.perf_counter() - begin)
    states.append(place)
    return Undisturbed(file, tuple(states), tuple(seconds))


def plan(kills: int, seed: int) -> list[tuple[int, float]]:
    """(number of the step, share of its duration) of each kill. The kinds take turns."""
    generator = random.Random(seed)
    chosen: list[tuple[int, float]] = []
    while len(chosen) < kills:
        for kind in generator.sample(KINDS, len(KINDS)):
            of_kind = [number for number, step in enumerate(STEPS) if step.kind == kind]
            chosen.append((generator.choice(of_kind), generator.random()))
    return chosen[:kills]


class Victim:
    """A process that runs a step in order to be killed."""

    def __init__(self, undisturbed: Undisturbed, number: int, home: Path, environment: Mapping[str, str] | None = None):
        self.home = home
        self.settings = undisturbed.copy(number, home / "ours")
        rehearsal = undisturbed.copy(number, home / "rehearsal")
        self.before = files_of(self.settings.parent / "warehouse")
        self.errors = (home / "stderr").open("w+")
        scratch = home / "scratch"
        scratch.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.kills", "--victim", str(number), str(rehearsal), str(self.settings)],
            cwd=REPOSITORY,
            env=os.environ | {"TMPDIR": str(scratch), "SPARK_LOCAL_DIRS": str(scratch)} | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
        )

    def wait_until_ready(self) -> None:
        """Raises `LTEError` if the victim ends by itself."""
        watchdog = threading.Timer(START_SECONDS, self.kill)
        watchdog.start()
        ready = any(line.startswith(READY) for line in self.process.stdout)
        watchdog.cancel()
        if not ready:
            self.errors.seek(0)
            raise LTEError(f"a victim died before it was killed: {self.errors.read()[-2000:]}")

    def kill(self) -> None:
        """Sends SIGKILL to the victim's process group (Python and JVM), and to Python's workers, which have their own.

        Returns when all of them are gone.
        """
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            family = psutil.Process(self.process.pid).children(recursive=True)
            os.killpg(self.process.pid, signal.SIGKILL)
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=60)
        self.process.wait()

    def wait_until_done(self) -> bool:
        """Whether the step finished without a kill."""
        watchdog = threading.Timer(START_SECONDS, self.kill)
        watchdog.start()
        done = any(line.startswith(DONE) for line in self.process.stdout)
        watchdog.cancel()
        return done

    def outcome(self) -> Outcome:
        """When the kill hit: before, during or after the step's writes."""
        if DONE in self.process.stdout.read().split():
            return Outcome.AFTER
        new = files_of(self.settings.parent / "warehouse") - self.before
        if not new:
            return Outcome.BEFORE
        return Outcome.COMMITS if any(is_commit(file) for file in new) else Outcome.FILES

    def bury(self) -> None:
        self.kill()
        self.errors.close()
        shutil.rmtree(self.home)


def files_of(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def is_commit(file: str) -> bool:
    """Whether a file is a commit in a Delta log: its name is 20 digits."""
    path = Path(file)
    return path.parent.name == "_delta_log" and path.suffix == ".json" and path.stem.isdigit() and len(path.stem) == 20


def rows_of(warehouse: Path) -> dict[str, list[str]]:
    """{table: its rows as sorted text}. Reads without Spark, whose caches may be stale."""
    return {
        folder.name: sorted(
            repr(row) for row in pl.scan_delta(str(folder)).collect().drop(NOT_COMPARED, strict=False).rows()
        )
        for folder in sorted(warehouse.iterdir())
        if DeltaTable.is_deltatable(str(folder))
    }


def difference(found: dict[str, list[str]], expected: dict[str, list[str]]) -> str | None:
    """Describes the first difference between the tables; None if they are equal."""
    if found.keys() != expected.keys():
        return f"the tables are {', '.join(found)}, not {', '.join(expected)}"
    for table, rows in expected.items():
        lost = list((collections.Counter(rows) - collections.Counter(found[table])).elements())
        added = list((collections.Counter(found[table]) - collections.Counter(rows)).elements())
        if lost or added:
            return f"table {table} lost {len(lost)} rows {lost[:2]} and has {len(added)} others {added[:2]}"
    return None


def kill_jobs(spark: SparkSession, undisturbed: Undisturbed, kills: int, seed: int, folder: Path) -> Iterator[Kill]:
    """Kills that many jobs, one after the other, and yields each result."""
    planned = plan(kills, seed)

    def victim_of(number: int) -> Victim:
        return Victim(undisturbed, planned[number][0], folder / "victims" / str(number))

    with the_victims() as alive:
        alive.append(victim_of(0))
        for number, (step_number, share) in enumerate(planned):
            step, victim = STEPS[step_number], alive[0]
            victim.wait_until_ready()
            seconds = share * undisturbed.seconds[step_number]
            time.sleep(seconds)
            victim.kill()
            if number + 1 < kills:
                alive.append(victim_of(number + 1))
            outcome = victim.outcome()
            wrong = run_again(spark, step, load_settings(victim.settings), undisturbed.states[step_number + 1])
            alive.pop(0).bury()
            yield Kill(step, seconds, outcome, wrong)


@contextmanager
def the_victims() -> Iterator[list[Victim]]:
    """A list of live victims; all are killed when the block ends."""
    alive: list[Victim] = []
    try:
        yield alive
    finally:
        for victim in alive:
            victim.bury()


def run_again(spark: SparkSession, step: Step, settings: Settings, expected: Path) -> str | None:
    """Runs the step again; returns what is wrong afterwards, or None."""
    try:
        run_quietly(step, Warehouse(spark, settings))
    except (LTEError, PySparkException, Py4JError) as error:
        return f"{type(error).__name__}: {error}"[:1000]
    return difference(rows_of(Path(settings.warehouse)), rows_of(expected))


def run_quietly(step: Step, warehouse: Warehouse) -> None:
    """Runs the step without its output, which would clutter the report."""
    with redirect_stdout(io.StringIO()):
        step.run(warehouse, step.date)


def be_victim(number: int, rehearsal: str, settings: str) -> None:
    """Runs a step, and waits to be killed."""
    step = STEPS[number]
    with spark_session(load_settings(settings), step.kind) as spark:
        for home, said in ((rehearsal, READY), (settings, DONE)):
            begin = time.perf_counter()
            step.run(Warehouse(spark, load_settings(home)), step.date)
            print(f"\n{said} {time.perf_counter() - begin}", flush=True)
        sys.stdin.read()


def counts_of(kills: Sequence[Kill]) -> dict[str, dict[Outcome, int]]:
    """{kind of job, or all: {outcome: number of kills}}."""
    counts = {kind: dict.fromkeys(Outcome, 0) for kind in (*KINDS, "all")}
    for kill in kills:
        counts[kill.step.kind][kill.outcome] += 1
        counts["all"][kill.outcome] += 1
    return counts


def table_of(kills: Sequence[Kill]) -> str:
    """The counts as text."""
    width = max(map(len, KINDS))
    lines = ["  ".join([" " * width, *Outcome, "kills"])]
    for kind, counts in counts_of(kills).items():
        cells = [f"{counts[outcome]:{len(outcome)}}" for outcome in Outcome]
        lines.append("  ".join([f"{kind:{width}}", *cells, f"{sum(counts.values()):5}"]))
    return "\n".join(lines)


def rows_for_json(kills: Sequence[Kill], seed: int, seconds: float) -> list[dict[str, object]]:
    """The counts as rows of measure, side, value and unit."""
    rows = [
        {"measure": f"kills {outcome}", "side": kind, "value": count, "unit": "kills"}
        for kind, counts in counts_of(kills).items()
        for outcome, count in counts.items()
    ]
    wrong = sum(kill.wrong is not None for kill in kills)
    return [
        *rows,
        {"measure": "kills", "side": "all", "value": len(kills), "unit": "kills"},
        {"measure": "tables not the same after the job ran again", "side": "all", "value": wrong, "unit": "kills"},
        {"measure": "seed", "side": "all", "value": seed, "unit": ""},
        {"measure": "duration", "side": "all", "value": round(seconds, 1), "unit": "s"},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, help="of the jobs and the instants (default: a new one)")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    parser.add_argument("--victim", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.victim:
        number, rehearsal, settings = arguments.victim
        be_victim(int(number), rehearsal, settings)
        return
    if arguments.kills < 1:
        raise LTEError(f"--kills {arguments.kills} kills nothing; give 1 or more")
    seed = random.randrange(10_000) if arguments.seed is None else arguments.seed
    print(f"{arguments.kills} kills, seed {seed}", flush=True)
    begin = time.perf_counter()
    kills = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with spark_session(small_settings(folder), "kills") as spark:
            for kill in kill_jobs(spark, run_undisturbed(spark, folder), arguments.kills, seed, folder):
                kills.append(kill)
                print(f"{len(kills):3}. {kill}", flush=True)
    seconds = time.perf_counter() - begin
    print(f"\n{table_of(kills)}\n\n{len(kills)} kills in {seconds:.0f} s, seed {seed}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows_for_json(kills, seed, seconds), indent=1) + "\n")
    wrong = [kill for kill in kills if kill.wrong]
    if wrong:
        raise LTEError(f"after {len(wrong)} of {len(kills)} kills the tables were not the same; first: {wrong[0]}")


if __name__ == "__main__":
    run(main)
