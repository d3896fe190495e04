"""Reads users' LTEs from the online store, as a service does while it answers a request.

    reader = OnlineReader(load_settings())
    [lte] = reader.read(["user 7"])      # None where the user has no LTE

While two bases are in force, `OnlineReader(settings, basis_id)` names the basis of the model. Each vector carries its
`basis_id`, by which a model refuses a vector of another basis.

The vectors equal those of `lte_live` bit for bit: the store holds the same integers, and the same `to_vector` divides
them. This module needs Feast's environment (infra/feast), and no torch.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lte_model.domain.basis import chosen_basis, to_vector
from lte_model.domain.representations import UNIFORM, require_distinct
from lte_model.errors import LTEError
from lte_model.serving.online_store import OnlineStore
from lte_model.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureView


@dataclass(frozen=True, eq=False)
class OnlineLTE:
    """A user's row of `lte_live`; `vector` (dimensions,) float32 is the LTE itself.

    A ranker behind MLflow (lte_model/serving/pyfunc.py) reads `vector_sum` (dimensions,), int32 in grid units, and the
    fields below it. The LTE has not changed since `snapshot_date`.
    """

    user_id: str
    vector: np.ndarray
    vector_sum: np.ndarray
    event_count: int
    basis_id: str
    representation: str
    lag_days: int
    window_days: int
    newest_event_date: datetime.date
    snapshot_date: datetime.date


class OnlineReader:
    """Reads LTEs of one basis from the store of the settings; create it once and reuse it.

    `basis_id` defaults to the basis of the settings. Raises `LTEError` where the settings name no store, or several
    bases without a `basis_id`: only the caller knows the basis of its model.
    """

    def __init__(self, settings: Settings, basis_id: str = ""):
        if settings.basis.beside and not basis_id:
            raise LTEError(
                f"{len(settings.basis.in_force)} bases are in force ({', '.join(settings.basis.in_force)}); give "
                "OnlineReader the basis_id of the model that reads"
            )
        self._settings = settings
        self._basis_id = basis_id or settings.basis.basis_id
        self._store = OnlineStore(settings)
        self._views: dict[str, tuple[str, FeatureView]] = {}

    def read(self, user_ids: Sequence[str], representation: str = UNIFORM) -> list[OnlineLTE | None]:
        """The LTE of each user; None for a user without one.

        Raises `LTEError` where no LTE of the basis and representation was pushed, and where the store fails.
        """
        if representation not in self._views:
            self._views[representation] = self._open(representation)
        basis_id, view = self._views[representation]
        rows = self._store.read(view, user_ids)
        found = [row for row in rows if row]
        if not found:
            return [None] * len(user_ids)
        sums = np.array([row["vector_sum"] for row in found], dtype=np.int32)
        vectors = iter(zip(to_vector(sums, np.array([row["event_count"] for row in found])), sums, strict=True))
        return [
            _lte(user, row, *next(vectors), basis_id, representation) if row else None
            for user, row in zip(user_ids, rows, strict=True)
        ]

    def _open(self, representation: str) -> "tuple[str, FeatureView]":
        require_distinct([representation])
        wanted = self._basis_id
        bases = self._store.bases(representation)
        if not bases or (wanted and wanted not in bases):
            of_basis = f" of basis {wanted}" if wanted else ""
            raise LTEError(f"the online store holds no {representation} LTE{of_basis}; run jobs.push_lte")
        basis_id = chosen_basis(bases, wanted, self._settings.online_store.registry)
        return basis_id, self._store.view(basis_id, representation)


def _lte(
    user_id: str, row: dict, vector: np.ndarray, vector_sum: np.ndarray, basis_id: str, representation: str
) -> OnlineLTE:
    return OnlineLTE(
        user_id=user_id,
        vector=vector,
        vector_sum=vector_sum,
        event_count=row["event_count"],
        basis_id=basis_id,
        representation=representation,
        lag_days=row["lag_days"],
        window_days=row["window_days"],
        newest_event_date=datetime.date.fromisoformat(row["newest_event_date"]),
        snapshot_date=datetime.date.fromisoformat(row["snapshot_date"]),
    )
