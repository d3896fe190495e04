"""The page and the MLflow run that show the measures of each snapshot date."""

import datetime
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import mlflow
import polars as pl
from markupsafe import Markup

from lte_model.files import write_atomically
from lte_model.monitoring.measures import MEASURES, Level, Measure, Reading, Unit, judged
from lte_model.pages import drawing, page
from lte_model.settings import Bounds, Settings
from lte_model.tracking import runs

SHOWN_DAYS = 400
_TEMPLATE = "monitoring/monitoring.html.jinja"


def page_path(settings: Settings) -> Path:
    """Where the page is written, one for all dates."""
    return Path(settings.reports) / "monitoring.html"


def write_page(settings: Settings, rows: pl.DataFrame) -> Path:
    """Writes the page of one or more `rows` (snapshot_date, representation, measure, value) atomically."""
    path = page_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render(settings, rows))
    return path


def render(settings: Settings, rows: pl.DataFrame) -> str:
    """The page as one string of HTML: the newest date of `rows` in a table, the last 400 days as charts."""
    newest: datetime.date = rows.select(pl.col("snapshot_date").max()).item()
    shown = pl.col("snapshot_date") > newest - datetime.timedelta(days=SHOWN_DAYS)
    rows = rows.filter(shown & pl.col("measure").is_in(list(MEASURES))).sort("snapshot_date")
    representations = rows["representation"].unique().sort().to_list()
    of_newest = {name: _values(rows, newest, name) for name in representations}
    readings = {
        name: {reading.measure.name: reading for reading in judged(settings, name, values)}
        for name, values in of_newest.items()
    }
    levels = {name: _worst(of_name.values()) for name, of_name in readings.items()}
    groups: dict[str, list[Measure]] = {}
    for measure in MEASURES.values():
        if measure.name in rows["measure"]:
            groups.setdefault(measure.group, []).append(measure)
    return page.render(
        _TEMPLATE,
        newest=newest,
        days=rows["snapshot_date"].n_unique(),
        representations=representations,
        readings=readings,
        levels=levels,
        broken=[one for of_name in readings.values() for one in of_name.values() if one.level is not Level.OK],
        compared={
            name: {
                what: newest - datetime.timedelta(days=values[days])
                for what, days in (("before", "inertia_days"), ("reference", "reference_days"))
                if days in values
            }
            for name, values in of_newest.items()
        },
        groups=groups,
        bounds_in_words=lambda measure: bounds_in_words(getattr(settings.monitoring, measure.name), measure.unit),
        chart=lambda measure: _chart(settings, measure, rows, representations),
        colours=dict(zip(representations, drawing.LINES, strict=False)),
    )


def _values(rows: pl.DataFrame, date: datetime.date, representation: str) -> dict[str, float]:
    of_date = rows.filter(snapshot_date=date, representation=representation)
    return dict(of_date.select("measure", "value").iter_rows())


def _worst(readings: Iterable[Reading]) -> Level:
    return max((reading.level for reading in readings), key=list(Level).index, default=Level.OK)


def bounds_in_words(bounds: Bounds, unit: Unit) -> dict[str, str]:
    """{"warn": "below 0.9", "stop": "below 0.5 or above 2"}, with the finite bounds only."""
    words = {}
    for level in (Level.WARN, Level.STOP):
        ends = ((end, getattr(bounds, f"{level.value}_{end}")) for end in ("below", "above"))
        words[level.value] = " or ".join(f"{end} {unit.written(value)}" for end, value in ends if math.isfinite(value))
    return words


def _chart(settings: Settings, measure: Measure, rows: pl.DataFrame, representations: Sequence[str]) -> Markup:
    of_measure = rows.filter(measure=measure.name)
    lines = {
        name: list(of_measure.filter(representation=name).select("snapshot_date", "value").iter_rows())
        for name in representations
    }
    return drawing.by_date(
        measure.name, measure.title, lines, getattr(settings.monitoring, measure.name), measure.unit.written
    )


def record(settings: Settings, date: datetime.date, readings: Sequence[Reading], path: Path) -> str:
    """Logs the figures of a date as metrics `<representation>/<measure>`, and the page; returns the id of the run."""
    with runs.monitoring_run(settings) as run:
        metrics = {f"{reading.representation}/{reading.measure.name}": reading.value for reading in readings}
        runs.log_metrics_of_date(run.info.run_id, metrics, date)
        mlflow.log_artifact(str(path))
        return run.info.run_id
