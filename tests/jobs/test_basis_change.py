"""A change of basis: both bases are made and live, each model reads its own, and the old one is retired at the end.

Nothing is lost on the way to the new basis, back, and to it again.
"""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from jobs.audit_lte import audit_lte
from jobs.build_training_set import build_training_set
from jobs.count_popularity import count_popularity
from jobs.fit_basis import require_choice
from jobs.monitor_lte import monitor
from jobs.publish_lte import publish_lte
from jobs.quality.check import check
from jobs.quality.suites.by_table import SUITES
from jobs.recipes.bases import basis_in_force
from jobs.retire_basis import TABLES_OF_BASES, retire_from_table
from jobs.score_users import read_champion, score_users
from jobs.snapshot_lte import due_of_training, snapshot_lte
from lte_model.command_line import CommandParser, asked_bases
from lte_model.domain.kind import LTEKind
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.registry import promotion, versions
from lte_model.registry.basis_change import change, require_released
from lte_model.registry.gate import gate
from lte_model.settings import Basis
from lte_model.tracking.lineage import CHAMPION, version_with
from lte_model.warehouse.tables import ITEM_EMBEDDINGS, LTE_LIVE, LTE_SNAPSHOTS, RECOMMENDATIONS, SEMANTIC_BASES
from tests.jobs import events as made
from tests.jobs.events import collected, oracle
from tests.jobs.small_tables import DATE, FEED, LAG, VECTORS, WINDOW
from tests.lte_model.registered import evaluated, random_ranker

OLD, NEW = "basis", "0123456789abcdef"
TRAINING = DATE + 4 * ONE_DAY
"""The training date whose test cut is DATE."""

NEW_VECTORS = dataclasses.replace(
    VECTORS, basis_id=NEW, units=np.random.default_rng(9).integers(-(2**14), 2**14, (len(made.ITEMS), 3))
)
OF_BASIS = {OLD: VECTORS, NEW: NEW_VECTORS}


def in_force(warehouse, *bases):
    """Sets the bases in force; trainings use the first."""
    basis = Basis(basis_id=bases[0], beside=bases[1:], dimensions=4)
    warehouse.settings = warehouse.settings.model_copy(update={"basis": basis})


@pytest.fixture
def shop(filled):
    """The small tables, plus a registered second basis with other dimensions and its item embeddings."""
    spark = filled.spark
    known = spark.createDataFrame(filled.read(SEMANTIC_BASES).collect(), filled.read(SEMANTIC_BASES).schema)
    new = known.selectExpr(f"'{NEW}' AS basis_id", "encoder", "3 AS dimensions", "text_template", "fitted_on",
                           "fitted_items", "state")  # fmt: skip
    filled.replace(SEMANTIC_BASES, new, f"basis_id = '{NEW}'")
    rows = [(NEW, item, (units / 2**14).tolist()) for item, units in zip(made.ITEMS, NEW_VECTORS.units, strict=True)]
    vectors = spark.createDataFrame(rows, "basis_id STRING, item_id STRING, vector ARRAY<FLOAT>")
    filled.replace(ITEM_EMBEDDINGS, vectors, f"basis_id = '{NEW}'")
    in_force(filled, OLD, NEW)
    return filled


def make(warehouse, dates=(DATE,)):
    """Runs the jobs of `lte_daily` for the dates, in each basis in force."""
    for basis_id in warehouse.settings.basis.in_force:
        snapshot_lte(warehouse, dates, basis_id=basis_id)
        publish_lte(warehouse, max(dates), basis_id=basis_id)


def of_basis(warehouse, table, basis_id):
    return warehouse.read(table).where(f"basis_id = '{basis_id}'")


def expected(basis_id, dates=(DATE,)):
    return oracle(FEED, OF_BASIS[basis_id], dates, LAG, WINDOW)


@pytest.mark.production  # two minutes
def test_both_bases_are_made_published_and_measured_as_either_is_alone(shop):
    """Also if the bases were swapped in the settings between two dates; a second run writes the same rows."""
    first, second = DATE, DATE + ONE_DAY
    make(shop, [first])
    in_force(shop, NEW, OLD)
    make(shop, [second])
    before = [publish_lte(shop, second, basis_id=basis_id).written_users for basis_id in (OLD, NEW)]
    assert before == [0, 0]
    for basis_id in (OLD, NEW):
        assert collected(of_basis(shop, LTE_SNAPSHOTS, basis_id)) == expected(basis_id, [first, second])
        live = of_basis(shop, LTE_LIVE, basis_id).drop("snapshot_date")
        assert collected(live.selectExpr("*", f"DATE'{second}' AS snapshot_date")) == expected(basis_id, [second])
    assert audit_lte(shop, second, share=1, live=True, basis_id=OLD).clean
    for table in ("lte_snapshots", "lte_live"):
        options = {"anchors": False} if table == "lte_snapshots" else {}
        batches = SUITES[table](shop.settings, second, **options)
        # The small tables' vectors aren't unit vectors, so skip the rule on their length.
        check(shop.settings, table, [batch for batch in batches if batch.name.endswith("representations")], second)
    readings = monitor(shop.settings, second, shop.settings.basis.in_force)
    assert {reading.representation for reading in readings} == {"uniform", f"uniform in basis {OLD}"}


