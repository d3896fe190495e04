"""`score_users`: its lists equal the ranker's for the evaluation's cases, whatever the partitions."""

import dataclasses

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from deltalake import DeltaTable

from jobs.build_training_set import build_training_set
from jobs.quality.check import check
from jobs.quality.suites.by_table import SUITES
from jobs.score_users import Champion, known_items, recommended, score_users, ship
from jobs.snapshot_lte import snapshot_lte
from lte_model.domain.kind import LTEKind
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.ranker.model import Ranker
from lte_model.ranker.recommender import open_recommender
from lte_model.ranker.saved import save_ranker
from lte_model.settings import Scoring
from lte_model.training.training_set import open_training_set
from lte_model.warehouse.tables import RECOMMENDATIONS
from tests.jobs import events as made
from tests.jobs.events import Event
from tests.jobs.rows import frame, recommendation
from tests.jobs.small_tables import DATE, FEED, LAG, VECTORS, WINDOW, ingest
from tests.lte_model.configs import ranker_config

KIND = LTEKind("basis", "uniform", LAG, WINDOW)
LAGGED = {"sequence": "lagged"}
NEWEST = {"sequence": "newest", "time_features": True, "long_memory": "linear_attention", "memory_events": 2}


def new_champion(folder, kind=KIND, item_ids=made.ITEMS, content=None, **options):
    """Makes a model with random weights, as version 7, with its files in `folder`."""
    torch.manual_seed(0)
    content = torch.from_numpy((VECTORS.units / 2**14).astype(np.float32)) if content is None else content
    sizes = {"representations": len(kind.representations), "max_tokens": 4, "width": 16} | options
    ranker = Ranker(ranker_config(*content.shape, **sizes), kind, item_ids, content).eval()
    for parameter in ranker.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_ranker(ranker, folder / "model")
    return Champion("ranker", 7, folder / "model", ranker)


def lists(warehouse, date=DATE):
    """{user: (item ids, scores)} for a date."""
    rows = warehouse.read(RECOMMENDATIONS).where(f"date = DATE'{date}'").collect()
    assert len(rows) == len({row.user_id for row in rows})
    return {row.user_id: (row.item_ids, row.scores) for row in rows}


def test_lists_are_those_of_the_ranker_for_the_cases_of_the_evaluation(filled, tmp_path):
    """Scores a training's test cut twice: from its training set, and from the day's events."""
    settings = filled.settings
    snapshot_lte(filled, [DATE], representations=["uniform", "recency"])
    training_date = DATE + settings.training_set.test_days * ONE_DAY
    build_training_set(filled, training_date)
    for representations, options in ((["uniform"], LAGGED), (["uniform", "recency"], NEWEST)):
        of_model = {"sequence": options["sequence"], "representations": tuple(representations)}
        changed = {"model": settings.model.model_copy(update=of_model), "scoring": Scoring(k=3)}
        filled.settings = settings.model_copy(update=changed)
        training_set = open_training_set(filled.settings, training_date)
        cases = training_set.cases("test")
        champion = new_champion(tmp_path, training_set.kind, **options)
        config = champion.ranker.config
        batch = cases.batch(np.arange(len(cases)), config.max_events, config.max_older_events)
        best = champion.ranker.scores(batch).topk(3)

        assert score_users(filled, DATE, champion) == len(lists(filled))
        found = lists(filled)
        assert len(cases) > 3 and {*cases.user_ids} <= {*found}
        for user, rows, scores in zip(cases.user_ids, best.indices.tolist(), best.values.tolist(), strict=True):
            assert found[user][0] == [made.ITEMS[row] for row in rows]
            np.testing.assert_allclose(found[user][1], scores, rtol=1e-4, atol=1e-5)
    check(filled.settings, "recommendations", SUITES["recommendations"](filled.settings, DATE), DATE)
    named = filled.read(RECOMMENDATIONS).select("model_name", "model_version", "representation").distinct().collect()
    assert [tuple(row) for row in named] == [("ranker", 7, "uniform+recency")]


