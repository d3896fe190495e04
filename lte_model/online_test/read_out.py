"""The read-out of an online test: what it changed, whether that can be believed, and how long it has to run.

    python -m lte_model.online_test.read_out --date D --test NAME [--control NAME] [--shares a=0.9,b=0.1] [--uplift 0.0116]

1. reads what `jobs.measure_test` counted for the test and the date, without a JVM;
2. computes the statistics (online_test.py) and the verdict: `not readable` where the users aren't divided as meant,
   whatever the metrics say, else better, worse or undecided for the first metric, by CUPED and Holm's p-value;
3. prints a table, and writes `<reports>/online_tests/<NAME>/<D>.json` and the page `<D>.html` beside it;
4. logs both, and the figures, to the read-out's MLflow run.

Nothing in it names a user. The page is read_out.html.jinja, in the frame of page.html.jinja.
"""

import argparse
import datetime
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import polars as pl
from deltalake import DeltaTable
from markupsafe import Markup

from lte_model.command_line import run
from lte_model.domain.windows import Interval, parse_run_date
from lte_model.errors import LTEError
from lte_model.figures import Figure, Outcome, is_defined, percent, percent_interval
from lte_model.files import write_atomically
from lte_model.online_test import statistics
from lte_model.online_test.statistics import ALPHA, CONTROL, REHEARSED, SUMS, Comparison, Moments, Uplift
from lte_model.pages import page
from lte_model.settings import Settings, load_settings
from lte_model.tracking import runs

NOT_READABLE = "not readable"

Content = dict[str, Any]
"""What the JSON file of a read-out holds; the page and the table are made of it alone."""

_TEMPLATE = "online_test/read_out.html.jinja"
_WIDTH, _HEIGHT, _LEFT, _BELOW = 900, 200, 60, 24  # of the chart, in its own units


@dataclass(frozen=True)
class Measurements:
    """What was measured of a test for one date.

    `sums` are {(variant, metric): (days, 6)} of whole numbers, a row per day of `period`; `accounts` one dict for what
    became of rows of a feed: feed, fate, rows, users. `version` is that of table test_measurements.
    """

    test: str
    date: datetime.date
    period: Interval
    sums: dict[tuple[str, str], np.ndarray]
    accounts: tuple[dict[str, Any], ...]
    version: int


def read_measurements(settings: Settings, date: datetime.date, test: str) -> Measurements:
    """Raises `LTEError` where the test was not measured for the date."""
    path = settings.table_path("test_measurements")
    measure = f"run jobs.measure_test --date {date} --test {test} --from … --to … first"
    if not DeltaTable.is_deltatable(path):
        raise LTEError(f"table test_measurements does not exist at {path}; {measure}")
    of_test = (pl.col("test_name") == test) & (pl.col("measured_for") == date)
    rows = pl.scan_delta(path).filter(of_test).collect()
    if rows.is_empty():
        raise LTEError(f"test {test} has no measurements for {date}; {measure}")
    period = Interval(rows["test_start"][0], rows["test_end"][0])
    metrics = [name for name in settings.online_test.metrics if name in set(rows["metric"])]
    metrics += sorted(set(rows["metric"]) - set(metrics))  # the settings' first is the one that decides
    sums = {
        (variant, metric): np.full((period.days, len(SUMS)), 0, dtype=object)
        for variant in sorted(set(rows["variant"]))
        for metric in metrics
    }
    for row in rows.to_dicts():
        sums[row["variant"], row["metric"]][(row["day"] - period.start).days] = [int(row[name]) for name in SUMS]
    accounts = pl.scan_delta(settings.table_path("test_accounts")).filter(of_test).sort("feed", "fate").collect()
    return Measurements(
        test,
        date,
        period,
        sums,
        tuple(accounts.select("feed", "fate", "rows", "users").to_dicts()),
        DeltaTable(path).version(),
    )


