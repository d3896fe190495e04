"""Ranks the test users' targets by a side of a training, by any registered ranker, or by popularity."""

import datetime

import numpy as np
import polars as pl
import torch

from lte_model.domain.windows import ONE_DAY
from lte_model.evaluation.comparison import Comparison
from lte_model.figures import Figure
from lte_model.ranker.cases import Cases
from lte_model.ranker.model import Ranker
from lte_model.ranker.ranks import target_ranks
from lte_model.ranker.saved import load_ranker
from lte_model.settings import Settings
from lte_model.training.checkpoints import MODEL_DIRECTORY, side_directory
from lte_model.training.device import choose_device
from lte_model.training.training_set import TrainingSet, open_training_set

POPULARITY_SIDES: dict[str, int | None] = {"popularity_all": None, "popularity_30d": 30, "popularity_7d": 7}
"""The sides that rank by popularity, and the days whose events they count; None for all time."""


def load_side(training_set: TrainingSet, side: str, device: torch.device) -> Ranker:
    """The trained model of `side`. Raises `LTEError` where it can't read this training set."""
    directory = side_directory(training_set.tables.settings, training_set.training_date, side) / MODEL_DIRECTORY
    ranker = load_ranker(directory, device)
    source = f"the training set of {training_set.training_date}"
    ranker.require(training_set.kind, source)
    ranker.require_catalogue(training_set.catalogue.item_ids.to_list(), source)
    return ranker


def over_champion(
    settings: Settings, training_date: datetime.date, challenger: Ranker, champion: Ranker
) -> tuple[Figure, int]:
    """The challenger's relative uplift over the champion in the headline measure, and the number of users.

    Both rank the test users of `training_date`, and each reads them as it was trained to; users whom only one of them
    can rank are left out. The uplift is undefined without users, and over a champion that finds no target. Raises
    `LTEError` where the tables lack what one of them reads.
    """
    ours, theirs = (ranks_by_user(settings, training_date, ranker) for ranker in (challenger, champion))
    both = ours.join(theirs, on="user_id", suffix=" of the champion", maintain_order="left")
    comparison = Comparison.of(
        {"challenger": both["rank"].to_numpy(), "champion": both["rank of the champion"].to_numpy()}, settings
    )
    uplifts = comparison.uplifts({"over": ("challenger", "champion")})
    return uplifts["over"][comparison.headline], len(both)


def ranks_by_user(settings: Settings, training_date: datetime.date, ranker: Ranker) -> pl.DataFrame:
    """The rank of each test user's target (user_id, rank); the ranker may be of another training.

    It ranks the catalogue of `training_date` in its own basis, with items new to it by their content vectors. Raises
    `LTEError` where the tables lack what it reads.
    """
    training_set = read_by(settings, training_date, ranker)
    cases = training_set.cases("test")
    return pl.DataFrame({"user_id": cases.user_ids, "rank": ranks_of_cases(training_set, cases, ranker)})


def read_by(settings: Settings, training_date: datetime.date, ranker: Ranker) -> TrainingSet:
    """The training set of a date with the ranker's own basis, sequence policy and representations.

    Raises `LTEError` where it can't be read.
    """
    config = ranker.config
    reads = {
        "representations": ranker.kind.representations,
        "sequence": config.sequence,
        "popularity_bias": config.popularity_bias,
    }
    settings = settings.model_copy(update={"model": settings.model.model_copy(update=reads)})
    training_set = open_training_set(settings, training_date).in_basis(ranker.kind.basis_id)
    ranker.require(training_set.kind, f"the training set of {training_date}")
    return training_set


def ranks_of_cases(training_set: TrainingSet, cases: Cases, ranker: Ranker) -> np.ndarray:
    """The rank (N,) of each case's target in the training set's catalogue."""
    catalogue, device = training_set.catalogue, choose_device(training_set.tables.settings.training.device)
    ranker = ranker.over(catalogue.item_ids.to_list(), torch.from_numpy(catalogue.vectors)).to(device)
    return target_ranks(ranker, cases, device)


def popularity(training_set: TrainingSet, days: int | None) -> np.ndarray:
    """The events of each catalogue item (items,) in the `days` before the test cut (None: all), as known then."""
    cut = training_set.dates.test.start
    events = training_set.tables.scan("events").filter(pl.col("known_date") < cut, pl.col("event_date") < cut)
    if days is not None:
        events = events.filter(pl.col("event_date") >= cut - ONE_DAY * days)
    counts = (
        events.group_by("item_id")
        .len()
        .with_columns(pl.col("item_id").cast(training_set.catalogue.rows, strict=False).to_physical())
        .drop_nulls()
        .collect()
    )
    per_row = np.zeros(len(training_set.catalogue), dtype=np.int64)
    per_row[counts["item_id"].to_numpy()] = counts["len"].to_numpy()
    return per_row
