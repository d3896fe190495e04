import math

import numpy as np
import polars as pl
import pytest
import torch

from lte_model.domain.basis import GRID
from lte_model.errors import LTEError
from lte_model.evaluation.cohorts import cohorts
from lte_model.evaluation.comparison import Comparison
from lte_model.evaluation.evaluate import SIDES, evaluate
from lte_model.evaluation.examples import spread
from lte_model.evaluation.ranked import popularity
from lte_model.evaluation.results import read_evaluation
from lte_model.figures import from_json, to_json
from lte_model.ranker.ranks import target_ranks
from lte_model.ranker.saved import load_ranker
from lte_model.tracking import runs
from lte_model.training.checkpoints import side_directory
from lte_model.training.train import train
from lte_model.training.training_set import open_training_set
from tests.lte_model.small_shop import TRAINING_DATE, write_table


@pytest.fixture(scope="module")
def evaluated(shop, tmp_path_factory):
    """Settings with two trained models, and their evaluation."""
    folder = tmp_path_factory.mktemp("evaluated")
    settings = shop.model_copy(
        update={
            "checkpoints": str(folder / "checkpoints"),
            "reports": str(folder / "reports"),
            "mlflow": shop.mlflow.model_copy(
                update={"experiment": "evaluated", "artifacts": str(folder / "artifacts")}
            ),
        }
    )
    for side in SIDES:
        train(settings, TRAINING_DATE, side)
    return settings, evaluate(settings, TRAINING_DATE)


@pytest.fixture(scope="module")
def training_set(shop):
    return open_training_set(shop, TRAINING_DATE)


def test_the_file_holds_what_was_found(evaluated):
    settings, evaluation = evaluated
    assert read_evaluation(settings, TRAINING_DATE) == from_json(to_json(evaluation))
    assert set(evaluation["sides"]) == {"prefix", "none", "popularity_all", "popularity_30d", "popularity_7d"}
    assert evaluation["test"] == ["2024-11-11", "2024-12-01"]
    for side in evaluation["sides"].values():
        assert set(side["metrics"]) == {f"{name}@{k}" for name in ("ndcg", "recall", "mrr") for k in (5, 40)}
        for figure in side["metrics"].values():
            assert figure.low <= figure.value <= figure.high
    for side in SIDES:
        assert [epoch["epoch"] for epoch in evaluation["curves"][side]] == [1, 2, 3, 4]


def test_the_figures_are_those_of_one_user_at_a_time(evaluated, training_set):
    """Scores every user alone, without batches and padding, and computes NDCG by its definition."""
    settings, evaluation = evaluated
    cases = training_set.cases("test")
    for side in SIDES:
        ranker = load_ranker(side_directory(settings, TRAINING_DATE, side) / "model")
        gains = []
        for i in range(len(cases)):
            (scores,) = ranker.scores(cases.batch(np.array([i]), ranker.config.max_events))
            better = int((scores > scores[cases.targets[i]] + 1e-5).sum())
            gains.append(1 / math.log2(2 + better) if better < 40 else 0)
        assert evaluation["sides"][side]["metrics"]["ndcg@40"].value == pytest.approx(np.mean(gains), rel=1e-3)


def test_uplift_is_the_relative_difference_of_the_sides(evaluated):
    _, evaluation = evaluated
    sides = evaluation["sides"]
    for name, base in (("prefix over none", "none"), ("prefix over popularity_30d", "popularity_30d")):
        for measure, figure in evaluation["uplift"][name].items():
            ours, theirs = (sides[side]["metrics"][measure].value for side in ("prefix", base))
            assert figure.value == pytest.approx(ours / theirs - 1)
            assert figure.low <= figure.value <= figure.high


def test_the_models_beat_popularity_in_a_shop_of_stable_taste(evaluated):
    _, evaluation = evaluated
    values = {side: of_side["metrics"]["ndcg@40"].value for side, of_side in evaluation["sides"].items()}
    assert values["prefix"] > values["popularity_all"] * 1.1


@pytest.mark.parametrize("days", [None, 30, 7])
def test_popularity_counts_the_days_before_the_cut(shop, training_set, days):
    cut = training_set.dates.test.start
    expected = dict.fromkeys(training_set.catalogue.item_ids, 0)
    for item, day in pl.scan_delta(shop.table_path("events")).select("item_id", "event_date").collect().iter_rows():
        if item in expected and day < cut and (days is None or (cut - day).days <= days):
            expected[item] += 1
    assert popularity(training_set, days).tolist() == list(expected.values())
    assert sum(expected.values()) > 0


def test_popularity_counts_no_event_that_was_not_known_before_the_cut(own_shop):
    before = popularity(open_training_set(own_shop, TRAINING_DATE), None).sum()
    cut = open_training_set(own_shop, TRAINING_DATE).dates.test.start
    events = pl.scan_delta(own_shop.table_path("events")).collect()
    in_time = events.filter(pl.col("event_date") < cut)["event_date"].max()
    late = events.with_columns(
        known_date=pl.when(pl.col("event_date") == in_time).then(pl.lit(cut)).otherwise("known_date")
    )
    write_table(own_shop, "events", late, partition_by=["known_date"])
    after = popularity(open_training_set(own_shop, TRAINING_DATE), None).sum()
    assert after == before - len(events.filter(pl.col("event_date") == in_time)) < before


def test_cohorts_are_told_by_what_the_model_reads(shop, training_set):
    cases = training_set.cases("test")
    members = cohorts(training_set, cases, shop.model.max_tokens - 1)
    by_length = np.stack([members[name] for name in ("no short sequence", "short sequence", "long sequence")])
    assert (by_length.sum(axis=0) == 1).all()
    assert (cases.lengths[members["no short sequence"]] == 0).all()
    trained = set(training_set.cases("train").items.tolist())  # lagged: every event is a target
    if "new target items" in members:
        assert not trained & set(cases.targets[members["new target items"]].tolist())