def content_of(
    measured: Measurements, settings: Settings, control: str, shares: dict[str, float] | None, planned_days: int | None
) -> Content:
    """The read-out as plain values; a pure function. Raises `LTEError` as `online_test.read_test` does."""
    rules = settings.online_test
    read = statistics.read_test(measured.sums, control, shares, rules.power)
    readable = read.sample_ratio_p >= rules.sample_ratio_p
    planned = planned_days or measured.period.days
    comparisons = [_comparison(one, readable, rules.uplift, planned) for one in read.comparisons]
    content: Content = {
        "test": measured.test,
        "date": str(measured.date),
        "start": str(measured.period.start),
        "end": str(measured.period.end),
        "days": measured.period.days,
        "rehearsal": REHEARSED in read.users,
        "control": control,
        "metrics": list(dict.fromkeys(one.metric for one in read.comparisons)),
        "uplift": rules.uplift,
        "power": rules.power,
        "planned_days": planned,
        "variants": [
            {"name": name, "users": users, "share": users / sum(read.users.values()), "meant": read.shares[name]}
            for name, users in read.users.items()
        ],
        "sample_ratio": {"p": read.sample_ratio_p, "threshold": rules.sample_ratio_p, "readable": readable},
        "comparisons": comparisons,
        "accounts": list(measured.accounts),
    }
    decisive = [one for one in comparisons if one["metric"] == content["metrics"][0]]
    return content | {"verdicts": [{"outcome": one["outcome"], "text": _in_words(content, one)} for one in decisive]}


def _comparison(one: Comparison, readable: bool, target: float, planned_days: int) -> dict[str, Any]:
    days = statistics.days_needed(one.detectable_by_day, target)
    return {
        "variant": one.variant,
        "metric": one.metric,
        "outcome": _outcome(one).value if readable else NOT_READABLE,
        "means": {"control": _side(one.control), "treatment": _side(one.treatment)},
        "plain": _figure(one.plain) | {"p": _number(one.plain.p), "p_holm": _number(one.plain_holm)},
        "cuped": _figure(one.cuped) | {"p": _number(one.cuped.p), "p_holm": _number(one.cuped_holm)},
        "variance_reduction": _number(one.variance_reduction),
        "days_needed": days,
        "measured_days": bool(days and days <= len(one.by_day)),
        "detectable": _number(one.detectable_by_day[-1]),
        "detectable_as_planned": _number(statistics.detectable_after(one.detectable_by_day, planned_days)),
        "by_day": [
            _figure(day) | {"detectable": _number(found)}
            for day, found in zip(one.by_day, one.detectable_by_day, strict=True)
        ],
    }


def _outcome(one: Comparison) -> Outcome:
    if not one.cuped_holm < ALPHA:
        return Outcome.UNDECIDED
    return Outcome.BETTER if one.cuped.value > 0 else Outcome.WORSE


def _side(moments: Moments) -> dict[str, float | None]:
    return {"mean": float(moments.mean), "deviation": math.sqrt(max(moments.variance, 0.0))}


def _figure(uplift: Uplift | None) -> Figure:
    if uplift is None:
        return {"value": None, "low": None, "high": None}
    return {name: _number(getattr(uplift, name)) for name in ("value", "low", "high")}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _in_words(content: Content, one: dict[str, Any]) -> str:
    """What the first metric says of one treatment, in a sentence or two."""
    users = ", ".join(f"{variant['name']} {variant['users']:,}" for variant in content["variants"])
    if one["outcome"] == NOT_READABLE:
        return (
            f"The users ({users}) are not divided as they should be (p {_p(content['sample_ratio']['p'])}): some got "
            "lost on one side, and any difference below may come of that. Find out where before reading on."
        )
    figure = one["cuped"]
    if not is_defined(figure):
        return (
            f"{one['metric']} of the control is too near to 0 to be compared with: no relative difference is defined."
        )
    what = f"{one['metric']} of {one['variant']} is {percent(figure['value'], signed=False, digits=2)}"
    what += f" {'higher' if figure['value'] >= 0 else 'lower'} than that of {content['control']}"
    interval = f"95 % interval {percent_interval(figure, digits=2)}, p {_p(figure['p_holm'])} after Holm"
    if one["outcome"] == Outcome.UNDECIDED.value:
        return f"{what}, which chance alone could explain ({interval})."
    return f"{what} ({interval})."


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _how_long(content: Content, one: dict[str, Any]) -> str:
    """The days after which the wanted uplift is found."""
    if one["detectable"] is None:
        return "unknown: the control's mean is too near to 0"
    if one["days_needed"] is None:
        return "more than ten years as it goes"
    days = f"{one['days_needed']:,} {'day' if one['days_needed'] == 1 else 'days'}"
    return days if one["measured_days"] else f"{days}, by the trend of {content['days']}"


