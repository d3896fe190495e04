"""The items that can be ranked, and the basis in force."""

import polars as pl
import pytest

from lte_model.errors import LTEError
from lte_model.settings import Basis, Settings
from lte_model.warehouse.catalogue import basis_in_force
from lte_model.warehouse.reading import Tables
from tests.lte_model.small_shop import (
    write_table,
)


def test_the_catalogue_is_what_was_known_before_the_test_cut(shop, training_set):
    items = pl.scan_delta(shop.table_path("items")).collect()
    cut = training_set.dates.test.start
    assert training_set.catalogue.item_ids.to_list() == sorted(items.filter(pl.col("known_date") < cut)["item_id"])
    vectors = dict(pl.scan_delta(shop.table_path("item_embeddings")).select("item_id", "vector").collect().iter_rows())
    for item, vector in zip(training_set.catalogue.item_ids, training_set.catalogue.vectors, strict=True):
        assert vector.tolist() == vectors[item]


def test_the_basis_in_force_is_that_of_the_settings_or_the_only_one(tmp_path):
    def in_force(registered: list[str], wanted: str = "") -> str:
        settings = Settings(warehouse=str(tmp_path), basis=Basis(basis_id=wanted))
        write_table(settings, "semantic_bases", pl.DataFrame({"basis_id": registered}))
        return basis_in_force(Tables(settings))

    assert in_force(["aa"]) == "aa" == in_force(["bb", "aa"], wanted="aa")
    with pytest.raises(LTEError, match=r"2 bases are registered \(aa, bb\); set basis.basis_id to one"):
        in_force(["bb", "aa"])
    with pytest.raises(LTEError, match=r"basis cc is not registered in .*semantic_bases \(it holds aa, bb\)"):
        in_force(["bb", "aa"], wanted="cc")
    with pytest.raises(LTEError, match=r"table semantic_bases does not exist at .*; run jobs.fit_basis first"):
        basis_in_force(Tables(Settings(warehouse=str(tmp_path / "nowhere"))))
