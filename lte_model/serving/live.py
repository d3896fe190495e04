"""The LTEs of some users from `lte_live`, for a served model that is given user ids alone."""

import pandas as pd
import polars as pl
from deltalake import DeltaTable

from lte_model.domain.kind import LTEKind, require_kind
from lte_model.errors import LTEError
from lte_model.settings import Settings


def with_live_ltes(users: pd.DataFrame, kind: LTEKind, settings: Settings) -> pd.DataFrame:
    """The users, a column `user_id` among theirs, with the columns of their rows in `lte_live` that pyfunc.py asks for.

    A user without a row has an `event_count` of 0. Raises `LTEError` where the table isn't there, and where it holds
    nothing of the basis and the representations of `kind`, or of another lag or window.
    """
    table = settings.table_path("lte_live")
    if not DeltaTable.is_deltatable(table):
        raise LTEError(
            f"table lte_live does not exist at {table}; run jobs.publish_lte first, or give the LTE's columns"
        )
    columns = vars(kind.of(kind.representations[0])).copy()
    for number, name in enumerate(kind.representations):
        suffix = f"_{name}" if number else ""
        live = pl.scan_delta(table).filter(basis_id=kind.basis_id, representation=name)
        kinds = live.select("lag_days", "window_days").unique().collect()
        if kinds.is_empty():
            raise LTEError(
                f"lte_live holds no {name} LTE of basis {kind.basis_id}, which the model reads; publish it, or serve a "
                "model of what is live"
            )
        for lag_days, window_days in kinds.rows():
            require_kind(kind.of(name), LTEKind(kind.basis_id, name, lag_days, window_days), "lte_live")
        rows = live.filter(pl.col("user_id").is_in(users["user_id"].tolist()))
        found = rows.select("user_id", "vector_sum", "event_count").collect().rows_by_key("user_id", unique=True)
        of_users = [found.get(user, ([], 0)) for user in users["user_id"]]
        columns[f"vector_sum{suffix}"] = [vector_sum for vector_sum, _ in of_users]
        columns[f"event_count{suffix}"] = [event_count for _, event_count in of_users]
    return users.assign(**columns)
