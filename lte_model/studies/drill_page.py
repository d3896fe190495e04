"""The page of a drill: what a ranker makes of an LTE of another version, in a fixed space and in free ones.

It is made of `drill.json` alone, and every word about an outcome follows from its figures. Served another version of
the LTE, a ranker *holds* where the interval of the difference to its own version contains 0 or lies above it; it *loses*
where the interval lies below, and *breaks* where it is worse than without any LTE, too, by such an interval.
The page is `<reports>/<D>/drill.html` (drill.html.jinja, in the frame of page.html.jinja).
"""

import datetime
from pathlib import Path
from typing import Any

from lte_model import figures
from lte_model.figures import Outcome
from lte_model.files import write_atomically
from lte_model.pages import page
from lte_model.settings import Settings
from lte_model.studies import charts, results
from lte_model.studies.results import Drill
from lte_model.studies.spaces import CHANGES, NO_LTE, SKEWED, VERSIONS

_TEMPLATE = "studies/drill.html.jinja"

HOLDS, LOSES, BREAKS, UNMEASURED = "holds", "loses", "breaks", "not measured"
_COLOUR = {HOLDS: "better", LOSES: "undecided", BREAKS: "worse", UNMEASURED: "undecided"}


def write_page(settings: Settings, training_date: datetime.date) -> Path:
    """Renders the page and puts it in place whole. Raises `LTEError` where there is no drill of that date."""
    path = results.drill_path(settings, training_date).with_suffix(".html")
    write_atomically(path, render(results.read_drill(settings, training_date)))
    return path


def render(drill: Drill) -> str:
    """The page as one string of HTML; a pure function of the figures."""
    return page.render(
        _TEMPLATE,
        drill=drill,
        metric=drill["headline"],
        verdicts=[
            {"space": space, "name": name, **SKEWED[name]._asdict(), **judged(drill, space, name)}
            for space in drill["spaces"]
            for name in SKEWED
        ],
        further={name: change for name, change in CHANGES.items() if name not in SKEWED},
        versions=VERSIONS,
        columns=(*VERSIONS, NO_LTE),
        chart=charts.drill(drill),
    )


def judged(drill: Drill, space: str, name: str) -> dict[str, Any]:
    """What the figures say of one of `SKEWED`: the `finding`, its `outcome` as a colour, its `uplift`, and `words`."""
    changes = drill["spaces"][space]["changes"]
    uplift, over_none = (changes[change]["uplift"] for change in (name, f"{name} over no LTE"))
    metric = figures.metric_label(drill["headline"])
    finding = _finding(uplift, over_none)
    value = figures.percent(uplift["value"], signed=False, digits=2)
    match finding:
        case "not measured":
            words = "the difference could not be measured"
        case "holds" if figures.outcome(uplift) is Outcome.BETTER:
            words = f"{metric} is {value} higher than with the LTE of its own version"
        case "holds":
            words = f"{metric} can't be told apart from that with the LTE of its own version"
        case _:
            words = f"{metric} is {value} lower than with the LTE of its own version"
    if finding == BREAKS:
        words += f", and {figures.percent(over_none['value'], signed=False, digits=1)} lower than without any LTE"
    return {"finding": finding, "outcome": _COLOUR[finding], "uplift": uplift, "words": f"{words}."}


def _finding(uplift: figures.Figure, over_none: figures.Figure) -> str:
    if not figures.is_defined(uplift):
        return UNMEASURED
    if figures.outcome(uplift) is not Outcome.WORSE:
        return HOLDS
    return BREAKS if figures.outcome(over_none) is Outcome.WORSE else LOSES
