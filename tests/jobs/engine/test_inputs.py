"""File ranges reveal missing and partial days, and unchanged inputs keep the same hash."""

import datetime
import itertools
from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.engine.calendar import day_number
from jobs.engine.files import Listing
from jobs.engine.inputs import Inputs
from jobs.engine.items import ItemIndex
from lte_model.domain.windows import ONE_DAY, Interval
from lte_model.errors import LTEError

FIRST = datetime.date(2024, 2, 1)
DATE = FIRST + 20 * ONE_DAY
LAG, WINDOW = 3, 10
rows_of_days = st.lists(st.integers(0, 9), min_size=20, max_size=20)
cuts = st.sets(st.integers(1, 19), max_size=6)


def inputs_of(rows, known=(0, 0)):
    days = [FIRST + number * ONE_DAY for number in range(len(rows))]
    accounts = pl.DataFrame({"known_date": days, "rows": rows, "content_hash": [7 * count for count in rows]})
    return Inputs("basis", accounts, ItemIndex(pa.array(["a", "b"]), np.array(known, dtype=np.int32)))


def files_of(rows, cuts):
    """One file for the days up to each cut; its range begins and ends at a day with rows."""
    files = []
    bounds = sorted({0, *cuts, len(rows)})
    for start, end in itertools.pairwise(bounds):
        held = [number for number in range(start, end) if rows[number]]
        if held:
            files.append((FIRST + held[0] * ONE_DAY, FIRST + held[-1] * ONE_DAY, sum(rows[start:end])))
    schema = {"min.known_date": pl.Date, "max.known_date": pl.Date, "num_records": pl.Int64}
    return Listing(0, "", pl.DataFrame(files, schema, orient="row"))


@given(rows=rows_of_days, cuts=cuts)
def test_what_the_accounts_say_is_complete_in_files_of_any_cut(rows, cuts):
    inputs_of(rows).require_complete(files_of(rows, cuts), Interval(FIRST, DATE))


@given(rows=rows_of_days, cuts=cuts, day=st.integers(0, 19), lost=st.integers(1, 9))
def test_a_day_with_another_number_of_rows_is_found(rows, cuts, day, lost):
    partial = [*rows[:day], max(0, rows[day] - lost), *rows[day + 1 :]]
    if partial == rows:
        partial[day] += lost
    with pytest.raises(LTEError, match=r"table events holds .* rows known in .*the accounts of these days say"):
        inputs_of(rows).require_complete(files_of(partial, cuts), Interval(FIRST, DATE))


@given(rows=rows_of_days, day=st.integers(1, 19))
def test_a_day_without_an_account_is_missing_unless_it_is_before_the_history(rows, day):
    inputs = inputs_of(rows)
    gap = FIRST + day * ONE_DAY
    short = replace(inputs, accounts=inputs.accounts.filter(pl.col("known_date") != gap))
    with pytest.raises(LTEError, match=f"known on {gap} are missing"):
        short.require_complete(files_of(rows, set()), Interval(FIRST - 5 * ONE_DAY, DATE))
    rows[day] = 0
    short.require_complete(files_of(rows, set()), Interval(gap + ONE_DAY, DATE))


@given(rows=rows_of_days, day=st.integers(0, 19), ahead=st.integers(0, 5))
def test_only_what_a_snapshot_could_see_is_in_its_hash(rows, day, ahead):
    date = DATE - ahead * ONE_DAY
    changed = [*rows[:day], rows[day] + 1, *rows[day + 1 :]]
    seen = date - (LAG + WINDOW) * ONE_DAY <= FIRST + day * ONE_DAY < date
    same = inputs_of(rows).hash(date, LAG, WINDOW) == inputs_of(changed).hash(date, LAG, WINDOW)
    assert same != seen


def test_an_item_is_in_the_hash_from_the_day_on_which_it_is_known():
    rows = [1] * 20
    known = inputs_of(rows, (0, day_number(DATE)))
    assert known.hash(DATE, LAG, WINDOW) != inputs_of(rows).hash(DATE, LAG, WINDOW)
    later = inputs_of(rows, (0, day_number(DATE) + 3))
    assert known.hash(DATE, LAG, WINDOW) == later.hash(DATE, LAG, WINDOW)
    assert inputs_of(rows).hash(DATE, LAG, WINDOW) != inputs_of(rows).hash(DATE, LAG + 1, WINDOW)
