"""Measures each step at three sizes and extrapolates to a shop of 50 million users: `make bench-scale`.

The shops have 2,500, 7,500 and 25,000 users, with the large shop's proportions: 200 events per user and year, two
years, two items per user. Every step runs as in its task. Spark steps share a session with two task slots, whose start
is a step of its own; every other step has its own process. It measures for each step

    CPU seconds      of the whole process tree; these are fitted, because wall seconds depend on the machine's load
    wall seconds
    shuffled, written    bytes that Spark wrote for shuffles, and bytes that the warehouse grew by
    driver           bytes: the peak memory of the step's own process, if it has one

Least squares over the three sizes give `fixed + per unit × units`, and the largest relative residual. A step's unit is
what it iterates over. `Target` states all assumptions of the extrapolation; its arithmetic is below.

Longer than 350 lines, because the steps, their measurement and the extrapolation belong together.
"""

import argparse
import dataclasses
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import psutil

from lte_model.domain.windows import ONE_DAY, lte_window
from lte_model.settings import Settings, load_settings
from tests.repository import REPOSITORY

HOME = REPOSITORY / ".lte" / "bench" / "scale"
SIZES = (2_500, 7_500, 25_000)
EVENTS_A_USER = 400
"""Events per user in the shop's two years: 200 a year, as in the target shop."""
ITEMS_A_USER = 2
DATE = datetime.date(2024, 12, 31)
FIRST_DAY = datetime.date(2023, 1, 1)
ANCHORS = 2
CHAMPIONS_ITEMS = 2_000
RANKED_ITEMS = 1_000_000
USERS_A_RANKED_ONE = 50
"""One of this many users is ranked over the large catalogue."""
GB = 1e9


@dataclass(frozen=True)
class Target:
    """The target shop of the extrapolation, and the assumptions about its operation."""

    users: float = 50e6
    events_a_year: float = 10e9
    items: float = 1e6
    window_days: int = 365
    lag_days: int = 30
    dimensions: int = 64
    anchors: int = 6
    epochs: int = 10
    trainings_a_year: int = 52
    snapshots_kept: int = 30 + 52
    """30 daily snapshots, and the older ones that a year's weekly trainings read."""
    cores: int = 256
    sides: int = 2
    """Rankers per training: with the LTE and without it."""
    touched_share: float = 1.0
    """The share of users whose LTE changes in a day; 1 is the upper bound for a push."""
    gpu_operations_a_second: float = 2e13
    """An assumption: 5 % of an H100's rate for large bfloat16 matrix products (about 4e14)."""

    @property
    def events_a_day(self) -> float:
        return self.events_a_year / 365

    @property
    def events_in_window(self) -> float:
        return self.events_a_day * self.window_days

    @property
    def events_seen(self) -> float:
        """The number of events in the window and the lag together."""
        return self.events_a_day * (self.window_days + self.lag_days)

    @property
    def dates(self) -> int:
        """The snapshots that a training reads: its anchors (the last is the validation cut), and the test cut."""
        return self.anchors + 1

    @property
    def targets(self) -> float:
        return self.events_a_day * self.lag_days * self.anchors


@dataclass(frozen=True)
class Measured:
    """The measurements of one step at one size."""

    step: str
    users: int
    unit: str
    units: float
    cpu: float
    wall: float
    shuffled: float
    written: float
    driver: float


@dataclass(frozen=True)
class Fitted:
    """The fit fixed + per_unit × units. `residual` is its largest relative error."""

    fixed: float
    per_unit: float
    residual: float

    def __call__(self, units: float) -> float:
        return self.fixed + self.per_unit * units


def fitted(units: Sequence[float], values: Sequence[float]) -> Fitted:
    """The least-squares fit of the relative error, with neither part below zero.

    The relative error gives the smallest size the same weight as the largest.
    """
    x, y = np.asarray(units, float), np.asarray(values, float)
    if len(x) < 2 or not y.any():
        return Fitted(0.0, float(y.mean() / x.mean()) if len(x) else 0.0, 0.0)
    weights = 1 / np.maximum(y, y.max() * 1e-6)
    design = np.stack([np.ones_like(x), x], axis=1) * weights[:, None]
    fixed, per_unit = np.linalg.lstsq(design, y * weights, rcond=None)[0]
    if fixed < 0:
        fixed, per_unit = 0.0, float(np.mean(y / x))
    elif per_unit < 0:
        fixed, per_unit = float(y.mean()), 0.0
    missed = np.abs(fixed + per_unit * x - y) * weights
    return Fitted(float(fixed), float(per_unit), float(missed.max()))


