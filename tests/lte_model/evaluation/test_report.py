"""The report: its text about an evaluation, and that the page is self-contained."""

import copy
import datetime
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import mlflow
import polars as pl
import pytest

from lte_model.domain.windows import lte_window
from lte_model.errors import LTEError
from lte_model.evaluation import report, results
from lte_model.evaluation.evaluate import evaluate
from lte_model.figures import UNDEFINED, Figure, to_json
from lte_model.settings import Settings, TrainingSetSettings
from lte_model.tracking import runs
from lte_model.training import train
from tests.lte_model.pages import require_charts

pytestmark = pytest.mark.slow

TRAINING_DATE = datetime.date(2026, 3, 1)
LAG, WINDOW = 30, 365
DATES = TrainingSetSettings(anchors=6, anchor_every_days=30, test_days=30).dates(TRAINING_DATE)
HOSTILE = """<script>alert("1")</script> Ünïcode 🧥 & 'quotes' </style>"""

CLOTHES = [
    "Merino Crew-Neck Jumper, Forest Green",
    "Wide-Leg Linen Trousers",
    "Leather Chelsea Boots, Size 42, Waxed, Storm Welt, Made in Portugal",
    "Organic Cotton T-Shirt",
    "Quilted Liner Jacket",
    "Silk Scarf, Paisley",
    "Selvedge Denim, Raw Indigo",
    "Canvas Tote",
    "Cashmere Beanie",
    "Poplin Shirt, White",
    "Suede Loafers",
    "Rain Coat, Recycled Nylon",
]


def figure(value, spread):
    return Figure(value, value - spread, value + spread)


def metrics_of(strength):
    """Plausible metrics: MRR < NDCG < Recall, all growing with the cutoff."""
    return {
        f"{family}@{cutoff}": figure(strength * share * math.log10(cutoff), 0.07 * strength * math.log10(cutoff))
        for family, share in (("ndcg", 0.5), ("recall", 1.1), ("mrr", 0.33))
        for cutoff in (10, 100, 500)
    }


def dated(titles, newest):
    days = range(len(titles) * 9, 0, -9)
    return [
        {"date": (newest - datetime.timedelta(days=day)).isoformat(), "title": title}
        for day, title in zip(days, titles, strict=True)
    ]


def user(user_id, history, sequence, ranks):
    cut = DATES.test.start
    return {
        "user_id": user_id,
        "history": dated(history, cut - datetime.timedelta(days=LAG)),
        "sequence": dated(sequence, cut),
        "target": {"date": DATES.test.start.isoformat(), "title": CLOTHES[2]},
        "ranks": ranks,
        "top": {
            "prefix": [CLOTHES[4], CLOTHES[6], CLOTHES[2], CLOTHES[1], CLOTHES[8]],
            "none": [CLOTHES[9], CLOTHES[3], CLOTHES[7], CLOTHES[5], CLOTHES[0]],
        },
        "lte_neighbours": [{"title": t, "cosine": 0.93 - 0.08 * k} for k, t in enumerate(CLOTHES[: len(history)])],
        "lte_count": len(history),
    }


def cohort(name, users, prefix, uplift):
    return {
        "name": name,
        "users": users,
        "sides": {"prefix": metrics_of(prefix), "none": metrics_of(prefix * 0.9), "popularity_30d": metrics_of(0.06)},
        "uplift": uplift,
    }


