"""The page of an ablation: the paper's table beside ours, and what each variant is worth and costs.

It is rendered from `ablation.json` alone, and all text about outcomes follows from the figures. A difference is
reported only where its whole interval lies on one side of 0; only such a difference confirms or contradicts the paper.
The page is `<reports>/<D>/ablation.html` (ablation.html.jinja, in the frame of lte_model/pages/page.html.jinja).
"""

import datetime
from pathlib import Path
from typing import Any

from lte_model.figures import SIDE_NAMES, Figure, Outcome, metric_label, percent
from lte_model.files import write_atomically
from lte_model.pages import page
from lte_model.settings import Settings
from lte_model.studies import charts, results
from lte_model.studies.results import Ablation
from lte_model.studies.variants import QUESTIONS, RIVAL

_TEMPLATE = "studies/ablation.html.jinja"

AS_IN_PAPER, OTHERWISE, UNDECIDED, UNMEASURED, NOT_IN_PAPER = (
    "as in the paper", "other than the paper", "not decided", "not measured", "not in the paper",
)  # fmt: skip


def write_page(settings: Settings, training_date: datetime.date) -> Path:
    """Renders the page and puts it in place whole. Raises `LTEError` where there is no ablation of that date."""
    path = results.ablation_path(settings, training_date).with_suffix(".html")
    write_atomically(path, render(results.read_ablation(settings, training_date)))
    return path


def render(ablation: Ablation) -> str:
    """The page as one string of HTML; a pure function of the figures."""
    answers = [answer | judged_answer(answer, ablation["headline"]) for answer in ablation["questions"]]
    asked = {(answer["ours"], answer["base"], answer["measure"]) for answer in answers}
    in_paper = [answer for answer in answers if answer["paper"]]
    drawn = {"in_paper": charts.draw_answers(in_paper)} if in_paper else {}
    if len(ablation["budget"]["tokens"]) > 1:
        drawn["budget"] = charts.draw_budget(ablation)
    return page.render(
        _TEMPLATE,
        ablation=ablation,
        metric=ablation["headline"],
        in_paper=in_paper,
        open_questions=[answer for answer in answers if not answer["paper"]],
        otherwise=[answer for answer in in_paper if answer["agreement"] == OTHERWISE],
        not_asked=[
            question.text
            for question in QUESTIONS
            if question.paper and (question.ours, question.base, question.measure) not in asked
        ],
        summary=summary(in_paper),
        leak=leak_in_words(ablation),
        attention=attention_in_words(ablation),
        hrli=[name for name in next(iter(ablation["recency"].values()), {}) if name.startswith("hrli@")],
        trades=[
            trade | {"words": trade_in_words(trade, ablation["headline"])} for trade in ablation["budget"]["trades"]
        ],
        variants={side: of_side for side, of_side in ablation["sides"].items() if "description" in of_side},
        popularity={side: of_side for side, of_side in ablation["sides"].items() if "description" not in of_side},
        popularity_names=SIDE_NAMES | {RIVAL: "SASRec of RecTools"},
        charts=drawn,
    )


def judged_answer(answer: dict[str, Any], headline: str) -> dict[str, str]:
    """What the figures of one answer say: its `agreement` with the paper, its `outcome`, and `words` for both."""
    uplift: Figure = answer["uplift"]
    size: float | None = answer["size"]
    found = uplift.outcome
    direction = {Outcome.BETTER: "higher", Outcome.WORSE: "lower", Outcome.UNDECIDED: ""}[found]
    name = "The attention ratio" if answer["measure"] == "attention_ratio" else metric_label(headline)
    if not uplift.is_defined:
        return {"agreement": UNMEASURED, "outcome": "undecided", "words": "The difference could not be measured."}
    value = uplift.percent(signed=False)
    if not direction:
        words = f"{name} can't be told apart: the interval contains 0"
        if size is not None:
            words += ", and the paper's " if uplift.contains(size) else ", but not the paper's "
            words += percent(size)
        return {"agreement": UNDECIDED, "outcome": "undecided", "words": f"{words}."}
    words = f"{name} is {value} {direction}"
    if not answer["paper"]:
        return {"agreement": NOT_IN_PAPER, "outcome": found.value, "words": f"{words}."}
    if direction != answer["paper"]:
        reported = f" ({percent(size)})" if size is not None else ""
        words += f"; the paper reports the opposite, {answer['paper']}{reported}."
        return {"agreement": OTHERWISE, "outcome": "worse", "words": words}
    words += ", the paper's direction" + _size_in_words(uplift, size)
    return {"agreement": AS_IN_PAPER, "outcome": "better", "words": f"{words}."}


