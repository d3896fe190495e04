"""The ablation of a small shop: every variant gets the same users, and figures follow their definitions."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from mlflow.tracking import MlflowClient

from lte_model.errors import LTEError
from lte_model.figures import to_json
from lte_model.metrics import ndcg
from lte_model.ranker.ranks import target_ranks
from lte_model.ranker.saved import load_ranker
from lte_model.studies import ablation as command
from lte_model.studies.ablation import evaluate_ablation
from lte_model.studies.results import ablation_path, read_ablation
from lte_model.studies.trained_variants import (
    list_trainings,
    milliseconds_per_query,
    read_ranks,
    side_of,
    train_variant,
    trained_variants,
)
from lte_model.studies.variants import BUDGETS, QUESTIONS, RIVAL, VARIANTS, chosen_variants, trained_as
from lte_model.tracking.runs import configure, find_runs
from lte_model.training.checkpoints import read_result, side_directory
from lte_model.training.training_set import open_training_set
from tests.lte_model.small_shop import TRAINING_DATE

DEPLOYED = "hybrid_prefix_popularity_time"
"""A variant with all features: the hybrid sequence, its memory, popularity, times, and the refit."""

CHOSEN = chosen_variants(f"none,prefix,{DEPLOYED},none@5,prefix@5,none@20,prefix@20")
SEEDS = 2


@pytest.fixture(scope="module")
def shop(smaller_shop):
    return smaller_shop


def in_folder(settings, folder):
    """Settings with their own reports and MLflow experiment."""
    mlflow = settings.mlflow.model_copy(update={"experiment": folder.name, "artifacts": str(folder / "artifacts")})
    return settings.model_copy(update={"reports": str(folder / "reports"), "mlflow": mlflow})


@pytest.fixture(scope="module")
def compared(shop, tmp_path_factory):
    """Settings with variants trained for one epoch each, and their ablation."""
    folder = tmp_path_factory.mktemp("ablation")
    training = shop.training.model_copy(update={"epochs": 1, "batch_size": 128, "threads": 1})
    settings = in_folder(shop, folder).model_copy(
        update={"checkpoints": str(folder / "checkpoints"), "training": training}
    )
    for training in list_trainings(settings, TRAINING_DATE, CHOSEN, SEEDS):
        train_variant(settings, TRAINING_DATE, VARIANTS[training["variant"]], training["seed"])
    return settings, evaluate_ablation(settings, TRAINING_DATE, CHOSEN, SEEDS)


def ranker_of(settings, variant, seed):
    side = side_of(settings, VARIANTS[variant], seed)
    return load_ranker(side_directory(settings, TRAINING_DATE, side) / "model")


def ranks_of(settings, variant, seed):
    own = VARIANTS[variant].settings(settings, seed)
    cases = open_training_set(own, TRAINING_DATE).cases("test")
    return target_ranks(ranker_of(settings, variant, seed), cases, torch.device("cpu"))


def test_every_question_is_of_variants_that_there_are():
    named = {side for question in QUESTIONS for side in (question.ours, question.base)}
    assert named <= {*VARIANTS, "best", "popularity_7d", RIVAL}
    for policy_of in (question for question in QUESTIONS if question.paper):
        ours, base = (VARIANTS[side].overrides.get("sequence") for side in (policy_of.ours, policy_of.base))
        assert ours == base


def test_every_variant_makes_a_model(shop):
    """The settings accept a variant's overrides, which don't depend on the installation's own model."""
    other = shop.model_copy(
        update={
            "model": shop.model.model_copy(update={"integration": "none", "time_features": True}),
            "training": shop.training.model_copy(update={"refit": True}),
        }
    )
    for variant in VARIANTS.values():
        settings = variant.settings(shop, seed=7)
        assert settings.training.seed == 7 and settings.model.width == shop.model.width
        assert settings.training.refit == settings.model.time_features  # the deployed configuration
        assert variant.settings(other, seed=7) == settings
    assert {name for name in VARIANTS if "@" in name} == {f"{side}@{n}" for side in ("none", "prefix") for n in BUDGETS}


def test_equal_variants_are_trained_once(shop):
    long, same = VARIANTS["long_sequence"], VARIANTS["none@200"]
    assert trained_as(shop, same) is long is trained_as(shop, long)
    assert side_of(shop, same, 1) == "ablation/long_sequence/seed-1"
    assert side_of(shop, VARIANTS["none@50"], 0) == "ablation/none@50/seed-0"  # the shop's own sequence has 12 tokens
    listed = list_trainings(shop, TRAINING_DATE, chosen_variants("none@200,long_sequence,prefix"), seeds=2)
    assert listed == [
        {"variant": variant, "seed": seed} for seed in range(2) for variant in ("prefix", "long_sequence")
    ]


