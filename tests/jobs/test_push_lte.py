"""`push_lte` and the reader: the store equals `lte_live` bit for bit, in any order of pushes, kills and erasures.

Longer than 350 lines, because every test shares the shop, the stores and the process in which Feast runs.
"""

import datetime
import itertools
import subprocess
import sys
import zlib

import execnet
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jobs.engine.packing import buckets_of
from jobs.publish_lte import publish_lte
from jobs.push_lte import users_who_left
from jobs.snapshot_lte import snapshot_lte
from lte_model.domain.basis import to_vector
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.serving.online_store import erase_from_online_store
from lte_model.settings import load_settings
from lte_model.warehouse.tables import LTE_LIVE
from tests import feast_side
from tests.jobs.small_tables import DATE
from tests.redis_server import MISSING, installed, redis_server
from tests.repository import REPOSITORY

PYTHON = REPOSITORY / ".cache" / "feast" / "venv" / "bin" / "python"
DAY = datetime.date(2024, 3, 1)
DATES = tuple(DAY + ONE_DAY * days for days in range(4))
USERS = ("ä user", "user-1", "user-2", "user-[*]", "user-4711")

pytestmark = pytest.mark.skipif(not PYTHON.is_file(), reason="no environment with Feast: make online-store")


@pytest.fixture(scope="module")
def in_feast():
    """A function that calls tests/feast_side.py in Feast's environment."""
    group = execnet.Group()
    channel = group.makegateway(f"popen//python={PYTHON}//chdir={REPOSITORY}").remote_exec(feast_side)

    def call(function, file, *arguments, **named):
        names = feast_side.__dict__[function].__code__.co_varnames[1:]
        given_ones = dict(zip(names, map(_sendable, arguments), strict=False)) | {
            k: _sendable(v) for k, v in named.items()
        }
        channel.send((function, {"file": str(file)} | given_ones))
        result, refused = channel.receive(timeout=60)
        if refused:
            raise LTEError(refused)
        return result

    yield call
    group.terminate(timeout=5)


def _sendable(value):
    return str(value) if isinstance(value, datetime.date) else value


@pytest.fixture(scope="module")
def redis():
    if not installed():
        pytest.skip(MISSING)
    with redis_server() as connection:
        yield connection


def section(kind, connection=""):
    """The section [online_store] of a settings file."""
    return f'[online_store]\ntype = "{kind}"\nconnection = "{connection}"\npython = "{PYTHON}"\n'


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def online_store(request):
    return section(request.param, request.getfixturevalue("redis") if request.param == "redis" else "")


class Shop:
    """The tables that a push reads, written like `publish_lte` does, and the expected content of the store."""

    def __init__(self, folder, online_store):
        folder.mkdir()
        self.file = folder / "settings.toml"
        self.file.write_text(online_store)
        self.settings = load_settings(self.file)
        self.snapshots, self.live, self.held = {}, {}, {}
        self.published = {}  # date: inputs
        self.held_date, self.erasures = None, 0
        pl.DataFrame({"basis_id": ["basis"]}).write_delta(self.settings.table_path("semantic_bases"))

    @property
    def live_date(self):
        return max(self.published, default=None)

    def publish(self, date, rows):
        """Publishes {user: (vector sum, event count)}. Ignores an older date; an unchanged row keeps its date."""
        self.snapshots[date] = {user: (*row, date) for user, row in rows.items()}
        if not self.published or self.live_date <= date:
            new = date not in self.published
            kept = {user: row for user, row in self.live.items() if new and row[:2] == rows.get(user)}
            self.live = self.snapshots[date] | kept
            self.published[date] = f"{zlib.crc32(repr(rows).encode())}-{self.erasures}"
        self._write()

    def erase(self, user):
        self.erasures += 1
        for rows in (*self.snapshots.values(), self.live, self.held):
            rows.pop(user, None)
        self._write()

    def _write(self):
        of_all = [row for rows in self.snapshots.values() for row in rows.items()]
        for name, rows in (("lte_snapshots", of_all), ("lte_live", list(self.live.items()))):
            lte_rows(rows).write_delta(self.settings.table_path(name), mode="overwrite")
        publications = pl.DataFrame(
            {
                "snapshot_date": list(self.published),
                "inputs": list(self.published.values()),
                "users": [len(self.live)] * len(self.published),
            }
        ).with_columns(basis_id=pl.lit("basis"), representation=pl.lit("uniform"))
        publications.write_delta(self.settings.table_path("publications"), mode="overwrite")


