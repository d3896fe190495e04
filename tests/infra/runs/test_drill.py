"""A drill's command lines, its completion of a feed without `known_date`, and its printed results."""

import datetime

import polars as pl
import pytest

from infra.runs.drill import (
    ENCODER_LAGS,
    dated_feed,
    measures_of,
    options,
    print_outcome,
    table_commands,
    training_commands,
    with_room,
)
from infra.runs.installation import STUDY_TRAINING, FeedDays, settle
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.figures import from_json, to_json
from lte_model.studies.spaces import SPACES
from tests.lte_model.studies.test_drill_page import made_up_drill

EARLIER, LATER, SINCE = datetime.date(2024, 4, 1), datetime.date(2024, 5, 1), datetime.date(2023, 1, 1)


def test_the_basis_is_that_of_the_earlier_version_and_holds_the_items_of_the_later():
    commands = table_commands(EARLIER, LATER, SINCE)
    assert commands.index(f"jobs.fit_basis --date {EARLIER}") < commands.index(f"jobs.embed_items --date {LATER}")
    assert commands[-2:] == [f"jobs.build_training_set --date {date}" for date in (EARLIER, LATER)]


def test_both_versions_are_trained_in_every_space_seed_by_seed():
    commands = training_commands(EARLIER, LATER, seeds=2)
    assert len(set(commands)) == len(commands) == 2 * 2 * len(SPACES)
    assert all(command.endswith("--seed 0") for command in commands[: 2 * len(SPACES)])
    assert commands[0] == "lte_model.studies.drill train --date 2024-04-01 --space fixed --seed 0"


def test_the_oldest_encoder_has_days_of_its_own(tmp_path):
    feed = FeedDays(datetime.date(2010, 12, 1), datetime.date(2011, 12, 9), datetime.date(2011, 11, 20))
    arguments, later = options(["--data", "feed", "--lag", "20"]), feed.last + ONE_DAY
    settings = settle(arguments, tmp_path, tmp_path, with_room(feed, 40, 20), later, STUDY_TRAINING)
    oldest = settings.training_set.dates(later - 40 * ONE_DAY).anchors[0]
    assert 0 <= (oldest - feed.first).days - (2 + ENCODER_LAGS) * 20 < 20


def write_feed(folder, items, **columns):
    folder.mkdir()
    days = [datetime.datetime(2024, 1, day, 12, tzinfo=datetime.UTC) for day in (5, 3, 9)]
    pl.DataFrame({"user_id": ["u"] * 3, "item_id": [1, 1, 2], "event_ts": days}).write_parquet(
        folder / "events.parquet"
    )
    pl.DataFrame({"item_id": items, "title": ["a"] * len(items), **columns}).write_parquet(folder / "items.parquet")
    return folder


def test_an_item_without_a_date_is_known_from_its_first_event(tmp_path):
    feed = write_feed(tmp_path / "feed", [1, 2, 3])
    for _ in range(2):
        dated = dated_feed(feed, tmp_path / "home" / "source")
    known = dict(pl.read_parquet(dated / "items.parquet").select("item_id", "known_date").iter_rows())
    assert known == {"1": datetime.date(2024, 1, 3), "2": datetime.date(2024, 1, 9), "3": None}
    assert pl.read_parquet(dated / "events.parquet").equals(pl.read_parquet(feed / "events.parquet"))


def test_a_feed_with_dates_is_taken_as_it_is(tmp_path):
    feed = write_feed(tmp_path / "feed", [1], known_date=[datetime.date(2024, 1, 1)])
    assert dated_feed(feed, tmp_path / "home") == feed
    (feed / "items.parquet").unlink()
    with pytest.raises(LTEError, match=r"there is no file .*items.parquet"):
        dated_feed(feed, tmp_path / "home")


def test_the_json_has_one_form(capsys):
    drill = from_json(to_json(made_up_drill()))
    rows = measures_of(drill)
    assert all(list(row) == ["measure", "side", "value", "unit"] for row in rows)
    found = {(row["measure"], row["side"]): row["value"] for row in rows}
    assert set(found) == {(f"drill_{space}", f"v{i}v{j}") for space in SPACES for i in (1, 2) for j in (1, 2)}
    assert found["drill_free", "v1v2"] == 0.09 and found["drill_fixed", "v2v2"] == 0.15
    print_outcome(drill)
    text = capsys.readouterr().out
    assert "ranker v1, no LTE  0.1200" in text
    assert "free LTE v2 to ranker v1 −40.00 % [−41.00 %, −39.00 %] breaks" in " ".join(text.split())