def test_a_basis_in_force_without_its_rows_stops_the_gate(shop):
    def gate():
        _, per_basis = SUITES["lte_snapshots"](shop.settings, DATE, anchors=False)
        check(shop.settings, "lte_snapshots", [per_basis], DATE)

    snapshot_lte(shop, [DATE], basis_id=OLD)
    with pytest.raises(LTEError, match=f"lte_snapshots_representations: .*basis_id={NEW}, representation=uniform"):
        gate()
    in_force(shop, OLD)
    gate()
    with pytest.raises(LTEError, match=f"holds no uniform LTE of {DATE} in basis {NEW}; run jobs.snapshot_lte"):
        publish_lte(shop, DATE, basis_id=NEW)
    with pytest.raises(LTEError, match="basis 3f2a is not registered"):
        snapshot_lte(shop, [DATE], basis_id="3f2a")


def test_a_job_works_for_the_bases_in_force_unless_some_are_asked_for(shop):
    parser = CommandParser("A job.", "a date")
    parser.add_bases("do it in this basis")
    for words, found in (([], (OLD, NEW)), (["--basis", NEW], (NEW,)), (["--basis", NEW, "--basis", NEW], (NEW,))):
        assert asked_bases(parser.parse_args(["--date", str(DATE), *words]), shop.settings) == found
    assert basis_in_force(shop) == OLD and basis_in_force(shop, NEW) == NEW


def test_a_second_basis_waits_until_the_first_is_named(filled):
    with pytest.raises(
        LTEError, match=r"basis basis is registered, and the settings name none: .* Set basis.basis_id to"
    ):
        require_choice(filled)
    in_force(filled, OLD)
    require_choice(filled)


def register(settings, basis_id, scale, seed):
    """Registers a version of a basis that ranks by popularity (scale 1) or against it (−1), and by the LTE.

    Returns its number.
    """
    vectors = OF_BASIS[basis_id]
    ranker = random_ranker(
        kind=LTEKind(basis_id, "uniform", LAG, WINDOW),
        seed=seed,
        item_ids=made.ITEMS,
        content=torch.from_numpy((vectors.units / 2**14).astype(np.float32)),
        popularity_bias=True,
    )
    with torch.no_grad():
        ranker.popularity_scale.fill_(20.0 * scale)
    evaluated(settings, TRAINING, ranker)
    return str(versions.register(settings, TRAINING).version)


def scored(warehouse, folder):
    """The champion's recommendations for DATE: (basis, {user: (item ids, scores)})."""
    version = version_with(warehouse.settings, CHAMPION)
    score_users(warehouse, DATE, read_champion(warehouse.settings, version, Path(folder, str(version.version))))
    rows = warehouse.read(RECOMMENDATIONS).where(f"date = DATE'{DATE}'").collect()
    ((basis_id, number),) = {(row.basis_id, row.model_version) for row in rows}
    assert str(number) == str(version.version)
    return basis_id, {row.user_id: (row.item_ids, row.scores) for row in rows}


def test_a_basis_beside_that_nobody_reads_stops_no_training(shop):
    """The other basis may lack what the settings need, such as an encoder for days before its first one."""
    both = shop.settings.model.model_copy(update={"representations": ("uniform", "autoencoder")})
    dates = shop.settings.training_set.dates(TRAINING)
    names = both.representations
    assert due_of_training(shop.settings, TRAINING, names) == [(OLD, dates.snapshot_dates, names)]
    with pytest.raises(
        LTEError,
        match=f"no encoder of basis {NEW} fitted on {DATE} or before, .* "
        f"run python -m lte_model.training.autoencoder --date {DATE} --basis {NEW}, "
        f"then python -m jobs.encode_items --date {DATE} --basis {NEW}",
    ):
        snapshot_lte(shop, [DATE], representations=names, basis_id=NEW)
    snapshot_lte(shop, dates.snapshot_dates, basis_id=OLD)
    _, per_basis = SUITES["lte_snapshots"](shop.settings, TRAINING, anchors=True)
    check(shop.settings, "lte_snapshots", [per_basis], TRAINING)

    # After the swap, the old model's LTEs of the test users still exist for the comparison.
    register(shop.settings, OLD, 1, 0)
    in_force(shop, NEW, OLD)
    assert due_of_training(shop.settings, TRAINING, names) == [
        (NEW, dates.snapshot_dates, names),
        (OLD, (dates.test.start,), ("uniform",)),
    ]


