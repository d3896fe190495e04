"""The read-out of an online test: what it changed, whether that can be believed, and how long it has to run.

    python -m lte_model.online_test.read_out --date D --test NAME [--control NAME] [--shares a=0.9,b=0.1]
                                             [--uplift 0.0116] [--planned-days N]

1. reads what `jobs.measure_test` counted for the test and the date, without a JVM;
2. computes the statistics (lte_model/online_test/statistics.py) and the verdict: `not readable` where the users aren't
   divided as meant, whatever the metrics say, else better, worse or undecided for the first metric, by CUPED and Holm's
   p-value;
3. prints a table, and writes `<reports>/online_tests/<NAME>/<D>.json` and the page `<D>.html` beside it;
4. logs both, and the figures, to the read-out's MLflow run.

Neither file names a user. lte_model/online_test/read_out_page.py renders the page.
"""

import datetime
import math
import re
from collections.abc import Sequence
from pathlib import Path

import mlflow

from lte_model.command_line import CommandParser, run
from lte_model.errors import LTEError
from lte_model.figures import to_json
from lte_model.files import write_atomically
from lte_model.online_test import statistics
from lte_model.online_test.content import Content, content_of, lines_of
from lte_model.online_test.measurements import read_measurements
from lte_model.online_test.read_out_page import render
from lte_model.online_test.statistics import CONTROL
from lte_model.settings import Settings
from lte_model.tracking import runs


def folder_of(settings: Settings, test: str) -> Path:
    """Where the read-outs of a test are written, a pair of files per date."""
    return Path(settings.reports) / "online_tests" / test


def write(settings: Settings, content: Content) -> tuple[Path, Path]:
    """Writes the JSON and the page, each atomically; returns their paths."""
    folder = folder_of(settings, content["test"])
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, text in (
        ("json", to_json(content)),
        ("html", render(content)),
    ):
        path = folder / f"{content['date']}.{ending}"
        write_atomically(path, text)
        paths.append(path)
    return paths[0], paths[1]


def log(settings: Settings, content: Content, version: int, paths: Sequence[Path]) -> str:
    """Logs the read-out to MLflow; returns the id of its run."""
    with runs.read_out_run(settings, content["test"], datetime.date.fromisoformat(content["date"])) as of_test:
        outcomes = sorted({one["outcome"] for one in content["verdicts"]})
        # Tags, because parameters can't change: a read-out of the same date with another control replaces the first.
        mlflow.set_tags({name: content[name] for name in ("start", "end", "control", "rehearsal")})
        mlflow.set_tag("verdict", ", ".join(outcomes))
        mlflow.log_metrics(_logged(content))
        runs.log_dataset(settings, "test_measurements", version, "read-out")
        for path in paths:
            mlflow.log_artifact(str(path))
        return of_test.info.run_id


def _logged(content: Content) -> dict[str, float]:
    """The figures under names that MLflow accepts: letters, digits and a few signs."""
    figures = {"sample_ratio_p": content["sample_ratio"]["p"]}
    figures |= {f"users {one['name']}": one["users"] for one in content["variants"]}
    for one in content["comparisons"]:
        of = f"{one['metric']} {one['variant']}"
        figures |= {f"uplift {of} {end}": getattr(one["cuped"], end) for end in ("value", "low", "high")}
        figures |= {f"p_holm {of}": one["cuped"].p_holm, f"detectable {of}": one["detectable"]}
    return {re.sub(r"[^\w./: -]", "_", name): value for name, value in figures.items() if value is not None}


def parse_shares(text: str) -> dict[str, float]:
    """`a=0.9,b=0.1` as a dict. Raises `LTEError` for anything else."""
    shares = {}
    for part in text.split(","):
        name, _, share = part.rpartition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            shares[name.strip()] = math.nan
        if not name.strip() or not 0 < shares[name.strip()] < math.inf:
            raise LTEError(f"--shares {text!r}: {part!r} is no share; write variant=0.5,other=0.5, each above 0")
    return shares


def main() -> None:
    """Reads the command line and runs the command."""
    parser = CommandParser(__doc__, "the date that the test was measured for")
    parser.add_argument("--test", required=True, help="the name of the test")
    parser.add_argument("--control", default=CONTROL, help=f"the variant to compare with (default: {CONTROL})")
    parser.add_argument("--shares", help="the meant shares of the variants, a=0.9,b=0.1 (default: equal)")
    parser.add_argument("--uplift", type=float, help="the relative uplift to find (default: that of the settings)")
    parser.add_argument("--planned-days", type=int, help="the days that it will run (default: those measured)")
    arguments, settings, date = parser.read()
    test = statistics.parse_test_name(arguments.test)
    if arguments.uplift is not None:
        if not 0 < arguments.uplift < math.inf:
            raise LTEError(f"--uplift {arguments.uplift:g} is nothing to find; give a share above 0, 0.01 for 1 %")
        rules = settings.online_test.model_copy(update={"uplift": arguments.uplift})
        settings = settings.model_copy(update={"online_test": rules})
    if arguments.planned_days is not None and arguments.planned_days < 1:
        raise LTEError(f"--planned-days {arguments.planned_days}: a test runs for a day at least")
    shares = parse_shares(arguments.shares) if arguments.shares else None
    measured = read_measurements(settings, date, test)
    content = content_of(measured, settings, arguments.control, shares, arguments.planned_days)
    paths = write(settings, content)
    run_id = log(settings, content, measured.version, paths)
    print(*lines_of(content), sep="\n")
    print(f"read-out: {paths[1]}, artifact of run {run_id}")


if __name__ == "__main__":
    run(main)
