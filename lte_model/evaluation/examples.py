"""A few example users for the report: history, sequence, target, and each ranker's top items."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from lte_model.domain.windows import lte_window
from lte_model.ranker.cases import Cases
from lte_model.ranker.model import Ranker
from lte_model.training.training_set import TrainingSet
from lte_model.warehouse.catalogue import Catalogue

EXAMPLE_USERS = 5
SHOWN_HISTORY = 20
SHOWN_ITEMS = 10


def example_users(
    training_set: TrainingSet,
    cases: Cases,
    rankers: Mapping[str, Ranker],
    ranks: Mapping[str, np.ndarray],
    device: torch.device,
) -> list[dict[str, Any]]:
    """Example users with an LTE, from the largest gain in rank by the LTE to the largest loss."""
    chosen = spread(np.log(ranks["none"] / ranks["prefix"]), np.flatnonzero(cases.has_lte[:, 0]), EXAMPLE_USERS)
    if not len(chosen):
        return []
    catalogue = training_set.catalogue
    user_ids = cases.user_ids.gather(chosen).to_list()
    histories = _histories(training_set, user_ids)
    inputs = _inputs(training_set, user_ids)
    tops = {
        side: ranker.scores(
            cases.batch(chosen, ranker.config.max_events, ranker.config.max_older_events).to(device),
            cases.popularity_on(device),
        )
        .topk(min(SHOWN_ITEMS, len(catalogue)))
        .indices.cpu()
        for side, ranker in rankers.items()
    }
    return [
        {
            "user_id": user_id,
            "history": histories.get(user_id, []),
            **inputs[user_id],
            "ranks": {side: round(float(ranks[side][case])) for side in rankers},
            "top": {side: catalogue.titles_of(top[number].numpy()) for side, top in tops.items()},
            "lte_neighbours": _neighbours(catalogue, cases.lte[case, 0]),
            "lte_count": int(cases.event_counts[case, 0]),
        }
        for number, (case, user_id) in enumerate(zip(chosen, user_ids, strict=True))
    ]


def spread(improvement: np.ndarray, candidates: np.ndarray, count: int) -> np.ndarray:
    """`count` of the `candidates` (case numbers), evenly spaced from the greatest improvement to the least."""
    ordered = candidates[np.argsort(-improvement[candidates], kind="stable")]
    if not len(ordered):
        return ordered
    return ordered[np.unique(np.linspace(0, len(ordered) - 1, count).round().astype(int))]


def _histories(training_set: TrainingSet, user_ids: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """The newest events in each user's LTE at the test cut, oldest first."""
    cut, kind = training_set.dates.test.start, training_set.kind
    window = lte_window(cut, kind.lag_days, kind.window_days)
    frame = (
        training_set.tables.scan("events")
        .filter(
            pl.col("user_id").is_in(user_ids),
            pl.col("known_date") < cut,
            pl.col("event_date") >= window.start,
            pl.col("event_date") < window.end,
        )
        .sort("user_id", "event_ts", "item_id")
        .group_by("user_id", maintain_order=True)
        .tail(SHOWN_HISTORY)
        .select("user_id", "item_id", date="event_date")
    )
    return _titled(training_set, frame)


def _inputs(training_set: TrainingSet, user_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each test user's target, and the sequence that the policy reads."""
    rows = training_set.rows("test").filter(pl.col("user_id").is_in(user_ids))
    lagged = training_set.tables.settings.model.sequence == "lagged"
    read = pl.col("target_count") if lagged else pl.lit(training_set.tables.settings.model.max_tokens)
    sequences = _titled(
        training_set,
        rows.select("user_id", item_id=pl.col("item_ids").list.tail(read), date=pl.col("event_times").list.tail(read))
        .filter(pl.col("item_id").list.len() > 0)
        .explode("item_id", "date")
        .with_columns(pl.col("date").dt.date()),
    )
    targets = _titled(training_set, rows.select("user_id", item_id="target_item_id", date="target_date"))
    return {user_id: {"sequence": sequences.get(user_id, []), "target": targets[user_id][0]} for user_id in user_ids}


def _titled(training_set: TrainingSet, events: pl.LazyFrame) -> dict[str, list[dict[str, str]]]:
    """Events (user_id, item_id, date) as {user: [{"date", "title"}, …]}, in their order."""
    frame = (
        events.join(
            training_set.tables.scan("items").select("item_id", "title"),
            on="item_id",
            how="left",
            maintain_order="left",
        )
        .select("user_id", pl.col("date").cast(pl.String), pl.coalesce("title", "item_id").alias("title"))
        .collect()
    )
    return {
        user_id: of_user.select("date", "title").to_dicts()
        for (user_id,), of_user in frame.partition_by("user_id", as_dict=True).items()
    }


def _neighbours(catalogue: Catalogue, lte: np.ndarray) -> list[dict[str, Any]]:
    """The items nearest to one LTE (dimensions,) by cosine; item vectors have length 1."""
    length = float(np.linalg.norm(lte))
    if length == 0:
        return []
    cosines = catalogue.vectors @ (lte / length)
    nearest = np.argsort(-cosines, kind="stable")[:SHOWN_ITEMS]
    return [
        {"title": title, "cosine": round(float(cosine), 4)}
        for title, cosine in zip(catalogue.titles_of(nearest), cosines[nearest], strict=True)
    ]