# The steps of one size, measured in one process per size.


class Meter:
    """Measures steps one after the other."""

    def __init__(self, users: int, settings: Settings):
        self.users, self.settings = users, settings
        self.found: list[Measured] = []
        self.spark = None

    @contextmanager
    def step(self, name: str, unit: str, units: float | Callable[[], float]) -> Iterator[None]:
        """Measures a step in this process, its JVM and its workers."""
        cpu, shuffled, written, started = tree_cpu(), self._shuffled(), self._written(), time.perf_counter()
        yield
        self._note(
            name, unit, units, tree_cpu() - cpu, started, self._shuffled() - shuffled, self._written() - written, 0.0
        )

    def process(self, name: str, unit: str, units: float | Callable[[], float], *command: str, **env: str) -> None:
        """Measures a step that runs as a command line."""
        written, started = self._written(), time.perf_counter()
        environment = os.environ | {"LTE_SETTINGS": f"{self.settings.home}/settings.toml"} | env
        log = Path(self.settings.home, "step.log")
        with log.open("w") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=REPOSITORY, env=environment, stdout=output, stderr=output
            )
            peak = 0.0
            while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
                peak = max(peak, peak_memory(child.pid))
                time.sleep(0.05)
        _, status, usage = ended
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said = f"{' '.join(command)}: {log.read_text()[-2000:]}"
            if child.returncode != 2:
                raise SystemExit(said)
            print(said, file=sys.stderr)  # a gate that fails has read as many rows
        cpu = usage.ru_utime + usage.ru_stime
        self._note(name, unit, units, cpu, started, 0.0, self._written() - written, peak)

    def _note(self, name, unit, units, cpu, started, shuffled, written, driver) -> None:
        units = float(units() if callable(units) else units)
        wall = time.perf_counter() - started
        self.found.append(Measured(name, self.users, unit, units, cpu, wall, shuffled, written, driver))
        print(f"{self.users:>7,} users  {name:<22} {cpu:8.1f} s of CPU {wall:8.1f} s", file=sys.stderr, flush=True)

    def _shuffled(self) -> float:
        if self.spark is None:
            return 0.0
        executors = self.spark.sparkContext._jsc.sc().statusStore().executorList(False)
        return float(sum(executors.apply(number).totalShuffleWrite() for number in range(executors.size())))

    def _written(self) -> float:
        return float(sum(file.stat().st_size for file in Path(self.settings.warehouse).rglob("*.parquet")))


def tree_cpu() -> float:
    """The CPU seconds of this process and all of its descendants, including ended ones."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            total += sum(process.cpu_times()[:4])  # its own, and its ended children's
        except psutil.NoSuchProcess:
            continue
    return total


def peak_memory(pid: int) -> float:
    """A process' peak memory in bytes, until now; the figure of wait4 would start at its parent's memory."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return max((int(line.split()[1]) * 1024.0 for line in lines if line.startswith("VmHWM")), default=0.0)


