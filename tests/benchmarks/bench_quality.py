"""Compares the models on real data with each other and with RecTools' SASRec: `make bench-quality`.

For each data set it runs the ablation (infra/runs/ablation.py) of the sides below and the rival's search (rival.py),
and writes one report. All models are selected on the validation days; figures are NDCG@500 on the test days.

    popularity_7d                         popularity in the last 7 days
    none … leak                           the paper's policy: the sequence is [D−L, D)
    long_sequence, long_prefix            the newest 200 events, without LTE and with it
    best                                  the variant that validation chose
    rectools                              RecTools' SASRec: validation chooses length, epochs and whether seen items
                                          are ranked; then it trains on all days before the cut

Steps that succeeded before are skipped, so that a stopped run resumes. VARIANTS adds other variants to the report.
"""

import argparse
import datetime
import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from infra.runs.ablation import ablate, options
from lte_model.command_line import run
from lte_model.errors import LTEError
from lte_model.settings import Settings
from lte_model.studies.results import Ablation
from lte_model.studies.variants import RIVAL, VARIANTS
from tests.benchmarks.rival import LENGTHS, rectools_ranks
from tests.repository import REPOSITORY

DATA = REPOSITORY.parent / "shared" / "data"
SETS = ("online_retail", "xwines_slim")
SIDES = (
    "popularity_7d", "none", "prefix", "prefix_recency", "prefix_autoencoder", "late_fusion", "feature_injection",
    "leak", "long_sequence", "long_prefix", "best", RIVAL,
)  # fmt: skip
COMPARED = ("none_newest", "prefix_newest", "prefix_newest_autoencoder")
"""The variants for the report's questions about the policy `newest`."""

CANDIDATES = (
    "prefix_newest_popularity_time", "prefix_newest_popularity_time_repeats", "none_newest_popularity_time_repeats",
    "long_prefix_popularity_time_repeats", "long_sequence_popularity_time_repeats",
    "prefix_newest_popularity_time_repeats_by_event",
)  # fmt: skip
"""The likely candidates for deployment. (Every variant but the leak is a candidate.)"""


def rows_of(data: str, ablation: Ablation) -> list[dict[str, Any]]:
    """A data set's figures as rows of measure, side, value and unit, the format of every `--json` option."""
    measure, sides = f"{ablation['headline']}_{data}", dict(ablation["sides"])
    if ablation["best"]["variant"]:
        sides["best"] = sides[ablation["best"]["variant"]]
    return [
        {
            "measure": measure,
            "side": side,
            "value": round(sides[side]["metrics"][ablation["headline"]].value, 5),
            "unit": "ndcg",
        }
        for side in (*SIDES, *COMPARED, *CANDIDATES)
        if side in sides
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares the models on real data, and with RecTools' SASRec.")
    parser.add_argument("--data", default=str(DATA), help="the folder of the data sets (default: %(default)s)")
    parser.add_argument("--sets", default=",".join(SETS), help="their names, with commas (default: %(default)s)")
    parser.add_argument(
        "--variants", default=",".join(name for name in (*SIDES, *COMPARED, *CANDIDATES) if name in VARIANTS)
    )
    parser.add_argument("--seeds", type=int, default=3, help="of every side (default: %(default)s)")
    parser.add_argument(
        "--lengths",
        default=",".join(map(str, LENGTHS)),
        help="of RecTools' sessions, to choose of (default: %(default)s)",
    )
    parser.add_argument("--without-rival", action="store_true", help="leave RecTools out")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def rank(settings: Settings, date: datetime.date) -> Mapping[str, Path]:
        lengths = [int(length) for length in arguments.lengths.split(",")]
        rival = rectools_ranks(settings, date, range(arguments.seeds), lengths)
        print(f"rectools: length {rival.length}, {rival.epochs} epochs, {rival.seconds:.0f} s of fitting", flush=True)
        file = Path(settings.home, "rival", f"{date}.parquet")
        pl.concat(
            pl.DataFrame({"user_id": rival.user_ids, "seed": [seed] * len(ranks), "rank": ranks})
            for seed, ranks in rival.ranks.items()
        ).write_parquet(file)
        return {RIVAL: file}

    figures = []
    for data in arguments.sets.split(","):
        folder = Path(arguments.data, data)
        if not folder.is_dir():
            raise LTEError(f"there is no folder {folder}; give the folder that holds the data sets with --data")
        print(f"\n{data}")
        values = ["--data", str(folder), "--variants", arguments.variants, "--seeds", str(arguments.seeds)]
        try:
            ablation = ablate(options(values), None if arguments.without_rival else rank)
        except KeyboardInterrupt:
            raise LTEError("stopped; run it again to go on from here") from None
        figures += rows_of(data, ablation)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for figure in figures:
        print(f"{figure['measure']:<28} {figure['side']:<44} {figure['value']:.4f}")


if __name__ == "__main__":
    run(main)
