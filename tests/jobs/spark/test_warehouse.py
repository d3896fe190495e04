"""Tables that don't exist yet, or whose creation was interrupted."""

from pathlib import Path

import pytest

from lte_model.warehouse.tables import LTE_LIVE

pytestmark = pytest.mark.spark


@pytest.mark.parametrize(
    "left", [[], [".00000000000000000000.json.1a2b.tmp", "..00000000000000000000.json.1a2b.tmp.crc"]]
)
def test_a_creation_that_ended_before_its_commit_is_done_anew(warehouse, left):
    """After a kill or on a full disk: Spark's catalog treats a folder with a log as a table."""
    log = Path(warehouse.path(LTE_LIVE), "_delta_log")
    log.mkdir(parents=True)
    for name in left:
        (log / name).write_text('{"commitInfo":')
    assert not warehouse.exists(LTE_LIVE)
    warehouse.create(LTE_LIVE)
    assert warehouse.read(LTE_LIVE).count() == 0
    warehouse.create(LTE_LIVE)
    assert [file.name for file in log.glob("*.json")] == ["00000000000000000000.json"]
