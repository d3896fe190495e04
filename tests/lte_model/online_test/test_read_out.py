"""The read-out's verdict, page and MLflow record, for measurements written by hand."""

import datetime
import json
import re
import sys
from decimal import Decimal
from pathlib import Path

import mlflow
import polars as pl
import pytest

from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.evaluation.erasure import erase_from_reports
from lte_model.online_test import content as content_module
from lte_model.online_test import read_out
from lte_model.online_test.content import lines_of
from lte_model.online_test.measurements import read_measurements
from lte_model.online_test.read_out_page import render
from lte_model.online_test.statistics import SUMS, UNIT
from lte_model.settings import Settings, load_settings

pytestmark = pytest.mark.slow

START, DATE = datetime.date(2024, 5, 1), datetime.date(2024, 5, 15)
DAYS = (DATE - START).days
TEST = "lte-prefix"


def sums_of(users, mean, spread):
    """The sums that a day adds: half of the users at mean − spread, half at mean + spread.

    Before the test they are at 10 − 4 and 10 + 4 in either variant. Three of four users are on the same side both
    times, which makes a correlation of 0.5.
    """
    one, other = mean * UNIT, 10 * UNIT
    together = mean * 10 + spread * 4 // 2
    sums = (one, one**2 + (spread * UNIT) ** 2, other, other**2 + (4 * UNIT) ** 2, together * UNIT**2)
    return dict(zip(SUMS, (users, *(users * per_user for per_user in sums)), strict=True))


def write(settings, variants, test=TEST):
    """Writes measurements for {variant: (users a day, mean, spread)}, the same for both metrics."""
    rows = [
        {"test_name": test, "measured_for": DATE, "test_start": START, "test_end": DATE, "day": START + ONE_DAY * day}
        | {"variant": variant, "metric": metric}
        | {name: value if name == "users" else Decimal(value) for name, value in sums_of(users, mean, spread).items()}
        for variant, (users, mean, spread) in variants.items()
        for metric in ("revenue", "engagement")
        for day in range(DAYS)
    ]
    pl.DataFrame(rows).write_delta(settings.table_path("test_measurements"), mode="overwrite")
    accounts = [("exposures", "first exposure", 9, 9), ("outcomes", "in the test", 1234, 9)]
    frame = pl.DataFrame(accounts, schema=["feed", "fate", "rows", "users"], orient="row")
    frame = frame.with_columns(test_name=pl.lit(test), measured_for=pl.lit(DATE))
    frame.write_delta(settings.table_path("test_accounts"), mode="overwrite")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "settings.toml").write_text("")
    return load_settings(tmp_path / "settings.toml")


def content_of(settings, control="control", shares=None, planned=None):
    return content_module.content_of(read_measurements(settings, DATE, TEST), settings, control, shares, planned)


GOOD = {"control": (1000, 20, 10), "lte": (1010, 21, 10)}


def test_the_first_metric_of_the_settings_decides(settings):
    write(settings, GOOD)
    content = content_of(settings)
    assert content["metrics"] == ["engagement", "revenue"]
    (verdict,) = content["verdicts"]
    assert verdict["outcome"] == "better"
    assert re.fullmatch(
        r"engagement of lte is 5\.00 % higher than that of control \(95 % interval \[\+.*\], p <0\.0001 after Holm\)\.",
        verdict["text"],
    )
    rules = settings.online_test.model_copy(update={"metrics": ("revenue",)})
    assert content_of(settings.model_copy(update={"online_test": rules}))["metrics"] == ["revenue", "engagement"]


@pytest.mark.parametrize(
    ("variants", "outcome", "says"),
    [
        ({"control": (1000, 20, 10), "lte": (1000, 20, 10)}, "undecided", "which chance alone could explain"),
        ({"control": (1000, 21, 10), "lte": (1000, 20, 10)}, "worse", "% lower than that of control"),
        ({"control": (1000, 20, 10), "lte": (900, 25, 10)}, "not readable", "(control 14,000, lte 12,600) are not"),
        ({"control": (1000, 0, 10), "lte": (1000, 5, 10)}, "undecided", "no relative difference is defined"),
    ],
)
def test_the_verdict_is_honest(settings, variants, outcome, says):
    write(settings, variants)
    content = content_of(settings)
    assert [(one["outcome"], says in one["text"]) for one in content["verdicts"]] == [(outcome, True)]
    assert {one["outcome"] for one in content["comparisons"]} == {outcome}
    assert says in "\n".join(lines_of(content)) and says in render(content)
    assert ("Not readable." in render(content)) == (outcome == "not readable")