@pytest.mark.production
def test_the_whole_change_there_back_and_there_again(shop, tmp_path):
    def state():
        return change(shop.settings).state

    # Only the old basis.
    in_force(shop, OLD)
    make(shop)
    first = register(shop.settings, OLD, -1, 0)
    gate(shop.settings, first).require()
    promotion.promote(shop.settings, first, None)
    assert state() == "settled"
    by_old = scored(shop, tmp_path)
    assert by_old[0] == OLD

    # The new basis is fitted and published for the first time.
    dates = shop.settings.training_set.dates(TRAINING)
    snapshot_lte(shop, dates.snapshot_dates, basis_id=NEW)
    publish_lte(shop, DATE, basis_id=NEW)
    assert change(shop.settings).next_step == f'put it in force: basis_id = "{OLD}", beside = ["{NEW}"]'
    in_force(shop, OLD, NEW)
    assert state() == "warming up"
    in_force(shop, NEW, OLD)
    assert state() == "training" and scored(shop, tmp_path) == by_old

    # A challenger of the new basis is compared on the same test users, each model with its own LTEs.
    build_training_set(shop, TRAINING)
    count_popularity(shop, dates.snapshot_dates)
    second = register(shop.settings, NEW, 1, 1)
    assert state() == "challenged"
    in_force(shop, NEW)
    with pytest.raises(LTEError, match=f"version 1, champion, reads basis {OLD}, which isn't in force .* add it to"):
        state()
    refused = gate(shop.settings, second)
    assert any(f"version 1 reads basis {OLD}, and in force is {NEW}" in line for line in refused.broken)
    in_force(shop, NEW, OLD)
    found = gate(shop.settings, second)
    found.require()
    said = {check.rule: check.found for check in found.checks}
    assert "over version 1, " in said["not below the champion"]
    assert said["its basis has the LTEs of the champion's users"].startswith(f"100.0 % of those of basis {OLD}")
    assert f"of basis `{OLD}`" in found.summary and f"basis `{NEW}`" in found.summary
    promotion.promote(shop.settings, second, first)
    assert state() == "promoted"
    by_new = scored(shop, tmp_path)
    assert by_new[0] == NEW and by_new != by_old

    # A rollback is possible as long as the old basis is published, so it can't be retired.
    with pytest.raises(LTEError, match=f"basis {OLD} can't be retired: version 1 is previous and reads it. A rollback"):
        require_released(shop.settings, OLD)
    promotion.rollback(shop.settings, "clicks fell")
    assert state() == "rolled back" and scored(shop, tmp_path) == by_old
    with pytest.raises(LTEError, match=f"basis {OLD} can't be retired: version 1 is champion and reads it. Promote"):
        require_released(shop.settings, OLD)
    promotion.rollback(shop.settings, "it was the season")
    assert state() == "promoted"

    # After another promotion no alias reads the old basis.
    third = register(shop.settings, NEW, 1, 2)
    gate(shop.settings, third).require()
    promotion.promote(shop.settings, third, second)
    assert state() == "released"
    with pytest.raises(LTEError, match=f"basis {OLD} can't be retired: it is in force; take it out of"):
        require_released(shop.settings, OLD)
    in_force(shop, NEW)
    require_released(shop.settings, OLD)
    kept = {
        table.name: of_basis(shop, table, NEW).count()
        for tables in TABLES_OF_BASES.values()
        for table in tables
        if shop.exists(table)
    }
    for removed in (True, False):  # a second run finds nothing
        for tables in TABLES_OF_BASES.values():
            for table in tables:
                assert (retire_from_table(shop, table, OLD) > 0) == (removed and table.name in kept)
    for name, rows in kept.items():
        there = pl.read_delta(shop.settings.table_path(name))
        assert there["basis_id"].unique().to_list() == [NEW] and len(there) == rows
    assert state() == "settled"
    with pytest.raises(LTEError, match=r"version 1 can't be champion again: reads the live LTEs: .* not basis"):
        promotion.rollback(shop.settings, "nostalgia", first)


def test_a_basis_that_a_model_might_read_is_not_retired(shop):
    with pytest.raises(LTEError, match="basis 3f2a is not registered"):
        require_released(shop.settings, "3f2a")
    with pytest.raises(LTEError, match=f"basis {NEW} can't be retired: it is in force; take it out of"):
        require_released(shop.settings, NEW)
    shop.settings = shop.settings.model_copy(update={"basis": Basis(dimensions=4)})
    with pytest.raises(LTEError, match=r"2 bases are registered .*; set basis.basis_id to one"):
        require_released(shop.settings, NEW)