def test_a_variant_that_there_is_not_and_one_without_its_lte_are_named(shop):
    with pytest.raises(LTEError, match="there is no variant 'prefx'; choose of none, prefix, "):
        chosen_variants("none, prefx")
    with pytest.raises(
        LTEError, match=r"lte_snapshots holds no LTE of .* representation inverse_popularity; run python -m jobs"
    ):
        list_trainings(shop, TRAINING_DATE, chosen_variants("none,prefix_inverse_popularity"), seeds=1)


def test_a_variant_that_is_not_trained_is_named(trainable_shop):
    with pytest.raises(LTEError, match="no variant is trained for 2024-12-01 with seeds 0 to 2; run python -m"):
        trained_variants(trainable_shop, TRAINING_DATE, 3)
    with pytest.raises(
        LTEError, match=r"not finished .*run python -m lte_model.studies.ablation train --date .* --variant none"
    ):
        evaluate_ablation(trainable_shop, TRAINING_DATE, chosen_variants("none"), seeds=1)


def test_trained_variants_are_found(compared):
    settings, _ = compared
    assert trained_variants(settings, TRAINING_DATE, SEEDS) == CHOSEN
    with pytest.raises(LTEError, match="no variant is trained"):
        trained_variants(settings, TRAINING_DATE, SEEDS + 1)


def test_a_model_of_other_settings_is_refused(compared):
    settings, _ = compared
    wider = settings.model_copy(update={"model": settings.model.model_copy(update={"width": 32})})
    with pytest.raises(LTEError, match="variant none, seed 0, has other settings than today's; run python -m"):
        evaluate_ablation(wider, TRAINING_DATE, chosen_variants("none"), SEEDS)


def test_the_figures_are_means_over_users_and_seeds(compared):
    settings, ablation = compared
    assert json.loads(ablation_path(settings, TRAINING_DATE).read_text()) == json.loads(to_json(ablation))
    assert set(ablation["sides"]) == {variant.name for variant in CHOSEN} | {
        "popularity_all", "popularity_30d", "popularity_7d",
    }  # fmt: skip
    for variant in ("prefix", DEPLOYED, "none@5"):
        gains = [ndcg(ranks_of(settings, variant, seed), 40) for seed in range(SEEDS)]
        side = ablation["sides"][variant]
        assert ablation["test_users"] == len(gains[0])
        assert side["by_seed"] == pytest.approx([gain.mean() for gain in gains])
        assert side["metrics"]["ndcg@40"].value == pytest.approx(np.mean(gains))
        assert side["metrics"]["ndcg@40"].low < np.mean(gains) < side["metrics"]["ndcg@40"].high


def test_a_question_is_answered_by_paired_users(compared):
    _, ablation = compared
    answers = {(answer["ours"], answer["base"], answer["measure"]): answer for answer in ablation["questions"]}
    assert set(answers) == {
        ("prefix", "none", "ndcg"), ("prefix", "none", "attention_ratio"), ("best", "popularity_7d", "ndcg"),
    }  # fmt: skip
    sides = ablation["sides"]
    answer = answers["prefix", "none", "ndcg"]
    ours, base = (sides[side]["metrics"]["ndcg@40"].value for side in ("prefix", "none"))
    assert answer["uplift"].value == pytest.approx(ours / base - 1)
    assert answer["by_seed"] == pytest.approx(
        [a / b - 1 for a, b in zip(sides["prefix"]["by_seed"], sides["none"]["by_seed"], strict=True)]
    )
    assert answer["paper"] == "higher" and answer["size"] == 0.0131
    ratios = ablation["recency"]
    ours, base = (ratios[side]["attention_ratio"] for side in ("prefix", "none"))
    answer = answers["prefix", "none", "attention_ratio"]
    assert answer["users"] == ours.users == base.users < ablation["test_users"]
    assert answer["uplift"].value == pytest.approx(ours.value / base.value - 1)


def test_recency_comes_with_its_controls(compared):
    _, ablation = compared
    recency = ablation["recency"]
    assert set(recency) == {"none", "prefix", DEPLOYED}
    assert set(recency["none"]) == {"attention_ratio", "hrli@5", "hrli@40"}
    controls = {"constant", "shuffled", "over_constant", "over_shuffled"}
    assert set(recency["prefix"]) == {"attention_ratio", "hrli@5", "hrli@40"} | controls
    assert recency["prefix"]["hrli@5"].value <= recency["prefix"]["hrli@40"].value <= 1


