"""The page of a drill: its text agrees with the figures in every case."""

import copy
import re

import pytest

from lte_model.errors import LTEError
from lte_model.figures import UNDEFINED, to_json
from lte_model.settings import Settings
from lte_model.studies import drill_page, results
from lte_model.studies.drill_page import judged_change
from lte_model.studies.spaces import CELLS, CHANGES, SPACES
from tests.lte_model.evaluation.test_report import DATES, TRAINING_DATE, figure, text_of
from tests.lte_model.pages import require_charts


def made_up_drill():
    """Figures of a drill in which the fixed space holds, the free one breaks, and the drifting one loses."""
    served = {"fixed": 0.15, "free": 0.09, "drifting": 0.14}
    return {
        "training_date": TRAINING_DATE.isoformat(),
        "earlier_date": "2026-01-30",
        "basis_id": "3f2ac41b907d",
        "lag_days": 30,
        "window_days": 365,
        "anchors": [anchor.isoformat() for anchor in DATES.anchors],
        "earlier_anchors": [anchor.isoformat() for anchor in DATES.anchors],
        "validation": [str(DATES.validation.start), str(DATES.validation.end)],
        "test": [str(DATES.test.start), str(DATES.test.end)],
        "catalogue_items": 3388,
        "new_items": 41,
        "test_users": 1045,
        "dropped_unknown_target": 17,
        "headline": "ndcg@500",
        "seeds": 3,
        "spaces": {space: of_space(space, value) for space, value in served.items()},
        "tables": {"training_set": {"version": 6}},
        "seconds": 21.4,
    }


def of_space(space, served):
    value = {cell: 0.12 if cell.endswith("none") else 0.15 if cell in ("v1v1", "v2v2") else served for cell in CELLS}
    encoder = {
        "space_id": "0af1", "fitted_on": "2025-08-02", "cases": 5100, "anchors": 3,
        "before": {"held_out_ndcg@500": 0.11}, "after": {"held_out_ndcg@500": 0.14},
    }  # fmt: skip
    changes = {name: value[pair.ours] / value[pair.base] - 1 for name, pair in CHANGES.items()}
    return {
        "description": SPACES[space].description,
        "cells": {
            cell: {"metrics": {"ndcg@500": figure(found, 0.008)}, "by_seed": [found] * 3}
            for cell, found in value.items()
        },
        "changes": {
            name: {"uplift": figure(found, 0.01), "by_seed": [found - 0.001, found, found + 0.001]}
            for name, found in changes.items()
        },
        "cosine": 0.98 if space == "fixed" else 0.01,
        "accepted": space == "fixed",
        "encoders": {"v1": encoder, "v2": encoder | {"fitted_on": "2025-09-01"}},
    }


@pytest.fixture
def drill():
    return made_up_drill()


def test_words_follow_the_figures(drill):
    def of(space, name="deployment"):
        found = judged_change(drill, space, name)
        return found["finding"], found["outcome"], found["words"]

    assert of("fixed") == (
        "holds", "better", "NDCG@500 can't be told apart from that with the LTE of its own version.",
    )  # fmt: skip
    assert of("free", "rollback") == (
        "breaks", "worse",
        "NDCG@500 is 40.00 % lower than with the LTE of its own version, and 25.0 % lower than without any LTE.",
    )  # fmt: skip
    assert of("drifting") == (
        "loses", "undecided", "NDCG@500 is 6.67 % lower than with the LTE of its own version.",
    )  # fmt: skip
    changes = drill["spaces"]["fixed"]["changes"]
    changes["deployment"]["uplift"] = figure(0.02, 0.01)
    assert of("fixed")[0] == "holds" and of("fixed")[2].startswith("NDCG@500 is 2.00 % higher")
    changes["deployment"]["uplift"] = figure(-0.02, 0.01)
    assert of("fixed")[0] == "loses"
    changes["deployment"]["uplift"] = UNDEFINED
    assert of("fixed")[0] == "not measured"


def test_the_page_shows_every_cell_and_what_became_of_it(drill):
    text = text_of(drill_page.render(drill))
    assert "with an encoder that had seen newer days and 41 new items" in text
    assert "free, ranker v1 0.1500 [0.1420, 0.1580] 0.0900 [0.0820, 0.0980] 0.1200 [0.1120, 0.1280]" in text
    assert "LTE v2 to ranker v1 −40.00 % [−41.00 %, −39.00 %] −40.10 % −40.00 % −39.90 % breaks" in text
    assert "0.980 accepted" in text and "0.010 refused" in text
    assert "both of version 2, over both of version 1 +0.0 %" in text


def test_chart_and_page_need_nothing_else(drill):
    page = drill_page.render(drill)
    assert "default-src 'none'" in page and not re.findall(r"<(script|img|iframe|object)\b|@import|@font-face", page)
    require_charts(page, 1)
    assert drill_page.render(copy.deepcopy(drill)) == page


def test_it_is_written_beside_its_figures(drill, tmp_path):
    settings = Settings(home=str(tmp_path), reports=str(tmp_path))
    with pytest.raises(
        LTEError, match=r"has no drill at .*; run python -m lte_model.studies.drill report --date 2026-03-01"
    ):
        drill_page.write_page(settings, TRAINING_DATE)
    results.drill_path(settings, TRAINING_DATE).parent.mkdir()
    results.drill_path(settings, TRAINING_DATE).write_text(to_json(drill), encoding="utf-8")
    path = drill_page.write_page(settings, TRAINING_DATE)
    assert path == tmp_path / "2026-03-01" / "drill.html"
    assert path.read_text(encoding="utf-8") == drill_page.render(drill)