@pytest.fixture
def evaluation():
    sides = {"prefix": 0.115, "none": 0.096, "popularity_all": 0.068, "popularity_30d": 0.084, "popularity_7d": 0.081}
    validation = "validation_ndcg@500"
    return {
        "training_date": TRAINING_DATE.isoformat(),
        "basis_id": "3f2ac41b907d",
        "representation": "uniform",
        "policy": "lagged",
        "lag_days": LAG,
        "window_days": WINDOW,
        "anchors": [anchor.isoformat() for anchor in DATES.anchors],
        "validation": [DATES.validation.start.isoformat(), DATES.validation.end.isoformat()],
        "test": [DATES.test.start.isoformat(), DATES.test.end.isoformat()],
        "catalogue_items": 3388,
        "test_users": 1045,
        "dropped_unknown_target": 17,
        "sides": {
            side: ({"run_id": f"{side}0123456789abcdef"} if side in ("prefix", "none") else {})
            | {"metrics": metrics_of(strength)}
            for side, strength in sides.items()
        },
        "uplift": {
            results.OVER_NONE: {name: figure(0.198, 0.07) for name in metrics_of(1)},
            results.OVER_POPULARITY: {name: figure(0.369, 0.11) for name in metrics_of(1)},
        },
        "cohorts": [
            cohort("no short sequence", 512, 0.09, figure(0.41, 0.12)),
            cohort("short sequence", 371, 0.12, figure(0.05, 0.06)),
            cohort("long sequence", 162, 0.15, figure(0.01, 0.08)),
            cohort("history longer than the sequence", 610, 0.11, figure(0.24, 0.09)),
            cohort("new target items", 38, 0.04, UNDEFINED),
        ],
        "curves": {
            side: [
                {"epoch": epoch, "training_loss": 7.9 - gain * math.log(epoch), validation: 0.02 + gain * 0.07
                 * math.log(epoch) - 0.0009 * epoch**1.4, "seconds": 4.2}
                for epoch in range(1, epochs + 1)
            ]
            for side, epochs, gain in (("prefix", 17, 0.62), ("none", 13, 0.55))
        },
        "users": [
            user("17841", [*CLOTHES, HOSTILE, CLOTHES[0], CLOTHES[2]], CLOTHES[3:6], {"prefix": 3, "none": 241}),
            user("12748", CLOTHES[:4], [], {"prefix": 88, "none": 1204}),
            user("u-new", [], CLOTHES[8:10], {"prefix": 3, "none": 17}),
        ],
        "tables": {"training_set": {"version": 6}, "items": {"version": 12}, "item_embeddings": {"version": 4}},
        "seconds": {"training prefix": 71.4, "training none": 55.1, "evaluation": 6.3},
    }  # fmt: skip


@pytest.fixture(scope="session")
def warehouse(tmp_path_factory):
    """Delta tables with the rows that the report counts: two years of events, and the training's cases."""
    folder = tmp_path_factory.mktemp("warehouse")
    first = lte_window(DATES.anchors[0], LAG, WINDOW).start - datetime.timedelta(days=45)
    events = []
    for day in range((TRAINING_DATE - first).days + 20):
        date = first + datetime.timedelta(days=day)
        season = 6 + 4 * math.sin(day / 58) + (9 if date.month == 12 else 0)
        events += [(f"u{(day * 7 + k) % 90}", f"i{(day + k * 13) % 50}", date) for k in range(int(season))]
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "event_date"], orient="row")
    known = (pl.col("event_date") + pl.duration(days=1)).alias("known_date")
    frame.with_columns(known).write_delta(folder / "events")
    cases = [
        (TRAINING_DATE, split, date, f"u{k}", "b", ["i0", "i1"], 1 if k % 3 else 0)
        for split, dates in (
            ("train", DATES.anchors), ("validation", [DATES.validation.start]), ("test", [DATES.test.start])
        )
        for date in dates
        for k in range(100)
    ]  # fmt: skip
    columns = ["training_date", "split", "snapshot_date", "user_id", "basis_id", "item_ids", "target_count"]
    frame = pl.DataFrame(cases, schema=columns, orient="row")
    frame.write_delta(folder / "training_set")
    count = pl.col("user_id").str.slice(1).cast(pl.Int32) % 4
    lte = frame.select("snapshot_date", "user_id", "basis_id", event_count=count, representation=pl.lit("uniform"))
    lte.unique().filter(pl.col("event_count") > 0).write_delta(folder / "lte_snapshots")
    return folder


@pytest.fixture
def settings(tmp_path, warehouse):
    return Settings(home=str(tmp_path), warehouse=str(warehouse), reports=str(tmp_path / "reports"))


