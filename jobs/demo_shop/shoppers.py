"""Makes the shop's users: their long-term tastes, how these drift, and on which days each user is there."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.demo_shop import randomness
from jobs.demo_shop.assortment import CATEGORIES, FACET_VALUES, FACETS, facet_shelf
from jobs.demo_shop.spec import DAYS, SEASON_OF_DAY, ShopSpec, user_id


class Taste(IntEnum):
    """Whether a shopper has a taste, and whether it moves."""

    STABLE = 0
    DRIFTING = 1
    NONE = 2


class Presence(IntEnum):
    """When a user is there: all the time, from some day on, until some day, or with a break of months."""

    STEADY = 0
    NEWCOMER = 1
    DORMANT = 2
    RETURNING = 3


PRESENCE_SHARES = (0.45, 0.2, 0.15, 0.2)

FAVOURITE_CATEGORIES = (0.6, 0.25, 0.15)
"""The weights of a taste's first, second and third favourite category, before seasonal demand."""

FAVOURITE_VALUES = (0.8, 0.2)
"""The probabilities of the first and the second favourite value of a facet."""

FACET_SHARES = (0.3, 0.3, 0.15, 0.25)
"""The probability that a taste or an intent chooses by each facet, in the order of `FACETS`."""

TAIL_SHAPE = 2.5
TAIL_CUT = 50
"""A user's number of events follows a Lomax distribution of this shape, cut at this many times the mean."""

DEMAND = np.array([category.demand for category in CATEGORIES])
"""(categories, seasons): relative demand."""

_USER_KEYS = 3