def test_best_is_what_validation_chose(compared):
    settings, ablation = compared
    found = {
        variant.name: np.mean(
            [
                max(epoch["validation_ndcg@40"] for epoch in result["curve"])
                for result in (
                    read_result(settings, TRAINING_DATE, side_of(settings, variant, seed)) for seed in range(SEEDS)
                )
            ]
        )
        for variant in CHOSEN
    }
    assert ablation["best"]["candidates"] == pytest.approx(found)
    assert ablation["best"]["variant"] == max(found, key=found.get)
    assert next(iter(ablation["best"]["candidates"])) == ablation["best"]["variant"]
    assert not VARIANTS["leak"].candidate


def test_cohorts_are_those_of_a_policy(compared):
    _, ablation = compared
    assert set(ablation["cohorts"]) == {"lagged", "newest"}
    for policy, cohorts in ablation["cohorts"].items():
        names = [cohort["name"] for cohort in cohorts]
        assert "history longer than the sequence" in names and "no short sequence" in names
        for cohort in cohorts:
            variants = set(cohort["sides"]) & set(VARIANTS)
            assert variants == {name for name in VARIANTS if ablation["sides"].get(name, {}).get("policy") == policy}
            for text, uplift in cohort["uplifts"].items():
                (question,) = (
                    question for question in QUESTIONS if (question.text, question.measure) == (text, "ndcg")
                )
                ours, base = (cohort["sides"][side].value for side in (question.ours, question.base))
                assert uplift.value == pytest.approx(ours / base - 1)
    assert set(ablation["cohorts"]["lagged"][0]["uplifts"]) == {"LTE as a prefix token, over no LTE"}


def test_the_budget_is_traded_where_the_history_is_longer(compared):
    settings, ablation = compared
    assert ablation["budget"]["tokens"] == [5, 20]
    (trade,) = ablation["budget"]["trades"]
    assert (trade["tokens"], trade["against"]) == (5, 20)
    cases = open_training_set(VARIANTS["none@5"].settings(settings, 0), TRAINING_DATE).cases("test")
    longer = cases.history_counts > np.minimum(cases.lengths, 4)
    assert trade["users"] == longer.sum() < len(cases)
    ours, base = (
        np.mean([ndcg(ranks_of(settings, variant, seed), 40)[longer] for seed in range(SEEDS)])
        for variant in ("prefix@5", "none@20")
    )
    assert trade["uplift"].value == pytest.approx(ours / base - 1)


def test_costs_are_told(compared):
    settings, ablation = compared
    for name in ("none", DEPLOYED, "prefix@20"):
        side = ablation["sides"][name]
        results = [read_result(settings, TRAINING_DATE, f"ablation/{name}/seed-{seed}") for seed in range(SEEDS)]
        assert side["training_seconds"] == round(np.mean([result["seconds"] for result in results]), 1)
        assert side["targets_per_second"] > 0 and side["milliseconds_per_query"] > 0
    cases = open_training_set(settings, TRAINING_DATE).cases("test")
    assert milliseconds_per_query(ranker_of(settings, "prefix", 0), cases) > 0


def test_mlflow_nests_the_trainings_in_one_run(compared):
    settings, ablation = compared
    experiment_id = configure(settings).experiment_id
    (parent,) = find_runs(experiment_id, TRAINING_DATE, "ablation")
    runs = MlflowClient().search_runs([experiment_id])
    children = {run.data.tags["lte.side"] for run in runs if run.info.run_id != parent.info.run_id}
    assert children == {f"ablation/{variant.name}/seed-{seed}" for variant in CHOSEN for seed in range(SEEDS)}
    for run in runs:
        if run.info.run_id != parent.info.run_id:
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.metrics["prefix/test_ndcg_at_40"] == ablation["sides"]["prefix"]["metrics"]["ndcg@40"].value
    (seed_1,) = find_runs(experiment_id, TRAINING_DATE, "ablation/none@5/seed-1")
    assert seed_1.data.metrics["test_ndcg_at_40"] == ablation["sides"]["none@5"]["by_seed"][1]
    assert [file.path for file in MlflowClient().list_artifacts(parent.info.run_id)] == ["ablation.json"]


