"""What could not be measured passes no gate: no common user, a rival that finds nothing, an interval without ends."""

import math
import re

import polars as pl
import pytest
from mlflow.tracking import MlflowClient

from lte_model.errors import LTEError
from lte_model.evaluation import ranked, results
from lte_model.figures import UNDEFINED, Figure, to_json
from lte_model.registry import promotion, versions
from lte_model.registry.gate import gate
from lte_model.registry.version_tags import figure_tag
from tests.lte_model.registered import promoted, registered_of_shop


def ranks(**by_user):
    return pl.DataFrame(list(by_user.items()), {"user_id": pl.String, "rank": pl.Float64}, orient="row")


UNMEASURED = {
    "no common user": (ranks(a=1, b=2), ranks(c=1, d=2), "it and version 1 share no test user; train again"),
    "nobody for the champion": (ranks(a=1), ranks(), "it and version 1 share no test user"),
    "nobody at all": (ranks(), ranks(), "it and version 1 share no test user"),
    "a champion that finds nothing": (ranks(a=1, b=2), ranks(a=10**6, b=10**6), "not measured, .* over version 1, 2 u"),
    "two that find nothing": (ranks(a=10**6), ranks(a=10**6), "not measured, .* over version 1, 1 users"),
    "ranks that are none": (ranks(a=1, b=1), ranks(a=math.nan, b=math.nan), "not measured, .* over version 1, 2 users"),
}
"""The ranks by the challenger and by the champion, of which no relative difference can be made."""


def of_champion(found):
    (check,) = (check for check in found.checks if check.rule == "not below the champion")
    return check


def test_a_difference_that_could_not_be_measured_fails_the_gate(trainable_shop, monkeypatch):
    promoted(trainable_shop, registered_of_shop(trainable_shop, 1))
    number = registered_of_shop(trainable_shop, 1, seed=1)
    for ours, theirs, said in UNMEASURED.values():
        both = iter((ours, theirs))
        monkeypatch.setattr(ranked, "ranks_by_user", lambda *_, both=both: next(both))
        check = of_champion(gate(trainable_shop, number))
        assert not check.holds and re.search(said, check.found), check
        with pytest.raises(LTEError, match="not below the champion"):
            promotion.promote(trainable_shop, number, "1")
    monkeypatch.undo()
    assert of_champion(gate(trainable_shop, number)).holds
    for comparison in (results.OVER_NONE, results.OVER_POPULARITY):
        for undefined in (UNDEFINED, Figure(0.1, None, None), Figure(0.1, None, 0.3)):
            tag = figure_tag(comparison, "ndcg@500")
            name, before = trainable_shop.mlflow.model_name, versions.version_of(trainable_shop, number).tags
            MlflowClient().set_model_version_tag(name, number, tag, to_json(undefined, indent=None))
            assert sum(not check.holds for check in gate(trainable_shop, number).checks) == 1
            MlflowClient().set_model_version_tag(name, number, tag, before[tag])