def _size_in_words(uplift: Figure, size: float | None) -> str:
    """How the size of a defined difference compares with the paper's, where the paper gives one."""
    if size is None:
        return "; it gives no size"
    if uplift.contains(size):
        return f", and its size of {percent(size)} is within the interval"
    more = uplift.value is not None and abs(uplift.value) > abs(size)
    return f", {'more' if more else 'less'} than its {percent(size)}"


def summary(answers: list[dict[str, Any]]) -> str:
    """How many of the paper's directions are found here."""
    count = dict.fromkeys((AS_IN_PAPER, OTHERWISE, UNDECIDED, UNMEASURED), 0)
    for answer in answers:
        count[answer["agreement"]] += 1
    told = [f"{number} {agreement}" for agreement, number in count.items() if number]
    return f"Of {len(answers)} comparisons that the paper reports: {', '.join(told)}." if told else ""


def leak_in_words(ablation: Ablation) -> str:
    """How the window without lag does in training and on the test days; empty where it was not trained."""
    sides, headline = ablation["sides"], ablation["headline"]
    answer = next((answer for answer in ablation["questions"] if answer["ours"] == "leak"), None)
    if answer is None:
        return ""
    leak, prefix = (sides[side]["training_loss"] for side in ("leak", "prefix"))
    seems = "better" if leak < prefix else "no better"
    return (
        f"In training the window without lag looks {seems}: a loss of {leak:.2f}, where the lagged window has "
        f"{prefix:.2f}. On the test days: {judged_answer(answer | {'paper': ''}, headline)['words']}"
    )


def attention_in_words(ablation: Ablation) -> list[str]:
    """Whether the attention ratio depends on the LTE's content, for each variant with a question about the ratio."""
    said = []
    asked = [question.ours for question in QUESTIONS if question.measure == "attention_ratio"]
    for name in asked:
        figures = ablation["recency"].get(name, {})
        if "over_constant" not in figures or "attention_ratio" not in figures:
            continue
        for control, whose in (("constant", "the mean LTE for everybody"), ("shuffled", "another user's LTE")):
            uplift: Figure = figures[f"over_{control}"]
            if not uplift.is_defined:
                said.append(f"{name}: against {whose} the ratio could not be measured.")
                continue
            value = uplift.percent(signed=False)
            words = {
                Outcome.BETTER: f"{value} higher than with {whose}",
                Outcome.WORSE: f"{value} lower than with {whose}",
                Outcome.UNDECIDED: f"the same, as far as this test tells, as with {whose}",
            }[uplift.outcome]
            said.append(f"{name}: with the user's own LTE the ratio is {words}.")
    return said


def trade_in_words(trade: dict[str, Any], headline: str) -> str:
    """Whether the LTE with few tokens is worth many tokens without it."""
    few, many = trade["tokens"], trade["against"]
    uplift: Figure = trade["uplift"]
    name, value = metric_label(headline), uplift.percent(signed=False)
    between = f"{few} tokens with LTE against {many} without"
    if not uplift.is_defined:
        return f"{between}: the difference could not be measured."
    match uplift.outcome:
        case Outcome.BETTER:
            return f"{between}: {name} is {value} higher. The LTE is worth more than {many // few} times the tokens."
        case Outcome.WORSE:
            return f"{between}: {name} is {value} lower. The LTE is worth less than {many // few} times the tokens."
        case Outcome.UNDECIDED:
            return f"{between}: {name} can't be told apart with {trade['users']:,} users."