@dataclass(frozen=True)
class Shoppers:
    """U users. A drifting taste moves from its first era to its second; other users' eras are equal.

    taste, presence (U,) codes. categories (U, 2 eras, 3 ranks). facets (U, 2 eras, 4 facets, 2 ranks).
    join (U,): first day. active_days (U,): days there. break_day (U,): active days before the break;
    break_days (U,): its length, 0 for none. events (U,): how many events the user makes. keys (U,): for draws.
    """

    taste: np.ndarray
    presence: np.ndarray
    categories: np.ndarray
    facets: np.ndarray
    join: np.ndarray
    active_days: np.ndarray
    break_day: np.ndarray
    break_days: np.ndarray
    events: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.taste)

    def day_there(self, user: np.ndarray, chance: np.ndarray) -> np.ndarray:
        """A day on which the user is there, from `chance` in [0, 1), uniform over the active days."""
        active = (chance * self.active_days[user]).astype(np.int64)
        return self.join[user] + active + np.where(active >= self.break_day[user], self.break_days[user], 0)

    def taste_shelf(self, user: np.ndarray, day: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The shelf that a user's taste draws on a day: a favourite category in season, with a favourite facet value.

        A drifting taste draws from its second era with a probability that grows linearly over the two years.
        """
        era = (randomness.uniform(state, "taste era") < day / DAYS).astype(np.int64)
        favourites = self.categories[user, era]  # (n, 3)
        weights = np.cumsum(FAVOURITE_CATEGORIES * DEMAND[favourites, SEASON_OF_DAY[day, None]], axis=1)
        reach = randomness.uniform(state, "taste category") * weights[:, -1]
        category = favourites[np.arange(len(user)), (reach[:, None] >= weights[:, :-1]).sum(axis=1)]
        facet = draw_facet(state, "taste facet")
        rank = (randomness.uniform(state, "taste rank") >= FAVOURITE_VALUES[0]).astype(np.int64)
        return facet_shelf(facet, category.astype(np.int64), self.facets[user, era, facet, rank].astype(np.int64))


def draw_facet(state: np.ndarray, purpose: str) -> np.ndarray:
    """The index of a facet in `FACETS`, drawn by `FACET_SHARES`."""
    return np.searchsorted(np.cumsum(FACET_SHARES)[:-1], randomness.uniform(state, purpose), side="right")


def make_shoppers(spec: ShopSpec) -> Shoppers:
    """All users of a shop, some 150 bytes each."""
    state = randomness.keys(spec.seed, _USER_KEYS, np.arange(spec.users))
    has_taste = randomness.uniform(state, "has taste") < spec.stable_taste_share
    drifts = randomness.uniform(state, "drifts") < spec.drifting_share
    taste = np.where(has_taste, np.where(drifts, Taste.DRIFTING, Taste.STABLE), Taste.NONE).astype(np.int8)
    categories = _in_eras(state, "favourite category", len(CATEGORIES), len(FAVOURITE_CATEGORIES), taste)
    facets = np.stack(
        [
            _in_eras(state, f"favourite {facet}", len(values), len(FAVOURITE_VALUES), taste)
            for facet, values in zip(FACETS, FACET_VALUES, strict=True)
        ],
        axis=2,
    )
    presence = np.searchsorted(np.cumsum(PRESENCE_SHARES)[:-1], randomness.uniform(state, "presence"), side="right")
    late_join = np.where(presence == Presence.NEWCOMER, 90 + randomness.whole(state, "late join", 570), 0)
    join = 1 + np.maximum(randomness.whole(state, "join", 30), late_join)
    leave = np.where(presence == Presence.DORMANT, 120 + randomness.whole(state, "leave", 480), DAYS)
    break_days = np.where(presence == Presence.RETURNING, 90 + randomness.whole(state, "break", 275), 0)
    active_days = leave - join - break_days
    chance = randomness.uniform(state, "events")
    tail = np.minimum((TAIL_SHAPE - 1) * ((1 - chance) ** (-1 / TAIL_SHAPE) - 1), TAIL_CUT)
    events = np.maximum(np.round(spec.events_per_user * tail * active_days / active_days.mean()), 1).astype(np.int64)
    return Shoppers(
        taste=taste,
        presence=presence.astype(np.int8),
        categories=categories,
        facets=facets,
        join=join,
        active_days=active_days,
        break_day=(active_days * (0.2 + 0.6 * randomness.uniform(state, "break day"))).astype(np.int64),
        break_days=break_days,
        events=events,
        keys=state,
    )


def truth_table(shoppers: Shoppers) -> pa.Table:
    """The rows of `truth.parquet`: each user's taste in words, favourites first; null without a taste.

    `later_…` is the second era of a drifting taste. The bot has no row.
    """
    columns = {
        "user_id": pa.array([user_id(number) for number in range(len(shoppers))], pa.string()),
        "taste": _words(shoppers.taste, [kind.name.lower() for kind in Taste]),
        "presence": _words(shoppers.presence, [kind.name.lower() for kind in Presence]),
        "events": pa.array(shoppers.events, pa.int64()),
    }
    category_names = [category.name for category in CATEGORIES]
    kinds = [("categories", shoppers.categories, category_names)]
    kinds += [
        (f"{facet}s", shoppers.facets[:, :, number], list(values))
        for number, (facet, values) in enumerate(zip(FACETS, FACET_VALUES, strict=True))
    ]
    for era, prefix, absent in (
        (0, "", shoppers.taste == Taste.NONE),
        (1, "later_", shoppers.taste != Taste.DRIFTING),
    ):
        for name, codes, words in kinds:
            ranks = codes.shape[2]
            lists = pa.FixedSizeListArray.from_arrays(_words(codes[:, era].ravel(), words), ranks).cast(
                pa.list_(pa.string())
            )
            columns[prefix + name] = pc.if_else(pa.array(absent), pa.scalar(None, lists.type), lists)
    return pa.table(columns)


def _in_eras(state: np.ndarray, purpose: str, among: int, ranks: int, taste: np.ndarray) -> np.ndarray:
    """(U, 2, ranks) int8 in [0, among), distinct within an era; both eras are equal if the taste doesn't drift."""
    eras = []
    for era in range(2):
        lots = randomness.uniform(randomness.extend(state[:, None], np.arange(among)), f"{purpose} {era}")
        eras.append(np.argsort(lots, axis=1)[:, :ranks].astype(np.int8))
    later = np.where((taste == Taste.DRIFTING)[:, None], eras[1], eras[0])
    return np.stack([eras[0], later], axis=1)


def _words(codes: np.ndarray, words: list[str]) -> pa.Array:
    return pa.array(words, pa.string()).take(pa.array(codes, pa.int32()))
