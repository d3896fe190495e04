"""The demo shop is reproducible byte by byte, has a known amount of dirt, and a planted truth that can be recovered.

Longer than 350 lines, because every test looks at the same shop, which takes seconds to make.
"""

import datetime
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.demo_shop.assortment import BRANDS, CATEGORIES, COLOURS
from jobs.demo_shop.browsing import EVENT_TYPES
from jobs.demo_shop.feed import BROKEN_TIMESTAMPS, FILES, MOST_DAYS_LATE, Planted, write_demo_shop
from jobs.demo_shop.spec import END, START, ShopSpec
from lte_model.errors import LTEError

pytestmark = pytest.mark.slow

SPEC = ShopSpec(users=400, items=300, seed=7)


class Shop:
    """A generated shop, read without the demo shop's code."""

    def __init__(self, spec: ShopSpec, folder: Path, **how: int):
        self.spec, self.folder = spec, folder
        self.planted: Planted = write_demo_shop(spec, folder, **how)
        self.items = pl.read_parquet(folder / "items.parquet").with_columns(
            colour=pl.col("title").str.to_lowercase().str.extract(f"^({'|'.join(COLOURS)})"),
            style=pl.col("title").str.extract(", ([a-z]+)$"),
        )
        self.truth = pl.read_parquet(folder / "truth.parquet")
        self.events = pl.read_parquet(folder / "events.parquet").with_columns(
            time=pl.col("event_ts").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", strict=False)
        )

    @property
    def intact(self) -> pl.DataFrame:
        """Valid event rows without duplicates, joined with their items and their user's planted truth."""
        return (
            self.events.drop_nulls("time")
            .unique(maintain_order=True)
            .join(
                self.items.select("item_id", "category", "brand", "colour", "style", sold_from="known_date"), "item_id"
            )
            .join(self.truth, "user_id")
        )

    def bytes(self) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in (*FILES, "planted.json")}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Shop:
    return Shop(SPEC, tmp_path_factory.mktemp("shop"))


def found_dirt(shop: Shop) -> dict[str, int]:
    """Counts each kind of dirt from the feed alone."""
    nothing = (pl.lit(None).cast(pl.String), pl.lit(""))
    late = pl.col("time").dt.date() < pl.col("known_date")
    known = pl.col("item_id").is_in(shop.items["item_id"].implode())
    missing_item = pl.col("item_id").is_null() | (pl.col("item_id") == "")
    return shop.events.select(
        rows=pl.len(),
        late=late.sum(),
        unknown_items=(~known & ~missing_item).sum(),
        broken_timestamps=pl.col("time").is_null().sum(),
        missing_users=pl.any_horizontal(pl.col("user_id").eq_missing(value) for value in nothing).sum(),
        missing_items=missing_item.sum(),
        bot_events=(pl.col("user_id") == shop.planted.bot_user_id).sum(),
    ).row(0, named=True) | {"duplicates": shop.events.height - shop.events.unique().height}


def test_same_spec_same_bytes(shop, tmp_path):
    assert Shop(SPEC, tmp_path).bytes() == shop.bytes()


@pytest.mark.parametrize("users_at_a_time", [1, 7, SPEC.users])
def test_the_bytes_do_not_depend_on_chunks(shop, tmp_path, users_at_a_time):
    assert Shop(SPEC, tmp_path, users_at_a_time=users_at_a_time).bytes() == shop.bytes()


def test_another_seed_makes_another_shop(shop, tmp_path):
    other = Shop(replace(SPEC, seed=8), tmp_path).bytes()
    assert all(other[name] != content for name, content in shop.bytes().items())


def test_the_same_shop_is_reused_and_another_replaces_it(tmp_path):
    small = ShopSpec(users=20, items=10)
    made = write_demo_shop(small, tmp_path)
    stamp = (tmp_path / "events.parquet").stat().st_mtime_ns
    assert write_demo_shop(small, tmp_path) == replace(made, reused=True)
    assert (tmp_path / "events.parquet").stat().st_mtime_ns == stamp
    assert not write_demo_shop(replace(small, seed=1), tmp_path).reused


def test_an_unfinished_shop_is_made_again(tmp_path):
    small = ShopSpec(users=20, items=10)
    whole = Shop(small, tmp_path).bytes()
    record = json.loads(whole["planted.json"])
    del record["planted"]  # as after a kill before the end
    (tmp_path / "planted.json").write_text(json.dumps(record))
    (tmp_path / "events.parquet").write_bytes(b"PAR1")
    again = Shop(small, tmp_path)
    assert not again.planted.reused
    assert again.bytes() == whole


