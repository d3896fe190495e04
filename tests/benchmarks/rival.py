"""The rival: RecTools' SASRec on our events, with a fair search, ranked like our models.

`rectools_ranks` exports the events of a training date and runs `rectools/sasrec.py`. That searches session length,
epochs and whether to rank seen items on the validation window, trains again on all events before the test cut, and
returns the rank of every test case. It runs in its own environment, `.cache/rectools`, which is made if missing.

    python -m tests.benchmarks.rival --settings S --date D [--seeds 0,1,2 --lengths 50,100,200]

It gets what our models may know: all years of events dated and known before the cut, of items in the catalogue. A hash
of user, item and time orders a user's events with the same time: an order by item would leak the next item, as in the
training set. The hash differs from the training set's, which needs Spark. Targets are those of the training set.
"""

import argparse
import datetime
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lte_model.command_line import run
from lte_model.domain.windows import parse_run_date
from lte_model.errors import LTEError
from lte_model.files import write_atomically
from lte_model.metrics import ndcg
from lte_model.settings import Settings, load_settings
from lte_model.training.training_set import TrainingSet, open_training_set
from tests.repository import REPOSITORY

ENVIRONMENT = REPOSITORY / ".cache" / "rectools"
THERE = Path(__file__).with_name("rectools")
"""The folder of that environment's script and pinned versions."""

LENGTHS = (50, 100, 200)
MOST_EPOCHS = 100
PATIENCE = 8
THREADS = 2
OUR_THREADS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables that our package sets (lte_model/__init__.py); the rival runs with torch's defaults."""


@dataclass(frozen=True)
class Rival:
    """The ranks of the test cases by seed, for `user_ids` in the order of `TrainingSet.cases("test")`.

    The validation chose `length` and `epochs`; `seconds` is the time of all fits; `record` is the whole search, as in
    search.json.
    """

    user_ids: pl.Series
    ranks: dict[int, np.ndarray]
    length: int
    epochs: int
    seconds: float
    record: dict[str, Any]


def rectools_ranks(
    settings: Settings,
    training_date: datetime.date,
    seeds: Sequence[int],
    lengths: Sequence[int] = LENGTHS,
    most_epochs: int = MOST_EPOCHS,
    patience: int = PATIENCE,
    threads: int = THREADS,
    folder: Path | None = None,
) -> Rival:
    """Searches and fits; reuses fits in `folder` with the same rows and options.

    Raises `LTEError` if a table is missing, or the search fails.
    """
    folder = folder or Path(settings.home, "rival", str(training_date))
    training_set = open_training_set(settings, training_date)
    dates = training_set.dates
    for split, cut in (("validation", dates.validation.start), ("test", dates.test.start)):
        export(training_set, split, cut, folder / split)
    sasrec(
        "search",
        str(folder),
        *("--lengths", ",".join(map(str, lengths))),
        *("--seeds", ",".join(map(str, seeds))),
        *("--epochs", str(most_epochs)),
        *("--patience", str(patience)),
        *("--threads", str(threads)),
    )
    return read_rival(training_set, folder, seeds)


def read_rival(training_set: TrainingSet, folder: Path, seeds: Sequence[int]) -> Rival:
    """Reads the search's results from `folder`."""
    record = json.loads((folder / "search.json").read_text())
    users = targets(training_set, "test").select("user_id")
    ranks = {}
    for seed in seeds:
        found = users.join(
            pl.read_parquet(folder / f"ranks_{seed}.parquet"), on="user_id", how="left", maintain_order="left"
        )
        if found["rank"].null_count():
            raise LTEError(f"{folder}/ranks_{seed}.parquet lacks users of the test split; remove {folder}, try again")
        ranks[seed] = found["rank"].to_numpy()
    return Rival(
        user_ids=users["user_id"],
        ranks=ranks,
        length=record["session_max_len"],
        epochs=record["epochs"],
        seconds=record["fit_seconds"],
        record=record,
    )


# The events, exported.


