"""A snapshot's measures: formulas against plain Python, bounds, page and MLflow record."""

import datetime
import math
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient

from lte_model.errors import LTEError
from lte_model.evaluation.erasure import erase_from_reports
from lte_model.metrics import mean_cosine
from lte_model.monitoring import page
from lte_model.monitoring.measures import BINS, FEWEST_USERS, MEASURES, Level, judged, population_stability
from lte_model.settings import Bounds, Monitoring, Settings, load_settings
from lte_model.tracking import lineage
from lte_model.tracking.runs import configure
from tests.lte_model.pages import require_charts

pytestmark = pytest.mark.slow

DATE = datetime.date(2024, 5, 1)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def stability_of(reference, now):
    """The population stability index in plain Python, user by user."""
    cuts = sorted(set(statistics.quantiles(reference, n=BINS, method="inclusive")))

    def shares(values):
        counts = [0.5] * (len(cuts) + 1)
        for value in values:
            counts[sum(cut < value for cut in cuts)] += 1
        return [count / sum(counts) for count in counts]

    return sum((p - q) * math.log(p / q) for p, q in zip(shares(now), shares(reference), strict=True))


whole = st.lists(st.integers(0, 5).map(float), min_size=FEWEST_USERS, max_size=FEWEST_USERS + 20)


@hypothesis_settings(max_examples=30)
@given(whole, whole)
def test_the_stability_index_is_that_of_plain_python(reference, now):
    found = population_stability(np.array(reference), np.array(now))
    assert found == pytest.approx(stability_of(reference, now), abs=1e-12) and found >= 0
    assert population_stability(np.array(reference), np.array(reference)) == 0


def test_the_stability_index_knows_chance_from_change():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 5000))
    assert population_stability(one, other) < 0.01
    assert population_stability(one, other + 1) > 0.25
    assert math.isnan(population_stability(one, other[: FEWEST_USERS - 1]))


@given(st.lists(st.tuples(*[st.integers(-3, 3)] * 4), max_size=20))
def test_the_mean_cosine_is_that_of_plain_python(pairs):
    cosines = [
        (a * c + b * d) / math.sqrt((a * a + b * b) * (c * c + d * d)) for a, b, c, d in pairs if (a or b) and (c or d)
    ]
    vectors = np.array(pairs, np.float32).reshape(-1, 2, 2)
    found = mean_cosine(vectors[:, 0], vectors[:, 1])
    assert found == pytest.approx(sum(cosines) / len(cosines), abs=1e-6) if cosines else math.isnan(found)


def test_every_measure_has_its_bounds():
    assert {name for name, field in Monitoring.model_fields.items() if field.annotation is Bounds} == set(MEASURES)


@pytest.mark.parametrize(
    ("value", "level", "said"),
    [
        (0.4, Level.STOP, "uniform inertia 0.4, stops below 0.5"),
        (0.5, Level.WARN, "uniform inertia 0.5, warns below 0.9"),
        (0.9, Level.OK, "uniform inertia 0.9"),
        (1.5, Level.WARN, "uniform inertia 1.5, warns above 1"),
        (2.5, Level.STOP, "uniform inertia 2.5, stops above 2"),
    ],
)
def test_a_bound_is_itself_allowed(value, level, said):
    bounds = Bounds(stop_below=0.5, warn_below=0.9, warn_above=1, stop_above=2)
    (reading,) = judged(Settings(monitoring=Monitoring(inertia=bounds)), "uniform", {"inertia": value})
    assert (reading.level, str(reading)) == (level, said)


def test_the_settings_change_one_bound_and_leave_the_others(tmp_path, monkeypatch):
    file = tmp_path / "settings.toml"
    file.write_text("[monitoring.inertia]\nwarn_below = 0.95\n[monitoring.coverage]\nstop_below = -inf\n")
    monkeypatch.setenv("LTE_MONITORING__MISSING__STOP_ABOVE", "0.5")
    found = load_settings(file).monitoring
    assert found.inertia == Bounds(stop_below=0.5, warn_below=0.95)
    assert found.coverage == Bounds(warn_below=0.2)
    assert found.missing == Bounds(warn_above=0.02, stop_above=0.5)
    for text in ("warn_below = 0.4", "warn_below = nan", "warns = 1"):
        file.write_text(f"[monitoring.inertia]\n{text}\n")
        with pytest.raises(LTEError, match=r"monitoring.inertia"):
            load_settings(file)


def rows_of(*dates, representations=("uniform", "autoencoder"), **other):
    """Good figures for the dates; `other` replaces some on the last date."""
    usual = dict.fromkeys(MEASURES, 0.0) | {
        "users": 184_210, "users_change": 0.002, "coverage": 0.71, "without_lte": 0.18, "missing": 0.001,
        "inertia": 0.991, "moved_per_day": 0.0013, "inertia_days": 7, "mean_shift": 0.021, "psi_norm": 0.012,
        "psi_events": 0.034, "psi_age": 0.027, "reference_days": 61, "age_mean": 128.4, "age_p50": 101, "age_p95": 322,
        "events_mean": 24.7, "norm_mean": 0.52,
    }  # fmt: skip
    rows = []
    for number, date in enumerate(dates):
        for representation in representations:
            for name, value in (usual | (other if date == dates[-1] else {})).items():
                wave = 1 + 0.03 * math.sin(number / 3 + len(name)) * (representation == "uniform")
                rows.append((date, representation, name, float(value) if date == dates[-1] else value * wave))
    columns = ["snapshot_date", "representation", "measure", "value"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def days(number):
    return [DATE - datetime.timedelta(days=day) for day in reversed(range(number))]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path), reports=str(tmp_path / "reports"))