def test_a_variant_that_one_would_deploy_is_trained_up_to_the_cut(compared):
    settings, _ = compared
    experiment_id = configure(settings).experiment_id
    for variant, refit in ((DEPLOYED, "True"), ("prefix", "False")):
        (run,) = find_runs(experiment_id, TRAINING_DATE, f"ablation/{variant}/seed-0")
        assert run.data.params["refit"] == refit


def test_training_again_finds_it_done(compared, capsys):
    settings, _ = compared
    model = train_variant(settings, TRAINING_DATE, VARIANTS["none"], 1)
    assert "is done already" in capsys.readouterr().out
    assert model == Path(settings.checkpoints) / "2024-12-01/ablation/none/seed-1/model"


def test_the_list_is_one_line_of_json(shop, monkeypatch, capsys):
    arguments = ["ablation", "list", "--date", str(TRAINING_DATE), "--variants", "none,prefix", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--settings", str(Path(shop.home) / "settings.toml")])
    command.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == [
        {"variant": "none", "seed": 0},
        {"variant": "prefix", "seed": 0},
    ]


@pytest.fixture(scope="module")
def cases(shop):
    return open_training_set(shop, TRAINING_DATE).cases("test")


def write_ranks(file, cases, ranks):
    """Writes ranks (seeds, users), one row per user, shuffled."""
    frame = pl.concat(
        pl.DataFrame({"user_id": cases.user_ids, "seed": [seed] * len(cases), "rank": of_seed})
        for seed, of_seed in enumerate(ranks)
    )
    frame.sample(fraction=1, shuffle=True, seed=0).write_parquet(file)
    return frame


def test_ranks_of_another_making_are_read_by_user(cases, tmp_path):
    ranks = np.random.default_rng(0).integers(1, 81, (2, len(cases))).astype(float)
    frame = write_ranks(tmp_path / "ranks.parquet", cases, ranks)
    assert np.array_equal(read_ranks(tmp_path / "ranks.parquet", cases), ranks)
    more = pl.concat([frame, frame.filter(pl.col("seed") == 0).head(1).with_columns(user_id=pl.lit("nobody"))])
    more.write_parquet(tmp_path / "more.parquet")
    assert np.array_equal(read_ranks(tmp_path / "more.parquet", cases), ranks)


def test_ranks_that_are_not_there_are_named(cases, tmp_path):
    with pytest.raises(LTEError, match=r"there is no file of ranks .*ranks.parquet; rank the test users and write"):
        read_ranks(tmp_path / "ranks.parquet", cases)
    frame = write_ranks(tmp_path / "ranks.parquet", cases, np.ones((2, len(cases))))
    missing = cases.user_ids.head(3).implode()
    frame.filter(~((pl.col("seed") == 1) & pl.col("user_id").is_in(missing))).write_parquet(tmp_path / "ranks.parquet")
    with pytest.raises(LTEError, match=r"ranks.parquet lacks 3 test users of seed 1; rank all of them"):
        read_ranks(tmp_path / "ranks.parquet", cases)


def test_a_rival_stands_beside_the_variants(compared, cases, tmp_path, monkeypatch, capsys):
    settings = in_folder(compared[0], tmp_path)
    ranks = np.random.default_rng(1).integers(1, 81, (3, len(cases))).astype(float)  # the rival has its own seeds
    write_ranks(tmp_path / "ranks.parquet", cases, ranks)
    arguments = ["ablation", "report", "--date", str(TRAINING_DATE), "--variants", "none", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--rival", f"{RIVAL}={tmp_path / 'ranks.parquet'}"])
    monkeypatch.setattr("lte_model.command_line.load_settings", lambda path: settings)
    command.main()
    page = Path(capsys.readouterr().out.splitlines()[-1])
    assert RIVAL in page.read_text()
    found = read_ablation(settings, TRAINING_DATE)
    side = found["sides"][RIVAL]
    assert side["by_seed"] == pytest.approx(ndcg(ranks, 40).mean(axis=1))
    assert side["metrics"]["ndcg@40"].value == pytest.approx(ndcg(ranks, 40).mean())
    (answer,) = (answer for answer in found["questions"] if answer["base"] == RIVAL)
    ours = found["sides"]["none"]["metrics"]["ndcg@40"].value
    assert answer["ours"] == "best" and answer["uplift"].value == pytest.approx(ours / ndcg(ranks, 40).mean() - 1)
    assert answer["by_seed"] == pytest.approx(np.divide(found["sides"]["none"]["by_seed"], ndcg(ranks, 40).mean()) - 1)
    assert list(found["best"]["candidates"]) == ["none"]  # the rival is not a candidate
