"""The online store: the live LTEs, a row for each user, which a service reads in milliseconds.

Feast keeps it in SQLite or Redis: a feature view for each basis and representation, whose entity is the user and whose
features are the columns of the user's row in `lte_live`. This module adds what Feast lacks:

1. Deletion. `remove` and `keep_only` delete rows; `erase` also clears the file's free pages of deleted users.
2. Order. Feast's SQLite lets an older row replace a newer one, and its Redis refuses a corrected row of the same date.
   Instead, `pushed` gives the date of a view, and a writer holds `lock` while it compares the dates.
3. Completeness. `note` records whether a push finished.

Feast has an environment of its own (infra/feast): it needs an older tenacity than Airflow, and where it is installed,
MLflow imports all of it in every process that talks to a tracking server. `continue_in_feast` moves a command there.
"""

import datetime
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from lte_model.command_line import run
from lte_model.errors import EXIT_CODE, LTEError
from lte_model.files import PACKAGE
from lte_model.serving.feast_rows import (
    KEY_VERSION,
    KEYS_AT_ONCE,
    PROJECT,
    RedisRows,
    Rows,
    SQLiteRows,
    entity_key,
    feast_values,
    plain_values,
    schema_of,
)
from lte_model.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureView


USER, VIEW = "user_id", "feature_view"
"""The entities of an LTE and of a view's note."""

READ_FROM = "read_from"
"""The feature with the table and version that a row was read from."""

LTE_FEATURES = {
    "vector_sum": "int32_list_val",
    "event_count": "int32_val",
    "newest_event_date": "string_val",
    "snapshot_date": "string_val",
    "lag_days": "int32_val",
    "window_days": "int32_val",
    READ_FROM: "string_val",
}
"""The features of a user's LTE with Feast's types: the columns of `lte_live`, and the table and version that the row
was read from. Dates are YYYY-MM-DD."""

NOTES = "lte_pushed"
NOTE_FEATURES = {
    "date": "string_val",
    "inputs": "string_val",
    "table_id": "string_val",
    "table_version": "int64_val",
    "complete": "bool_val",
}


@dataclass(frozen=True)
class Pushed:
    """The content of a view: LTEs of the snapshot date `date`, made from `inputs`, from one version of a Delta table.

    If not `complete`, some rows are of an earlier push.
    """

    date: datetime.date
    inputs: str
    table_id: str
    table_version: int
    complete: bool = True

    @property
    def read_from(self) -> str:
        """Table and version in short, such as `3f2a41b9@17`."""
        return f"{self.table_id[:8]}@{self.table_version}"


def view_name(basis_id: str, representation: str) -> str:
    """The name of the feature view of a representation of a basis."""
    return f"lte_{representation}_{basis_id}"


# Feast's environment.


def continue_in_feast(settings: Settings, module: str) -> None:
    """Restarts the process as `python -m module` in Feast's environment; returns if Feast is installed here.

    The arguments stay the same. Raises `LTEError` where there is no such environment.
    """
    if not importlib.util.find_spec("feast"):
        python = _python_of_feast(settings)
        sys.stdout.flush()
        os.execve(python, [python, "-m", module, *sys.argv[1:]], _environment())  # noqa: S606 - no shell is meant


def erase_from_online_store(settings: Settings, user_ids: frozenset[str]) -> list[str]:
    """Deletes the users' rows of every basis and representation; returns the views that had one.

    Runs in Feast's environment. Raises `LTEError` where the store can't be reached.
    """
    return _ask_in_feast(settings, users=sorted(user_ids))


def retire_from_online_store(settings: Settings, basis_id: str) -> list[str]:
    """Deletes every row and view of a basis; returns the views. Runs and raises as `erase_from_online_store` does."""
    return _ask_in_feast(settings, basis_id=basis_id)


