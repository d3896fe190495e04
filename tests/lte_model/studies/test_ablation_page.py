"""The page of an ablation: its text agrees with the figures in every case."""

import copy
import dataclasses
import math
import re

import pytest

from lte_model.errors import LTEError
from lte_model.figures import UNDEFINED, Figure, FigureOfUsers, to_json
from lte_model.settings import Settings
from lte_model.studies import ablation_page, results
from lte_model.studies.ablation_page import judged_answer
from lte_model.studies.variants import BUDGETS, QUESTIONS, VARIANTS
from tests.lte_model.evaluation.test_report import DATES, TRAINING_DATE, figure, text_of
from tests.lte_model.pages import require_charts

pytestmark = pytest.mark.slow


def side(strength, variant=None):
    measured = {
        "metrics": {f"ndcg@{k}": figure(strength * math.log10(k) / 2.7, 0.006) for k in (10, 100, 500)},
        "by_seed": [strength - 0.001, strength, strength + 0.001],
    }
    if variant is None:
        return measured
    tokens = VARIANTS[variant].overrides.get("max_tokens", 50)
    return measured | {
        "description": VARIANTS[variant].description,
        "integration": "prefix",
        "representations": ["uniform"],
        "policy": VARIANTS[variant].overrides.get("sequence", "lagged"),
        "max_tokens": tokens,
        "long_memory": "none",
        "popularity_bias": False,
        "time_features": False,
        "repeat_bias": False,
        "validation": strength + 0.003,
        "training_loss": 4.0 if variant == "leak" else 5.7,
        "training_seconds": 61.3,
        "targets_per_second": 21000,
        "milliseconds_per_query": 0.02 * tokens,
    }


def question(ours, base, value, spread, measure="ndcg"):
    asked = next(q for q in QUESTIONS if (q.ours, q.base, q.measure) == (ours, base, measure))
    seeds = [value - 0.01, value, value + 0.01] if measure == "ndcg" else []
    return dataclasses.asdict(asked) | {"users": 1045, "uplift": figure(value, spread), "by_seed": seeds}


def over_users(figure, users):
    return FigureOfUsers(figure.value, figure.low, figure.high, users)


def recency(ratio, control=None):
    figures = {"attention_ratio": over_users(figure(ratio, 0.05), 640)}
    if control:
        figures |= {name: over_users(figure(control, 0.05), 640) for name in ("constant", "shuffled")}
        figures |= {f"over_{name}": figure(ratio / control - 1, 0.01) for name in ("constant", "shuffled")}
    return figures | {f"hrli@{k}": over_users(figure(0.1 * math.log10(k), 0.02), 900) for k in (10, 100, 500)}


@pytest.fixture
def ablation():
    return made_up_ablation()