def measure_here(users: int) -> list[Measured]:
    """Measures every step for a shop with `users` users."""
    from jobs.demo_shop.feed import write_demo_shop
    from jobs.demo_shop.spec import ShopSpec
    from jobs.spark.session import spark_session
    from jobs.spark.warehouse import Warehouse

    home = HOME / str(users)
    shutil.rmtree(home, ignore_errors=True)
    settings = settings_in(home)
    shop = write_demo_shop(ShopSpec(users=users, items=users * ITEMS_A_USER, events_per_user=EVENTS_A_USER), home)
    meter = Meter(users, settings)
    with meter.step("Spark session", "sessions", 1):
        session = spark_session(settings, "bench")
        meter.spark = session.__enter__()
        meter.spark.range(1).count()
    try:
        on_spark(meter, Warehouse(meter.spark, settings), shop.rows)
    finally:
        meter.spark = None
        session.__exit__(None, None, None)
    events = pl.scan_delta(settings.table_path("events"))
    gated = events.select(pl.len()).collect().item()  # all days: one day of so small a shop costs nothing
    gate = ("jobs.quality.check", "--date", str(DATE))
    meter.process("gate of events", "events checked", gated, *gate, "events", "--since", str(FIRST_DAY))
    live = pl.scan_delta(settings.table_path("lte_live")).select(pl.len()).collect().item()
    meter.process("gate of lte_snapshots", "users", live, *gate, "lte_snapshots")
    meter.process("monitor_lte", "users", live, "jobs.monitor_lte", "--date", str(DATE))
    if (REPOSITORY / ".cache" / "feast" / "venv").exists():
        meter.process("push_lte, all rows", "users", live, "jobs.push_lte", "--date", str(DATE), "--full")
    ranked = str(users // USERS_A_RANKED_ONE)
    meter.process("ranking a million items", "users", int(ranked), "tests.benchmarks.bench_scale", "--rank", ranked)
    dates = settings.training_set.dates(DATE).anchors
    rows = pl.scan_delta(settings.table_path("training_set")).filter(pl.col("split") == "train")
    targets = rows.filter(pl.col("snapshot_date").is_in(dates)).select(pl.col("target_count").sum()).collect().item()
    meter.process("training, one epoch", "targets", targets, "lte_model.training.train", "--date", str(DATE))
    return meter.found


def on_spark(meter: Meter, warehouse, rows: int) -> None:
    from jobs.build_training_set import build_training_set
    from jobs.count_popularity import count_popularity
    from jobs.embed_items import embed_items
    from jobs.fit_basis import fit_basis, register
    from jobs.ingest_events import ingest_events
    from jobs.ingest_items import ingest_items
    from jobs.publish_lte import publish_lte
    from jobs.recipes.bases import basis_in_force
    from jobs.score_users import score_users
    from jobs.snapshot_lte import snapshot_lte
    from lte_model.domain.windows import Interval
    from lte_model.warehouse.tables import SEMANTIC_BASES

    settings, yesterday = warehouse.settings, DATE - ONE_DAY
    items = meter.users * ITEMS_A_USER
    with meter.step("ingest_items", "items", items):
        ingest_items(warehouse, settings, DATE)
    with meter.step("ingest_events", "events read", rows):
        ingest_events(warehouse, settings, Interval(FIRST_DAY, DATE))
    with meter.step("fit_basis", "items", items):
        warehouse.create(SEMANTIC_BASES)
        register(warehouse, fit_basis(warehouse, DATE)[0], DATE, items)
    with meter.step("embed_items", "items", items):
        embed_items(warehouse, DATE)
    dated = pl.scan_delta(settings.table_path("events")).select("event_date").collect()["event_date"]

    def seen(date: datetime.date, lag_days: int = 0) -> int:
        window = lte_window(date, settings.window.lag_days, settings.window.window_days)
        return int(dated.is_between(window.start, window.end + lag_days * ONE_DAY, closed="left").sum())

    with meter.step("snapshot_lte, full", "events in window", seen(yesterday)):
        snapshot_lte(warehouse, [yesterday], full=True)
    with meter.step("snapshot_lte, next day", "users", lambda: users_of(settings, DATE)):
        snapshot_lte(warehouse, [DATE])
    with meter.step("publish_lte, all rows", "users", lambda: users_of(settings, yesterday)):
        publish_lte(warehouse, yesterday)
    with meter.step("publish_lte, next day", "users", lambda: users_of(settings, DATE)):
        publish_lte(warehouse, DATE)
    with meter.step("count_popularity", "events in window", seen(DATE)):
        count_popularity(warehouse, [DATE])
    anchors = settings.training_set.dates(DATE).snapshot_dates
    with meter.step("snapshots of anchors", "users × dates", lambda: sum(users_of(settings, date) for date in anchors)):
        snapshot_lte(warehouse, anchors)
    pairs = sum(seen(date, settings.window.lag_days) for date in anchors)
    with meter.step("build_training_set", "events × dates", pairs):
        build_training_set(warehouse, DATE)
    champion = made_up_champion(settings, basis_in_force(warehouse))
    with meter.step("score_users", "users", lambda: users_of(settings, DATE)):
        score_users(warehouse, DATE, champion)


def rank(users: int) -> None:
    """Runs the ranking of `score_users` for `users` users and a million items, in one thread."""
    import pyarrow as pa
    import torch

    from lte_model.domain.kind import LTEKind
    from lte_model.ranker.model import Ranker
    from lte_model.ranker.recommender import Recommender
    from lte_model.settings import Model
    from tests.lte_model.configs import ranker_config

    torch.set_num_threads(1)
    content = torch.nn.functional.normalize(torch.randn(RANKED_ITEMS, 64), dim=1)
    config = ranker_config(*content.shape, id_dropout=Model().id_dropout)
    ranker = Ranker(config, LTEKind("made up", "uniform", 30, 365), [str(row) for row in range(RANKED_ITEMS)], content)
    recommender = Recommender(ranker.eval())
    items = np.random.default_rng(0).integers(RANKED_ITEMS, size=(users, config.max_events)).astype(str)
    rows = {
        "user_id": [str(user) for user in range(users)],
        "item_ids": items.tolist(),
        "vector_sum": np.ones((users, 64), np.int32).tolist(),
        "event_count": [1] * users,
    }
    types = {"vector_sum": pa.list_(pa.int32()), "event_count": pa.int32()}
    batch = pa.RecordBatch.from_arrays([pa.array(rows[name], types.get(name)) for name in rows], names=list(rows))
    recommender.best(recommender.read(batch), 100)


def users_of(settings: Settings, date: datetime.date) -> int:
    rows = pl.scan_delta(settings.table_path("lte_snapshots")).filter(pl.col("snapshot_date") == date)
    return rows.select(pl.len()).collect().item()


def made_up_champion(settings: Settings, basis_id: str):
    """A ranker with random weights over the same number of items at every size; another step measures more items."""
    import torch

    from jobs.score_users import Champion
    from lte_model.domain.kind import LTEKind
    from lte_model.ranker.model import Ranker
    from lte_model.ranker.saved import save_ranker
    from tests.lte_model.configs import ranker_config

    rows = pl.scan_delta(settings.table_path("item_embeddings")).filter(basis_id=basis_id).sort("item_id")
    rows = rows.head(CHAMPIONS_ITEMS).collect()
    content = torch.tensor(rows["vector"].to_list(), dtype=torch.float32)
    kind = LTEKind(basis_id, "uniform", settings.window.lag_days, settings.window.window_days)
    sizes = settings.model.model_dump(exclude={"representations"})
    ranker = Ranker(ranker_config(*content.shape, **sizes), kind, rows["item_id"].to_list(), content)
    folder = Path(settings.home, "champion")
    save_ranker(ranker, folder)
    return Champion("made up", 1, folder, ranker)


def settings_in(home: Path) -> Settings:
    home.mkdir(parents=True)
    cache = REPOSITORY / ".cache"
    (home / "settings.toml").write_text(
        f"""
[sources]
events = "events.parquet"
items = "items.parquet"
[training_set]
anchors = {ANCHORS}
[training]
epochs = 1
exact_items = 1  # a softmax over samples, as where a catalogue is large
[gates]
max_unknown_item_share = 1
[online_store]
type = "sqlite"
python = "{cache / "feast" / "venv" / "bin" / "python"}"
[spark]
master = "local[2]"
jars = "{cache / "jars"}"
class_data_archive = "{cache / "classes.jsa"}"
[spark.conf]
"spark.driver.memory" = "4g"
"""
    )
    return load_settings(home / "settings.toml")


# The extrapolation.


@dataclass(frozen=True)
class Step:
    """A step of the target shop: its units per run, and its runs per year."""

    name: str
    units: Callable[[Target], float]
    runs_a_year: Callable[[Target], float]


STEPS = (
    Step("ingest_events", lambda t: t.events_a_day, lambda t: 365),
    Step("gate of events", lambda t: t.events_a_day, lambda t: 365),
    Step("embed_items", lambda t: t.items / 365, lambda t: 365),
    Step("snapshot_lte, next day", lambda t: t.users, lambda t: 365),
    Step("gate of lte_snapshots", lambda t: t.users, lambda t: 365),
    Step("monitor_lte", lambda t: t.users, lambda t: 365),
    Step("publish_lte, next day", lambda t: t.users, lambda t: 365),
    Step("push_lte, all rows", lambda t: t.users * t.touched_share, lambda t: 365),
    Step("score_users", lambda t: t.users, lambda t: 365),
    Step("ranking a million items", lambda t: t.users * t.items / RANKED_ITEMS, lambda t: 365),
    Step("snapshot_lte, full", lambda t: t.events_in_window, lambda t: 1),
    Step("count_popularity", lambda t: t.events_in_window * t.dates, lambda t: t.trainings_a_year),
    Step("snapshots of anchors", lambda t: t.users * t.dates, lambda t: t.trainings_a_year),
    Step("build_training_set", lambda t: t.events_seen * t.dates, lambda t: t.trainings_a_year),
    Step("training, one epoch", lambda t: t.targets, lambda t: t.trainings_a_year * t.epochs * t.sides),
    Step("fit_basis", lambda t: t.items, lambda t: 1),
)


@dataclass(frozen=True)
class Extrapolated:
    """The cost of one run of a step in the target shop."""

    name: str
    units: float
    core_hours: float
    hours_on_cores: float
    shuffled: float
    written: float
    driver: float
    core_hours_a_year: float


def fits(found: Sequence[Measured]) -> dict[str, dict[str, Fitted]]:
    """{step: {measure: fit}}."""
    by_step: dict[str, list[Measured]] = {}
    for one in found:
        by_step.setdefault(one.step, []).append(one)
    return {
        step: {
            name: fitted([one.units for one in rows], [getattr(one, name) for one in rows])
            for name in ("cpu", "shuffled", "written", "driver")
        }
        for step, rows in by_step.items()
    }


def extrapolated(found: Sequence[Measured], target: Target) -> list[Extrapolated]:
    """The measured steps, extrapolated to the target's size."""
    lines, steps = fits(found), []
    for step in STEPS:
        if step.name not in lines:
            continue
        units, line = step.units(target), lines[step.name]
        core_hours = line["cpu"](units) / 3600
        steps.append(
            Extrapolated(
                step.name,
                units,
                core_hours,
                core_hours / target.cores,
                line["shuffled"](units),
                line["written"](units),
                line["driver"](units),
                core_hours * step.runs_a_year(target),
            )
        )
    return steps


def arithmetic(target: Target, row_bytes: float) -> list[tuple[str, float, str]]:
    """Sizes that follow from the target's numbers alone. `row_bytes` is the size of a snapshot's row on disk."""
    a_user = target.events_in_window / target.users
    a_token = 2 * (8 + 4) * 64**2 + 2 * 2 * 50 * 64
    a_target = 3 * (a_token + 2 * 8192 * 64)
    training = target.targets * target.epochs * target.sides * a_target
    return [
        ("a snapshot's vectors, bare", target.users * target.dimensions * 4 / GB, "GB"),
        ("a snapshot on disk", target.users * row_bytes / GB, "GB"),
        ("snapshots written in a year", target.users * row_bytes * 365 / 1e12, "TB"),
        ("snapshots kept", target.users * row_bytes * target.snapshots_kept / 1e12, "TB"),
        ("item vectors, int32, mapped on each machine", target.items * target.dimensions * 4 / GB, "GB"),
        ("events of a user in the window, mean", a_user, "events"),
        ("tasks of a full snapshot's second stage", target.events_in_window / 5e6, "tasks"),
        ("users of a bucket", target.users / 4096, "users"),
        ("the ranker's item table with AdamW, float32", target.items * target.dimensions * 4 * 4 / GB, "GB"),
        ("LTEs that a training of all users holds", target.users * target.anchors * target.dimensions * 4 / GB, "GB"),
        ("training's products", training, "operations"),
        ("GPU hours of a training", training / target.gpu_operations_a_second / 3600, "GPU h"),
    ]


def report(found: Sequence[Measured], target: Target) -> list[dict[str, object]]:
    """Prints the tables; returns their figures."""
    figures = []
    lines = fits(found)
    sizes = sorted({one.users for one in found})
    head = "".join(f"{f'{size:,} users':>16}" for size in sizes)
    print(f"\nCPU seconds (wall)      {head}   fixed s + µs a unit (misses by)     unit")
    for step, line in lines.items():
        rows = {one.users: one for one in found if one.step == step}
        cells = "".join(
            f"{f'{rows[size].cpu:.1f} ({rows[size].wall:.0f})':>16}" if size in rows else f"{'–':>16}" for size in sizes
        )
        cpu, unit = line["cpu"], next(iter(rows.values())).unit
        print(f"{step:<24}{cells}   {cpu.fixed:6.1f} + {cpu.per_unit * 1e6:12.5g} ({cpu.residual:4.0%})   {unit}")
        for size, one in rows.items():
            for name, measure_unit in (
                ("cpu", "s"),
                ("wall", "s"),
                ("shuffled", "B"),
                ("written", "B"),
                ("driver", "B"),
            ):
                figures.append(figure(f"{name}_{step}", f"{size} users", getattr(one, name), measure_unit))
        figures += [
            figure(f"fixed_{step}", "fit", cpu.fixed, "s"),
            figure(f"per_unit_{step}", "fit", cpu.per_unit, f"s / {unit}"),
            figure(f"residual_{step}", "fit", cpu.residual, "of 1"),
        ]
    print("\nassumed: " + ", ".join(f"{name} {value:,}" for name, value in dataclasses.asdict(target).items()))
    print(f"\n{'a run at that size':<24}{'core-h':>10}{f'h on {target.cores}':>10}{'shuffle GB':>12}{'written GB':>12}"
          f"{'driver GB':>11}{'core-h a year':>15}")  # fmt: skip
    large = extrapolated(found, target)
    for one in large:
        print(
            f"{one.name:<24}{one.core_hours:>10,.1f}{one.hours_on_cores:>10,.2f}{one.shuffled / GB:>12,.1f}"
            f"{one.written / GB:>12,.1f}{one.driver / GB:>11,.1f}{one.core_hours_a_year:>15,.0f}"
        )
        for name, unit, value in (
            ("core_hours", "core-h", one.core_hours),
            ("shuffled", "B", one.shuffled),
            ("written", "B", one.written),
            ("driver", "B", one.driver),
            ("core_hours_a_year", "core-h", one.core_hours_a_year),
        ):
            figures.append(figure(f"{name}_{one.name}", "target", value, unit))
    print(f"{'all':<24}{'':>10}{'':>10}{'':>12}{'':>12}{'':>11}{sum(one.core_hours_a_year for one in large):>15,.0f}\n")
    row_bytes = lines["snapshot_lte, next day"]["written"].per_unit
    for name, value, unit in arithmetic(target, row_bytes):
        print(f"{name:<46}{value:>14,.4g} {unit}")
        figures.append(figure(name, "target", value, unit))
    return figures


def figure(measure: str, side: str, value: float, unit: str) -> dict[str, object]:
    return {"measure": measure, "side": side, "value": value, "unit": unit}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures every step at three sizes, and extrapolates.")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="users, comma-separated")
    parser.add_argument("--again", action="store_true", help="measure a size that was measured before")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    for name, kind in (("users", float), ("events-a-year", float), ("items", float), ("cores", int)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Target, name.replace("-", "_")))
    arguments = parser.parse_args()
    if arguments.rank:
        rank(arguments.rank)
        return
    if arguments.one:
        print(json.dumps([dataclasses.asdict(one) for one in measure_here(arguments.one)]))
        return
    found = []
    for users in map(int, arguments.sizes.split(",")):
        kept = HOME / f"{users}.json"
        if arguments.again or not kept.exists():
            command = [sys.executable, "-m", "tests.benchmarks.bench_scale", "--one", str(users)]
            done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
            kept.write_text(done.stdout.splitlines()[-1])
            shutil.rmtree(HOME / str(users))
        found += [Measured(**one) for one in json.loads(kept.read_text())]
    target = Target(arguments.users, arguments.events_a_year, arguments.items, cores=arguments.cores)
    figures = report(found, target)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
