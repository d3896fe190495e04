"""The rows of Feast's online store, read and written in its own format: SQLite and Redis."""

import itertools
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lte_model.files import one_at_a_time

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView, Field
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

PROJECT = "lte"

KEY_VERSION = 3
"""The version of Feast's encoding of entity keys."""

KEYS_AT_ONCE = 1_000

LOCK_SECONDS = 60
"""A lock in Redis expires this long after its holder last renewed it."""


def entity_key(entity: str, name: str) -> "EntityKey":
    """The key of the row whose `entity`, such as user_id, is `name`."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

    return EntityKey(join_keys=[entity], entity_values=[text_value(name)])


def text_value(text: str) -> "Value":
    """A text as Feast stores it."""
    from feast.protos.feast.types.Value_pb2 import Value

    return Value(string_val=text)


def schema_of(entity: str, features: Mapping[str, str]) -> "list[Field]":
    """The entity and its features, {name: how Feast holds it}, as Feast's fields."""
    from feast import Field
    from feast.types import Array, Bool, Int32, Int64, String

    types = {
        "int32_list_val": Array(Int32),
        "int32_val": Int32,
        "int64_val": Int64,
        "string_val": String,
        "bool_val": Bool,
    }
    return [Field(name=entity, dtype=String), *(Field(name=name, dtype=types[kind]) for name, kind in features.items())]


def feast_values(row: Mapping[str, Any], features: Mapping[str, str]) -> dict[str, "Value"]:
    """The features of a row as Feast's values."""
    from feast.protos.feast.types.Value_pb2 import Int32List, Value

    return {
        name: Value(**{kind: Int32List(val=row[name]) if kind == "int32_list_val" else row[name]})
        for name, kind in features.items()
    }


def plain_values(values: "dict[str, Value] | None", features: Mapping[str, str]) -> dict[str, Any] | None:
    """The inverse of `feast_values`; None where a feature is missing."""
    if not values or any(values[name].WhichOneof("val") is None for name in features):
        return None
    plain = {name: getattr(values[name], kind) for name, kind in features.items()}
    return plain | {name: plain[name].val for name, kind in features.items() if kind == "int32_list_val"}


# What differs between the stores.


class Rows(Protocol):
    """The rows behind Feast: the writers' lock, and deletion."""

    errors: tuple[type[Exception], ...]
    """The exceptions of a failing store, besides `sqlite3.Error`."""

    def lock(self) -> AbstractContextManager[Any]:
        """Keeps other writers out while it is held."""

    def stay(self) -> None:
        """Renews the lock."""

    def remove(self, view: "FeatureView", keys: "Sequence[EntityKey]") -> int:
        """Deletes the rows of those keys; returns how many there were."""

    def remove_unless(self, view: "FeatureView", feature: str, text: str) -> int:
        """Deletes the rows whose `feature` is another text; returns how many there were."""

    def purge(self) -> None:
        """Removes deleted data from the store's file."""


class SQLiteRows:
    """SQLite: a table for each view, with a row for each feature of a user."""

    errors: tuple[type[Exception], ...] = ()

    def __init__(self, feast: "FeatureStore"):
        self._path = feast.config.online_store.path

    def lock(self) -> AbstractContextManager[None]:
        """A lock file beside the database."""
        return one_at_a_time(Path(f"{self._path}.lock"))

    def stay(self) -> None:
        """Does nothing: the lock ends with the process."""

    def remove(self, view: "FeatureView", keys: "Sequence[EntityKey]") -> int:
        """Deletes the rows of those keys, key by key."""
        from feast.infra.key_encoding_utils import serialize_entity_key

        removed = 0
        with closing(sqlite3.connect(self._path)) as database, database:
            for key in keys:
                of_user = f'DELETE FROM "{self._table(view)}" WHERE entity_key = ?'  # noqa: S608 - Feast's name
                removed += database.execute(of_user, (serialize_entity_key(key, KEY_VERSION),)).rowcount > 0
        return removed

    def remove_unless(self, view: "FeatureView", feature: str, text: str) -> int:
        """Deletes the rows in one statement, which compares the text as Feast encodes it."""
        table = self._table(view)
        with closing(sqlite3.connect(self._path)) as database, database:
            others = f'SELECT entity_key FROM "{table}" WHERE feature_name = ? AND value <> ?'  # noqa: S608
            found = (feature, text_value(text).SerializeToString())
            removed = database.execute(f"SELECT count(*) FROM ({others})", found).fetchone()[0]  # noqa: S608
            database.execute(f'DELETE FROM "{table}" WHERE entity_key IN ({others})', found)  # noqa: S608
        return removed

    def purge(self) -> None:
        """Rewrites the file without deleted data."""
        with closing(sqlite3.connect(self._path)) as database:
            database.execute("VACUUM")

    def _table(self, view: "FeatureView") -> str:
        from feast.infra.online_stores.helpers import compute_table_id

        return compute_table_id(PROJECT, view)


class RedisRows:
    """Redis: a hash for each user, with a field for each feature of each view, named as in Feast."""

    def __init__(self, feast: "FeatureStore"):
        from redis.exceptions import RedisError

        self.errors: tuple[type[Exception], ...] = (RedisError,)
        self._client = feast.provider.online_store._get_client(feast.config.online_store)
        self._lock = self._client.lock(f"{PROJECT}:pushing", timeout=LOCK_SECONDS)

    def lock(self) -> AbstractContextManager[Any]:
        """A Redis lock, which expires unless it is renewed."""
        return self._lock

    def stay(self) -> None:
        """Resets the lock's time to live."""
        self._lock.reacquire()

    def remove(self, view: "FeatureView", keys: "Sequence[EntityKey]") -> int:
        """Deletes the rows of those keys, many at once."""
        from feast.infra.key_encoding_utils import serialize_entity_key

        return self._remove(view, [serialize_entity_key(key, KEY_VERSION) + PROJECT.encode() for key in keys])

    def remove_unless(self, view: "FeatureView", feature: str, text: str) -> int:
        """Scans the view's keys and deletes the rows whose `feature` is another text."""
        from feast.infra.key_encoding_utils import serialize_entity_key_prefix

        ours = serialize_entity_key_prefix(view.join_keys, KEY_VERSION) + b"*" + PROJECT.encode()
        keys = self._client.scan_iter(ours, count=KEYS_AT_ONCE)
        removed = 0
        while some := list(itertools.islice(keys, KEYS_AT_ONCE)):
            removed += self._remove(view, self._others(view, some, feature, text))
        return removed

    def purge(self) -> None:
        """Does nothing: Redis frees deleted keys, and rewrites its files by its own rules."""

    def _others(self, view: "FeatureView", keys: list[bytes], feature: str, text: str) -> list[bytes]:
        """The keys with a row in the view whose `feature` is another text."""
        with self._client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hget(key, self._field(view, feature))
            held = pipe.execute()
        kept = (None, text_value(text).SerializeToString())
        return [key for key, of_key in zip(keys, held, strict=True) if of_key not in kept]

    def _remove(self, view: "FeatureView", keys: list[bytes]) -> int:
        fields = [f"_ts:{view.name}", *(self._field(view, feature.name) for feature in view.features)]
        self.stay()
        with self._client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hdel(key, *fields)
            return sum(count > 0 for count in pipe.execute())

    @staticmethod
    def _field(view: "FeatureView", feature: str) -> bytes:
        from feast.infra.online_stores.helpers import _mmh3

        return _mmh3(f"{view.name}:{feature}")