def test_the_same_users_get_the_same_bits_whatever_the_partitions(spark, tmp_path):
    """Each list equals the recommender's for the users of its group, sorted by id."""
    random = np.random.default_rng(0)
    names = [f"i{row:02}" for row in range(40)]
    content = torch.nn.functional.normalize(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    champion = new_champion(tmp_path, item_ids=names, content=content, max_tokens=12)
    users = [
        {
            "user_id": f"u{random.integers(10**9)}",
            "item_ids": random.choice([*names, "unknown"], random.integers(15)).tolist(),
            "vector_sum": random.integers(-(2**14), 2**14, 4).tolist() if number % 3 else None,
            "event_count": 1 if number % 3 else None,
        }
        for number in range(400)
    ]
    columns = {
        "user_id": pa.string(),
        "item_ids": pa.list_(pa.string()),
        "vector_sum": pa.list_(pa.int32()),
        "event_count": pa.int32(),
    }
    rows = pa.Table.from_pylist(users, pa.schema(columns))
    model, in_spark = ship(spark, champion.directory), spark.createDataFrame(rows)

    def scored(groups, partitions):
        lists = recommended(in_spark, model, 10, np.ones(40, dtype=bool), groups, partitions).toArrow()
        return pl.from_arrow(lists).sort("user_id")

    one = scored(3, 1)
    for partitions in (2, 7):
        assert scored(3, partitions).equals(one)

    nothing_known = [not user["event_count"] and not {*user["item_ids"]} & {*names} for user in users]
    assert 0 < sum(nothing_known) == len(users) - len(one)
    recommender = open_recommender(str(champion.directory))  # one thread, as in Spark: two can give different bits
    in_order = rows.sort_by("user_id").combine_chunks().to_batches()[0]
    best = recommender.best(recommender.read(in_order), 10)
    whole = pl.DataFrame({"user_id": pl.from_arrow(in_order["user_id"]), "item_ids": pl.from_arrow(best.item_ids),
                          "scores": pl.from_arrow(best.scores)})  # fmt: skip
    assert scored(1, 1).drop("candidate_items").equals(whole.join(one, "user_id", "semi"))


def test_seen_items_are_dropped_where_the_settings_say_so_and_what_came_later_changes_nothing(filled, tmp_path):
    snapshot_lte(filled, [DATE])
    before = frame(filled, RECOMMENDATIONS, [recommendation("u", DATE - ONE_DAY)])
    filled.replace(RECOMMENDATIONS, before, "true")
    # The model knows an item that the shop didn't know on the date.
    content = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    champion = new_champion(tmp_path, item_ids=[*made.ITEMS, "later"], content=content, **NEWEST)
    score_users(filled, DATE, champion)
    kept = lists(filled)
    filled.settings = filled.settings.model_copy(update={"scoring": Scoring(seen_items="drop")})
    score_users(filled, DATE, champion)
    dropped = lists(filled)
    start = DATE - (LAG + WINDOW) * ONE_DAY
    history = [event for event in FEED if start <= event.event_date < DATE and event.known_date < DATE]
    assert {*kept} == {*dropped} == {event.user_id for event in history}
    for user, (item_ids, scores) in dropped.items():
        seen = {event.item_id for event in history if event.user_id == user}
        everything = dict(zip(*kept[user], strict=True))
        assert {*everything} == {*made.ITEMS}
        assert item_ids == [item for item in everything if item not in seen]
        assert scores == [everything[item] for item in item_ids]

    late = [Event(user, "a", DATE - ONE_DAY, DATE, 7) for user in (*made.USERS, "somebody new")]
    ingest(filled, [event for event in FEED if event.known_date >= DATE] + late, DATE, DATE + 50 * ONE_DAY)
    score_users(filled, DATE, champion)
    assert lists(filled) == dropped
    assert lists(filled, DATE - ONE_DAY) == {"u": (["i"], [1.0])}

    stranger = new_champion(tmp_path, item_ids=["x", "y"], content=content[:2]).ranker
    with pytest.raises(LTEError, match=f"none of the 2 items that the model ranks .* knew before {DATE}"):
        known_items(filled, stranger, DATE)


def test_a_model_of_other_ltes_is_refused_by_name(filled, tmp_path):
    snapshot_lte(filled, [DATE])
    for other, said in (
        ({"basis_id": "old"}, "trained on basis_id old, but the LTE of {} has basis_id basis"),
        ({"representation": "recency"}, "on representation recency, but the LTE of {} has representation uniform"),
        ({"lag_days": 4}, "trained on lag_days 4, but the LTE of {} has lag_days 3"),
        ({"window_days": 11}, "trained on window_days 11, but the LTE of {} has window_days 10"),
    ):
        with pytest.raises(LTEError, match=said.format(DATE)):
            score_users(filled, DATE, new_champion(tmp_path, dataclasses.replace(KIND, **other)))
    with pytest.raises(LTEError, match=f"no LTE of {DATE + ONE_DAY} in basis basis; run jobs.snapshot_lte --date"):
        score_users(filled, DATE + ONE_DAY, new_champion(tmp_path))
    assert not DeltaTable.is_deltatable(filled.path(RECOMMENDATIONS))