def export(training_set: TrainingSet, split: str, cut: datetime.date, folder: Path) -> None:
    """Writes the events that a model may know at `cut`, and the targets of `split`, for sasrec.py."""
    catalogue = training_set.catalogue.item_ids
    events = (
        training_set.tables.scan("events")
        .filter(pl.col("event_date") < cut, pl.col("known_date") < cut, pl.col("item_id").is_in(catalogue.implode()))
        .select("user_id", "item_id", "event_ts")
        .collect()
    )
    write_folder(folder, events, targets(training_set, split), catalogue)


def targets(training_set: TrainingSet, split: str) -> pl.DataFrame:
    """(user_id, target_item_id) of the cases in `split`, in their order."""
    rows = training_set.rows(split).select("snapshot_date", "user_id", "target_item_id").collect()
    known = rows.filter(pl.col("target_item_id").is_in(training_set.catalogue.item_ids.implode()))
    return known.sort("snapshot_date", "user_id").drop("snapshot_date")


def write_folder(folder: Path, events: pl.DataFrame, wanted: pl.DataFrame, catalogue: pl.Series) -> None:
    """Writes a folder for sasrec.py: `events` (user_id, item_id, event_ts), `wanted` (user_id, target_item_id), ids."""
    folder.mkdir(parents=True, exist_ok=True)
    ties = [
        hashlib.blake2b(f"{user}\0{item}\0{moment}".encode(), digest_size=8).digest()
        for user, item, moment in events.with_columns(pl.col("event_ts").dt.epoch("us")).iter_rows()
    ]
    events = (
        events.with_columns(tie=pl.Series(ties, dtype=pl.Binary))
        .sort("user_id", "event_ts", "tie", "item_id")
        .drop("tie")
        .with_row_index("order")
    )
    events.write_parquet(folder / "train.parquet")
    wanted.write_parquet(folder / "targets.parquet")
    catalogue.alias("item_id").to_frame().write_parquet(folder / "items.parquet")


# The environment.


def sasrec(*arguments: str, capture: bool = False) -> str:
    """Runs sasrec.py in its environment; returns its output if `capture` is set.

    Raises `LTEError` with the end of its output if it fails.
    """
    command = [str(installed()), str(THERE / "sasrec.py"), *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in OUR_THREADS}
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE if capture else None, text=True, env=environment)
    if done.returncode:
        raise LTEError(f"{' '.join(command)} failed with {done.returncode}; its last lines say why")
    return done.stdout or ""


def installed() -> Path:
    """The Python of RecTools' environment, which is made if it is missing or has other versions."""
    python = ENVIRONMENT / "venv" / "bin" / "python"
    done = ENVIRONMENT / "installed"
    wanted = "".join((THERE / name).read_text() for name in ("requirements.txt", "constraints.txt"))
    if done.is_file() and done.read_text() == wanted:
        return python
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    print(f"installing RecTools in {ENVIRONMENT}", flush=True)
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, ENVIRONMENT / "venv"], check=True)
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--requirements", "requirements.txt", "--constraints", "constraints.txt"],
        check=True,
        cwd=THERE,
        env={**os.environ, "VIRTUAL_ENV": str(ENVIRONMENT / "venv")},
    )
    write_atomically(done, wanted.encode())
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description="Searches, fits and ranks RecTools' SASRec on a training date.")
    parser.add_argument("--settings", help="settings file (default: $LTE_SETTINGS)")
    parser.add_argument("--date", type=parse_run_date, required=True, help="the day of the training")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--epochs", type=int, default=MOST_EPOCHS, help="the most that the validation may choose")
    parser.add_argument("--patience", type=int, default=PATIENCE)
    parser.add_argument("--threads", type=int, default=THREADS)
    arguments = parser.parse_args()
    settings = load_settings(arguments.settings)
    seeds, lengths = ([int(number) for number in text.split(",")] for text in (arguments.seeds, arguments.lengths))
    rival = rectools_ranks(
        settings, arguments.date, seeds, lengths, arguments.epochs, arguments.patience, arguments.threads
    )
    cutoff = max(settings.evaluation.cutoffs)
    print(
        f"length {rival.length}, {rival.epochs} epochs, {rival.seconds:.0f} s of fitting, {len(rival.user_ids)} users"
    )
    for seed, ranks in rival.ranks.items():
        print(f"seed {seed}: NDCG@{cutoff} {ndcg(ranks, cutoff).mean():.4f}")


if __name__ == "__main__":
    run(main)
