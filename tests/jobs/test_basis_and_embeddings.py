"""`fit_basis` and `embed_items`: a basis is registered once, and a vector is written once."""

import datetime
import shutil
from pathlib import Path

import pytest

from jobs.embed_items import embed_items
from jobs.fit_basis import fit_basis, register, registered_twin, require_new
from jobs.ingest_items import ingest_items
from jobs.quality.check import check
from jobs.quality.suites.by_table import SUITES
from jobs.recipes.bases import basis_in_force, load_basis, load_vectors
from jobs.spark.warehouse import Warehouse
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.settings import with_make
from lte_model.warehouse.tables import ITEM_EMBEDDINGS, SEMANTIC_BASES
from tests.jobs.conftest import small_settings
from tests.jobs.feed_files import reads, write_parquet

DATE = datetime.date(2024, 3, 1)
COLUMNS = ("item_id", "title", "brand", "known_date")
COLOURS, KINDS = ("navy", "red", "green", "black"), ("shirt", "coat", "scarf", "boots")


def rows(known="2024-01-01"):
    return [
        {"item_id": f"{colour}-{kind}", "title": f"{colour} {kind}", "brand": "Acme", "known_date": known}
        for colour in COLOURS
        for kind in KINDS
    ]


@pytest.fixture(scope="module")
def template(spark, tmp_path_factory):
    """The folder of a warehouse with sixteen items and a basis fitted on them."""
    warehouse = Warehouse(spark, small_settings(tmp_path_factory.mktemp("template")))
    deliver(warehouse)
    warehouse.create(SEMANTIC_BASES)
    register(warehouse, *fitted(warehouse))
    return warehouse.settings.warehouse


@pytest.fixture
def shop(template, warehouse):
    shutil.copytree(template, warehouse.settings.warehouse)
    return warehouse


def deliver(warehouse, *more, date=DATE):
    """Ingests the sixteen items, and `more`."""
    feed = Path(warehouse.settings.home, "items.parquet")
    write_parquet(feed, [*rows(), *more], COLUMNS)
    reads(warehouse, items=feed)
    ingest_items(warehouse, warehouse.settings, date)


def fitted(warehouse):
    basis, count = fit_basis(warehouse, DATE)
    return basis, DATE, count


def embeddings(warehouse):
    return {row.item_id: tuple(row.vector) for row in warehouse.read(ITEM_EMBEDDINGS).collect()}


def test_a_basis_is_registered_once_and_read_back_whole(shop):
    register(shop, *fitted(shop))
    registered = shop.read(SEMANTIC_BASES).collect()
    assert len(registered) == 1 and registered[0].fitted_items == 16
    assert registered_twin(shop) == basis_in_force(shop) == registered[0].basis_id
    assert load_basis(shop, registered[0].basis_id).dimensions == 4


def test_only_new_items_are_embedded_and_old_vectors_stay(shop):
    assert embed_items(shop, DATE)[1:] == (16, [])
    before = embeddings(shop)
    assert embed_items(shop, DATE)[1:] == (0, [])
    late = {"item_id": "navy-boots-2", "title": "Navy boots", "brand": "Acme", "known_date": "2024-03-02"}
    deliver(shop, late, date=DATE + ONE_DAY * 3)
    assert embed_items(shop, DATE + ONE_DAY)[1:] == (0, [])
    assert embed_items(shop, DATE + ONE_DAY * 3)[1:] == (1, [])
    after = embeddings(shop)
    assert {item: after[item] for item in before} == before
    assert after["navy-boots-2"] == after["navy-boots"]


def test_an_item_of_unknown_words_has_no_vector_and_is_named(shop):
    deliver(shop, {"item_id": "odd", "title": "zzz", "brand": None, "known_date": "2024-01-01"})
    assert embed_items(shop, DATE)[1:] == (16, ["odd"])
    assert "odd" not in load_vectors(shop, basis_in_force(shop)).index.item_ids.to_pylist()


def test_a_new_basis_is_embedded_beside_the_old_whose_vectors_stay(shop):
    old, _, _ = embed_items(shop, DATE)
    before = embeddings(shop)
    make = with_make(shop.settings, 3, "{title}")
    shop.settings = make.model_copy(update={"basis": make.basis.model_copy(update={"basis_id": old})})
    basis, _, count = fitted(shop)
    require_new(shop, basis, DATE)
    register(shop, basis, DATE, count)
    assert basis.basis_id != old and load_basis(shop, basis.basis_id).dimensions == 3
    assert embed_items(shop, DATE, basis.basis_id) == (basis.basis_id, 16, [])
    assert embed_items(shop, DATE, basis.basis_id)[1] == embed_items(shop, DATE)[1] == 0
    of_old = shop.read(ITEM_EMBEDDINGS).where(f"basis_id = '{old}'").collect()
    assert {row.item_id: tuple(row.vector) for row in of_old} == before
    settings = shop.settings
    beside = settings.basis.model_copy(update={"beside": (basis.basis_id,)})
    shop.settings = settings = settings.model_copy(update={"basis": beside})
    with pytest.raises(
        LTEError, match=f"before {DATE} give basis {basis.basis_id} again, which is in force already; take"
    ):
        require_new(shop, basis, DATE)
    check(settings, "item_embeddings", SUITES["item_embeddings"](settings, DATE), DATE)
    with pytest.raises(LTEError, match="--dimensions 0 are none"):
        with_make(settings, 0, None)


def test_two_bases_leave_a_choice_open(shop):
    deliver(shop, {"item_id": "new", "title": "green shirt", "brand": "Zeta", "known_date": "2024-01-01"})
    register(shop, *fitted(shop))
    with pytest.raises(LTEError, match=r"2 bases are registered .*; set basis.basis_id to one"):
        basis_in_force(shop)


def test_a_damaged_basis_is_refused(shop):
    basis_id = basis_in_force(shop)
    shop.spark.sql(f"UPDATE delta.`{shop.path(SEMANTIC_BASES)}` SET text_template = '{{title}}'")
    with pytest.raises(LTEError, match=f"the state of basis {basis_id} hashes to .* damaged"):
        load_basis(shop, basis_id)


def test_before_any_basis_the_way_is_shown(warehouse):
    with pytest.raises(LTEError, match=r"table semantic_bases does not exist at .*; run jobs.fit_basis first"):
        basis_in_force(warehouse)