def lte_rows(rows):
    """Rows of `lte_live` from (user, (vector sum, event count, snapshot date))."""
    users = [user for user, _ in rows]
    return pl.DataFrame(
        {
            "user_id": users,
            "user_bucket": buckets_of(pa.array(users, pa.string())),
            "vector_sum": [row[0] for _, row in rows],
            "event_count": [row[1] for _, row in rows],
            "newest_event_date": [DAY - ONE_DAY * 40] * len(rows),
            "lag_days": [30] * len(rows),
            "window_days": [365] * len(rows),
            "snapshot_date": [row[2] for _, row in rows],
            "basis_id": ["basis"] * len(rows),
            "representation": ["uniform"] * len(rows),
        },
        {
            "user_id": pl.String,
            "user_bucket": pl.Int32,
            "vector_sum": pl.List(pl.Int32),
            "event_count": pl.Int32,
            "newest_event_date": pl.Date,
            "lag_days": pl.Int32,
            "window_days": pl.Int32,
            "snapshot_date": pl.Date,
            "basis_id": pl.String,
            "representation": pl.String,
        },
    )


def read(in_feast, file, users=USERS):
    """{user: (vector sum, event count, snapshot date)} of the users with an LTE."""
    found = zip(users, in_feast("read", file, list(users)), strict=True)
    return {
        user: (
            np.frombuffer(lte["vector_sum"], np.int32).tolist(),
            lte["event_count"],
            datetime.date.fromisoformat(lte["snapshot_date"]),
        )
        for user, lte in found
        if lte
    }


LTES = st.dictionaries(
    st.sampled_from(USERS),
    st.tuples(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=2), st.integers(1, 3)),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish and push"), st.sampled_from(DATES), LTES),
        st.tuples(st.just("push"), st.sampled_from(DATES), st.sampled_from([{}, {"full": True}])),
        st.tuples(st.just("go back"), st.sampled_from(DATES), st.none()),
        st.tuples(st.sampled_from(["write", "remove", "keep_only"]), st.sampled_from(DATES), LTES),
        st.tuples(st.just("erase"), st.sampled_from(USERS), st.none()),
    ),
    min_size=3,
    max_size=8,
)
FOLDERS = itertools.count()


@hypothesis_settings(max_examples=20)
@given(steps=STEPS)
def test_the_store_holds_the_newest_date_that_was_pushed(in_feast, online_store, tmp_path_factory, steps):
    """Pushes happen in any order and repeatedly; an older date is pushed only with `allow_older`.

    A step that names a method of the store publishes, and kills the push at that method.
    """
    shop = Shop(tmp_path_factory.getbasetemp() / f"{'redis' in online_store}{next(FOLDERS)}", online_store)
    if "redis" in online_store:
        in_feast("forget", shop.file)
    broken = False
    for step, of_step, more in [("publish and push", DATES[1], {USERS[0]: ([1, 2], 1)}), *steps]:
        if step == "erase":
            in_feast("erase", shop.file, [of_step])
            shop.erase(of_step)
            assert in_feast("traces", shop.file, of_step) == []
            continue
        date, back = of_step, step == "go back"
        if step not in ("push", "go back"):
            shop.publish(date, more)
        options = {"push": more, "go back": {"allow_older": True}, "publish and push": {}}.get(
            step, {"killed_at": step}
        )
        rows = shop.live if date == shop.live_date else shop.snapshots.get(date)
        if date > shop.live_date or (back and rows is not shop.live and not rows):
            with pytest.raises(LTEError, match=r"is live; run jobs.publish_lte|run jobs.snapshot_lte"):
                in_feast("push", shop.file, date, **options)
            continue
        done = in_feast("push", shop.file, date, **options)
        if date == shop.live_date or back:
            shop.held, shop.held_date, broken = dict(rows), date, done is None
        assert done is None or done[0] == str(shop.held_date)
        if not broken:
            assert read(in_feast, shop.file) == shop.held
            assert in_feast("push", shop.file, date, allow_older=back)[1:] == (0, 0)
    in_feast("push", shop.file, shop.live_date)
    assert read(in_feast, shop.file) == shop.live


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path / "shop", section("sqlite"))


