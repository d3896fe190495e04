"""Runs the ablation of a feed on one machine, without Airflow: `make ablation DATA=folder`.

1. Writes an installation for the feed under `.lte/`, like the demo's. A training stops after two epochs without
   improvement.
2. Runs the jobs that make the tables, one after another, for the representations that the chosen variants read.
3. Runs the trainings, at most `TRAININGS_AT_ONCE` and no more than there are cores at a time, one thread each.
4. Writes the report and prints a table of the results.

A command that succeeded before is skipped: a second call resumes where the first one stopped, and a call with more
variants or seeds trains only the new ones.
"""

import argparse
import datetime
import json
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.repository import REPOSITORY
from infra.runs.commands import TRAININGS_AT_ONCE, Commands
from infra.runs.installation import STUDY_TRAINING, add_installation, measure_rows, read_feed, settle
from lte_model.command_line import run
from lte_model.domain.windows import ONE_DAY, parse_date
from lte_model.errors import LTEError
from lte_model.figures import FigureOfUsers
from lte_model.settings import Settings
from lte_model.studies.results import Ablation, ablation_path, read_ablation
from lte_model.studies.variants import SEEDS, Variant, chosen_variants


def table_commands(
    date: datetime.date, since: datetime.date, variants: Sequence[Variant], settings: Settings
) -> list[str]:
    """The command lines that make the tables read by `variants`, in order."""
    read = {name for variant in variants for name in variant.settings(settings, 0).model.representations}
    encoders = [
        f"lte_model.training.autoencoder --date {date} --anchors",
        f"jobs.encode_items --date {date} --anchors",
    ]
    return [
        f"jobs.ingest_items --date {date}",
        f"jobs.ingest_events --date {date} --since {since}",
        f"jobs.fit_basis --date {date}",
        f"jobs.embed_items --date {date}",
        f"jobs.count_popularity --date {date} --anchors",
        *(encoders if "autoencoder" in read else []),
        f"jobs.snapshot_lte --date {date} --anchors " + " ".join(f"--representation {name}" for name in sorted(read)),
        f"jobs.build_training_set --date {date}",
    ]


def measures_of(ablation: Ablation) -> list[dict[str, Any]]:
    """The figures as rows of measure, side, value and unit, the format of every `--json` option."""
    headline, sides = ablation["headline"], ablation["sides"]
    rows = [(headline, side, of_side["metrics"][headline].value, "ndcg") for side, of_side in sides.items()]
    best = ablation["best"]["variant"]
    if best:
        rows.append((headline, "best", sides[best]["metrics"][headline].value, "ndcg"))
    for key, measure, unit in (
        ("validation", f"validation_{headline}", "ndcg"),
        ("targets_per_second", "training_targets_per_second", "targets/s"),
        ("milliseconds_per_query", "query", "ms"),
    ):
        rows += [(measure, side, of_side[key], unit) for side, of_side in sides.items() if key in of_side]
    for side, of_side in ablation["recency"].items():
        rows += [
            (measure, side, figure.value, "ratio")
            for measure, figure in of_side.items()
            if isinstance(figure, FigureOfUsers)
        ]
    return measure_rows(rows)


def print_outcome(ablation: Ablation) -> None:
    """Prints the results."""
    headline = ablation["headline"]
    print(
        f"\n{headline}, 95 % intervals, means over {ablation['seeds']} seeds: {ablation['test_users']:,} users, "
        f"{ablation['catalogue_items']:,} items, test days [{ablation['test'][0]}, {ablation['test'][1]})"
    )
    for side, of_side in ablation["sides"].items():
        figure = of_side["metrics"][headline]
        cost = f"{of_side['milliseconds_per_query']:8.3f} ms a query" if "milliseconds_per_query" in of_side else ""
        print(f"  {side:<42} {figure.number()}  {figure.interval()}  {cost}")
    print(f"  validation chose {ablation['best']['variant']} of {len(ablation['best']['candidates'])} variants\n")
    for answer in ablation["questions"]:
        uplift = answer["uplift"]
        print(f"  {answer['text']:<72} {uplift.percent():>8}  {uplift.percent_interval()}")


Rank = Callable[[Settings, datetime.date], Mapping[str, Path]]
"""Ranks the test users with rival models, after the tables are made; returns {model's name: file of ranks}."""


def ablate(arguments: argparse.Namespace, rank: Rank | None = None) -> Ablation:
    """Runs the ablation with the options of the command line; returns its results."""
    source = Path(arguments.data).resolve()
    home = Path(arguments.home).resolve() if arguments.home else REPOSITORY / ".lte" / f"{source.name}-ablation"
    variants = chosen_variants(arguments.variants)
    feed = read_feed(source / "events.parquet")
    date = parse_date(arguments.date) if arguments.date else feed.last + ONE_DAY
    settings = settle(arguments, home, source, feed, date, STUDY_TRAINING)
    commands = Commands(home)
    for command in table_commands(date, feed.first, variants, settings):
        commands.run(command)

    chosen = f"--variants {','.join(variant.name for variant in variants)} --seeds {arguments.seeds}"
    trainings = json.loads(commands.output(f"lte_model.studies.ablation list --date {date} {chosen}"))
    commands.run_all(
        [
            f"lte_model.studies.ablation train --date {date} --variant {training['variant']} --seed {training['seed']}"
            for training in trainings
        ],
        at_once=min(TRAININGS_AT_ONCE, os.cpu_count() or 1),
    )
    rivals = rank(settings, date) if rank else {}
    chosen += "".join(f" --rival {name}={file}" for name, file in rivals.items())
    commands.output(f"lte_model.studies.ablation report --date {date} {chosen}")
    ablation = read_ablation(settings, date)
    print_outcome(ablation)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(measures_of(ablation), indent=1) + "\n", encoding="utf-8")
    print(f"\nreport  {os.path.relpath(ablation_path(settings, date).with_suffix('.html'))}")
    return ablation


def options(values: Iterable[str] | None = None) -> argparse.Namespace:
    """Parses the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", required=True, help="a feed: events.parquet and items.parquet")
    parser.add_argument("--variants", default="", help="names, with commas (default: all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of each variant (default: %(default)s)")
    add_installation(parser, "from the feed's span", ".lte/<name of the feed>-ablation")
    return parser.parse_args(values)


def main() -> None:
    """Reads the command line and runs the command."""
    # SIGTERM, like Ctrl-C, must end the running commands.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        ablate(options())
    except KeyboardInterrupt:
        raise LTEError("stopped; run it again to go on from here") from None


if __name__ == "__main__":
    run(main)
