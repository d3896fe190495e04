"""Makes what users really do in the shop: events without dirt.

1. Each user's events are grouped into sessions, on days on which the user is there.
2. A session has an intent: a shelf of items similar to a drawn one. Within three weeks, the next session continues it
   with probability `INTENT_GOES_ON`. Otherwise its intent is new, from taste or from the season's demand.
3. An event's item comes from a mixture of intent, long-term taste and seasonal popularity. Users without a taste
   draw its share from popularity.
4. Some events repeat an item instead: the item just seen is put into the cart and bought, or the item of any earlier
   event is viewed again.

A user's rows are the same for any range of users that a function is called with.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from jobs.demo_shop import randomness
from jobs.demo_shop.assortment import WHOLE_SHOP, Assortment, category_shelf
from jobs.demo_shop.shoppers import DEMAND, Shoppers, Taste, draw_facet
from jobs.demo_shop.spec import BOT_NIGHTS, BOT_SECONDS, DAYS, SEASON_OF_DAY, SECONDS_OF_DAY, ShopSpec

EVENT_TYPES = ("view", "cart", "purchase")


class EventType(IntEnum):
    """What a shopper does with an item."""

    VIEW = 0
    CART = 1
    PURCHASE = 2


EVENTS_PER_SESSION = 4
INTENT_GOES_ON = 0.6
INTENT_LASTS_DAYS = 21
INTENT_FROM_TASTE = 0.5

FROM_INTENT, FROM_TASTE = 0.4, 0.4
"""Shares of the mixture; the rest is popularity."""

SAME_ITEM = 0.2
"""The probability that an event repeats the session's last item: view, cart, purchase, view again."""

EARLIER_ITEM = 0.08
"""Otherwise, the probability that it repeats the item of any earlier event of the user."""

STARTS_IN_CART, STARTS_WITH_PURCHASE = 0.08, 0.06
"""The probabilities that the first event with an item is a cart or a purchase."""

ONE_PIECE, TWO_PIECES = 0.9, 0.98
"""Cumulative shares of purchases of one and of up to two pieces; the others have three."""

OPENS, OPEN_FOR = 7 * 3600, 16 * 3600 - 1
"""Sessions begin between 07:00 and 23:00 UTC, most of them in the evening."""

_INTENT_KEYS, _SESSION_KEYS, _EVENT_KEYS = 4, 5, 6


@dataclass(frozen=True)
class ShopEvents:
    """n events as columns: user, item, second (since START, int32), type (code of `EVENT_TYPES`), quantity (0: none).

    Ordered by user, then second. A user's seconds all differ, so that no two rows are equal by accident.
    """

    user: np.ndarray
    item: np.ndarray
    second: np.ndarray
    type: np.ndarray
    quantity: np.ndarray


