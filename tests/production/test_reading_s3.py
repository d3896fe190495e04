"""Readers without a JVM get the same rows from S3 as from disk, bit for bit."""

import uuid

import polars as pl
import pytest
from deltalake import write_deltalake

from jobs.engine.files import list_files, read_pieces
from lte_model.serving.live import with_live_ltes
from lte_model.settings import Settings, load_settings
from lte_model.training.training_set import open_training_set
from lte_model.warehouse.reading import Tables, scan
from tests.lte_model.small_shop import SETTINGS, TRAINING_DATE, make_shop, write_warehouse
from tests.production import s3_server

pytestmark = pytest.mark.skipif(not s3_server.installed(), reason=s3_server.MISSING)


@pytest.fixture(scope="module")
def server():
    """An S3 server that environment variables make reachable for this process."""
    with s3_server.s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def warehouses(server, tmp_path):
    """One warehouse on S3, one on disk."""
    bucket = f"lte-{uuid.uuid4().hex}"
    server.make_bucket(bucket)
    return f"s3a://{bucket}/warehouse", str(tmp_path / "warehouse")


def test_polars_deltalake_and_arrow_read_what_they_read_from_a_disk(warehouses):
    frame = pl.DataFrame(
        {"day": [1, 1, 2], "user": ["a b", "c/d", "é%20"], "sums": [[1, -(2**31)], [], [2**31 - 1]]},
        schema={"day": pl.Int32, "user": pl.String, "sums": pl.List(pl.Int32)},
    )
    read = []
    for warehouse in warehouses:
        settings = Settings(warehouse=warehouse)
        place = settings.table_path("events")
        for _ in range(2):
            write_deltalake(place, frame, mode="append", partition_by="day")
        listing = list_files(place)
        pieces = [piece for part in listing.parts(at_least=2) for piece in part]
        by_arrow = pl.concat([pl.DataFrame(table) for table in read_pieces(pieces, ["user", "sums"], None)])
        by_polars = Tables(settings).scan("events").collect()
        assert len(by_polars) == len(by_arrow) == listing.records == 2 * len(frame)
        read.append([by_polars.sort("user"), by_arrow.sort("user"), scan(settings, "events").collect().sort("user")])
    for on_s3, on_disk in zip(*read, strict=True):
        assert on_s3.equals(on_disk)


def test_a_training_and_a_served_model_read_the_same_bits(warehouses, tmp_path):
    shop = make_shop(users=20, seed=0)
    digests, served = [], []
    for warehouse in warehouses:
        (tmp_path / "settings.toml").write_text(f'warehouse = "{warehouse}"\n{SETTINGS}')
        settings = load_settings(tmp_path / "settings.toml")
        write_warehouse(settings, *shop, TRAINING_DATE)
        training_set = open_training_set(settings, TRAINING_DATE)
        digests.append([training_set.cases(split).digest() for split in ("train", "validation", "test")])
        live = training_set.tables.scan("lte_snapshots").filter(
            pl.col("snapshot_date") == pl.col("snapshot_date").max()
        )
        write_deltalake(settings.table_path("lte_live"), live.collect())
        users = live.select(pl.col("user_id").unique().sort()).collect().to_pandas()
        served.append(with_live_ltes(users, training_set.kind, settings))
    assert digests[0] == digests[1]
    assert served[0].to_dict() == served[1].to_dict()


def test_a_store_that_does_not_answer_is_not_an_empty_one(tmp_path, monkeypatch):
    """Otherwise a training would report missing tables, and maintenance would delete files that a version needs."""
    with s3_server.s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("lte")
        settings = Settings(warehouse="s3://lte/warehouse")
        write_deltalake(settings.table_path("events"), pl.DataFrame({"a": [1]}))
        server.stop()
        with pytest.raises(OSError, match="S3 error"):
            Tables(settings).scan("events")
        server.start()
        assert Tables(settings).scan("events").collect().rows() == [(1,)]
