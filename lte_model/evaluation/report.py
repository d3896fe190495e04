"""The report of one training: a single HTML file that a person can read, print and send by mail.

    python -m lte_model.evaluation.report --date D

1. reads `evaluation.json`, which lte_model.evaluation.evaluate wrote for the training of D;
2. reads from the Delta tables what the training could see: events known before D, and its training set;
3. draws the charts (report_charts.py) and fills the page (report.html.jinja, in the frame of
   lte_model/pages/page.html.jinja);
4. writes `<reports>/<D>/report.html` and logs it as an artifact of the training's MLflow run `evaluation`.

Titles come from the shop's feed, so the template escapes every value.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import polars as pl
from deltalake import DeltaTable
from markupsafe import Markup

from lte_model.command_line import CommandParser, run
from lte_model.domain.windows import Interval
from lte_model.errors import LTEError
from lte_model.evaluation import report_charts, results
from lte_model.evaluation.results import Evaluation
from lte_model.figures import SIDE_NAMES, Figure
from lte_model.files import write_atomically
from lte_model.pages import page
from lte_model.settings import Settings
from lte_model.tracking import runs
from lte_model.warehouse.reading import exists, scan

COUNTED_TABLES = (
    "events", "items", "quarantine", "semantic_bases", "item_embeddings", "lte_snapshots", "lte_live", "training_set",
)  # fmt: skip
"""The tables that the report counts, in the order in which the pipeline writes them."""

_TEMPLATE = "evaluation/report.html.jinja"
_SHOWN_EVENTS = 10


def main() -> None:
    """Reads the command line and runs the command."""
    parser = CommandParser("Writes the report of a training.", "the day the training ran on")
    _, settings, training_date = parser.read()
    path = write_report(settings, training_date)
    runs.configure(settings)
    with runs.training_run(settings, training_date, "evaluation") as evaluation_run:
        mlflow.log_artifact(str(path))
    print(f"report: {path} ({path.stat().st_size / 1024:,.0f} KiB), artifact of run {evaluation_run.info.run_id}")


def write_report(settings: Settings, training_date: datetime.date) -> Path:
    """Renders the report and puts it in place whole. Raises `LTEError` without an evaluation or its tables."""
    evaluation = results.read_evaluation(settings, training_date)
    path = results.report_path(settings, training_date)
    write_atomically(path, render(evaluation, read_glance(settings, training_date)))
    return path


@dataclass(frozen=True)
class TableSize:
    """A Delta table as it stands: its rows over all dates, and its newest version."""

    name: str
    rows: int
    version: int


@dataclass(frozen=True)
class Coverage:
    """The cases of one snapshot date in the training set, and the shares that have an LTE and a sequence."""

    split: str
    snapshot_date: datetime.date
    cases: int
    with_lte: float
    with_sequence: float
    events_per_lte: float | None


@dataclass(frozen=True)
class Glance:
    """The data at a glance, as the training of one date could see it.

    `weeks` are the Mondays from the first event to the last; `events_per_week` has a count for each.
    """

    tables: tuple[TableSize, ...]
    events: int
    users: int
    items_with_events: int
    first_event: datetime.date
    last_event: datetime.date
    weeks: tuple[datetime.date, ...]
    events_per_week: tuple[int, ...]
    coverage: tuple[Coverage, ...]


def read_glance(settings: Settings, training_date: datetime.date) -> Glance:
    """Counts the warehouse without a JVM. Raises `LTEError` where events or the training set are not there."""
    events = scan(settings, "events").filter(pl.col("known_date") < training_date)
    totals = events.select(
        pl.len().alias("events"),
        pl.col("user_id").n_unique().alias("users"),
        pl.col("item_id").n_unique().alias("items"),
        pl.col("event_date").min().alias("first"),
        pl.col("event_date").max().alias("last"),
    ).collect()
    (total,) = totals.to_dicts()
    if not total["events"]:
        raise LTEError(f"table events has no event known before {training_date}; run jobs.ingest_events until then")
    weekly = (
        events.group_by(pl.col("event_date").dt.truncate("1w").alias("week")).len().sort("week").collect()
        .upsample("week", every="1w").with_columns(pl.col("len").fill_null(0))
    )  # fmt: skip
    return Glance(
        tables=tuple(_sizes(settings)),
        events=total["events"],
        users=total["users"],
        items_with_events=total["items"],
        first_event=total["first"],
        last_event=total["last"],
        weeks=tuple(weekly["week"]),
        events_per_week=tuple(weekly["len"]),
        coverage=tuple(_coverage(settings, training_date)),
    )


def _sizes(settings: Settings) -> list[TableSize]:
    sizes = []
    for name in COUNTED_TABLES:
        if exists(settings, name):
            table = DeltaTable(settings.table_path(name))
            rows = pl.scan_delta(table).select(pl.len()).collect().item()
            sizes.append(TableSize(name, rows, table.version()))
    return sizes


def _coverage(settings: Settings, training_date: datetime.date) -> list[Coverage]:
    cases = scan(settings, "training_set").filter(pl.col("training_date") == training_date)
    lagged = settings.model.sequence == "lagged"
    read = pl.col("target_count") if lagged else pl.col("item_ids").list.len()
    lte = scan(settings, "lte_snapshots").filter(pl.col("representation") == settings.model.representations[0])
    by_date = (
        cases.join(
            lte.select("basis_id", "snapshot_date", "user_id", "event_count"),
            on=["basis_id", "snapshot_date", "user_id"],
            how="left",
        )
        .with_columns(pl.col("event_count").fill_null(0))
        .group_by("split", "snapshot_date")
        .agg(
            pl.len().alias("cases"),
            (pl.col("event_count") > 0).mean().alias("with_lte"),
            (read > 0).mean().alias("with_sequence"),
            pl.col("event_count").filter(pl.col("event_count") > 0).median().alias("events_per_lte"),
        )
        # The validation cut is also the newest anchor; the anchor's row comes first.
        .sort("snapshot_date", pl.col("split") != "train")
        .collect()
    )
    if by_date.is_empty():
        raise LTEError(
            f"table training_set has no rows of the training date {training_date}; "
            f"run jobs.build_training_set --date {training_date}"
        )
    return [Coverage(**row) for row in by_date.to_dicts()]


def render(evaluation: Evaluation, glance: Glance) -> str:
    """The page as one string of HTML; a pure function of what was read."""
    metric = results.headline_metric(evaluation)
    names = list(evaluation["sides"]["prefix"]["metrics"])
    names.sort(key=_as_listed)
    sides = [side for side in SIDE_NAMES if side in evaluation["sides"]]
    return page.render(
        _TEMPLATE,
        evaluation=evaluation,
        glance=glance,
        metric=metric,
        metric_names=names,
        verdicts=_verdicts(evaluation, metric),
        strongest_popularity=_strongest_popularity(evaluation, metric),
        sides=sides,
        cohort_sides=[side for side in sides if any(side in cohort["sides"] for cohort in evaluation["cohorts"])],
        side_names=SIDE_NAMES,
        users=[_shown_user(user) for user in evaluation["users"]],
        charts=_charts(evaluation, glance, metric, names),
        over_none=results.OVER_NONE,
        over_popularity=results.OVER_POPULARITY,
    )


def _as_listed(name: str) -> tuple[int, int]:
    """Sorts metrics as people list them: NDCG, Recall, MRR, each from its smallest cutoff."""
    family, _, cutoff = name.partition("@")
    return ("ndcg", "recall", "mrr", family).index(family), int(cutoff)


def _verdicts(evaluation: Evaluation, metric: str) -> list[dict[str, str]]:
    rivals = {results.OVER_NONE: "same model without LTE", results.OVER_POPULARITY: "popularity of the last 30 days"}
    found = []
    for comparison, rival in rivals.items():
        uplift: Figure = evaluation["uplift"][comparison][metric]
        found.append(
            {
                "outcome": uplift.outcome.value,
                "text": uplift.in_words(metric, evaluation["test_users"], rival),
            }
        )
    return found


def _strongest_popularity(evaluation: Evaluation, metric: str) -> str:
    """The popularity side with the highest test score, which the page must show."""
    popularities = [side for side in evaluation["sides"] if side.startswith("popularity_")]
    return max(popularities, key=lambda side: evaluation["sides"][side]["metrics"][metric].value)


def _shown_user(user: dict[str, Any]) -> dict[str, Any]:
    """A user as the page shows it: the newest events of both lists, and how many older ones are left out.

    The evaluation itself keeps only the newest events of a long history; `lte_count` counts them all.
    """
    history, sequence = user["history"][-_SHOWN_EVENTS:], user["sequence"][-_SHOWN_EVENTS:]
    return user | {
        "history": history,
        "history_left_out": max(user["lte_count"], len(user["history"])) - len(history),
        "sequence": sequence,
        "sequence_left_out": len(user["sequence"]) - len(sequence),
    }


def _charts(evaluation: Evaluation, glance: Glance, metric: str, names: Sequence[str]) -> dict[str, Markup]:
    anchors = [datetime.date.fromisoformat(anchor) for anchor in evaluation["anchors"]]
    validation, test = (
        Interval(*map(datetime.date.fromisoformat, evaluation[split])) for split in ("validation", "test")
    )
    lag, window = evaluation["lag_days"], evaluation["window_days"]
    charts = {
        "calendar": report_charts.draw_calendar(anchors, validation, test, lag, window, glance.first_event),
        "weeks": report_charts.draw_events_per_week(glance.weeks, glance.events_per_week, validation, test),
        "metrics": report_charts.draw_metrics(evaluation, names),
        "curves": report_charts.draw_curves(evaluation, metric),
    }
    if evaluation["cohorts"]:
        charts["cohorts"] = report_charts.draw_cohorts(evaluation, metric)
    return charts


if __name__ == "__main__":
    run(main)