def lines_of(content: Content) -> list[str]:
    """The read-out as a table for a terminal."""
    ratio = content["sample_ratio"]
    users = ", ".join(f"{one['name']} {one['users']:,} (meant {one['meant']:.1%})" for one in content["variants"])
    rehearsal = ", a rehearsal: nobody saw anything new" if content["rehearsal"] else ""
    lines = [
        f"test {content['test']} over [{content['start']}, {content['end']}), read on {content['date']}{rehearsal}",
        f"users: {users}; sample ratio p {_p(ratio['p'])}, {'as meant' if ratio['readable'] else NOT_READABLE}",
        f"{'':<28} {'control':>10} {'variant':>10}  {'uplift':<31} {'with CUPED':<31} {'p (Holm)':>14} {'variance':>9}",
    ]
    for one in content["comparisons"]:
        plain, cuped = (
            f"{percent(one[side]['value'], digits=2)} {percent_interval(one[side], digits=2)}"
            for side in ("plain", "cuped")
        )
        means = one["means"]
        lines.append(
            f"{one['metric'] + ', ' + one['variant']:<28} {means['control']['mean']:>10.4g} "
            f"{means['treatment']['mean']:>10.4g}  {plain:<31} {cuped:<31} {_p(one['cuped']['p_holm']):>14} "
            f"{percent(one['variance_reduction'] and -one['variance_reduction']):>9}"
        )
    for one in content["comparisons"]:
        lines.append(
            f"to find {percent(content['uplift'], digits=2)} of {one['metric']}, {one['variant']}: "
            f"{_how_long(content, one)}; after {content['planned_days']} days it finds "
            f"{percent(one['detectable_as_planned'], digits=2)}"
        )
    return lines + [f"{one['outcome']}: {one['text']}" for one in content["verdicts"]]


def render(content: Content) -> str:
    """The page as one string of HTML."""
    return page.render(
        _TEMPLATE,
        read=content,
        decisive=[one for one in content["comparisons"] if one["metric"] == content["metrics"][0]],
        how_long=lambda one: _how_long(content, one),
        day_chart=lambda one: _day_chart(one["by_day"]),
        p=_p,
    )