def _ask_in_feast(settings: Settings, **asked: Any) -> list[str]:
    """The lines that `main` prints in Feast's environment; empty where the settings name no store."""
    if settings.online_store.type == "none":
        return []
    asked["settings"] = settings.model_dump(mode="json")
    done = subprocess.run(
        [_python_of_feast(settings), "-m", "lte_model.serving.online_store"],
        input=json.dumps(asked),
        env=_environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode == EXIT_CODE:
        raise LTEError(done.stderr.strip().removeprefix("error: "))
    if done.returncode:
        raise RuntimeError(f"python -m lte_model.serving.online_store failed with {done.returncode}: {done.stderr}")
    return done.stdout.splitlines()


def _python_of_feast(settings: Settings) -> str:
    python = Path(settings.online_store.python)
    if not python.is_file() or Path(sys.prefix) == python.parent.parent:
        raise LTEError(
            f"there is no Feast at online_store.python = {settings.online_store.python!r}; run make online-store, "
            "or name the Python of an environment with infra/feast/requirements.txt"
        )
    return str(python)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(PACKAGE.parent)}


# The store.


class OnlineStore:
    """The store of the settings. Needs Feast's environment. Raises `LTEError` where the settings name no store.

    One process writes at a time, inside `lock`; reading needs no lock.
    """

    def __init__(self, settings: Settings):
        from feast import FeatureStore, RepoConfig

        self.settings = settings.online_store
        if self.settings.type == "none":
            raise LTEError("there is no online store: online_store.type is none; set it to sqlite or redis")
        for path in (self.settings.path, self.settings.registry):
            if ":" not in path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.feast: FeatureStore = FeatureStore(
            config=RepoConfig(
                project=PROJECT,
                registry=self.settings.registry,
                online_store={
                    "sqlite": {"type": "sqlite", "path": self.settings.path},
                    "redis": {"type": "redis", "connection_string": self.settings.connection, "skip_dedup": True},
                }[self.settings.type],
                entity_key_serialization_version=KEY_VERSION,
            )
        )
        self._rows: Rows = RedisRows(self.feast) if self.settings.type == "redis" else SQLiteRows(self.feast)
        self._live = settings.table_path("lte_live")

    def bases(self, representation: str) -> list[str]:
        """The ids of the bases with pushed LTEs of a representation."""
        views = self.feast.list_feature_views(tags={"representation": representation})
        return sorted(view.tags["basis_id"] for view in views)

    def view(self, basis_id: str, representation: str) -> "FeatureView":
        """The registered feature view."""
        return self.feast.get_feature_view(view_name(basis_id, representation))

    def register(self, basis_id: str, representation: str) -> "FeatureView":
        """The feature view, created where it doesn't exist yet."""
        from feast import Entity, FeatureView, FileSource, ValueType
        from feast.data_format import DeltaFormat

        if basis_id not in self.bases(representation):
            user, view = (Entity(name=name, value_type=ValueType.STRING) for name in (USER, VIEW))
            lte = FeatureView(
                name=view_name(basis_id, representation),
                entities=[user],
                schema=schema_of(USER, LTE_FEATURES),
                source=FileSource(
                    name="lte_live",
                    path=self._live,
                    file_format=DeltaFormat(),
                    timestamp_field="snapshot_date",
                ),
                tags={"basis_id": basis_id, "representation": representation},
            )
            notes = FeatureView(name=NOTES, entities=[view], schema=schema_of(VIEW, NOTE_FEATURES))
            self.feast.apply([user, view, lte, notes])
        return self.view(basis_id, representation)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Waits for other writers, then locks them out. Raises `LTEError` where the store fails."""
        with self._answers(), self._rows.lock():
            yield

    def pushed(self, view: "FeatureView") -> Pushed | None:
        """What the view holds; None before the first push."""
        note = self._read(self.feast.get_feature_view(NOTES), VIEW, [view.name], NOTE_FEATURES)[0]
        return Pushed(**(note | {"date": datetime.date.fromisoformat(note["date"])})) if note else None

    def note(self, view: "FeatureView", pushed: Pushed) -> None:
        """Records what the view holds, or will hold."""
        note = vars(pushed) | {"date": str(pushed.date)}
        row = (entity_key(VIEW, view.name), feast_values(note, NOTE_FEATURES), _moment(pushed.date), None)
        self._write(self.feast.get_feature_view(NOTES), [row])

    def write(self, view: "FeatureView", ltes: pl.DataFrame, pushed: Pushed) -> None:
        """Writes rows of the pushed table; each replaces the user's old row."""
        added = {"read_from": pushed.read_from}
        rows = [
            (
                entity_key(USER, lte[USER]),
                feast_values(lte | _dates_as_text(lte) | added, LTE_FEATURES),
                _moment(pushed.date),
                None,
            )
            for lte in ltes.iter_rows(named=True)
        ]
        self._write(view, rows)

    def read(self, view: "FeatureView", user_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """The features of each user, None for a user without a row; `vector_sum` is a sequence of integers.

        Raises `LTEError` where the store fails.
        """
        with self._answers():
            return self._read(view, USER, user_ids, LTE_FEATURES)

    def remove(self, view: "FeatureView", user_ids: Sequence[str]) -> int:
        """Deletes the users' rows; returns how many there were."""
        return self._rows.remove(view, [entity_key(USER, user) for user in user_ids])

    def keep_only(self, view: "FeatureView", pushed: Pushed) -> int:
        """Deletes the rows that were not read from `pushed`; returns how many there were."""
        return self._rows.remove_unless(view, "read_from", pushed.read_from)

    def erase(self, user_ids: Sequence[str]) -> list[str]:
        """Deletes the users' rows of every view; returns the names of the views that had one.

        Raises `LTEError` where the store fails.
        """
        views = [view for view in self.feast.list_feature_views() if view.name != NOTES]
        with self.lock():
            had_one = [view.name for view in views if self.remove(view, user_ids)]
            self._rows.purge()
        return had_one

    def retire(self, basis_id: str) -> list[str]:
        """Deletes the rows, the views and the notes of a basis; returns the views' names.

        Raises `LTEError` where the store fails.
        """
        views = self.feast.list_feature_views(tags={"basis_id": basis_id})
        with self.lock():
            for view in views:
                self._rows.remove_unless(view, "read_from", "")
                self._rows.remove(self.feast.get_feature_view(NOTES), [entity_key(VIEW, view.name)])
                self.feast.delete_feature_view(view.name)
            self._rows.purge()
        return [view.name for view in views]

    def _write(self, view: "FeatureView", rows: list[tuple]) -> None:
        self._rows.stay()
        self.feast.provider.online_write_batch(self.feast.config, view, rows, None)

    def _read(
        self, view: "FeatureView", entity: str, ids: Sequence[str], features: Mapping[str, str]
    ) -> list[dict[str, Any] | None]:
        found = []
        for start in range(0, len(ids), KEYS_AT_ONCE):
            keys = [entity_key(entity, name) for name in ids[start : start + KEYS_AT_ONCE]]
            found += self.feast.provider.online_read(self.feast.config, view, keys, list(features))
        return [plain_values(values, features) for _, values in found]

    @contextmanager
    def _answers(self) -> Iterator[None]:
        failures: tuple[type[Exception], ...] = (sqlite3.Error, *self._rows.errors)
        try:
            yield
        except failures as error:
            raise LTEError(
                f"the {self.settings.type} online store failed: {error}; is it up, and is [online_store] in the "
                "settings right? What was begun is made good by running it again"
            ) from error


def _dates_as_text(lte: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(lte[name]) for name in ("newest_event_date", "snapshot_date")}


def _moment(date: datetime.date) -> datetime.datetime:
    return datetime.datetime.combine(date, datetime.time(), datetime.UTC)


def main() -> None:
    """Erases users, or retires a basis.

    Reads the request as JSON from stdin: a process list would show ids and passwords in arguments.
    """
    asked = json.load(sys.stdin)
    store = OnlineStore(Settings.model_validate(asked["settings"]))
    print(*(store.retire(asked["basis_id"]) if "basis_id" in asked else store.erase(asked["users"])), sep="\n")


if __name__ == "__main__":
    run(main)
