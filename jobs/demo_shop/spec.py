"""The parameters of a demo shop: sizes, shares and the calendar."""

import datetime
import math
from dataclasses import dataclass, fields

import numpy as np

from lte_model.errors import LTEError

START = datetime.date(2023, 1, 1)
END = datetime.date(2025, 1, 1)
"""The shop's two years, [START, END). Events begin on the second day, as items are known before on sale."""

DAYS = (END - START).days
SECONDS_OF_DAY = 86_400

QUARTERS = 8
MAX_EVENTS_PER_USER = 1000
"""The bound of the mean. A user has at most 50 times the mean, which must fit into a day's seconds."""

BOT_NIGHTS = 40
BOT_SECONDS = 3 * 3600
"""The bot comes on 40 nights for up to three hours, with at most one event a second."""

_MONTHS = (np.datetime64(START) + np.arange(DAYS)).astype("datetime64[M]").astype(np.int64) % 12
SEASON_OF_DAY = ((_MONTHS + 1) % 12 // 3).astype(np.int64)
"""(DAYS,): 0 winter (December to February), 1 spring, 2 summer, 3 autumn."""

QUARTER_OF_DAY = np.arange(DAYS) * QUARTERS // DAYS
"""(DAYS,): each day's eighth of the two years; an item's popularity changes from one to the next."""

SALE_OF_DAY = np.isin(_MONTHS, (0, 6))
"""(DAYS,): whether prices are reduced, in January and July."""


@dataclass(frozen=True)
class ShopSpec:
    """A demo shop by its sizes, its seed and the rate of each kind of dirt.

    Every rate is a probability per user event. An event has at most one kind of dirt, so that quarantine can be
    compared kind by kind. The bot's events have no dirt. Raises `LTEError` for a value outside its bounds.
    """

    users: int
    items: int
    seed: int = 0
    stable_taste_share: float = 0.7
    """Share of users with a long-term taste. The others have only intents, and follow popularity."""
    drifting_share: float = 0.4
    """Share of the users with a taste whose taste moves slowly to another one over the two years."""
    events_per_user: float = 100.0
    """Mean over the two years. The tail is heavy: the median user has under half of it, one in a hundred 8 times."""
    duplicate_rate: float = 0.005
    """An exact copy of the row, known on the same day."""
    late_rate: float = 0.02
    """The row arrives 1 to 10 days after the event."""
    unknown_item_rate: float = 0.003
    """The item id is well-formed, but the catalogue doesn't have it."""
    broken_timestamp_rate: float = 0.002
    """The timestamp is no time, a day that doesn't exist, an empty text or null."""
    missing_user_rate: float = 0.001
    """The user id is null or an empty text, half each."""
    missing_item_rate: float = 0.001
    """The item id is null or an empty text, half each."""
    bot_weight: float = 50.0
    """The one bot makes as many events as this number of average users."""

    def __post_init__(self) -> None:
        _bounded("users", self.users, 1, 10_000_000)
        _bounded("items", self.items, 1, 1_000_000)
        _bounded("seed", self.seed, 0, 2**63 - 1)
        _bounded("events_per_user", self.events_per_user, 1, MAX_EVENTS_PER_USER)
        _bounded("bot_weight", self.bot_weight, 0, BOT_NIGHTS * BOT_SECONDS / self.events_per_user)
        for field in fields(self):
            if field.name.endswith(("_rate", "_share")):
                _bounded(field.name, getattr(self, field.name), 0, 1)
        if sum(self.dirt_rates) > 1:
            raise LTEError(f"the rates of dirt add up to {sum(self.dirt_rates):g}; keep their sum at 1 or less")

    @property
    def dirt_rates(self) -> tuple[float, ...]:
        """The rates in the order of `jobs.demo_shop.feed.Dirt`, without `CLEAN`."""
        return (
            self.late_rate,
            self.duplicate_rate,
            self.unknown_item_rate,
            self.broken_timestamp_rate,
            self.missing_user_rate,
            self.missing_item_rate,
        )

    @property
    def bot_events(self) -> int:
        """How many events the bot has."""
        return round(self.bot_weight * self.events_per_user)


def user_id(number: int) -> str:
    """The id of a user by number. The bot has the number after the last user's, and an id like any other."""
    return f"u{number:07d}"


def item_id(number: int) -> str:
    """The id of an item by number. Numbers from `items` on belong to items that the catalogue never had."""
    return f"i{number:07d}"


def _bounded(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise LTEError(f"a demo shop with {name} = {value} can't be made; give {low:g} to {high:g}")