def test_a_division_that_was_meant_is_readable(settings):
    write(settings, {"control": (1800, 20, 10), "lte": (200, 20, 10)})
    assert content_of(settings)["verdicts"][0]["outcome"] == "not readable"
    content = content_of(settings, shares={"lte": 1, "control": 9})
    assert content["sample_ratio"]["readable"] and content["variants"][1]["meant"] == 0.1


def test_how_long_it_must_run_is_said_of_the_plan(settings):
    write(settings, GOOD)
    content = content_of(settings, planned=4 * DAYS)
    engagement = content["comparisons"][0]
    # Users come at a steady rate: four times the days detect half the uplift.
    assert engagement["detectable_as_planned"] == pytest.approx(engagement["detectable"] / 2, rel=0.01)
    assert engagement["by_day"][-1].detectable == engagement["detectable"]
    needed = DAYS * (engagement["detectable"] / 0.0116) ** 2
    assert engagement["days_needed"] == pytest.approx(needed, abs=1.5)
    lines = "\n".join(lines_of(content))
    assert f"to find +1.16 % of engagement, lte: {engagement['days_needed']} day" in lines
    assert f"after {4 * DAYS} days it finds" in lines


def test_the_page_asks_for_nothing_and_escapes(settings):
    hostile = "<script>alert('1')</script>"
    write(settings, {"control": (1000, 20, 10), hostile: (1010, 21, 10)})
    page = render(content_of(settings))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"https?:|src=|@import|url\(", page) and "<svg" in page
    assert "<code>" not in page, "an erasure looks for ids in these"


def test_the_command_prints_writes_and_records(settings, monkeypatch, capsys):
    write(settings, GOOD)
    command = ["read_out", "--date", str(DATE), "--test", TEST, "--settings", f"{settings.home}/settings.toml"]
    for options in ([], ["--uplift", "0.05", "--shares", "control=1,lte=1", "--planned-days", "30"]):
        monkeypatch.setattr(sys, "argv", command + options)
        read_out.main()
    printed = capsys.readouterr().out
    assert "to find +5.00 % of revenue, lte: " in printed and "better: engagement of lte" in printed
    folder = read_out.folder_of(settings, TEST)
    assert sorted(path.name for path in folder.iterdir()) == [f"{DATE}.html", f"{DATE}.json"]
    content = json.loads((folder / f"{DATE}.json").read_text())
    assert (content["uplift"], content["planned_days"]) == (0.05, 30)
    (run,) = mlflow.search_runs(experiment_names=[settings.mlflow.experiment], output_format="list")
    assert run.data.tags["lte.online_test"] == TEST and run.data.tags["verdict"] == "better"
    logged = run.data.metrics["uplift engagement lte value"]
    assert logged == pytest.approx(content["comparisons"][0]["cuped"]["value"])
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "test_measurements"
    assert erase_from_reports(settings, frozenset({"lte", "control", "engagement"})) == []


def test_what_was_not_measured_is_named(settings):
    with pytest.raises(LTEError, match=r"table test_measurements does not exist .*; run jobs.measure_test --date"):
        content_of(settings)
    write(settings, GOOD, test="other")
    with pytest.raises(LTEError, match=f"test {TEST} has no measurements for {DATE}; run jobs.measure_test --date"):
        content_of(settings)
    write(settings, GOOD)
    with pytest.raises(LTEError, match="control 'c' is no variant of the test; --control is one of control, lte"):
        content_of(settings, control="c")


def test_shares_are_read_or_refused():
    assert read_out.parse_shares("a=0.9, b b=1e-1") == {"a": 0.9, "b b": 0.1}
    for text in ("a", "a=", "=1", "a=0", "a=-1", "a=x", "a=1,", "a=inf", "a=nan"):
        with pytest.raises(LTEError, match=r"is no share; write variant=0.5,other=0.5"):
            read_out.parse_shares(text)