def test_the_page_shows_the_newest_date_and_what_is_beyond_its_bound(settings):
    path = page.write_page(settings, rows_of(*days(60), zero_share=0.5, inertia=0.8))
    text = path.read_text(encoding="utf-8")
    assert path == page.page_path(settings)
    require_charts(text, len(MEASURES))
    assert text.count("<strong>Stopped.</strong>") == 2 and text.count("<strong>To be looked at.</strong>") == 2
    assert "uniform, zero: 50.0 %, above 1.0 %. Make the snapshot again" in text
    assert "warns below 0.9, stops below 0.5" in text
    assert "drift since that of</dt><dd><time>2024-03-01" in text
    assert not re.findall(r"<(script|img|iframe|object|code)\b|@import|@font-face|https?://(?!www.w3.org)", text)
    assert erase_from_reports(settings, frozenset({"uniform", "users"})) == []


def test_a_first_snapshot_and_one_that_is_gone_are_still_a_page(settings):
    first = rows_of(DATE, representations=("uniform",)).filter(pl.col("measure").is_in(["users", "zero_share", "gone"]))
    text = page.render(settings, first)
    require_charts(text, 2)
    assert "Every measure is within its bounds." in text and "Inertia" not in text
    text = page.render(settings, pl.concat([first, rows_of(*days(2)[:1], representations=("recency",))]))
    assert "recency</dt>" in text and "not of this date" in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: install it to test what a person sees")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_a_desk(settings, scheme):
    from playwright.sync_api import sync_playwright

    path = page.write_page(settings, rows_of(*days(60), zero_share=0.5, inertia=0.8))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(color_scheme=scheme)
        said = []
        shown.on("console", lambda message: said.append(message.text))
        shown.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        for width in (360, 1280):
            shown.set_viewport_size({"width": width, "height": 900})
            shown.goto(path.as_uri())
            wide = shown.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{wide} pixels at a width of {width}"
            assert shown.locator(".measures svg").first.bounding_box()["width"] > 250
        dark = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark == {"light": "rgb(253, 253, 252)", "dark": "rgb(22, 24, 28)"}[scheme] and said == []
        browser.close()


def test_a_date_is_logged_once_in_any_order_and_its_newest_value_counts(settings, trainable_shop):
    settings = settings.model_copy(update={"mlflow": trainable_shop.mlflow})
    rows = rows_of(DATE)
    path = page.write_page(settings, rows)

    def log(date, users):
        return page.record(settings, date, judged(settings, "uniform", {"users": users}), path)

    earlier = DATE - datetime.timedelta(days=2)
    runs = {log(DATE, 5), log(DATE, 5), log(earlier, 3), log(DATE, 6), log(DATE, 6), log(earlier, 3)}
    (run_id,) = runs
    client = MlflowClient(settings.mlflow.tracking_uri)
    history = client.get_metric_history(run_id, "uniform/users")
    step = (DATE - datetime.date(1970, 1, 1)).days
    found = sorted((metric.step, metric.timestamp % 1000, metric.value) for metric in history)
    assert found == [(step - 2, 0, 3), (step, 0, 5), (step, 1, 6)]
    at = datetime.datetime.fromtimestamp(max(metric.timestamp for metric in history) / 1000, datetime.UTC)
    assert at.date() == DATE
    run = client.get_run(run_id)
    assert (run.data.metrics["uniform/users"], run.info.run_name) == (6, "monitoring")
    assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["monitoring.html"]


def test_the_model_in_use_is_the_champion_or_the_newest(trainable_shop):
    name = f"monitored-{trainable_shop.mlflow.experiment}"
    settings = trainable_shop.model_copy(
        update={"mlflow": trainable_shop.mlflow.model_copy(update={"model_name": name})}
    )
    configure(settings)
    client = MlflowClient(settings.mlflow.tracking_uri)
    assert lineage.model_on(settings, DATE) is None
    client.create_registered_model(name)
    week = datetime.timedelta(days=7)
    for date in (DATE - week * 2, DATE - week, DATE + week):
        client.create_model_version(name, "nowhere", tags={"training_date": str(date)})
    assert lineage.model_on(settings, DATE).version == 2
    client.set_registered_model_alias(name, lineage.CHAMPION, "1")
    assert lineage.model_on(settings, DATE).version == 1
    client.set_registered_model_alias(name, lineage.CHAMPION, "3")
    assert lineage.model_on(settings, DATE).version == 2
    assert lineage.model_on(settings, DATE - week * 3) is None
