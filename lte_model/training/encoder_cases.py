"""The cases that the encoder of a date learns from: each user's events at anchors that step back from the date.

1. `read_events` reads the events that were known before the date F, for a sample of the users, as flat arrays.
2. `encoder_cases` takes, for each user and anchor A = F − k·L, the events of the lagged window and the chosen events of
   [A−L, A). Only a user with both is a case of that anchor.
"""

import datetime
import hashlib
import zlib
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from lte_model.domain.windows import INERTIA_DAYS, ONE_DAY, Interval, lte_window, target_window
from lte_model.errors import LTEError
from lte_model.settings import Settings
from lte_model.warehouse.catalogue import Catalogue
from lte_model.warehouse.popularity import standardised
from lte_model.warehouse.reading import Tables

EPOCH = datetime.date(1970, 1, 1).toordinal()
POPULARITY_DAYS = (30, None)
"""The decoder's popularity counts end with the window, and cover its last month and all of it."""

USERS_PER_HELD_OUT = 10
"""One user in this many is held out."""


@dataclass(frozen=True)
class Bags:
    """The events of N bags, one after the other: bag i holds the item rows `items[starts[i]:ends[i]]`."""

    items: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """How many items each bag has, (bags,)."""
        return self.ends - self.starts

    def of(self, numbers: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The items (events,) of the bags `numbers`, and for each item (events,) the index of its bag in `numbers`."""
        sizes = self.sizes[numbers]
        bag = np.repeat(np.arange(len(numbers)), sizes)
        first = np.repeat(self.starts[numbers] - np.append(0, sizes.cumsum()[:-1]), sizes)
        return torch.from_numpy(self.items[first + np.arange(len(bag))]), torch.from_numpy(bag)

    def taken(self, numbers: np.ndarray) -> "Bags":
        """The bags `numbers`, over the same events."""
        return Bags(self.items, self.starts[numbers], self.ends[numbers])

    @staticmethod
    def joined(parts: "list[Bags]") -> "Bags":
        """The bags of all parts, in their order."""
        shifts = np.append(0, np.cumsum([len(part.items) for part in parts]))[:-1]
        return Bags(
            np.concatenate([part.items for part in parts]),
            np.concatenate([part.starts + shift for part, shift in zip(parts, shifts, strict=True)]),
            np.concatenate([part.ends + shift for part, shift in zip(parts, shifts, strict=True)]),
        )


@dataclass(frozen=True)
class EncoderCases:
    """The cases of one encoder: N cases, each one user at one anchor A.

    `windows` has the events of [A−L−W, A−L) known before A, `week_before` those of the window of A−7, `chosen` those of
    [A−L, A). `anchors[i]` is the row of `popularity` (anchors, counts, items); `held_out[i]` is whether the user is
    held out.
    """

    windows: Bags
    week_before: Bags
    chosen: Bags
    anchors: np.ndarray
    popularity: np.ndarray
    held_out: np.ndarray

    def __len__(self) -> int:
        return len(self.anchors)

    def digest(self) -> bytes:
        """A hash of the cases."""
        content = hashlib.sha256()
        for bags in (self.windows, self.week_before, self.chosen):
            for array in (bags.items, bags.starts, bags.ends):
                content.update(np.ascontiguousarray(array).data)
        content.update(np.ascontiguousarray(self.anchors).data)
        return content.digest()


@dataclass(frozen=True)
class Events:
    """The events known before the date of the fit, by user and day: parallel arrays of N."""

    users: np.ndarray
    items: np.ndarray
    days: np.ndarray
    known: np.ndarray
    held_out: np.ndarray

    def bags(self, window: Interval, known_before: datetime.date, users: np.ndarray) -> Bags:
        """A bag per user of `users`, ascending codes: the events dated in `window` and known before `known_before`."""
        start, end, known = (day.toordinal() - EPOCH for day in (window.start, window.end, known_before))
        inside = (self.days >= start) & (self.days < end) & (self.known < known)
        of_user = np.bincount(self.users[inside], minlength=int(self.users.max(initial=0)) + 1)
        ends = of_user.cumsum()
        return Bags(self.items[inside], (ends - of_user)[users], ends[users])


def read_events(tables: Tables, catalogue: Catalogue, date: datetime.date) -> Events:
    """The events of catalogue items that the encoder of `date` may read, of up to `autoencoder.users` users."""
    settings = tables.settings
    options, window = settings.autoencoder, settings.window
    oldest = lte_window(date - ONE_DAY * window.lag_days * (options.anchors - 1), window.lag_days, window.window_days)
    events = tables.scan("events").filter(
        pl.col("known_date") < date,
        pl.col("event_date") < date,
        pl.col("event_date") >= oldest.start - ONE_DAY * INERTIA_DAYS,
    )
    users = events.select("user_id").unique().collect()["user_id"]
    # Hashing the id chooses, and holds out, the same users in every fit.
    hashes = pl.Series([zlib.crc32(user_id.encode()) for user_id in users], dtype=pl.Int64)
    order = pl.DataFrame({"user_id": users, "hash": hashes}).sort("hash", "user_id").head(options.users)
    frame = (
        events.join(order.lazy(), on="user_id")
        .select(
            "user_id",
            "hash",
            row=pl.col("item_id").cast(catalogue.rows, strict=False).to_physical().cast(pl.Int64),
            day=pl.col("event_date").to_physical(),
            known=pl.col("known_date").to_physical(),
        )
        .drop_nulls("row")
        .sort("user_id", "day", "row")
        .collect()
    )
    return Events(
        users=frame["user_id"].rle_id().to_numpy().astype(np.int64),
        items=frame["row"].to_numpy(),
        days=frame["day"].to_numpy(),
        known=frame["known"].to_numpy(),
        held_out=(frame["hash"] % USERS_PER_HELD_OUT == 0).to_numpy(),
    )


def encoder_cases(events: Events, items: int, date: datetime.date, settings: Settings) -> EncoderCases:
    """The cases of the encoder of `date`, at its anchors. Raises `LTEError` where there are none."""
    lag_days, window_days = settings.window.lag_days, settings.window.window_days
    everybody, first = np.unique(events.users, return_index=True)
    windows, before, chosen, anchors, popularity, held_out = [], [], [], [], [], []
    for number in range(settings.autoencoder.anchors):
        anchor = date - ONE_DAY * lag_days * number
        window = lte_window(anchor, lag_days, window_days)
        targets = target_window(anchor, lag_days)
        of_window = events.bags(window, anchor, everybody)
        of_targets = events.bags(targets, date, everybody)
        users = everybody[(of_window.sizes > 0) & (of_targets.sizes > 0)]
        if not len(users):
            break  # there are no earlier events
        earlier = anchor - ONE_DAY * INERTIA_DAYS
        windows.append(of_window.taken(users))
        before.append(events.bags(lte_window(earlier, lag_days, window_days), earlier, users))
        chosen.append(of_targets.taken(users))
        counts = []
        for days in POPULARITY_DAYS:
            counted = events.bags(lte_window(anchor, lag_days, days or window_days), anchor, np.arange(0))
            counts.append(np.bincount(counted.items, minlength=items))
        popularity.append(standardised(np.stack(counts)))
        anchors.append(np.full(len(users), number))
        held_out.append(events.held_out[first[users]])
    if not windows:
        raise LTEError(
            f"no user has an event in the lagged window of {date} and another in the {lag_days} days before it; "
            "fit the encoder of a later date, or lower window.lag_days"
        )
    return EncoderCases(
        windows=Bags.joined(windows),
        week_before=Bags.joined(before),
        chosen=Bags.joined(chosen),
        anchors=np.concatenate(anchors),
        popularity=np.stack(popularity),
        held_out=np.concatenate(held_out),
    )