def test_a_cohort_is_measured_on_its_own_users(evaluated, training_set):
    settings, evaluation = evaluated
    cases = training_set.cases("test")
    ranker = load_ranker(side_directory(settings, TRAINING_DATE, "prefix") / "model")
    ranks = {"prefix": target_ranks(ranker, cases, torch.device("cpu"))}
    ranks["none"] = ranks["popularity_30d"] = ranks["prefix"]
    members = cohorts(training_set, cases, ranker.config.max_events)
    for cohort in evaluation["cohorts"]:
        among = Comparison.of(ranks, settings).among(members[cohort["name"]])
        assert cohort["users"] == members[cohort["name"]].sum()
        assert cohort["sides"]["prefix"]["ndcg@40"] == among.metrics()["prefix"]["ndcg@40"]


def test_example_users_are_spread_from_best_to_worst():
    improvement = np.array([0.0, 5.0, -3.0, 1.0, 9.0, 2.0, -1.0])
    candidates = np.array([0, 1, 2, 3, 5, 6])  # 4 has no LTE
    assert spread(improvement, candidates, 3).tolist() == [1, 0, 2] or improvement[
        spread(improvement, candidates, 3)
    ].tolist() == [5.0, 1.0, -3.0]
    assert spread(improvement, candidates[:2], 5).tolist() == [1, 0]
    assert len(spread(improvement, candidates[:0], 5)) == 0


def test_example_users_show_what_the_tables_hold(evaluated, shop, training_set):
    _, evaluation = evaluated
    rows = {
        row["user_id"]: row
        for row in pl.scan_delta(shop.table_path("training_set"))
        .filter(pl.col("split") == "test")
        .collect()
        .iter_rows(named=True)
    }
    snapshots = pl.scan_delta(shop.table_path("lte_snapshots")).filter(
        pl.col("representation") == "uniform", pl.col("snapshot_date") == training_set.dates.test.start
    )
    ltes = {row["user_id"]: row for row in snapshots.collect().iter_rows(named=True)}
    titles = dict(pl.scan_delta(shop.table_path("items")).select("item_id", "title").collect().iter_rows())
    vectors = dict(zip(training_set.catalogue.item_ids, training_set.catalogue.vectors, strict=True))
    assert len(evaluation["users"]) == 5
    changes = [user["ranks"]["none"] / user["ranks"]["prefix"] for user in evaluation["users"]]
    assert changes == sorted(changes, reverse=True)
    cut = str(training_set.dates.test.start)
    for user in evaluation["users"]:
        row = rows[user["user_id"]]
        assert [event["title"] for event in user["sequence"]] == [
            titles[item] for item in row["item_ids"][len(row["item_ids"]) - row["target_count"] :]
        ]
        assert user["target"] == {"date": str(row["target_date"]), "title": titles[row["target_item_id"]]}
        snapshot = ltes[user["user_id"]]
        assert user["lte_count"] == snapshot["event_count"] > 0
        assert 0 < len(user["history"]) <= 20
        dates = [event["date"] for event in user["history"]]
        assert dates == sorted(dates) and dates[-1] == str(snapshot["newest_event_date"]) < cut
        lte = np.array(snapshot["vector_sum"]) / (snapshot["event_count"] * GRID)
        cosines = sorted((float(v @ lte / np.linalg.norm(lte)) for v in vectors.values()), reverse=True)
        assert [item["cosine"] for item in user["lte_neighbours"]] == pytest.approx(cosines[:10], abs=1e-3)
        assert len(user["top"]["prefix"]) == len(user["top"]["none"]) == 10


def test_mlflow_holds_the_test_metrics(evaluated):
    settings, evaluation = evaluated
    experiment_id = runs.configure(settings).experiment_id
    for side in SIDES:
        (run,) = runs.find_runs(experiment_id, TRAINING_DATE, side)
        assert run.info.run_id == evaluation["sides"][side]["run_id"]
        assert run.data.metrics["test_ndcg_at_40"] == evaluation["sides"][side]["metrics"]["ndcg@40"].value
    (run,) = runs.find_runs(experiment_id, TRAINING_DATE, "evaluation")
    assert run.data.metrics["popularity_7d/test_ndcg_at_40"] > 0
    assert "prefix_over_none/ndcg_at_40" in run.data.metrics


def test_evaluating_again_finds_the_same(evaluated):
    settings, evaluation = evaluated
    again = evaluate(settings, TRAINING_DATE)
    assert again | {"seconds": None} == evaluation | {"seconds": None}


def test_a_side_that_is_not_trained_is_named(trainable_shop):
    with pytest.raises(
        LTEError, match=r"training of 2024-12-01, side prefix, is not finished .*run lte_model.training.train"
    ):
        evaluate(trainable_shop, TRAINING_DATE)


def test_a_model_of_another_basis_is_refused_by_name(evaluated, training_set):
    settings, _ = evaluated
    description = side_directory(settings, TRAINING_DATE, "prefix") / "model" / "model.json"
    kept = description.read_text()
    basis_id = training_set.kind.basis_id
    try:
        description.write_text(kept.replace(basis_id, "77c0"))
        with pytest.raises(
            LTEError, match=f"trained on basis_id 77c0, but the training set .* has basis_id {basis_id}"
        ):
            evaluate(settings, TRAINING_DATE)
    finally:
        description.write_text(kept)