def written(settings, evaluation):
    path = results.evaluation_path(settings, TRAINING_DATE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(evaluation), encoding="utf-8")
    return report.write_report(settings, TRAINING_DATE).read_text(encoding="utf-8")


def text_of(page):
    """The page's visible text: without tags, with single spaces."""

    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.words, self.hidden = [], 0

        def handle_starttag(self, tag, attributes):
            self.hidden += tag == "style"

        def handle_endtag(self, tag):
            self.hidden -= tag == "style"

        def handle_data(self, data):
            if not self.hidden:
                self.words.append(data)

    reader = Reader()
    reader.feed(page)
    return " ".join(" ".join(reader.words).split())


def test_shows_the_figures_of_the_evaluation(settings, evaluation):
    text = text_of(written(settings, evaluation))
    headline = evaluation["sides"]["prefix"]["metrics"]["ndcg@500"]
    assert f"{headline.value:.4f}" in text and f"[{headline.low:.4f}, {headline.high:.4f}]" in text
    assert "The LTE helps. NDCG@500 is 19.8 % higher than that of the same model without LTE" in text
    for words in ("3f2ac41b907d", "1,045 users", "3,388 items", "17 test cases were dropped", "prefix0123456789abcdef"):
        assert words in text


@pytest.mark.parametrize(
    ("uplift", "says"),
    [
        (figure(0.013, 0.02), "No difference is shown. NDCG@500 is 1.3 % higher"),
        (figure(-0.013, 0.02), "No difference is shown. NDCG@500 is 1.3 % lower"),
        (figure(-0.2, 0.05), "The LTE hurts. NDCG@500 is 20.0 % lower"),
        (UNDEFINED, "The difference to the same model without LTE could not be measured"),
    ],
)
def test_verdict_is_honest(settings, evaluation, uplift, says):
    evaluation["uplift"][results.OVER_NONE]["ndcg@500"] = uplift
    text = text_of(written(settings, evaluation))
    assert says in text
    assert "The LTE helps" not in text


def test_headline_shows_the_strongest_popularity(settings, evaluation):
    evaluation["sides"]["popularity_7d"]["metrics"]["ndcg@500"] = figure(0.2, 0.01)
    headline = text_of(written(settings, evaluation)).partition("The data at a glance")[0]
    assert "popularity, 7 days 0.2000" in headline


def test_page_asks_for_nothing_beyond_itself(settings, evaluation):
    page = written(settings, evaluation)
    namespaces = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
    addresses = set(re.findall(r"(?:https?:)?//[^\s\"'<>)]+", page))
    assert addresses <= set(namespaces)
    assert "default-src 'none'" in page
    assert not re.findall(r"<(script|img|iframe|object)\b|@import|@font-face", page)


def test_titles_are_escaped(settings, evaluation):
    page = written(settings, evaluation)
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; Ünïcode 🧥 &amp; &#39;quotes&#39; &lt;/style&gt;" in page


def test_charts_are_well_formed_and_use_the_colours_of_the_page(settings, evaluation):
    page = written(settings, evaluation)
    require_charts(page, 5)


def test_target_is_marked_in_its_place_or_below_the_list(settings, evaluation):
    page = written(settings, evaluation)
    assert re.search(r'<li class="target">Leather Chelsea Boots', page)
    assert re.search(r'<li class="target" value="241">Leather Chelsea Boots', page)


def test_counts_events_known_before_the_training_alone(settings, warehouse):
    glance = report.read_glance(settings, TRAINING_DATE)
    known = pl.scan_delta(warehouse / "events").filter(pl.col("known_date") < TRAINING_DATE).collect()
    assert glance.events == len(known) == sum(glance.events_per_week)
    assert glance.users == known["user_id"].n_unique()
    assert glance.last_event == TRAINING_DATE - datetime.timedelta(days=2)
    assert {week.weekday() for week in glance.weeks} == {0}


