"""Writes the shop's feeds: adds the dirt of real feeds, orders rows by arrival, and writes the files.

`events.parquet` is ordered by known date, then by time. Its `event_ts` is text, so that it can hold broken timestamps.
`planted.json` holds the spec and the number of rows with each kind of dirt, to be compared with what a reader finds.
"""

import datetime
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.demo_shop import randomness
from jobs.demo_shop.assortment import Assortment, items_table, make_assortment
from jobs.demo_shop.browsing import EVENT_TYPES, EventType, ShopEvents, browse, crawl, event_keys
from jobs.demo_shop.shoppers import Shoppers, Taste, make_shoppers, truth_table
from jobs.demo_shop.spec import DAYS, SALE_OF_DAY, SECONDS_OF_DAY, START, ShopSpec, item_id, user_id
from lte_model.errors import LTEError
from lte_model.files import write_atomically


class Dirt(IntEnum):
    """What is wrong with a row: at most one kind of dirt."""

    CLEAN = 0
    LATE = 1
    DUPLICATED = 2
    UNKNOWN_ITEM = 3
    BROKEN_TIMESTAMP = 4
    MISSING_USER = 5
    MISSING_ITEM = 6


BROKEN_TIMESTAMPS = ("not-a-date", "0000-00-00T00:00:00Z", "2024-02-30T12:00:00Z", "", None)
MOST_DAYS_LATE = 10
SALE_FACTOR = 0.7

USERS_AT_A_TIME = 2048
ROWS_AT_A_TIME = 262_144
"""Rows in a row group of `events.parquet`."""

EVENTS_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("event_ts", pa.string()),
        ("event_type", pa.string()),
        ("price", pa.float64()),
        ("quantity", pa.float64()),
        ("known_date", pa.date32()),
    ]
)
FILES = ("events.parquet", "items.parquet", "truth.parquet")
PLANTED = "planted.json"


@dataclass(frozen=True)
class Planted:
    """What a demo shop's feeds contain.

    rows = clean + late + duplicates + unknown_items + broken_timestamps + missing_users + missing_items, where
    `clean` includes the originals of the duplicates, and the bot's events.
    """

    rows: int
    clean: int
    late: int
    duplicates: int
    unknown_items: int
    broken_timestamps: int
    missing_users: int
    missing_items: int
    bot_events: int
    bot_user_id: str
    stable: int
    drifting: int
    without_taste: int
    first_event_date: str
    last_event_date: str
    reused: bool = False
    """Whether the folder held this shop already. It isn't recorded."""


def write_demo_shop(spec: ShopSpec, folder: str | os.PathLike, users_at_a_time: int = USERS_AT_A_TIME) -> Planted:
    """Writes the shop's feeds and ground truth to `folder`, unless it holds them; returns what they contain.

    The bytes depend on `spec` only. Memory: some 50 bytes per event, and the working space of `users_at_a_time`.
    Raises `LTEError` if `folder` holds feeds that are not of a demo shop.
    """
    folder = Path(folder)
    found = _planted_before(spec, folder)
    if found is not None:
        return found
    _record(spec, folder, None)
    assortment, shoppers = make_assortment(spec), make_shoppers(spec)
    rows = _make_rows(spec, assortment, shoppers, users_at_a_time)
    rows.leave_clean_what_would_be_alike()
    planted = _count(spec, shoppers, rows)
    pq.write_table(items_table(assortment), folder / "items.parquet")
    pq.write_table(truth_table(shoppers), folder / "truth.parquet")
    _write_events(spec, assortment, rows, folder / "events.parquet")
    _record(spec, folder, planted)
    return planted