def test_only_what_changed_is_written(in_feast, shop):
    first = {user: ([1, 2], 1) for user in USERS}
    later = first | {USERS[0]: ([5, 5], 2)}
    del later[USERS[1]]
    shop.publish(DATES[0], first)
    assert in_feast("push", shop.file, DATES[0]) == (str(DATES[0]), len(USERS), 0)
    shop.publish(DATES[1], later)
    assert in_feast("push", shop.file, DATES[1]) == (str(DATES[1]), 1, 1)
    assert read(in_feast, shop.file) == shop.live


def test_what_is_live_of_an_older_date_than_the_store_is_refused(in_feast, shop, tmp_path):
    """This happens after a table was restored by hand."""
    shop.publish(DATES[2], {USERS[0]: ([1, 2], 1)})
    in_feast("push", shop.file, DATES[2])
    older = Shop(tmp_path / "older", shop.file.read_text() + f'path = "{shop.settings.online_store.path}"\n'
                 f'registry = "{shop.settings.online_store.registry}"\n')  # fmt: skip
    older.publish(DATES[1], {USERS[1]: ([3, 4], 2)})
    with pytest.raises(LTEError, match=f"holds the uniform LTE of {DATES[2]}, and what is live is of {DATES[1]}; give"):
        in_feast("push", older.file, DATES[1])
    assert read(in_feast, older.file) == shop.live
    assert in_feast("push", older.file, DATES[1], allow_older=True) == (str(DATES[1]), 1, 1)
    assert read(in_feast, older.file) == older.live


def test_what_can_not_be_read_is_named(in_feast, shop):
    with pytest.raises(LTEError, match=r"holds no uniform LTE; run jobs.push_lte"):
        in_feast("read", shop.file, ["u"])
    shop.publish(DATES[0], {USERS[0]: ([1, 2], 1)})
    in_feast("push", shop.file, DATES[0])
    with pytest.raises(LTEError, match=r"holds no recency LTE; run jobs.push_lte"):
        in_feast("read", shop.file, ["u"], "recency")
    with pytest.raises(LTEError, match="there is no representation 'unifrom'"):
        in_feast("read", shop.file, ["u"], "unifrom")
    other = shop.file.with_name("other.toml")
    other.write_text('[basis]\nbasis_id = "other"\n' + shop.file.read_text())
    with pytest.raises(LTEError, match=r"holds no uniform LTE of basis other; run jobs.push_lte"):
        in_feast("read", other, ["u"])
    away = shop.file.with_name("away.toml")
    away.write_text(section("redis", "127.0.0.1:1"))
    with pytest.raises(LTEError, match=r"the redis online store failed: .* is it up"):
        in_feast("read", away, ["u"])


