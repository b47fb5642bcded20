"""A fork finds no thread of this package in SQLite, whose locks the child would inherit closed."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing

import apsw
import pytest

import litevfs
from litevfs.bindings import rehearsal_session
from litevfs.bindings.forks import ForkGate, gate
from litevfs.pages.stand_ins import StandIns
from tests.bindings.places import places
from tests.primary import Primary
from tests.scripted import Script
from tests.support import wait_until

FILL = (
    "CREATE TABLE t(id INTEGER PRIMARY KEY, s TEXT); CREATE TABLE u(id INTEGER PRIMARY KEY, s TEXT);"
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) "
    "INSERT INTO t SELECT i, hex(randomblob(100)) FROM n; INSERT INTO u SELECT * FROM t"
)
JOIN = "SELECT t.id, length(u.s) FROM t JOIN u ON u.id = 3001 - t.id WHERE t.id IN (1, 500, 1000, 1500, 2000, 2500)"


@pytest.fixture
def filled():
    with Script(block_size=1 << 12) as script, Primary(script.writer) as primary:
        primary.commit(FILL)
        yield script


def test_a_fork_waits_until_a_thread_rests_and_it_goes_on_after_the_fork():
    own = ForkGate()
    entered, may_rest = threading.Event(), threading.Event()
    order: list[str] = []

    def work() -> None:
        with own.inside():
            entered.set()
            assert may_rest.wait(10)
            order.append("rests")
            own.rest()
            order.append("goes on")

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(10)
    assert own.is_occupied
    timer = threading.Timer(0.05, may_rest.set)
    timer.start()
    own.before_fork()
    assert not own.is_occupied
    order.append("fork")
    own.after_fork()
    thread.join(10)
    timer.join(10)
    assert order == ["rests", "fork", "goes on"]
    assert not own.is_occupied


def test_a_child_begins_with_nobody_inside():
    own = ForkGate()
    with own.inside():
        own.before_fork()  # gives up waiting
        own.after_fork_in_child()
        assert not own.is_occupied
        with own.inside():
            assert own.is_occupied
        own.after_fork_in_child()
        own._inside = 1  # as the block around expects


def test_rehearsals_are_inside_while_sqlite_runs_them(filled, followed, monkeypatch):
    seen = []
    filled.on_read = lambda _file, _offset, data: (wait_until(places.rehearsals_wait, "the rehearsal"), data)[1]

    class Noting(StandIns):
        def make(self, pgno: int) -> bytes:
            seen.append(gate.is_occupied)
            return super().make(pgno)

    monkeypatch.setattr(rehearsal_session, "StandIns", Noting)
    with closing(litevfs.connect(filled.url, poll_interval=0)) as connection:
        assert len(connection.execute(JOIN).fetchall()) == 6
    filled.on_read = None
    wait_until(lambda: not gate.is_occupied, "the end of the rehearsal")
    assert seen
    assert all(seen)


def test_warm_queries_are_inside_but_where_they_wait_for_the_storage(filled, monkeypatch):
    seen = []

    def add(connection: apsw.Connection) -> None:
        connection.create_scalar_function("noted", lambda value: seen.append(gate.is_occupied), 1)

    monkeypatch.setattr(apsw, "connection_hooks", [*apsw.connection_hooks, add])
    with closing(litevfs.connect(filled.url, poll_interval=0)) as before:
        before.execute("SELECT * FROM sqlite_schema").fetchall()
        filled.on_read = lambda _file, _offset, data: (wait_until(lambda: not gate.is_occupied, "the wait"), data)[1]
        with closing(
            litevfs.connect(filled.url, poll_interval=0, warm="SELECT noted(s) FROM t WHERE id > 2900")
        ) as connection:
            assert connection.pragma("litestream_warm") == "1 of 1"
        filled.on_read = None
    assert len(seen) == 100
    assert all(seen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_queries_though_its_parent_was_rehearsing(filled):
    filled.on_read = lambda _file, _offset, data: (threading.Event().wait(0.002), data)[1]
    for _ in range(30):
        with closing(litevfs.connect(filled.url, poll_interval=0, cache_size="100KB")) as connection:
            cursor = connection.execute(JOIN)
            next(cursor)
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                signal.alarm(10)
                os.write(writing, repr(apsw.Connection(":memory:").execute("SELECT hex(zeroblob(999))").get).encode())
                os._exit(0)
            os.close(writing)
            _, status = os.waitpid(child, 0)
            with os.fdopen(reading) as pipe:
                assert len(pipe.read()) == 2 * 999 + 2
            assert status == 0
            assert len(cursor.fetchall()) == 5
    filled.on_read = None
