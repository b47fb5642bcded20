"""Queries that are rehearsed while they wait: few round trips that follow each other, the right rows, bounded bytes.

A round trip is counted by `Tides`, not by a clock: requests come only when no thread can make another one before.
"""

from __future__ import annotations

import gc
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import apsw
import apsw.ext
import pytest

import litevfs
import litevfs.dbapi
from litevfs.bindings import programs, rehearsal, rehearsal_session, sqlite3_library
from litevfs.bindings.apsw_errors import make_apsw_error
from litevfs.bindings.attempts import Task
from litevfs.bindings.guests import end_all
from litevfs.bindings.rehearsal import THREAD_NAME
from litevfs.bindings.rehearsal_session import RehearsalSession
from litevfs.bindings.statements import Statement, as_statement
from litevfs.files.line import Line
from litevfs.live.registry import registry
from litevfs.live.replica import Replica
from litevfs.live.session import Session
from litevfs.ltx import Header
from litevfs.ltx.encoder import encode_file
from litevfs.options import Options
from tests.bindings.places import places
from tests.scripted import Script
from tests.support import leave_lines_unmeasured, wait_until

pytestmark = pytest.mark.usefixtures("followed")

PAGE_SIZE = 1024
POSTS, USERS = 4000, 400
BLOCK_SIZE = 1 << 12
TRIP_BYTES = 8000
CALM_LOOKS = 12
"""So often in a row nothing may be about to ask: on a busy machine a thread that could may get no turn for a while."""