def _day_chart(by_day: Sequence[Figure]) -> Markup:
    """The uplift as of each day as a line, its interval as a band, and 0; empty where too few days are defined."""
    known = [(day, figure) for day, figure in enumerate(by_day, start=1) if is_defined(figure)]
    if len(known) < 2:
        return Markup("")
    # The band of the first days dwarfs the rest: the axis is that of the later half, with 0 in it.
    later = known[len(known) // 2 :]
    low, high = min(0, *(one["low"] for _, one in later)), max(0, *(one["high"] for _, one in later))
    low, high = low - 0.3 * (high - low), high + 0.3 * (high - low)

    def at(day: int, value: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT) * (day - 1) / max(1, len(by_day) - 1)
        y = (_HEIGHT - _BELOW) * (high - min(max(value, low), high)) / ((high - low) or 1)
        return f"{x:.1f},{y:.1f}"

    band = [at(day, one["low"]) for day, one in known] + [at(day, one["high"]) for day, one in reversed(known)]
    line = [at(day, one["value"]) for day, one in known]
    zero = at(1, 0).split(",")[1]
    # The ends of the last interval, unless they would stand on the 0.
    ends = {value: float(at(1, value).split(",")[1]) for value in (later[-1][1]["low"], later[-1][1]["high"])}
    named = {zero: "0"} | {f"{y:.1f}": percent(value) for value, y in ends.items() if abs(y - float(zero)) > 14}
    labels = [
        f'<text x="{_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{label}</text>' for y, label in named.items()
    ]
    labels += [
        f'<text x="{at(day, low).split(",")[0]}" y="{_HEIGHT - 6}" text-anchor="{anchor}">day {day}</text>'
        for day, anchor in ((1, "start"), (len(by_day), "end"))
    ]
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Uplift as of each day, with its interval" '
        f'font-size="12" fill="var(--soft)">'
        f'<polygon points="{" ".join(band)}" fill="var(--window)" opacity=".55"/>'
        f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{zero}" y2="{zero}" stroke="var(--ink)" stroke-width="1"/>'
        f'<polyline points="{" ".join(line)}" fill="none" stroke="var(--prefix)" stroke-width="2"/>'
        f"{''.join(labels)}</svg>"
    )


def folder_of(settings: Settings, test: str) -> Path:
    """Where the read-outs of a test are written, a pair of files per date."""
    return Path(settings.reports) / "online_tests" / test


def write(settings: Settings, content: Content) -> tuple[Path, Path]:
    """Puts the JSON and the page in place, each whole; returns their paths."""
    folder = folder_of(settings, content["test"])
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, text in (
        ("json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)),
        ("html", render(content)),
    ):
        path = folder / f"{content['date']}.{ending}"
        write_atomically(path, text)
        paths.append(path)
    return paths[0], paths[1]


def log(settings: Settings, content: Content, version: int, paths: Sequence[Path]) -> str:
    """Puts the read-out on record in MLflow; returns the id of its run."""
    with runs.read_out_run(settings, content["test"], datetime.date.fromisoformat(content["date"])) as of_test:
        outcomes = sorted({one["outcome"] for one in content["verdicts"]})
        # Tags, not parameters: a read-out of the same date with another control takes the place of the first.
        mlflow.set_tags({name: content[name] for name in ("start", "end", "control", "rehearsal")})
        mlflow.set_tag("verdict", ", ".join(outcomes))
        mlflow.log_metrics(_logged(content))
        runs.log_dataset(settings, "test_measurements", version, "read-out")
        for path in paths:
            mlflow.log_artifact(str(path))
        return of_test.info.run_id


def _logged(content: Content) -> dict[str, float]:
    """The figures by the names that MLflow takes: letters, digits and a few signs."""
    figures = {"sample_ratio_p": content["sample_ratio"]["p"]}
    figures |= {f"users {one['name']}": one["users"] for one in content["variants"]}
    for one in content["comparisons"]:
        of = f"{one['metric']} {one['variant']}"
        figures |= {f"uplift {of} {end}": one["cuped"][end] for end in ("value", "low", "high")}
        figures |= {f"p_holm {of}": one["cuped"]["p_holm"], f"detectable {of}": one["detectable"]}
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
    parser = argparse.ArgumentParser(
        prog="python -m lte_model.online_test.read_out", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--date", required=True, help="the date that the test was measured for")
    parser.add_argument("--test", required=True, help="the name of the test")
    parser.add_argument("--control", default=CONTROL, help=f"the variant to compare with (default: {CONTROL})")
    parser.add_argument("--shares", help="the meant shares of the variants, a=0.9,b=0.1 (default: equal)")
    parser.add_argument("--uplift", type=float, help="the relative uplift to find (default: that of the settings)")
    parser.add_argument("--planned-days", type=int, help="the days that it will run (default: those measured)")
    parser.add_argument("--settings", help="settings file (default: the one that LTE_SETTINGS names)")
    arguments = parser.parse_args()
    settings, date = load_settings(arguments.settings), parse_run_date(arguments.date)
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
