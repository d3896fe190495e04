"""The suite of each table, by the table's name."""

from collections.abc import Callable, Sequence

from jobs.quality.suites.feeds import events, items
from jobs.quality.suites.models import item_popularity, recommendations, training_set
from jobs.quality.suites.online_test import test_measurements
from jobs.quality.suites.rules import CheckedRows
from jobs.quality.suites.vectors import item_embeddings, item_encodings, lte_live, lte_snapshots

SUITES: dict[str, Callable[..., Sequence[CheckedRows]]] = {
    suite.__name__: suite
    for suite in (
        events,
        items,
        item_embeddings,
        item_encodings,
        lte_snapshots,
        lte_live,
        item_popularity,
        training_set,
        recommendations,
        test_measurements,
    )
}
