"""Figures as text and as JSON; the JSON has the same form as when figures were dicts."""

import json
import math

import pytest

from lte_model.figures import UNDEFINED, Figure, FigureOfUsers, Outcome, from_json, to_json

GAIN = Figure(0.0131, 0.005, 0.021)


def test_a_figure_is_an_object_of_three_keys_in_json():
    content = {"uplift": GAIN, "ratio": FigureOfUsers(2.5, 2.4, 2.6, 640), "nothing": UNDEFINED, "of": {"value": 1}}
    written = {
        "uplift": {"value": 0.0131, "low": 0.005, "high": 0.021},
        "ratio": {"value": 2.5, "low": 2.4, "high": 2.6, "users": 640},
        "nothing": {"value": None, "low": None, "high": None},
        "of": {"value": 1},
    }
    assert to_json(content) == json.dumps(written, indent=1)
    assert to_json(GAIN, indent=None) == json.dumps(written["uplift"])
    assert from_json(to_json(content)) == content


def test_what_is_no_json_is_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json({"uplift": Figure(math.nan, 0.0, 1.0)})
    with pytest.raises(TypeError, match="neither JSON nor a figure"):
        to_json({"uplift": {1, 2}})


@pytest.mark.parametrize("ends", [(None, 0.0, 1.0), (0.5, None, 1.0), (0.5, 0.0, None), (math.nan, 0.0, math.inf)])
def test_a_figure_without_an_end_is_undefined_and_undecided(ends):
    figure = Figure(*ends)
    assert (figure.is_defined, figure.outcome, figure.interval(), figure.percent_interval()) == (
        False, Outcome.UNDECIDED, "", "",
    )  # fmt: skip
    assert not figure.contains(0.5) and figure.scaled(100) == UNDEFINED


def test_the_outcome_is_that_of_the_whole_interval():
    assert [Figure(v, v - 0.1, v + 0.1).outcome for v in (0.2, -0.2, 0.05)] == list(Outcome)
    assert Figure(0.1, 0.0, 0.2).outcome is Outcome.UNDECIDED  # the interval touches 0


def test_a_figure_is_written_as_a_metric_or_as_a_difference():
    assert (Figure(0.2321, 0.2204, 0.2453).number(), Figure(0.2321, 0.2204, 0.2453).interval()) == (
        "0.2321", "[0.2204, 0.2453]",
    )  # fmt: skip
    assert (GAIN.percent(), GAIN.percent_interval()) == ("+1.3 %", "[+0.5 %, +2.1 %]")
    assert Figure(-0.0131, -0.02, 0.01).percent(signed=False, digits=2) == "1.31 %"
    assert (UNDEFINED.number(), UNDEFINED.percent()) == ("–", "–")
    assert GAIN.scaled(100) == Figure(1.31, 0.5, 2.1)


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (GAIN, "NDCG@500 is 1.3 % higher than that of the rival (95 % interval +0.5 % to +2.1 %, 1,045 users)."),
        (
            Figure(-0.2, -0.3, -0.1),
            "NDCG@500 is 20.0 % lower than that of the rival (95 % interval −30.0 % to −10.0 %, 1,045 users).",
        ),
        (
            Figure(-0.01, -0.02, 0.01),
            "NDCG@500 is 1.0 % lower than that of the rival, but the 95 % interval, −2.0 % to +1.0 %, contains 0: with "
            "1,045 users this test cannot tell the two apart.",
        ),
        (UNDEFINED, "The difference to the rival could not be measured."),
    ],
)
def test_a_difference_is_told_in_words(figure, words):
    assert figure.in_words("ndcg@500", 1045, "rival") == words
