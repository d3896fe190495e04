"""The page of a drill: how well a ranker reads an LTE of another version, in a fixed space and in learned ones.

It is rendered from `drill.json` alone, and all text about outcomes follows from the figures. A ranker that is served
the other version's LTE is compared with the same ranker with its own: it *holds* where the interval of the difference
contains 0 or lies above it, and *loses* where the interval lies below 0. It *breaks* where it is also worse than
without any LTE, by the same rule.
The page is `<reports>/<D>/drill.html` (drill.html.jinja, in the frame of lte_model/pages/page.html.jinja).
"""

import datetime
from pathlib import Path
from typing import Any

from lte_model.figures import Figure, Outcome, metric_label
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
            {"space": space, "name": name, **SKEWED[name]._asdict(), **judged_change(drill, space, name)}
            for space in drill["spaces"]
            for name in SKEWED
        ],
        further={name: change for name, change in CHANGES.items() if name not in SKEWED},
        versions=VERSIONS,
        columns=(*VERSIONS, NO_LTE),
        chart=charts.draw_drill(drill),
    )


def judged_change(drill: Drill, space: str, name: str) -> dict[str, Any]:
    """What the figures say of one of `SKEWED`: the `finding`, its `outcome` as a colour, its `uplift`, and `words`."""
    changes = drill["spaces"][space]["changes"]
    uplift: Figure = changes[name]["uplift"]
    over_none: Figure = changes[f"{name} over no LTE"]["uplift"]
    metric = metric_label(drill["headline"])
    finding = _finding(uplift, over_none)
    value = uplift.percent(signed=False, digits=2)
    match finding:
        case "not measured":
            words = "the difference could not be measured"
        case "holds" if uplift.outcome is Outcome.BETTER:
            words = f"{metric} is {value} higher than with the LTE of its own version"
        case "holds":
            words = f"{metric} can't be told apart from that with the LTE of its own version"
        case _:
            words = f"{metric} is {value} lower than with the LTE of its own version"
    if finding == BREAKS:
        words += f", and {over_none.percent(signed=False)} lower than without any LTE"
    return {"finding": finding, "outcome": _COLOUR[finding], "uplift": uplift, "words": f"{words}."}


def _finding(uplift: Figure, over_none: Figure) -> str:
    if not uplift.is_defined:
        return UNMEASURED
    if uplift.outcome is not Outcome.WORSE:
        return HOLDS
    return BREAKS if over_none.outcome is Outcome.WORSE else LOSES