def made_up_ablation():
    """Figures that confirm the paper on one question, contradict it on another and leave a third undecided."""
    strengths = {"none": 0.127, "prefix": 0.155, "late_fusion": 0.14, "leak": 0.12, "prefix_newest": 0.161}
    strengths |= {f"{of}@{n}": 0.1 + 0.03 * math.log10(n) + (of == "prefix") / (10 * n) for n in BUDGETS
                  for of in ("none", "prefix")}  # fmt: skip
    popularity = {"popularity_all": 0.096, "popularity_30d": 0.145, "popularity_7d": 0.143}
    cohort = {
        "name": "no short sequence",
        "users": 512,
        "sides": {name: figure(0.1, 0.01) for name in ("none", *popularity)},
        "uplifts": {"LTE as a prefix token, over no LTE": figure(0.41, 0.12)},
    }
    return {
        "training_date": TRAINING_DATE.isoformat(),
        "basis_id": "3f2ac41b907d",
        "lag_days": 30,
        "window_days": 365,
        "anchors": [anchor.isoformat() for anchor in DATES.anchors],
        "validation": [str(DATES.validation.start), str(DATES.validation.end)],
        "test": [str(DATES.test.start), str(DATES.test.end)],
        "catalogue_items": 3388,
        "test_users": 1045,
        "dropped_unknown_target": 17,
        "headline": "ndcg@500",
        "seeds": 3,
        "threads": 2,
        "sides": {name: side(strength, name) for name, strength in strengths.items()}
        | {name: side(strength) for name, strength in popularity.items()},
        "best": {"variant": "prefix_newest", "candidates": {"prefix_newest": 0.164, "prefix": 0.158}},
        "questions": [
            question("prefix", "none", 0.198, 0.07),
            question("late_fusion", "none", 0.11, 0.04),
            question("prefix_recency", "prefix", -0.002, 0.01),
            question("leak", "prefix", -0.2, 0.05),
            question("prefix", "none", -0.09, 0.02, "attention_ratio"),
            question("best", "popularity_7d", 0.12, 0.03),
        ],
        "cohorts": {"lagged": [cohort]},
        "recency": {"none": recency(2.8), "prefix": recency(2.5, control=2.6)},
        "budget": {
            "tokens": list(BUDGETS),
            "trades": [
                {"tokens": 5, "against": 20, "users": 800, "uplift": figure(0.05, 0.02)},
                {"tokens": 10, "against": 50, "users": 700, "uplift": figure(0.0, 0.02)},
                {"tokens": 50, "against": 200, "users": 90, "uplift": figure(-0.05, 0.02)},
            ],
        },
        "tables": {"training_set": {"version": 6}, "lte_snapshots": {"version": 12}},
        "seconds": 71.4,
    }


@pytest.mark.parametrize(
    ("value", "spread", "agreement", "words"),
    [
        (0.198, 0.07, "as in the paper", "NDCG@500 is 19.8 % higher, the paper's direction, more than its +1.3 %."),
        (0.005, 0.004, "as in the paper", "NDCG@500 is 0.5 % higher, the paper's direction, less than its +1.3 %."),
        (0.02, 0.01, "as in the paper",
         "NDCG@500 is 2.0 % higher, the paper's direction, and its size of +1.3 % is within the interval."),
        (0.01, 0.02, "not decided",
         "NDCG@500 can't be told apart: the interval contains 0, and the paper's +1.3 %."),
        (-0.01, 0.02, "not decided",
         "NDCG@500 can't be told apart: the interval contains 0, but not the paper's +1.3 %."),
        (-0.2, 0.05, "other than the paper",
         "NDCG@500 is 20.0 % lower; the paper reports the opposite, higher (+1.3 %)."),
    ],
)  # fmt: skip
def test_words_follow_the_figures(value, spread, agreement, words):
    found = judged_answer(question("prefix", "none", value, spread), "ndcg@500")
    assert (found["agreement"], found["words"]) == (agreement, words)


def test_a_direction_without_a_size_and_one_that_the_paper_does_not_have():
    lower = judged_answer(question("late_fusion", "none", -0.1, 0.05), "ndcg@500")
    assert lower["words"] == "NDCG@500 is 10.0 % lower, the paper's direction; it gives no size."
    higher = judged_answer(question("late_fusion", "none", 0.1, 0.05), "ndcg@500")
    assert higher["words"] == "NDCG@500 is 10.0 % higher; the paper reports the opposite, lower."
    ours = judged_answer(question("best", "popularity_7d", 0.1, 0.05), "ndcg@500")
    assert (ours["agreement"], ours["words"]) == ("not in the paper", "NDCG@500 is 10.0 % higher.")
    ratio = judged_answer(question("prefix", "none", -0.1, 0.05, "attention_ratio"), "ndcg@500")
    assert ratio["words"].startswith(
        "The attention ratio is 10.0 % lower, the paper's direction, and its size of −7.4 %"
    )
    unmeasured = judged_answer(question("prefix", "none", 0, 0) | {"uplift": UNDEFINED}, "ndcg@500")
    assert unmeasured["agreement"] == "not measured"


