"""Runs in Feast's environment for a test: calls the functions named on a channel and sends the results back."""

import datetime
import functools
import itertools
from pathlib import Path

from jobs.push_lte import push_lte
from lte_model.errors import LTEError
from lte_model.serving.online_reader import OnlineReader
from lte_model.serving.online_store import OnlineStore
from lte_model.settings import load_settings


class Killed(Exception):
    """Simulates a kill."""


@functools.cache
def store(file):
    return OnlineStore(load_settings(file))


@functools.cache
def reader(file, basis_id=""):
    return OnlineReader(load_settings(file), basis_id)


def push(file, date, name="uniform", allow_older=False, full=False, killed_at="", basis_id=""):
    """(date, rows written, users removed); None if killed before the store's method `killed_at`."""
    of_push = OnlineStore(load_settings(file)) if killed_at else store(file)
    if killed_at:

        def kill(*_):
            raise Killed

        setattr(of_push, killed_at, kill)
    try:
        of_date = datetime.date.fromisoformat(date)
        done = push_lte(load_settings(file), of_push, of_date, name, allow_older, full, basis_id)
    except Killed:
        return None
    return str(done.date), done.written, done.removed


def read(file, users, representation="uniform", basis_id=""):
    """Each user's LTE as a dict: arrays as bytes, dates as text."""
    ltes = [lte and vars(lte) for lte in reader(file, basis_id).read(users, representation)]
    return [lte and {key: _plain(value) for key, value in lte.items()} for lte in ltes]


def retire(file, basis_id):
    return store(file).retire(basis_id)


def erase(file, users):
    return store(file).erase(users)


def forget(file):
    """Deletes a store's rows and records, as a restart of an in-memory Redis does."""
    of_redis = store(file)._rows._client
    of_redis.flushall()


def traces(file, user):
    """The files or keys of the store that contain the user's id."""
    settings = load_settings(file).online_store
    if settings.type == "redis":
        client = store(file)._rows._client
        held = {key: b"".join(itertools.chain(*client.hgetall(key).items())) for key in client.scan_iter()}
        return [repr(key) for key, value in held.items() if user.encode() in key + value]
    return [str(path) for path in Path(settings.path).parent.iterdir() if user.encode() in path.read_bytes()]


def _plain(value):
    if isinstance(value, datetime.date):
        return str(value)
    return value.tobytes() if hasattr(value, "tobytes") else value


if __name__ == "__channelexec__":
    for function, arguments in channel:  # noqa: F821
        try:
            channel.send((globals()[function](**arguments), ""))  # noqa: F821
        except LTEError as error:
            channel.send((None, str(error)))  # noqa: F821