def test_two_bases_have_rows_of_their_own_and_a_reader_says_which_it_reads(in_feast, online_store, tmp_path):
    """Follows a change of basis: the new one is pushed beside the old one, which is then removed."""
    shop = Shop(tmp_path / "shop", online_store)
    if "redis" in online_store:
        in_feast("forget", shop.file)
    shop.publish(DATES[0], {USERS[0]: ([1, 2], 1), USERS[1]: ([3, 4], 1)})
    in_feast("push", shop.file, DATES[0])
    sums = {"basis": [1, 2], "new": [7, 8, 9]}
    for name in ("lte_live", "publications", "semantic_bases"):
        rows = pl.read_delta(shop.settings.table_path(name)).with_columns(basis_id=pl.lit("new"))
        if name == "lte_live":
            rows = rows.filter(user_id=USERS[0]).with_columns(vector_sum=pl.lit(sums["new"], pl.List(pl.Int32)))
        rows.write_delta(shop.settings.table_path(name), mode="append")
    both = shop.file.with_name("both.toml")
    both.write_text('[basis]\nbasis_id = "basis"\nbeside = ["new"]\n' + shop.file.read_text())
    for basis_id, written in (("basis", 0), ("new", 1), ("new", 0)):
        assert in_feast("push", both, DATES[0], basis_id=basis_id) == (str(DATES[0]), written, 0)
    for basis_id, sum_ in sums.items():
        lte, other = in_feast("read", both, [USERS[0], USERS[1]], basis_id=basis_id)
        assert lte["basis_id"] == basis_id and lte["vector_sum"] == np.array(sum_, np.int32).tobytes()
        assert (other is None) == (basis_id == "new")
    with pytest.raises(
        LTEError, match=r"2 bases are in force .basis, new.; give OnlineReader the basis_id of the model"
    ):
        in_feast("read", both, [USERS[0]])
    with pytest.raises(LTEError, match=r"holds no uniform LTE of basis third; run jobs.push_lte"):
        in_feast("read", both, [USERS[0]], basis_id="third")

    assert in_feast("retire", both, "basis") == ["lte_uniform_basis"]
    assert in_feast("retire", both, "basis") == []
    assert in_feast("traces", both, USERS[1]) == []  # this user had an LTE only in the old basis
    assert in_feast("read", both, [USERS[0]], basis_id="new")[0]["basis_id"] == "new"
    # When the old basis is in force again, all of its rows are pushed.
    assert in_feast("push", both, DATES[0], basis_id="basis") == (str(DATES[0]), 2, 0)


def test_commands_go_on_where_feast_is(in_feast, shop):
    """Runs a push and an erasure from the tests' environment, which has no Feast."""
    shop.publish(DATES[0], {user: ([1, 2], 1) for user in USERS})
    command = [sys.executable, "-m", "jobs.push_lte", "--date", str(DATES[0]), "--settings", shop.file]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"sqlite holds the uniform LTE of {DATES[0]}: {len(USERS)} rows written, 0 users removed\n"
    assert erase_from_online_store(shop.settings, frozenset({USERS[0], "nobody"})) == ["lte_uniform_basis"]
    assert in_feast("traces", shop.file, USERS[0]) == []
    assert read(in_feast, shop.file).keys() == set(USERS[1:])


def test_users_who_left_are_found_in_any_number_of_groups():
    before, now = ({user: ([1, 2], 1, DAY) for user in users} for users in (USERS, USERS[1:3]))
    frames = [lte_rows(list(rows.items())).lazy() for rows in (before, now)]
    for groups in (1, 3, 4096):
        assert sorted(itertools.chain(*users_who_left(*frames, groups))) == sorted({USERS[0], *USERS[3:]})


@pytest.mark.spark
def test_a_reader_gets_the_bits_of_the_rows_that_are_live(filled, in_feast, redis, tmp_path):
    """Uses real publications; the second one merges and leaves deletion vectors."""
    dates = [DATE, DATE + ONE_DAY]
    snapshot_lte(filled, dates)
    files = [tmp_path / f"{kind}.toml" for kind in ("sqlite", "redis")]
    for file in files:
        file.write_text(f'warehouse = "{filled.settings.warehouse}"\n{section(file.stem, redis)}')
    in_feast("forget", files[1])
    for date in dates:
        publication = publish_lte(filled, date)
        for file in files:
            of_date, written, removed = in_feast("push", file, date)
            assert (of_date, written + removed) == (str(date), publication.written_users)
    live = {row.user_id: row for row in filled.read(LTE_LIVE).collect()}
    sums = np.array([row.vector_sum for row in live.values()], np.int32)
    vectors = to_vector(sums, [row.event_count for row in live.values()])
    for file in files:
        ltes = in_feast("read", file, [*live, "nobody"])
        assert ltes.pop() is None
        for lte, row, vector in zip(ltes, live.values(), vectors, strict=True):
            assert lte.pop("vector") == vector.tobytes()
            assert lte.pop("vector_sum") == np.array(row.vector_sum, np.int32).tobytes()
            as_text = {name: str(row[name]) for name in ("snapshot_date", "newest_event_date")}
            assert lte == {name: row[name] for name in lte} | as_text