_SCHEMA = """
    CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
    CREATE TABLE posts (id INTEGER PRIMARY KEY, user_id INTEGER, created INTEGER, body TEXT);
    CREATE TABLE likes (user_id INTEGER, post_id INTEGER, created INTEGER, PRIMARY KEY (user_id, post_id))
        WITHOUT ROWID;
    CREATE TABLE friendships (user_a INTEGER, user_b INTEGER, since INTEGER, PRIMARY KEY (user_a, user_b))
        WITHOUT ROWID;
    CREATE INDEX posts_by_user ON posts (user_id, created);
    CREATE INDEX likes_by_post ON likes (post_id);
    CREATE INDEX friendships_by_b ON friendships (user_b, user_a)
"""
POST = "SELECT p.*, u.name, u.city FROM posts p JOIN users u ON u.id = p.user_id WHERE p.id = :post"
PROFILE = (
    "SELECT u.name, p.id, p.body, count(l.user_id), max(liker.name), max(f.since), max(friend.name) FROM users u "
    "JOIN posts p ON p.user_id = u.id LEFT JOIN likes l ON l.post_id = p.id "
    "LEFT JOIN users liker ON liker.id = l.user_id LEFT JOIN friendships f ON f.user_a = u.id AND f.user_b = l.user_id "
    "LEFT JOIN users friend ON friend.id = f.user_b "
    "WHERE u.id = :user GROUP BY p.id ORDER BY p.created DESC LIMIT 10"
)
LIKED = (
    "SELECT u.id, u.name, l.created FROM likes l JOIN users u ON u.id = l.user_id WHERE l.post_id = :post ORDER BY u.id"
)
MUTUAL = (
    "SELECT u.id, u.name FROM friendships a JOIN friendships b ON b.user_b = a.user_b AND b.user_a = :other "
    "JOIN users u ON u.id = a.user_b WHERE a.user_a = :user ORDER BY u.id"
)
COUNT = "SELECT count(*) FROM posts WHERE user_id = :user"
LISTED = "SELECT id, body FROM posts WHERE id IN (7, 901, 1802, 2703, 3604, 3999, 12, 1700)"
LISTED_BY_INDEX = f"SELECT id, body FROM posts WHERE user_id IN ({', '.join(str(i * 7) for i in range(50))})"
ITSELF = "SELECT p.id, q.body FROM posts p JOIN posts q ON q.id = p.id * 37 % 4000 WHERE p.id BETWEEN 50 AND 70"
VALUES = {"post": POSTS // 2, "user": USERS // 2, "other": USERS // 2 + 3}
QUERIES = {
    "post": POST,
    "profile": PROFILE,
    "liked": LIKED,
    "mutual": MUTUAL,
    "count": COUNT,
    "listed": LISTED,
    "listed by an index": LISTED_BY_INDEX,
    "itself": ITSELF,
}


def _make(path: Path) -> None:
    rng = random.Random(1)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(f"PRAGMA page_size={PAGE_SIZE}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
        connection.execute(_SCHEMA)
        with connection:
            connection.executemany(
                "INSERT INTO users VALUES (?, ?, ?)",
                ((i, rng.randbytes(20).hex(), f"city {i % 20}") for i in range(USERS)),
            )
            connection.executemany(
                "INSERT INTO posts VALUES (?, ?, ?, ?)",
                ((i, rng.randrange(USERS), rng.randrange(10**9), rng.randbytes(60).hex()) for i in range(POSTS)),
            )
            likes = ((rng.randrange(USERS), rng.randrange(POSTS), i) for i in range(5 * POSTS))
            connection.executemany("INSERT OR IGNORE INTO likes VALUES (?, ?, ?)", likes)
            friends = ((a, (a + rng.randrange(1, 40)) % USERS, a) for a in range(USERS) for _ in range(10))
            connection.executemany("INSERT OR IGNORE INTO friendships VALUES (?, ?, ?)", friends)
            connection.execute("INSERT OR IGNORE INTO friendships SELECT user_b, user_a, since FROM friendships")
        connection.execute("VACUUM")


def snapshot_file(database: bytes, page_size: int = PAGE_SIZE) -> bytes:
    """A replica's only file."""
    commit = len(database) // page_size
    pages = ((i + 1, database[i * page_size : (i + 1) * page_size]) for i in range(commit))
    return encode_file(Header(page_size=page_size, commit=commit, min_txid=1, max_txid=1, timestamp_ms=1), pages)


def shared_replica(url: str) -> Replica:
    """The replica that connections to a URL share."""
    (replica,) = (shared.replica for shared in registry.shared.values() if shared.replica.url == url)
    return replica


class Tides:
    """Holds back all requests until every thread that could make one waits; then all that are held come at once."""

    def __init__(self, script: Script, url: str) -> None:
        self._script, self._url = script, url
        self._reader = threading.get_ident()
        self._held: list[threading.Event] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._turn)
        self.count = 0

    def __enter__(self) -> Tides:
        self._script.on_read = self._hold
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._script.on_read = None

    def _hold(self, _file: object, _offset: int, data: bytes) -> bytes:
        gate = threading.Event()
        with self._lock:
            if self._ended.is_set():
                return data
            self._held.append(gate)
        assert gate.wait(30)
        return data

    def _turn(self) -> None:
        calm = 0
        while not self._ended.wait(0.002):
            calm = calm + 1 if self._is_calm() else 0
            if calm >= CALM_LOOKS:
                self.count += 1
                self._release()
                calm = 0
        self._release()  # what was read ahead when the query ended: it has waited for none of that

    def _release(self) -> None:
        with self._lock:
            held, self._held = self._held, []
        for gate in held:
            gate.set()

    def _is_calm(self) -> bool:
        """Whether requests are held, no other one is about to be, and query and rehearsal wait for them."""
        pages = shared_replica(self._url).pages
        under_way = {id(request) for request in list(pages.blocks.under_way.requests.values())}
        pool = pages._fetcher.threads.pool
        at_once = pool.max_threads if pool else 1
        with self._lock:
            if not self._held or min(len(under_way), at_once) > len(self._held):
                return False
        return places.reads(self._reader) and places.rehearsals_wait()


@pytest.fixture(autouse=True)
def narrow_line(monkeypatch) -> None:
    """It carries little in a round trip, so that little is guessed, and opening reads little."""
    leave_lines_unmeasured(monkeypatch)
    monkeypatch.setattr(Line, "trip_bytes", TRIP_BYTES)


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Iterator[tuple[Script, Path]]:
    """A remote replica of the social network, and its database."""
    path = tmp_path_factory.mktemp("social") / "social.db"
    _make(path)
    with Script(block_size=BLOCK_SIZE) as script:
        script.writer.write(9, 1, 1, snapshot_file(path.read_bytes()), 1)
        yield script, path


def answer(path: Path, sql: str, values: object = ()) -> list[tuple[object, ...]]:
    """SQLite's own, on the file."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql, values).fetchall()


@pytest.mark.parametrize("connect", [litevfs.connect, litevfs.connect_stdlib])
def test_blobs_that_are_no_text_hinder_no_rehearsal(network, connect, caplog):
    """`sqlite3` tells the statement with its values, and SQLite shows those in EXPLAIN."""
    script, path = network
    sql = LISTED.replace("SELECT", "SELECT ? = x'c328',")
    with closing(connect(script.url, poll_interval=0)) as connection:
        list(connection.execute("SELECT count(*) FROM sqlite_schema"))
        with Tides(script, script.url) as tides:
            rows = [tuple(row) for row in connection.execute(sql, (b"\xc3\x28",))]
    assert rows == answer(path, sql, (b"\xc3\x28",))
    assert not caplog.records
    if connect is litevfs.connect_stdlib:
        assert tides.count <= TRIPS["listed"][0]


def trips(script: Script, path: Path, sql: str, connect: Callable[..., object] = litevfs.connect, **options) -> int:
    """Round trips, one after the other, of a query on a fresh connection whose schema is known; rows are checked."""
    values = VALUES if ":" in sql else ()
    with closing(connect(script.url, poll_interval=0, **options)) as connection:
        list(connection.execute("SELECT count(*) FROM sqlite_schema"))
        with Tides(script, script.url) as tides:
            rows = [tuple(row) for row in connection.execute(sql, values)]
        assert rows == answer(path, sql, values)
        return tides.count


TRIPS = {
    # At most, with rehearsals: the levels of three B-trees of one to three levels. At least, without read-ahead: each
    # row, too. How much of the start of the file opening has read depends on the line.
    "post": (3, 2),
    "profile": (6, 30),
    "liked": (6, 8),
    "mutual": (5, 3),
    "count": (3, 2),
    "listed": (2, 7),
    "listed by an index": (6, 100),
    "itself": (5, 20),
}


@pytest.mark.parametrize("name", QUERIES)
def test_the_look_ups_of_a_query_go_side_by_side(network, name):
    script, path = network
    assert trips(script, path, QUERIES[name]) <= TRIPS[name][0]
    assert trips(script, path, QUERIES[name], prefetch=False) >= TRIPS[name][1]


SCANS = "SELECT count(body), max(created), (SELECT max(user_id) FROM likes WHERE created % 7), count(*) FROM posts"


def test_scans_of_whole_trees_are_planned_before_their_leaves_are_read(network):
    script, path = network
    assert trips(script, path, SCANS) <= 3


def _plain(url: str, **options: object) -> apsw.Connection:
    litevfs.register()
    uri = f"file:social.db?{urlencode({'replica_url': url, **options})}"
    return apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI, vfs="litestream")


def _cursor(url: str, **options: object) -> apsw.Cursor:
    return litevfs.connect(url, **options).cursor()


class _Script:
    """Runs statements as the last of a script."""

    def __init__(self, url: str, **options: object) -> None:
        self._connection = litevfs.connect(url, **options)
        self.close = self._connection.close

    def execute(self, sql: str, values: object = None) -> Iterator[tuple[object, ...]]:
        for row in self._connection.execute(f"SELECT 'first'; {sql}", values):
            if row != ("first",):
                yield row


def _sqlite3(url: str, **options: object) -> sqlite3.Connection:
    litevfs.register_stdlib()
    uri = f"file:social.db?{urlencode({'replica_url': url, 'vfs': 'litestream', **options})}"
    return sqlite3.connect(uri, uri=True)


DOORS = {
    "apsw": _plain,
    "sqlite3": _sqlite3,
    "cursor": _cursor,
    "script": _Script,
    "stdlib": litevfs.connect_stdlib,
    "dbapi": litevfs.dbapi.connect,
}


@pytest.mark.parametrize("door", DOORS)
def test_they_do_so_at_other_doors(network, door):
    script, path = network
    assert trips(script, path, PROFILE, DOORS[door]) <= TRIPS["profile"][0]


def test_they_do_so_where_the_trips_are_explained(network):
    script, path = network
    reader = threading.get_ident()

    def hold(_file: object, _offset: int, data: bytes) -> bytes:
        if threading.get_ident() == reader:
            wait_until(places.rehearsals_wait, "the rehearsal")
        return data

    script.on_read = hold
    report = litevfs.explain_io(script.url, LIKED.replace(":post", "?"), [VALUES["post"]])
    script.on_read = None
    assert report.rows == len(answer(path, LIKED, VALUES))
    assert report.count("read ahead, used")[0] > 0


@pytest.mark.parametrize(("size", "most"), [(1000, 6), (sqlite3_library.MAX_SQL_BYTES, 0)], ids=["small", "large"])
def test_a_statement_of_sqlite3_is_written_down_for_its_rehearsals_alone(network, monkeypatch, size, most):
    script, path = network
    written = []

    def note(sql: str, values: object) -> object:
        written.append(sql)
        return as_statement(sql, values)

    monkeypatch.setattr(sqlite3_library, "as_statement", note)
    ids = ", ".join(map(str, range(0, POSTS, POSTS // 40)))
    sql = f"SELECT noted(id), length(body), length(?) FROM posts WHERE id IN ({ids})"
    with closing(litevfs.connect_stdlib(script.url, poll_interval=0)) as connection:
        connection.create_function("noted", 1, lambda value: value)  # no rehearsal goes far: the query waits often
        script.clear()
        rows = connection.execute(sql, (b"x" * size,)).fetchall()
    assert rows == answer(path, sql.replace("noted", ""), (b"x" * size,))
    assert len(script.reads) > 16
    assert len(written) <= most
    assert bool(written) is bool(most)


def test_each_run_of_a_statement_in_a_transaction_is_rehearsed(network):
    script, path = network
    with closing(litevfs.connect_stdlib(script.url, poll_interval=0)) as connection:
        list(connection.execute("SELECT count(*) FROM sqlite_schema"))
        connection.execute("BEGIN")
        for post in (VALUES["post"], 1, POSTS - 1):
            with Tides(script, script.url) as tides:
                rows = connection.execute(LIKED, {"post": post}).fetchall()
            assert rows == answer(path, LIKED, {"post": post})
            assert tides.count <= TRIPS["liked"][0]


def test_the_application_is_told_nothing_of_them_by_sqlite(network, caplog):
    script, path = network
    sql = "SELECT noted(u.id) FROM likes l JOIN users u ON u.id = l.user_id WHERE l.post_id = :post ORDER BY u.id"
    apsw.ext.log_sqlite()  # as `apsw.bestpractice.recommended` does
    script.on_read = lambda _file, _offset, data: (wait_until(places.rehearsals_wait, "the rehearsal"), data)[1]
    try:
        with closing(litevfs.connect(script.url, poll_interval=0)) as connection:
            connection.create_scalar_function("noted", lambda value: value, 1)
            assert connection.execute(sql, VALUES).fetchall() == answer(path, sql.replace("noted", ""), VALUES)
            wait_until(lambda: not rehearsing(), "the rehearsal")
            assert not caplog.records
            with pytest.raises(apsw.SQLError):
                connection.execute("SELECT absent")
        assert ["no such column: absent" in record.message for record in caplog.records] == [True]
    finally:
        script.on_read = None
        apsw.config(apsw.SQLITE_CONFIG_LOG, None)


# --- bounds -----------------------------------------------------------------------------------------------------------


def reads_of(script: Script, sql: str, values: object = (), **options: object) -> tuple[int, int]:
    """(requests, bytes) of a query on a fresh connection whose schema is known, until all have come."""
    with closing(litevfs.connect(script.url, poll_interval=0, **options)) as connection:
        list(connection.execute("SELECT count(*) FROM sqlite_schema"))
        script.clear()
        for _ in connection.execute(sql, values):
            pass
        blocks = shared_replica(script.url).pages.blocks
        wait_until(lambda: not rehearsing() and not blocks.under_way.requests, "what is under way")
        return len(script.reads), sum(size for _, _, size in script.reads)


def rehearsing() -> bool:
    """Whether a rehearsal goes on in this process."""
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())


@pytest.mark.parametrize("sql", ["SELECT * FROM posts WHERE id = 1234", "SELECT name FROM users WHERE id = 77", COUNT])
def test_a_look_up_alone_costs_no_request_more(network, monkeypatch, sql):
    monkeypatch.setattr(rehearsal, "FIRST_S", 2.0)  # for a busy machine
    script, _ = network
    values = VALUES if ":" in sql else ()
    (requests, size), (needed, needed_size) = (
        reads_of(script, sql, values),
        reads_of(script, sql, values, prefetch=False),
    )
    assert requests <= needed
    assert size <= needed_size


def test_a_query_that_ends_after_a_few_rows_reads_few_pages_more(network):
    script, _ = network
    sql = "SELECT p.id, u.name FROM posts p JOIN users u ON u.id = p.user_id ORDER BY p.id DESC LIMIT 3"
    few, many = reads_of(script, sql, prefetch=False)[1], reads_of(script, sql)[1]
    assert many <= few + programs.FEW_PAGES * PAGE_SIZE + 4 * BLOCK_SIZE


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_query_with_functions_and_values_of_its_own_connection_has_its_rows(network):
    script, path = network
    with closing(litevfs.connect(script.url, poll_interval=0)) as connection:
        calls = []
        connection.create_scalar_function("noted", lambda value: calls.append(value) or value, 1)
        sql = "SELECT noted(u.id) FROM likes l JOIN users u ON u.id = l.user_id WHERE l.post_id = :post ORDER BY u.id"
        rows = connection.execute(sql, VALUES).fetchall()
        assert rows == answer(path, sql.replace("noted", ""), VALUES)
        assert sorted(calls) == sorted(value for (value,) in rows)  # once for each row
        big = connection.execute("SELECT ? || name FROM users WHERE id IN (1, 300)", (b"x" * 10,)).fetchall()
        assert big == answer(path, "SELECT ? || name FROM users WHERE id IN (1, 300)", (b"x" * 10,))


def test_a_function_that_every_connection_of_the_application_has_is_called_by_its_own_alone(network, monkeypatch):
    script, path = network
    threads = []

    def add(connection: apsw.Connection) -> None:
        connection.create_scalar_function("noted", lambda value: threads.append(threading.get_ident()) or value, 1)

    monkeypatch.setattr(apsw, "connection_hooks", [*apsw.connection_hooks, add])
    sql = "SELECT noted(u.id) FROM likes l JOIN users u ON u.id = l.user_id WHERE l.post_id = :post ORDER BY u.id"
    script.on_read = lambda _file, _offset, data: (wait_until(places.rehearsals_wait, "the rehearsal"), data)[1]
    with closing(litevfs.connect(script.url, poll_interval=0)) as connection:
        rows = connection.execute(sql, VALUES).fetchall()
    script.on_read = None
    assert rows == answer(path, sql.replace("noted", ""), VALUES)
    assert threads == [threading.get_ident()] * len(rows)


def test_a_first_rehearsal_that_ends_early_leaves_no_connection_that_calls_functions(network, monkeypatch):
    script, _ = network

    def add(connection: apsw.Connection) -> None:
        connection.create_scalar_function("noted", lambda value: pytest.fail("called"), 1)

    monkeypatch.setattr(apsw, "connection_hooks", [*apsw.connection_hooks, add])
    ends = [True]
    with closing(
        Session(Options.collect({}, {"replica_url": script.url, "poll_interval": 0}), make_apsw_error)
    ) as host:
        first_page = host.read(PAGE_SIZE, 0)
        statement = Statement("SELECT noted(u.id) FROM likes l JOIN users u ON u.id = l.user_id", ())
        task = Task(statement, host.snapshot, first_page, 1, 1)
        guest = RehearsalSession(host, lambda _: ends[0], task)
        for is_over in (True, False):
            ends[0] = is_over
            with pytest.raises((apsw.SQLError, apsw.InterruptError)):
                guest.plan(task)
        guest.close_connection()


def test_memory_of_a_rehearsal_is_free_after_it(network):
    script, path = network
    with closing(litevfs.connect(script.url, poll_interval=0)) as connection:
        assert connection.execute(PROFILE, VALUES).fetchall() == answer(path, PROFILE, VALUES)
        wait_until(lambda: not rehearsing(), "the rehearsal")
        guests = [
            one for one in gc.get_objects() if isinstance(one, RehearsalSession) and one.replica.url == script.url
        ]
        assert guests
        assert not any(one._decoded for one in guests)


def test_an_error_in_a_rehearsal_ends_the_hints_and_no_query(network, monkeypatch, caplog):
    script, path = network

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(rehearsal_session, "StandIns", fail)
    with closing(litevfs.connect(script.url, poll_interval=0)) as connection:
        for _ in range(2):
            assert connection.execute(LIKED, VALUES).fetchall() == answer(path, LIKED, VALUES)
        wait_until(lambda: not rehearsing(), "the rehearsal")
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


def test_a_rehearsal_that_waits_for_pages_ends_when_it_is_stopped(network):
    script, path = network
    gate, held = threading.Event(), threading.Event()

    def hold(_file: object, _offset: int, data: bytes) -> bytes:
        if threading.current_thread().name.startswith("litevfs-io"):
            held.set()
            assert gate.wait(30)
        else:
            wait_until(places.rehearsals_wait, "the rehearsal")
        return data

    def query() -> None:
        with closing(litevfs.connect(script.url, poll_interval=0)) as connection:
            list(connection.execute("SELECT count(*) FROM sqlite_schema"))
            script.on_read = hold
            rows.extend(connection.execute(LIKED, VALUES))

    rows: list[tuple[object, ...]] = []
    thread = threading.Thread(target=query)
    thread.start()
    try:
        assert held.wait(30)
        end_all()  # as the interpreter does at its end
        wait_until(lambda: not rehearsing(), "the rehearsal")
    finally:
        gate.set()
        thread.join()
        script.on_read = None
    assert rows == answer(path, LIKED, VALUES)


def _random_world(rng: random.Random, path: Path) -> list[str]:
    """Tables of random shape whose columns name each other's rows; returns random queries of them."""
    names = [f"t{i}" for i in range(rng.randint(2, 4))]
    rows = {name: rng.choice((1, 40, 900)) for name in names}
    has_rowid = {name: rng.random() < 0.6 for name in names}
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA page_size={PAGE_SIZE}")
        for name in names:
            step = rng.choice((1, 1, 7, 1000))
            kind = rng.choice(("INTEGER", "TEXT"))
            key = "k INTEGER PRIMARY KEY" if has_rowid[name] else f"k {kind} PRIMARY KEY"
            connection.execute(f"CREATE TABLE {name} ({key}, a, b, pad) {'' if has_rowid[name] else 'WITHOUT ROWID'}")
            pad = rng.choice((10, 100, 1500))
            for i in range(rows[name]):
                values = (i * step, rng.randrange(1000), rng.choice((None, i % 9, f"s{i % 30}")), rng.randbytes(pad))
                connection.execute(f"INSERT INTO {name} VALUES (?, ?, ?, ?)", values)
            for columns in rng.sample(("a", "b", "b, a", "a DESC"), rng.randint(0, 2)):
                connection.execute(f"CREATE INDEX {name}_{len(columns)}_{columns[0]} ON {name} ({columns})")
        connection.commit()
        connection.execute("VACUUM")
    return [_random_query(rng, names) for _ in range(6)]


def _random_query(rng: random.Random, names: list[str]) -> str:
    tables = [rng.choice(names) for _ in range(rng.randint(1, 4))]
    columns = ", ".join(f"x{i}.k, x{i}.b, length(x{i}.pad)" for i in range(len(tables)))
    sql = f"SELECT {columns} FROM {tables[0]} x0"
    for i, table in enumerate(tables[1:], 1):
        join = rng.choice(("JOIN", "LEFT JOIN"))
        sql += f" {join} {table} x{i} ON x{i}.{rng.choice('kab')} = x{rng.randrange(i)}.{rng.choice('kab')}"
    wanted = rng.choice(
        (f"BETWEEN {rng.randrange(500)} AND 600", f"= {rng.randrange(1000)}", "IN (1, 7, 70, 700, 7000)")
    )
    sql += f" WHERE x0.{rng.choice('ka')} {wanted}"
    if rng.random() < 0.3:
        sql += f" AND EXISTS (SELECT 1 FROM {rng.choice(names)} y WHERE y.a = x0.{rng.choice('ka')})"
    return sql + f" ORDER BY {', '.join(str(n + 1) for n in range(3 * len(tables)))} LIMIT 2000"


def _check_random_joins(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path = tmp_path / f"{seed}.db"
    queries = _random_world(rng, path)
    with Script(block_size=rng.choice((1 << 11, 1 << 14))) as script:
        script.writer.write(9, 1, 1, snapshot_file(path.read_bytes()), 1)
        with closing(litevfs.connect(script.url, poll_interval=0)) as connection:
            for sql in queries:
                assert connection.execute(sql).fetchall() == answer(path, sql), (seed, sql)
            pages = shared_replica(script.url).pages
            wait_until(lambda: not rehearsing() and not pages.blocks.under_way.requests, "what is under way")
            governor = pages.blocks.governor
            assert sum(size for *_, size in script.reads[1:]) <= 2 * path.stat().st_size + 8_000_000
            assert governor.unused <= 8_000_000 + governor.used + governor.needed


@pytest.mark.parametrize("seed", range(8))
def test_random_joins_of_random_tables_have_the_rows_of_sqlite(seed, tmp_path):
    _check_random_joins(seed, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_many_random_joins_have_the_rows_of_sqlite(tmp_path):
    for seed in range(8, 200):
        _check_random_joins(seed, tmp_path)