def test_weeks_without_events_count_zero(settings, tmp_path, warehouse):
    days = [datetime.date(2025, 1, 6), datetime.date(2025, 1, 27)]
    frame = pl.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "y"], "event_date": days, "known_date": days})
    frame.write_delta(tmp_path / "warehouse" / "events")
    for table in ("training_set", "lte_snapshots"):
        pl.read_delta(warehouse / table).write_delta(tmp_path / "warehouse" / table)
    sparse = settings.model_copy(update={"warehouse": str(tmp_path / "warehouse")})
    assert report.read_glance(sparse, TRAINING_DATE).events_per_week == (1, 0, 0, 1)


def test_coverage_is_the_share_of_cases(settings):
    coverage = report.read_glance(settings, TRAINING_DATE).coverage
    assert [row.split for row in coverage] == ["train"] * 6 + ["validation", "test"]
    assert coverage[0] == report.Coverage("train", DATES.anchors[0], 100, 0.75, 0.66, 2.0)


def test_rendering_is_a_function_of_what_was_read(settings, evaluation):
    glance = report.read_glance(settings, TRAINING_DATE)
    assert report.render(copy.deepcopy(evaluation), glance) == report.render(evaluation, glance)


def test_an_evaluation_without_cohorts_and_users_is_still_a_page(settings, evaluation):
    evaluation |= {"cohorts": [], "users": [], "seconds": {}}
    text = text_of(written(settings, evaluation))
    assert "Every metric" in text and "A few users" not in text and "Who gains" not in text


@pytest.mark.slow
def test_command_reports_a_real_training(trainable_shop, shop, monkeypatch, capsys):
    settings = trainable_shop.model_copy(update={"training": trainable_shop.training.model_copy(update={"epochs": 1})})
    date = datetime.date(2024, 12, 1)
    for side in ("prefix", "none"):
        train.train(settings, date, side)
    evaluation = evaluate(settings, date)
    for key, value in (
        ("LTE_REPORTS", settings.reports),
        ("LTE_MLFLOW__TRACKING_URI", settings.mlflow.tracking_uri),
        ("LTE_MLFLOW__ARTIFACTS", settings.mlflow.artifacts),
        ("LTE_MLFLOW__EXPERIMENT", settings.mlflow.experiment),
    ):
        monkeypatch.setenv(key, value)
    arguments = ["report", "--date", str(date), "--settings", str(Path(shop.home) / "settings.toml")]
    monkeypatch.setattr(sys, "argv", arguments)
    report.main()
    path = results.report_path(settings, date)
    assert str(path) in capsys.readouterr().out
    text = text_of(path.read_text(encoding="utf-8"))
    assert (
        evaluation["uplift"][results.OVER_NONE]["ndcg@40"].in_words(
            "ndcg@40", evaluation["test_users"], "same model without LTE"
        )
        in text
    )
    for user in evaluation["users"]:
        assert user["user_id"] in text and user["target"]["title"] in text
    (run,) = runs.find_runs(runs.configure(settings).experiment_id, date, "evaluation")
    logged = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="report.html")
    assert Path(logged).read_bytes() == path.read_bytes()


def test_missing_parts_are_named(settings, evaluation, tmp_path):
    with pytest.raises(
        LTEError, match=r"has no evaluation at .*; run python -m lte_model.evaluation.evaluate --date 2026-03-01"
    ):
        report.write_report(settings, TRAINING_DATE)
    with pytest.raises(LTEError, match="table events does not exist"):
        written(settings.model_copy(update={"warehouse": str(tmp_path / "nowhere")}), evaluation)
    with pytest.raises(LTEError, match="training_set has no rows of the training date 2026-02-01"):
        report.read_glance(settings, datetime.date(2026, 2, 1))
    results.evaluation_path(settings, TRAINING_DATE).write_text('{"cut off', encoding="utf-8")
    with pytest.raises(LTEError, match=r"evaluation.json is not JSON"):
        report.write_report(settings, TRAINING_DATE)
    assert not results.report_path(settings, TRAINING_DATE).exists()