@dataclass(frozen=True)
class _FeedRows:
    """The feed's n rows as columns, ordered by user, 16 bytes each. A duplicated row is held once.

    `variant` selects the text of a broken timestamp, the number of days by which a row is late, and whether a missing
    value is null (0) or empty (1).
    """

    user: np.ndarray
    item: np.ndarray
    second: np.ndarray
    type: np.ndarray
    quantity: np.ndarray
    dirt: np.ndarray
    variant: np.ndarray

    @classmethod
    def empty(cls, count: int) -> "_FeedRows":
        wide, narrow = (3, np.int32), (4, np.int8)
        return cls(*(np.zeros(count, dtype) for columns, dtype in (wide, narrow) for _ in range(columns)))

    def known_day(self) -> np.ndarray:
        return self.second // SECONDS_OF_DAY + np.where(self.dirt == Dirt.LATE, self.variant, 0)

    def leave_clean_what_would_be_alike(self) -> None:
        """Keeps all rows different: without a time or a user, two rows may become equal.

        They would count as exact duplicates that weren't planted. The later one is left clean instead.
        """
        for dirt, told_apart_by in (
            (Dirt.BROKEN_TIMESTAMP, (self.user, self.item, self.second // SECONDS_OF_DAY)),
            (Dirt.MISSING_USER, (self.item, self.second)),
        ):
            dirty = np.flatnonzero(self.dirt == dirt)
            columns = (*told_apart_by, self.type, self.quantity, self.variant)
            _, first = np.unique(np.stack([column[dirty] for column in columns]), axis=1, return_index=True)
            self.dirt[np.delete(dirty, first)] = Dirt.CLEAN


def _make_rows(spec: ShopSpec, assortment: Assortment, shoppers: Shoppers, users_at_a_time: int) -> _FeedRows:
    of_users = int(shoppers.events.sum())
    rows = _FeedRows.empty(of_users + spec.bot_events)
    begin = 0
    for first in range(0, spec.users, users_at_a_time):
        end = min(first + users_at_a_time, spec.users)
        events = browse(assortment, shoppers, first, end)
        place = slice(begin, begin + len(events.user))
        _fill(rows, place, events)
        number = np.arange(len(events.user)) - np.searchsorted(events.user, events.user)
        _soil(spec, rows, place, event_keys(shoppers, events.user, number))
        begin = place.stop
    _fill(rows, slice(of_users, None), crawl(spec, assortment))
    return rows


def _fill(rows: _FeedRows, place: slice, events: ShopEvents) -> None:
    for name in ("user", "item", "second", "type", "quantity"):
        getattr(rows, name)[place] = getattr(events, name)


def _soil(spec: ShopSpec, rows: _FeedRows, place: slice, state: np.ndarray) -> None:
    """Marks which rows of `place` are dirty, and with which kind of dirt."""
    clean_share = 1 - sum(spec.dirt_rates)
    bounds = np.cumsum([clean_share, *spec.dirt_rates])[:-1]
    dirt = np.searchsorted(bounds, randomness.uniform(state, "dirt"), side="right")
    choices = np.ones(len(Dirt), dtype=np.int64)
    choices[Dirt.LATE] = MOST_DAYS_LATE
    choices[Dirt.BROKEN_TIMESTAMP] = len(BROKEN_TIMESTAMPS)
    choices[[Dirt.MISSING_USER, Dirt.MISSING_ITEM]] = 2
    rows.dirt[place] = dirt
    rows.variant[place] = randomness.whole(state, "variant", choices[dirt]) + (dirt == Dirt.LATE)
    unknown = np.flatnonzero(dirt == Dirt.UNKNOWN_ITEM)
    withdrawn = 1 + spec.items // 10
    rows.item[place][unknown] = spec.items + randomness.whole(state[unknown], "unknown item", withdrawn)


def _count(spec: ShopSpec, shoppers: Shoppers, rows: _FeedRows) -> Planted:
    dirt = np.bincount(rows.dirt, minlength=len(Dirt)).tolist()
    tastes = np.bincount(shoppers.taste, minlength=len(Taste)).tolist()
    return Planted(
        rows=sum(dirt) + dirt[Dirt.DUPLICATED],
        clean=dirt[Dirt.CLEAN] + dirt[Dirt.DUPLICATED],
        late=dirt[Dirt.LATE],
        duplicates=dirt[Dirt.DUPLICATED],
        unknown_items=dirt[Dirt.UNKNOWN_ITEM],
        broken_timestamps=dirt[Dirt.BROKEN_TIMESTAMP],
        missing_users=dirt[Dirt.MISSING_USER],
        missing_items=dirt[Dirt.MISSING_ITEM],
        bot_events=spec.bot_events,
        bot_user_id=user_id(spec.users),
        stable=tastes[Taste.STABLE],
        drifting=tastes[Taste.DRIFTING],
        without_taste=tastes[Taste.NONE],
        first_event_date=_date(rows.second.min() // SECONDS_OF_DAY),
        last_event_date=_date(rows.second.max() // SECONDS_OF_DAY),
    )


def _date(day: int) -> str:
    return (START + datetime.timedelta(days=int(day))).isoformat()


def _write_events(spec: ShopSpec, assortment: Assortment, rows: _FeedRows, path: Path) -> None:
    order = np.argsort(rows.known_day().astype(np.int64) << 32 | rows.second, kind="stable")
    order = np.repeat(order, np.where(rows.dirt[order] == Dirt.DUPLICATED, 2, 1))
    # the code after the last id is the empty id
    users = pa.array([*(user_id(number) for number in range(spec.users + 1)), ""], pa.string())
    item_codes = int(rows.item.max()) + 1
    items = pa.array([*(item_id(number) for number in range(item_codes)), ""], pa.string())
    clock = _Clock()
    repeating = ["user_id", "item_id", "event_type", "price", "quantity", "known_date"]
    with pq.ParquetWriter(path, EVENTS_SCHEMA, compression="zstd", use_dictionary=repeating) as writer:
        for begin in range(0, len(order), ROWS_AT_A_TIME):
            at = order[begin : begin + ROWS_AT_A_TIME]
            dirt, variant, second = rows.dirt[at], rows.variant[at], rows.second[at]
            day = second // SECONDS_OF_DAY
            item = rows.item[at]
            bought = rows.type[at] == EventType.PURCHASE
            price = assortment.price[np.minimum(item, len(assortment) - 1)]
            price = np.round(np.where(SALE_OF_DAY[day], price * SALE_FACTOR, price), 2)
            known = np.datetime64(START) + day + np.where(dirt == Dirt.LATE, variant, 0)
            columns = [
                _ids(users, rows.user[at], dirt == Dirt.MISSING_USER, variant),
                _ids(items, item, dirt == Dirt.MISSING_ITEM, variant),
                _times(clock, second, np.where(dirt == Dirt.BROKEN_TIMESTAMP, variant, -1)),
                pa.array(EVENT_TYPES, pa.string()).take(pa.array(rows.type[at])),
                pa.array(price, pa.float64(), mask=~bought),
                pa.array(rows.quantity[at], pa.float64(), mask=rows.quantity[at] == 0),
                pa.array(known, pa.date32()),
            ]
            writer.write_batch(pa.record_batch(columns, schema=EVENTS_SCHEMA))


def _ids(ids: pa.Array, code: np.ndarray, missing: np.ndarray, empty: np.ndarray) -> pa.Array:
    code = np.where(missing, len(ids) - 1, code)
    return ids.take(pa.array(code, pa.int32(), mask=missing & (empty == 0)))


class _Clock:
    """Formats seconds since START as 2023-01-01T00:00:00Z, by lookup tables of days and of seconds of a day."""

    def __init__(self):
        days = np.datetime64(START) + np.arange(DAYS)
        seconds = np.datetime64("1970-01-01T00:00:00") + np.arange(SECONDS_OF_DAY)
        self.days = _letters([f"{day}T" for day in days])
        self.seconds = _letters([f"{second}Z"[-9:] for second in seconds])

    def write(self, second: np.ndarray) -> pa.Array:
        days, seconds = self.days[second // SECONDS_OF_DAY], self.seconds[second % SECONDS_OF_DAY]
        text = np.concatenate([days, seconds], axis=1)
        ends = np.arange(len(text) + 1, dtype=np.int32) * text.shape[1]
        return pa.StringArray.from_buffers(len(text), pa.py_buffer(ends), pa.py_buffer(text))


def _letters(texts: list[str]) -> np.ndarray:
    """The bytes (n, length) of n texts of equal length."""
    return np.array([text.encode() for text in texts]).view(np.uint8).reshape(len(texts), -1)


def _times(clock: _Clock, second: np.ndarray, broken: np.ndarray) -> pa.Array:
    """The timestamps as text; where `broken` isn't -1, the entry of `BROKEN_TIMESTAMPS` with that index."""
    times = clock.write(second)
    if (broken >= 0).any():
        texts = pa.array(BROKEN_TIMESTAMPS, pa.string()).take(pa.array(np.maximum(broken, 0)))
        times = pc.if_else(pa.array(broken >= 0), texts, times)
    return times


def _made_by() -> str:
    """A digest of this package's code, so that a shop made by other code is made again."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _record(spec: ShopSpec, folder: Path, planted: Planted | None) -> None:
    """Writes `planted.json` atomically. Without `planted`, it claims the folder before the files are written."""
    content: dict = {"made_by": _made_by(), "spec": asdict(spec)}
    if planted is not None:
        content["planted"] = {name: value for name, value in asdict(planted).items() if name != "reused"}
    try:
        write_atomically(folder / PLANTED, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise LTEError(f"the demo shop can't be written to {folder}: {error.strerror}; give another folder") from None


def _planted_before(spec: ShopSpec, folder: Path) -> Planted | None:
    """The folder's contents if they are this shop's; None if the folder may be written to."""
    try:
        content = json.loads((folder / PLANTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    present = [name for name in FILES if (folder / name).exists()]
    if not (isinstance(content, dict) and "made_by" in content):
        if present:
            raise LTEError(
                f"{folder / present[0]} was not made by the demo shop and would be lost; give another folder"
            )
        return None
    same = content["made_by"] == _made_by() and content.get("spec") == asdict(spec)
    if same and "planted" in content and len(present) == len(FILES):
        return Planted(**content["planted"], reused=True)
    return None
