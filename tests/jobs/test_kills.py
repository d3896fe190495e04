"""Invariant 5 under SIGKILL: a job killed at a random instant and run again leaves the same tables as any other run.

This file does two kills; `make test-kills` does KILLS of them, and `make test-production` kills each job.
"""

import random
from collections import Counter

import polars as pl
import pytest

from tests.jobs.kills import KINDS, STEPS, difference, is_commit, kill_jobs, plan, rows_of, run_undisturbed

KILLS = 2


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(1800)  # a kill takes 15 seconds, and a minute on a busy machine
def test_a_killed_job_that_runs_again_leaves_the_tables_of_an_undisturbed_one(spark, tmp_path):
    seed = random.randrange(10_000)
    kills = list(kill_jobs(spark, run_undisturbed(spark, tmp_path), KILLS, seed, tmp_path))
    assert len(kills) == KILLS
    assert not [str(kill) for kill in kills if kill.wrong], f"make test-kills SEED={seed} KILLS={KILLS}"


def test_a_plan_kills_every_job_before_it_kills_one_again():
    planned = plan(2 * len(KINDS), seed=1)
    for half in (planned[: len(KINDS)], planned[len(KINDS) :]):
        assert Counter(STEPS[number].kind for number, _ in half) == dict.fromkeys(KINDS, 1)
    assert plan(2 * len(KINDS), seed=1) == planned != plan(2 * len(KINDS), seed=2)
    assert all(0 <= share < 1 for _, share in planned)


def test_a_difference_of_one_row_is_seen(tmp_path):
    frame = pl.DataFrame({"user_id": ["u", "v", "v"], "vector_sum": [[1, 2], [3], [3]]})
    frame.write_delta(tmp_path / "one" / "lte_live")
    frame.reverse().write_delta(tmp_path / "other" / "lte_live")
    one, other = rows_of(tmp_path / "one"), rows_of(tmp_path / "other")
    assert difference(one, other) is None
    frame.head(2).write_delta(tmp_path / "other" / "lte_live", mode="overwrite")
    assert "table lte_live lost 0 rows [] and has 1 others" in difference(one, rows_of(tmp_path / "other"))
    assert "table lte_live lost 1 rows" in difference(rows_of(tmp_path / "other"), one)
    assert difference({}, one) == "the tables are , not lte_live"


def test_a_commit_is_told_from_other_files():
    assert is_commit("events/_delta_log/00000000000000000003.json")
    assert not is_commit("events/_delta_log/.00000000000000000003.json.crc")
    assert not is_commit("events/_delta_log/.00000000000000000003.json.5e1f.tmp")
    assert not is_commit("events/part-00000.snappy.parquet")
