"""Reads users' LTEs from `lte_live`, for a served model that is given only user ids."""

import pandas as pd
import polars as pl

from lte_model.domain.kind import KIND_FIELDS, LTEKind, require_kind
from lte_model.errors import LTEError
from lte_model.settings import Settings
from lte_model.warehouse.reading import scan


def with_live_ltes(users: pd.DataFrame, kind: LTEKind, settings: Settings) -> pd.DataFrame:
    """Adds to `users`, which have a `user_id`, the columns of `lte_live` that pyfunc.py reads.

    A user without a row gets `event_count` 0. Raises `LTEError` where the table is missing, and where it has no LTEs of
    the basis and the representations of `kind`, or LTEs of another lag or window.
    """
    try:
        table = scan(settings, "lte_live")
    except LTEError as error:
        raise LTEError(f"{error}, or give the LTE's columns") from None
    columns = vars(kind.of(kind.representations[0])).copy()
    for number, name in enumerate(kind.representations):
        suffix = f"_{name}" if number else ""
        live = table.filter(basis_id=kind.basis_id, representation=name)
        kinds = live.select(KIND_FIELDS).unique().collect()
        if kinds.is_empty():
            raise LTEError(
                f"lte_live holds no {name} LTE of basis {kind.basis_id}, which the model reads; publish it, or serve a "
                "model of what is live"
            )
        for found_kind in kinds.rows():
            require_kind(kind.of(name), LTEKind(*found_kind), "lte_live")
        rows = live.filter(pl.col("user_id").is_in(users["user_id"].tolist()))
        found = rows.select("user_id", "vector_sum", "event_count").collect().rows_by_key("user_id", unique=True)
        of_users = [found.get(user, ([], 0)) for user in users["user_id"]]
        columns[f"vector_sum{suffix}"] = [vector_sum for vector_sum, _ in of_users]
        columns[f"event_count{suffix}"] = [event_count for _, event_count in of_users]
    return users.assign(**columns)
