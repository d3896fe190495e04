"""Which files of the base snapshot a task of the second stage opens."""

import polars as pl
import pyarrow.parquet as pq
import pytest

from jobs.engine.files import Listing
from jobs.engine.run import _rows_of_base


def test_a_task_opens_only_the_files_that_may_hold_its_users(tmp_path):
    """The file of other users doesn't exist, so opening it would fail; one without statistics may hold any user."""
    for name in ("mine", "unknown"):
        rows = {
            "user_id": [name],
            "user_bucket": [7],
            "vector_sum": [[1]],
            "event_count": [1],
            "newest_event_date": [1],
        }
        table = pl.DataFrame(rows).with_columns(pl.col("newest_event_date").cast(pl.Date)).to_arrow()
        pq.write_table(table, tmp_path / name)
    files = {
        "path": ["mine", "unknown", "lower", "higher"],
        "size_bytes": [1] * 4,
        "num_records": [1] * 4,
        "min.user_bucket": [0, None, 0, 10],
        "max.user_bucket": [9, None, 4, 4095],
    }
    base = Listing(0, str(tmp_path), pl.DataFrame(files))
    assert sorted(_rows_of_base(base, range(5, 10))["user_id"].to_pylist()) == ["mine", "unknown"]
    with pytest.raises(FileNotFoundError, match="lower"):
        _rows_of_base(base, range(4, 10))