def test_feeds_that_are_not_ours_are_kept(tmp_path):
    (tmp_path / "events.parquet").write_text("somebody's")
    with pytest.raises(LTEError, match=r"events\.parquet was not made by the demo shop"):
        write_demo_shop(SPEC, tmp_path)
    assert (tmp_path / "events.parquet").read_text() == "somebody's"


def test_every_row_is_counted_once(shop):
    counts = asdict(shop.planted)
    kinds = ("clean", "late", "duplicates", "unknown_items", "broken_timestamps", "missing_users", "missing_items")
    assert counts["rows"] == sum(counts[kind] for kind in kinds)
    assert found_dirt(shop).items() <= counts.items()
    assert counts["stable"] + counts["drifting"] + counts["without_taste"] == SPEC.users
    assert json.loads(shop.bytes()["planted.json"])["spec"] == asdict(SPEC)


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("duplicates", "duplicate_rate"),
        ("late", "late_rate"),
        ("unknown_items", "unknown_item_rate"),
        ("broken_timestamps", "broken_timestamp_rate"),
        ("missing_users", "missing_user_rate"),
        ("missing_items", "missing_item_rate"),
    ],
)
def test_each_kind_of_dirt_has_its_rate(shop, kind, rate):
    expected = getattr(SPEC, rate) * (shop.planted.rows - shop.planted.bot_events)
    assert getattr(shop.planted, kind) == pytest.approx(expected, abs=5 * expected**0.5)


def test_every_form_of_dirt_occurs(shop):
    texts = set(shop.events.filter(pl.col("time").is_null())["event_ts"])
    assert texts == set(BROKEN_TIMESTAMPS)
    assert {None, ""} <= set(shop.events["user_id"])
    assert {None, ""} <= set(shop.events["item_id"])
    days = (shop.events["known_date"] - shop.events["time"].dt.date()).dt.total_days().drop_nulls()
    assert set(days) == set(range(MOST_DAYS_LATE + 1))


def test_rows_look_alike_only_where_a_duplicate_was_planted(tmp_path):
    dense = ShopSpec(users=30, items=1, broken_timestamp_rate=0.5, missing_user_rate=0.4, events_per_user=300)
    shop = Shop(dense, tmp_path)
    assert found_dirt(shop)["duplicates"] == shop.planted.duplicates > 0


def test_the_bot_stands_out(shop):
    events = shop.events.group_by("user_id").len().sort("len", descending=True)
    assert events["user_id"][0] == shop.planted.bot_user_id
    assert shop.planted.bot_user_id not in shop.truth["user_id"]
    assert events["len"][0] > 20 * events["len"].median()


def test_events_per_user_are_heavy_tailed(shop):
    events = shop.truth["events"]
    assert events.mean() == pytest.approx(SPEC.events_per_user, rel=0.25)
    assert events.median() < 0.6 * events.mean()
    assert events.max() > 8 * events.mean()


def test_items_are_described_in_words(shop):
    assert shop.items["known_date"].is_between(START, END, closed="left").all()
    assert 0.6 < (shop.items["known_date"] == START).mean() < 0.8
    assert shop.items["category"].is_in([category.name for category in CATEGORIES]).all()
    assert shop.items["brand"].is_in(BRANDS).all()
    assert (shop.items["price"] > 0).all()
    for item in shop.items.iter_rows(named=True):
        assert re.fullmatch(r"[A-Z][a-z ]+ [a-z-]+ [a-z -]+, [a-z]+", item["title"])
        for word in ("colour", "brand", "category"):
            assert item[word] in item["description"]
        assert item["style"].capitalize() in item["description"]


def test_prices_are_of_purchases_and_quantities_of_what_is_taken(shop):
    purchase = shop.events["event_type"] == "purchase"
    assert shop.events["event_type"].is_in(EVENT_TYPES).all()
    assert shop.events["event_type"].n_unique() == len(EVENT_TYPES)
    assert (shop.events["price"].is_not_null() == purchase).all()
    assert (shop.events["quantity"].is_null() == (shop.events["event_type"] == "view")).all()
    assert shop.events["quantity"].drop_nulls().is_in([1.0, 2.0, 3.0]).all()


