"""What reads tables without a JVM reads them from S3: the rows of a disk, in the bits of a disk."""

import uuid

import polars as pl
import pytest
from deltalake import write_deltalake

from jobs.engine.files import list_files, read_pieces
from lte_model.data import Tables
from lte_model.settings import Settings
from tests.production import s3_server

pytestmark = pytest.mark.skipif(not s3_server.installed(), reason=s3_server.MISSING)


def test_polars_deltalake_and_arrow_read_what_they_read_from_a_disk(tmp_path, monkeypatch):
    frame = pl.DataFrame(
        {"day": [1, 1, 2], "user": ["a b", "c/d", "é%20"], "sums": [[1, -(2**31)], [], [2**31 - 1]]},
        schema={"day": pl.Int32, "user": pl.String, "sums": pl.List(pl.Int32)},
    )
    with s3_server.s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        bucket = f"lte-{uuid.uuid4().hex}"
        server.make_bucket(bucket)
        read = []
        for warehouse in (f"s3://{bucket}/warehouse", str(tmp_path / "warehouse")):
            settings = Settings(warehouse=warehouse)
            for _ in range(2):
                write_deltalake(settings.table_path("events"), frame, mode="append", partition_by="day")
            listing = list_files(settings.table_path("events"))
            pieces = [piece for part in listing.parts(at_least=2) for piece in part]
            by_arrow = pl.concat([pl.DataFrame(table) for table in read_pieces(pieces, ["user", "sums"], None)])
            by_polars = Tables(settings).scan("events").collect()
            assert len(by_polars) == len(by_arrow) == listing.records == 2 * len(frame)
            read.append([by_polars.sort("user"), by_arrow.sort("user")])
        assert len(server.objects(bucket, "warehouse/events/_delta_log/")) == 2
    for on_s3, on_disk in zip(*read, strict=True):
        assert on_s3.equals(on_disk)