def test_the_page_says_where_ours_differs(ablation):
    text = text_of(ablation_page.render(ablation))
    assert "Of 5 comparisons that the paper reports: 3 as in the paper, 1 other than the paper, 1 not decided." in text
    assert "late fusion over no LTE: NDCG@500 is 11.0 % higher; the paper reports the opposite, lower." in text
    assert "Not run here: LTE as a prefix token, over no LTE, newest events;" in text
    assert "a loss of 4.00, where the lagged window has 5.70. On the test days: NDCG@500 is 20.0 % lower." in text
    assert "prefix_newest is the best of 2 variants by NDCG@500 on the validation days" in text
    assert "17 users left out" in text
    assert "no short sequence 512 users LTE as a prefix token, over no LTE +41.0 % [+29.0 %, +53.0 %]" in text


def test_the_page_of_the_opposite_figures_says_the_opposite(ablation):
    for answer in ablation["questions"]:
        uplift = answer["uplift"]
        answer["uplift"] = Figure(-uplift.value, -uplift.high, -uplift.low)
    text = text_of(ablation_page.render(ablation))
    assert "1 as in the paper, 3 other than the paper, 1 not decided" in text
    assert "LTE as a prefix token, over no LTE: NDCG@500 is 19.8 % lower; the paper reports the opposite" in text
    assert "late fusion over no LTE: NDCG@500 is 11.0 % higher" not in text


def test_tokens_are_traded_in_words(ablation):
    text = text_of(ablation_page.render(ablation))
    assert "5 tokens with LTE against 20 without: NDCG@500 is 5.0 % higher. The LTE is worth more than 4 times" in text
    assert "10 tokens with LTE against 50 without: NDCG@500 can't be told apart with 700 users." in text
    assert "50 tokens with LTE against 200 without: NDCG@500 is 5.0 % lower. The LTE is worth less than 4" in text


def test_controls_are_read_by_their_intervals(ablation):
    text = text_of(ablation_page.render(ablation))
    assert "prefix: with the user's own LTE the ratio is 3.8 % lower than with the mean LTE for everybody." in text
    ablation["recency"]["prefix"]["over_shuffled"] = figure(-0.01, 0.02)
    text = text_of(ablation_page.render(ablation))
    assert "the ratio is the same, as far as this test tells, as with another user's LTE." in text


@pytest.mark.parametrize("undefined", [UNDEFINED, Figure(0.05, None, None)])
def test_what_could_not_be_measured_is_not_called_the_same(ablation, undefined):
    ablation["recency"]["prefix"]["over_shuffled"] = undefined
    for trade in ablation["budget"]["trades"]:
        trade["uplift"] = undefined
    text = text_of(ablation_page.render(ablation))
    assert "prefix: against another user's LTE the ratio could not be measured." in text
    assert "5 tokens with LTE against 20 without: the difference could not be measured." in text


def test_charts_and_page_need_nothing_else(ablation):
    page = ablation_page.render(ablation)
    assert "default-src 'none'" in page and not re.findall(r"<(script|img|iframe|object)\b|@import|@font-face", page)
    require_charts(page, 2)
    assert ablation_page.render(copy.deepcopy(ablation)) == page


def test_little_is_still_a_page(ablation):
    ablation |= {"questions": [], "cohorts": {}, "recency": {}, "budget": {"tokens": [], "trades": []}}
    ablation["sides"] = {"leak": ablation["sides"]["leak"]}
    ablation["best"] = {"variant": None, "candidates": {}}
    text = text_of(ablation_page.render(ablation))
    assert "No variant that was run may be chosen" in text and "What a token is worth" not in text


def test_it_is_written_beside_its_figures(ablation, tmp_path):
    settings = Settings(home=str(tmp_path), reports=str(tmp_path))
    with pytest.raises(
        LTEError, match=r"has no ablation at .*; run python -m lte_model.studies.ablation report --date 2026-03-01"
    ):
        ablation_page.write_page(settings, TRAINING_DATE)
    results.ablation_path(settings, TRAINING_DATE).parent.mkdir()
    results.ablation_path(settings, TRAINING_DATE).write_text(to_json(ablation), encoding="utf-8")
    path = ablation_page.write_page(settings, TRAINING_DATE)
    assert path == tmp_path / "2026-03-01" / "ablation.html"
    assert path.read_text(encoding="utf-8") == ablation_page.render(ablation)