def test_categories_have_seasons(shop):
    months = shop.intact.group_by(month=pl.col("time").dt.month()).agg(
        summer=pl.col("category").is_in(["Swimwear", "Shorts", "Sandals"]).mean(),
        winter=pl.col("category").is_in(["Coats", "Boots", "Scarves"]).mean(),
    )
    july, january = (months.row(by_predicate=pl.col("month") == month, named=True) for month in (7, 1))
    assert july["summer"] > 2 * january["summer"]
    assert january["winter"] > 2 * july["winter"]


def test_popularity_is_unequal(shop):
    counts = shop.intact.group_by("item_id").len()["len"].sort(descending=True)
    assert counts.head(len(shop.items) // 10).sum() > 0.25 * counts.sum()


def test_some_users_come_late_and_some_leave_and_some_return(shop):
    days = (
        shop.intact.filter(pl.col("events") >= 50)
        .sort("time")
        .group_by("presence")
        .agg(
            first=pl.col("time").dt.date().min(),
            last=pl.col("time").dt.date().max(),
        )
    )
    days = {row["presence"]: row for row in days.iter_rows(named=True)}
    assert set(days) == {"steady", "newcomer", "dormant", "returning"}
    assert days["newcomer"]["first"] >= START + datetime.timedelta(days=90)
    assert days["dormant"]["last"] < START + datetime.timedelta(days=600)
    breaks = (
        shop.intact.filter(pl.col("events") >= 200)
        .sort("user_id", "time")
        .group_by("user_id", "presence")
        .agg(longest=pl.col("time").diff().max())
    )
    assert (breaks.filter(presence="returning")["longest"] >= datetime.timedelta(days=89)).all()
    assert breaks.filter(presence="steady")["longest"].median() < datetime.timedelta(days=89)


FAVOURITES = {"category": "categories", "style": "styles", "colour": "colours", "brand": "brands"}


def test_a_stable_taste_shows_in_the_history(shop):
    """A user's events match the user's own taste better than another user's taste."""
    stable = shop.intact.filter(pl.col("taste") == "stable", pl.col("events") >= 50)
    tastes = stable.select("user_id", *FAVOURITES.values()).unique("user_id", maintain_order=True)
    others = tastes.select(
        "user_id",
        *(
            pl.col(name).gather((pl.int_range(pl.len()) + 1) % pl.len()).alias(f"other_{name}")
            for name in FAVOURITES.values()
        ),
    )
    shares = (
        stable.join(others, "user_id")
        .group_by("user_id")
        .agg(
            *(pl.col(one).is_in(pl.col(many)).mean().alias(f"own {one}") for one, many in FAVOURITES.items()),
            *(
                pl.col(one).is_in(pl.col(f"other_{many}")).mean().alias(f"other {one}")
                for one, many in FAVOURITES.items()
            ),
        )
    )
    own, other = (sum(shares[f"{whose} {attribute}"] for attribute in FAVOURITES) for whose in ("own", "other"))
    assert (own > other).mean() > 0.9
    for attribute in FAVOURITES:
        assert shares[f"own {attribute}"].mean() > 1.2 * shares[f"other {attribute}"].mean()


def test_a_drifting_taste_moves_from_one_to_the_other(shop):
    half = START + (END - START) / 2
    drifting = shop.intact.filter(pl.col("taste") == "drifting")
    share = drifting.group_by(late=pl.col("time").dt.date() >= half).agg(
        first=pl.col("category").is_in(pl.col("categories")).mean(),
        later=pl.col("category").is_in(pl.col("later_categories")).mean(),
    )
    early, late = (share.row(by_predicate=pl.col("late") == which, named=True) for which in (False, True))
    assert late["later"] > 1.2 * early["later"]
    assert late["first"] < early["first"] / 1.2


def test_the_truth_names_what_there_is(shop):
    favourites = ("categories", "styles", "colours", "materials", "brands")
    for taste, now, later in (("stable", True, False), ("drifting", True, True), ("none", False, False)):
        rows = shop.truth.filter(taste=taste)
        assert rows.height > 0
        for name in favourites:
            assert (rows[name].is_not_null() == now).all()
            assert (rows[f"later_{name}"].is_not_null() == later).all()


def test_an_intent_lasts_for_the_session_and_often_for_the_next(shop):
    """Events close in time share a category far more often than any two events of the user."""
    events = shop.intact.filter(pl.col("taste") == "none").sort("user_id", "time")
    same_user = pl.col("user_id") == pl.col("user_id").shift(1)
    gap = pl.col("time") - pl.col("time").shift(1)
    same = pl.col("category") == pl.col("category").shift(1)
    new_item = pl.col("item_id") != pl.col("item_id").shift(1)
    pairs = events.select(same=same, gap=gap).filter(events.select(same_user & new_item).to_series())
    hour, three_weeks = datetime.timedelta(hours=1), datetime.timedelta(days=21)
    within = pairs.filter(pl.col("gap") < hour)["same"].mean()
    next_session = pairs.filter(pl.col("gap").is_between(hour, three_weeks))["same"].mean()
    long_after = pairs.filter(pl.col("gap") > three_weeks)["same"].mean()
    assert within > 2 * long_after
    assert next_session > 1.5 * long_after


def test_users_come_back_to_items(shop):
    seen = shop.intact.sort("user_id", "time").select(pl.struct("user_id", "item_id").is_first_distinct().not_())
    assert seen.to_series().mean() > 0.2


def test_a_shop_without_taste_has_none(tmp_path):
    shop = Shop(ShopSpec(users=50, items=50, stable_taste_share=0), tmp_path)
    assert set(shop.truth["taste"]) == {"none"}
    assert (shop.planted.stable, shop.planted.drifting, shop.planted.without_taste) == (0, 0, 50)


rates = st.floats(0, 0.15)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    spec=st.builds(
        ShopSpec,
        users=st.integers(1, 40),
        items=st.integers(1, 80),
        seed=st.integers(0, 2**63 - 1),
        stable_taste_share=st.floats(0, 1),
        drifting_share=st.floats(0, 1),
        events_per_user=st.floats(1, 60),
        duplicate_rate=rates,
        late_rate=rates,
        unknown_item_rate=rates,
        broken_timestamp_rate=rates,
        missing_user_rate=rates,
        missing_item_rate=rates,
        bot_weight=st.floats(0, 60),
    )
)
def test_what_holds_in_every_shop(spec, tmp_path_factory):
    shop = Shop(spec, tmp_path_factory.mktemp("any"))
    assert found_dirt(shop).items() <= asdict(shop.planted).items()
    assert shop.items["item_id"].to_list() == [
        row for _, row in sorted(zip(shop.items["known_date"], shop.items["item_id"], strict=True))
    ]
    assert shop.items["item_id"].n_unique() == spec.items
    assert shop.truth["user_id"].n_unique() == shop.truth.height == spec.users
    for column, form in (("user_id", r"u\d{7}"), ("item_id", r"i\d{7}")):
        assert all(re.fullmatch(form, text) for text in shop.events[column].unique().drop_nulls() if text)
    assert shop.events["known_date"].is_sorted()

    timed = shop.events.drop_nulls("time")
    assert timed.equals(timed.sort("known_date", "time", maintain_order=True))
    assert timed["time"].dt.date().is_between(START, END, closed="none").all()
    assert (timed["known_date"] >= timed["time"].dt.date()).all()
    assert (shop.intact["sold_from"] < shop.intact["time"].dt.date()).all()

    one_user = pl.col("user_id").is_not_null() & (pl.col("user_id") != "")
    moments = timed.unique().filter(one_user).select("user_id", "time")
    assert moments.height == moments.unique().height


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"users": 0}, "users = 0"),
        ({"items": 0}, "items = 0"),
        ({"stable_taste_share": 1.5}, "stable_taste_share = 1.5"),
        ({"events_per_user": float("nan")}, "events_per_user = nan"),
        ({"late_rate": -0.1}, "late_rate = -0.1"),
        ({"late_rate": 0.6, "missing_user_rate": 0.6}, "the rates of dirt add up to 1.211"),
        ({"bot_weight": 1e6}, "bot_weight = 1000000.0"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(wrong, named):
    with pytest.raises(LTEError, match=re.escape(named)):
        replace(SPEC, **wrong)


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jobs.demo_shop", *arguments],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_says_what_it_made_and_what_it_found_made(tmp_path):
    sizes = ("--out", str(tmp_path / "shop"), "--users", "30", "--items", "20")
    first, second = command(*sizes), command(*sizes)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "made in" in first.stdout.splitlines()[0]
    assert "reused" in second.stdout.splitlines()[0]
    assert first.stdout.splitlines()[1:] == second.stdout.splitlines()[1:]
    assert "30 users on 20 items" in first.stdout
    assert first.stderr == ""


def test_the_command_refuses_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    refused = command("--out", str(tmp_path / "file"), "--users", "30", "--items", "20")
    assert refused.returncode == 2
    assert re.fullmatch(r"error: the demo shop can't be written to .*; give another folder\n", refused.stderr)
