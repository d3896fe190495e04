"""Measures the speed of training and evaluation, compared with RecTools' SASRec: `make bench-training`.

Both get the same sequences, of a synthetic shop of 5,000 users and 3,399 items or of a data set. Each user's last event
is the target to rank; the 51 before it are for training, because RecTools keeps no more. Width 64, 2 blocks, 2 heads,
50 events, batches of 128 users, a softmax over the whole catalogue, 2 threads. Our model has default settings except
for the length: its item table also uses content vectors, and it reads an LTE as prefix.

    training_targets_per_second    epochs only; padding doesn't count
    evaluation_users_per_second    NDCG@500: ours from exact ranks; RecTools recommends 500 items and measures those
    peak_memory                    of the process, until the training ends

The sides take turns, each in its own process; figures are medians. With a GPU, our model is also measured with a
hundred thousand and a million items.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from lte_model.domain.kind import LTEKind
from lte_model.metrics import ndcg
from lte_model.ranker.cases import Cases
from lte_model.ranker.model import Ranker
from lte_model.ranker.ranks import target_ranks
from lte_model.settings import Model, Settings, Training
from lte_model.training.device import choose_device
from lte_model.training.distributed import Group
from lte_model.training.fit import Fit
from tests.benchmarks.rival import sasrec, write_folder
from tests.lte_model.configs import ranker_config
from tests.repository import REPOSITORY

HOME = REPOSITORY / ".lte" / "bench" / "training"
USERS, ITEMS = 5_000, 3_399
LENGTH = 50
DIMENSIONS = 64
THREADS = 2
SIDES = ("ours", "rectools")
UNITS = {
    "training_targets_per_second": "targets/s",
    "evaluation_users_per_second": "users/s",
    "peak_memory": "MB",
}
AT_SCALE = (100_000, 1_000_000)
"""Catalogue sizes for the measurement on a GPU."""


# The sequences.


def made_up(users: int, items: int, seed: int = 0) -> pl.DataFrame:
    """Synthetic events (user_id, item_id, event_ts), distributed over users and items as in a shop.

    Half of the users have fewer than 40 events, a tenth more than 200 (online_retail's figures).
    """
    random = np.random.default_rng(seed)
    counts = np.clip(random.lognormal(math.log(40), 1.25, users), 3, 2_000).astype(np.int64)
    user = np.repeat(np.arange(users), counts)
    chances = 1 / np.arange(10, items + 10)
    item = random.choice(items, size=len(user), p=chances / chances.sum())
    second = np.arange(len(user)) - np.repeat(counts.cumsum() - counts, counts)
    return pl.DataFrame(
        {
            "user_id": pl.Series(user).cast(pl.String),
            "item_id": pl.Series(item).cast(pl.String),
            "event_ts": pl.Series(second * 3_600_000_000).cast(pl.Datetime("us", "UTC")),
        }
    )


def prepare(folder: Path, events: pl.DataFrame) -> None:
    """Writes the sequences for both sides: the newest `LENGTH` + 2 events of each user with at least 3."""
    events = events.select("user_id", "item_id", "event_ts").sort("user_id", "event_ts", "item_id")
    events = events.filter(pl.len().over("user_id") >= 3)
    newest = events.group_by("user_id", maintain_order=True).tail(LENGTH + 2)
    last = pl.int_range(pl.len()).over("user_id") == pl.len().over("user_id") - 1
    wanted = newest.filter(last).select("user_id", target_item_id="item_id")
    catalogue = events["item_id"].unique().sort()
    write_folder(folder, newest.filter(~last), wanted, catalogue)


# Our side.


@dataclass(frozen=True)
class Sequences:
    """The users as training cases and as cases to rank."""

    training: Cases
    evaluation: Cases


def sequences(user_ids: pl.Series, rows: np.ndarray, lengths: np.ndarray, targets: np.ndarray, items: int) -> Sequences:
    """Cases from flat item `rows`, `lengths` of them per user; `targets` are ranked. LTEs are random."""
    users = len(lengths)
    ends = lengths.cumsum()
    lte = np.random.default_rng(1).normal(size=(users, 1, DIMENSIONS)).astype(np.float32)
    cases = Cases(
        user_ids=user_ids,
        items=rows.astype(np.int32),
        inputs_end=np.arange(len(rows)),
        gaps=np.zeros(len(rows), dtype=np.uint8),
        starts=ends - lengths,
        ends=ends,
        target_counts=lengths - 1,
        lte=lte / np.linalg.norm(lte, axis=2, keepdims=True),
        has_lte=np.ones((users, 1), dtype=bool),
        event_counts=np.ones((users, 1), dtype=np.int64),
        dates=np.zeros(users, dtype=np.int64),
        popularity=None,
        targets=targets,
        history_counts=lengths,
        seen=np.bincount(rows, minlength=items) > 0,
        dropped_unknown_target=0,
    )
    return Sequences(training=cases, evaluation=cases)


def read_sequences(folder: Path) -> tuple[Sequences, int]:
    """A folder's cases, and the number of items in its catalogue."""
    catalogue = pl.Enum(pl.read_parquet(folder / "items.parquet")["item_id"])
    events, wanted = pl.read_parquet(folder / "train.parquet"), pl.read_parquet(folder / "targets.parquet")
    by_user = events.sort("order").group_by("user_id", maintain_order=True).agg(pl.col("item_id"))
    joined = by_user.join(wanted, on="user_id", maintain_order="left")

    def rows(ids: pl.Series) -> np.ndarray:
        return ids.cast(catalogue).to_physical().to_numpy().astype(np.int64)

    items = len(catalogue.categories)
    lengths = joined["item_id"].list.len().to_numpy().astype(np.int64)
    flat, targets = rows(joined["item_id"].explode()), rows(joined["target_item_id"])
    return sequences(joined["user_id"], flat, lengths, targets, items), items


def new_fit(found: Sequences, items: int, device: torch.device, **training: object) -> Fit:
    """A new training on the sequences, with `LENGTH` events, one prefix, and the settings' defaults."""
    settings = Settings(model=Model(max_tokens=LENGTH + 1), training=Training(**training))
    sizes = settings.model.model_dump(exclude={"representations"})
    config = ranker_config(items=items, dimensions=DIMENSIONS, **sizes)
    content = np.random.default_rng(2).normal(size=(items, DIMENSIONS)).astype(np.float32)
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    torch.manual_seed(0)
    kind = LTEKind("made up", "uniform", 30, 365)
    ranker = Ranker(config, kind, [str(row) for row in range(items)], torch.from_numpy(content)).to(device)
    return Fit(settings, ranker, found.training, found.evaluation, device, Group())


def targets_per_second(fit: Fit, seconds: float) -> float:
    """Trains whole epochs as long as they start within `seconds`; returns targets per second."""
    epochs, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        epochs += 1
        fit.train_epoch(epochs)
    return epochs * int(fit.cases.target_counts.sum()) / (time.perf_counter() - started)


def ours(folder: Path, seconds: float, threads: int) -> dict[str, float]:
    before = peak_memory_mb()
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    found, items = read_sequences(folder)
    few = found.training.taken(np.arange(min(512, len(found.training))))
    new_fit(Sequences(few, few), items, device).train_epoch(1)  # to warm up
    fit = new_fit(found, items, device)
    rate = targets_per_second(fit, seconds)
    peak = peak_memory_mb()
    for _ in range(2):  # once to warm up
        started = time.perf_counter()
        ndcg(target_ranks(fit.ranker, found.evaluation, device), 500).mean()
        evaluated = time.perf_counter() - started
    return {
        "targets": int(found.training.target_counts.sum()),
        "training_targets_per_second": rate,
        "evaluation_users_per_second": len(found.evaluation) / evaluated,
        "peak_memory": peak,
        "memory_before": before,
    }


def peak_memory_mb() -> float:
    """The peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Ours on a GPU.


def at_scale(items: int, device: torch.device, users: int, seconds: float) -> tuple[float, float]:
    """Targets per second with a catalogue of `items`, and the model FLOPs utilisation.

    The device's rate is measured with a large bfloat16 matrix product. Only the model's matrix products count, forward
    and backward, without dropout, norms, the optimizer, and recomputation by activation checkpoints.
    """
    random = np.random.default_rng(3)
    rows = random.integers(items, size=users * (LENGTH + 1))
    rows[:items] = np.arange(items)[: len(rows)]  # every item a candidate
    lengths = np.full(users, LENGTH + 1)
    user_ids = pl.Series(np.arange(users)).cast(pl.String)
    found = sequences(user_ids, rows, lengths, random.integers(items, size=users), items)
    fit = new_fit(found, items, device, batch_size=1024, device=device.type)
    fit.train_epoch(0)  # to warm up, and to compile
    rate = targets_per_second(fit, seconds)
    config, candidates = fit.ranker.config, fit.objective.sampled or items
    width, tokens = config.width, config.max_tokens
    a_token = config.blocks * (
        (8 + 4 * config.feed_forward) * width**2 + 2 * tokens * width
    )  # causal: half of 4 · tokens · width
    a_target = 3 * (a_token * tokens / LENGTH + 2 * candidates * width)
    the_table = 4 * items * DIMENSIONS * width / (fit.options.batch_size * LENGTH)  # no gradient by the content
    return rate, rate * (a_target + the_table) / greatest_rate(device)


def greatest_rate(device: torch.device) -> float:
    """Operations per second of a large product of bfloat16 matrices."""
    size = 8192 if device.type == "cuda" else 512
    matrix = torch.ones(size, size, dtype=torch.bfloat16, device=device)

    def several(times: int) -> None:
        for _ in range(times):
            matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize()

    several(5)
    started = time.perf_counter()
    several(20)
    return 20 * 2 * size**3 / (time.perf_counter() - started)


# Measuring: one process per side and repetition.


def measure(side: str, folder: Path, seconds: float, threads: int) -> dict[str, float]:
    options = ["--seconds", str(seconds), "--threads", str(threads)]
    if side == "rectools":
        printed = sasrec("speed", str(folder), "--session-max-len", str(LENGTH), *options, capture=True)
    else:
        command = [sys.executable, "-m", "tests.benchmarks.bench_training", "--one", str(folder), *options]
        printed = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures our training and evaluation beside RecTools' SASRec.")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--seconds", type=float, default=30, help="how long each training is measured")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--data", type=Path, help="a folder with events.parquet, in place of the made-up shop")
    parser.add_argument("--users", type=int, default=USERS, help="of the made-up shop")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(ours(arguments.one, arguments.seconds, arguments.threads)))
        return

    folder = HOME / (arguments.data.resolve().name if arguments.data else f"made_up_{arguments.users}")
    prepare(
        folder,
        pl.read_parquet(arguments.data / "events.parquet") if arguments.data else made_up(arguments.users, ITEMS),
    )
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(arguments.repeats):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            found[side].append(measure(side, folder, arguments.seconds, arguments.threads))
            print(f"{number + 1} {side:<9} {shown(found[side][-1])}", flush=True)
    if len({run["targets"] for runs in found.values() for run in runs}) != 1:
        raise SystemExit(f"the sides do not have the same targets: {found}")
    figures = [
        figure(name, side, statistics.median(run[name] for run in runs), unit)
        for name, unit in UNITS.items()
        for side, runs in found.items()
    ]
    report(found)
    figures += on_a_gpu(arguments.seconds)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")


def shown(run: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.0f}" for name, value in run.items() if name != "targets")


def report(found: dict[str, list[dict[str, float]]]) -> None:
    """Prints the medians, all values, and the ratio of ours to RecTools'."""

    def median(side: str, name: str) -> float:
        return statistics.median(run[name] for run in found[side])

    for name, unit in UNITS.items():
        for side, runs in found.items():
            listed = ", ".join(f"{run[name]:,.0f}" for run in runs)
            print(f"{name:<28} {side:<9} {median(side, name):10,.0f} {unit:<9} ({listed})")
        print(f"{'':<28} {'ratio':<9} {median('ours', name) / median('rectools', name):10.2f} ours / rectools")
    before = ", ".join(f"{side} {median(side, 'memory_before'):,.0f} MB" for side in found)
    print(f"of the memory, there before the data, with all that is imported: {before}")
    exact = median("rectools", "exact_users_per_second")
    print(f"RecTools' model, ranked from its logits as ours is: {exact:,.0f} users/s")


def on_a_gpu(seconds: float) -> list[dict[str, object]]:
    if not torch.cuda.is_available():
        print("no GPU: the catalogues of 100,000 and 1,000,000 items are left out")
        return []
    device, figures = choose_device("cuda"), []
    for items in AT_SCALE:
        rate, share = at_scale(items, device, 100_000, seconds)
        print(f"{items:>9,} items on {torch.cuda.get_device_name()}: {rate:,.0f} targets/s, {share:.1%} of its peak")
        figures.append(figure(f"gpu_targets_per_second_{items}", "ours", rate, "targets/s"))
        figures.append(figure(f"gpu_share_of_peak_{items}", "ours", share, "of 1"))
    return figures


def figure(measure: str, side: str, value: float, unit: str) -> dict[str, object]:
    return {"measure": measure, "side": side, "value": round(value, 3), "unit": unit}


if __name__ == "__main__":
    main()
