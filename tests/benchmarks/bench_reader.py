"""Measures reads of users' LTEs from the online store, and the push: `make bench-reader`.

`lte_live` is synthetic: 100,000 users, 64 dimensions. All rows are pushed, then `OnlineReader` reads one user, or 100
at once, drawn at random each time. One process reads repeatedly; times include Feast's round trip and the division.
SQLite is a file on this disk; Redis runs on this machine and is reached by TCP.

    read_1_p50, read_1_p99         a read of one user
    read_100_p50, read_100_p99     a read of a hundred users
    pushed_rows                    the first push, of all rows
"""

import argparse
import datetime
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from jobs.engine.packing import buckets_of
from jobs.push_lte import push_lte
from lte_model.domain.basis import GRID, to_vector
from lte_model.serving.online_reader import OnlineReader
from lte_model.serving.online_store import OnlineStore
from lte_model.settings import OnlineStoreSettings, Settings
from tests.redis_server import MISSING, installed, redis_server

DATE = datetime.date(2024, 6, 1)
READS = {1: 2_000, 100: 500}
"""{users per read: number of reads}."""
WARM_UP = 20


def made_up(folder: Path, users: int, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Writes the tables that a push reads; returns the vector sums (users, dimensions) and the counts (users,)."""
    random = np.random.default_rng(0)
    counts = random.integers(1, 200, users, dtype=np.int32)
    sums = random.integers(-GRID, GRID, (users, dimensions), dtype=np.int32) * counts[:, None] // 8
    ids = [user_id(number) for number in range(users)]
    kind = {"basis_id": pl.lit("made-up"), "representation": pl.lit("uniform")}
    ltes = pl.DataFrame(
        {
            "user_id": ids,
            "user_bucket": buckets_of(pa.array(ids)),
            "vector_sum": pl.Series(sums).arr.to_list(),
            "event_count": counts,
        }
    ).with_columns(
        lag_days=pl.lit(30, pl.Int32),
        window_days=pl.lit(365, pl.Int32),
        newest_event_date=pl.lit(DATE - datetime.timedelta(days=31)),
        snapshot_date=pl.lit(DATE),
        **kind,
    )
    ltes.write_delta(folder / "lte_live")
    published = pl.DataFrame({"snapshot_date": [DATE], "inputs": ["made-up"], "users": [users]}).with_columns(**kind)
    published.write_delta(folder / "publications")
    published.select("basis_id").write_delta(folder / "semantic_bases")
    return sums, counts


def user_id(number: int) -> str:
    return f"user-{number:09}"


def measure(settings: Settings, sums: np.ndarray, counts: np.ndarray) -> Iterator[tuple[str, float, str]]:
    """Yields (measure, value, unit)."""
    store = OnlineStore(settings)
    begin = time.perf_counter()
    push = push_lte(settings, store, DATE)
    yield "pushed_rows", push.written / (time.perf_counter() - begin), "rows/s"
    reader, random = OnlineReader(settings), np.random.default_rng(1)
    for users, reads in READS.items():
        seconds = []
        for _ in range(WARM_UP + reads):
            drawn = random.choice(len(counts), users, replace=False)
            ids = [user_id(number) for number in drawn]
            begin = time.perf_counter()
            ltes = reader.read(ids)
            seconds.append(time.perf_counter() - begin)
            if not np.array_equal([lte.vector for lte in ltes], to_vector(sums[drawn], counts[drawn])):
                raise SystemExit("a vector that was read isn't that of lte_live")
        for percent in (50, 99):
            yield f"read_{users}_p{percent}", 1_000 * float(np.percentile(seconds[WARM_UP:], percent)), "ms"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures reads of the online store.")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--json", help="write the figures here")
    arguments = parser.parse_args()
    figures = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stores = {
            "sqlite": OnlineStoreSettings(type="sqlite", path=f"{folder}/ltes.db", registry=f"{folder}/sqlite.db")
        }
        if installed():
            connection = stack.enter_context(redis_server())
            stores["redis"] = OnlineStoreSettings(type="redis", connection=connection, registry=f"{folder}/redis.db")
        else:
            print(f"redis is left out: {MISSING}")
        sums, counts = made_up(folder, arguments.users, arguments.dimensions)
        for side, store in stores.items():
            settings = Settings(warehouse=str(folder), online_store=store)
            for name, value, unit in measure(settings, sums, counts):
                print(f"{name:<14} {side:<7} {value:10,.3f} {unit}", flush=True)
                figures.append({"measure": name, "side": side, "value": round(value, 3), "unit": unit})
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