def event_keys(shoppers: Shoppers, user: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The keys of a user's `number`-th event."""
    return randomness.extend(randomness.extend(shoppers.keys, _EVENT_KEYS)[user], number)


def browse(assortment: Assortment, shoppers: Shoppers, first: int, end: int) -> ShopEvents:
    """The events of the users [first, end)."""
    counts = shoppers.events[first:end]
    user = np.repeat(np.arange(first, end), counts)
    row = np.arange(len(user))
    last_row = np.cumsum(counts)
    number = row - np.repeat(last_row - counts, counts)
    state = event_keys(shoppers, user, number)

    opens_session = (number == 0) | (randomness.uniform(state, "opens a session") < 1 / EVENTS_PER_SESSION)
    session = np.cumsum(opens_session) - 1
    session_user = user[opens_session]
    session_second = _session_seconds(shoppers, session_user, first)
    session_day = session_second // SECONDS_OF_DAY
    intent = _intent_shelves(assortment, shoppers, session_user, session_day)

    day = session_day[session]
    shelf = intent[session]
    source = randomness.uniform(state, "source")
    by_taste = (source >= FROM_INTENT) & (source < FROM_INTENT + FROM_TASTE) & (shoppers.taste[user] != Taste.NONE)
    by_popularity = (source >= FROM_INTENT) & ~by_taste
    shelf[by_taste] = shoppers.taste_shelf(user[by_taste], day[by_taste], state[by_taste])
    shelf[by_popularity] = _season_shelf(day[by_popularity], state[by_popularity])
    item = assortment.shelves.draw(shelf, day, randomness.uniform(state, "item"))

    same_item = ~opens_session & (randomness.uniform(state, "same item") < SAME_ITEM)
    earlier_item = ~same_item & (number > 0) & (randomness.uniform(state, "earlier item") < EARLIER_ITEM)
    back = np.where(same_item, 1, 0)
    back[earlier_item] = number[earlier_item] - randomness.whole(
        state[earlier_item], "which earlier item", number[earlier_item]
    )
    item = item[_origin(row - back)]

    opening = np.maximum.accumulate(np.where(same_item, 0, row))
    start = randomness.uniform(state, "type")
    step = np.where(start < STARTS_IN_CART, EventType.CART, EventType.VIEW)
    step[start >= 1 - STARTS_WITH_PURCHASE] = EventType.PURCHASE
    kind = (step[opening] + row - opening) % len(EVENT_TYPES)
    pieces = 1 + np.searchsorted([ONE_PIECE, TWO_PIECES], randomness.uniform(state, "pieces"), side="right")

    pause = np.where(opens_session, 0, 5 + randomness.whole(state, "pause", 150))
    waited = np.cumsum(pause)
    second = session_second[session] + waited - waited[np.flatnonzero(opens_session)][session]
    return ShopEvents(
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        second=_all_different(second, user - first, np.repeat(last_row, counts)).astype(np.int32),
        type=kind.astype(np.int8),
        quantity=np.where(kind == EventType.VIEW, 0, pieces).astype(np.int8),
    )


def crawl(spec: ShopSpec, assortment: Assortment) -> ShopEvents:
    """The bot's events: it views the items on sale one by one, on nights spread evenly over the two years."""
    row = np.arange(spec.bot_events)
    night = row * BOT_NIGHTS // max(spec.bot_events, 1)
    place = row - np.searchsorted(night, night)
    per_night = -(-spec.bot_events // BOT_NIGHTS)
    day = 1 + night * (DAYS - 1) // BOT_NIGHTS
    second = day * SECONDS_OF_DAY + 2 * 3600 + place * BOT_SECONDS // max(per_night, 1)
    item = assortment.shelves.items[place % assortment.shelves.available[WHOLE_SHOP, day]]
    return ShopEvents(
        user=np.full(len(row), spec.users, dtype=np.int32),
        item=item.astype(np.int32),
        second=second.astype(np.int32),
        type=np.full(len(row), EventType.VIEW, dtype=np.int8),
        quantity=np.zeros(len(row), dtype=np.int8),
    )


def _session_seconds(shoppers: Shoppers, session_user: np.ndarray, first: int) -> np.ndarray:
    """(sessions,) the start of each, in seconds since START; ascending within each user."""
    number = np.arange(len(session_user)) - np.searchsorted(session_user, session_user)
    state = randomness.extend(randomness.extend(shoppers.keys, _SESSION_KEYS)[session_user], number)
    day = shoppers.day_there(session_user, randomness.uniform(state, "day"))
    evening = np.maximum(randomness.uniform(state, "hour"), randomness.uniform(state, "hour again"))
    second = day * SECONDS_OF_DAY + OPENS + (evening * OPEN_FOR).astype(np.int64)
    of_user = (session_user - first) * (DAYS * SECONDS_OF_DAY)
    return np.sort(second + of_user) - of_user


def _intent_shelves(
    assortment: Assortment, shoppers: Shoppers, session_user: np.ndarray, day: np.ndarray
) -> np.ndarray:
    """(sessions,) the shelf of each session's intent."""
    row = np.arange(len(session_user))
    number = row - np.searchsorted(session_user, session_user)
    state = randomness.extend(randomness.extend(shoppers.keys, _INTENT_KEYS)[session_user], number)
    goes_on = (number > 0) & (randomness.uniform(state, "goes on") < INTENT_GOES_ON)
    goes_on[1:] &= np.diff(day) <= INTENT_LASTS_DAYS
    wish = _season_shelf(day, state)
    by_taste = (randomness.uniform(state, "from taste") < INTENT_FROM_TASTE) & (
        shoppers.taste[session_user] != Taste.NONE
    )
    wish[by_taste] = shoppers.taste_shelf(session_user[by_taste], day[by_taste], state[by_taste])
    like = assortment.shelves.draw(wish, day, randomness.uniform(state, "like this item"))
    shelf = assortment.facet_shelf_of(like, draw_facet(state, "intent facet"))
    return shelf[np.maximum.accumulate(np.where(goes_on, 0, row))]


_SEASON_SHARES = np.cumsum(DEMAND / DEMAND.sum(axis=0), axis=0).T  # (seasons, categories), cumulative


def _season_shelf(day: np.ndarray, state: np.ndarray) -> np.ndarray:
    """The shelf of a category, drawn by the season's demand."""
    season = SEASON_OF_DAY[day]
    running = (_SEASON_SHARES[:, :-1] + np.arange(len(_SEASON_SHARES))[:, None]).ravel()
    place = np.searchsorted(running, season + randomness.uniform(state, "season category"), side="right")
    return category_shelf(place - season * (_SEASON_SHARES.shape[1] - 1))


def _origin(previous: np.ndarray) -> np.ndarray:
    """The end of each row's chain of pointers to earlier rows: a row that points at itself."""
    while True:
        further = previous[previous]
        if np.array_equal(further, previous):
            return previous
        previous = further


def _all_different(second: np.ndarray, user: np.ndarray, end_row: np.ndarray) -> np.ndarray:
    """Moves events of overlapping sessions so that a user's seconds increase strictly and stay in the two years.

    A cumulative maximum of `second - row` makes them increase. A user's k-th event from the end is at least k seconds
    before the end of the last day. `end_row` is the row after the user's last one.
    """
    row = np.arange(len(second))
    apart = (user - user[0]) * 2**40  # more than any `second - row`, so that users don't share a maximum
    increasing = np.maximum.accumulate(second - row + apart) - apart + row
    return np.minimum(increasing, DAYS * SECONDS_OF_DAY - (end_row - row))
