"""A connection that is dropped without being closed, as by a request handler that fails, lets its replica go."""

from __future__ import annotations

import gc
import sqlite3
import threading
from collections.abc import Callable

import apsw
import pytest

import litevfs
import litevfs.dbapi
from litevfs.bindings.apsw_errors import make_apsw_error
from litevfs.bindings.rehearsal import rehearse
from litevfs.errors import TransientStorageError
from litevfs.live.registry import registry
from litevfs.live.session import Session
from litevfs.options import Options
from tests.support import wait_until

DOORS: dict[str, Callable[..., object]] = {
    "apsw": litevfs.connect,
    "stdlib": litevfs.connect_stdlib,
    "dbapi": litevfs.dbapi.connect,
}


def _fail(*_: object) -> bytes:
    raise TransientStorageError("the storage is away")


def _read(url: str, connect: Callable[..., object], script: object) -> None:
    """Fail with a connection that is a variable of this function, whose frame the error has."""
    connection = connect(url, poll_interval=0, cache_size=0, read_timeout="50ms")
    connection.execute("PRAGMA cache_size=0")
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    script.on_read = _fail
    connection.execute("SELECT * FROM t").fetchall()


def _refresh(url: str, connect: Callable[..., object], script: object) -> None:
    connection = connect(url, poll_interval=0)
    script.on_list = lambda level, files: _fail()
    connection.execute("PRAGMA litestream_poll").fetchall()


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # of sqlite3, from Python 3.13 on
@pytest.mark.parametrize("handle", [_read, _refresh])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.slow
def test_a_connection_that_is_dropped_after_an_error_lets_its_replica_go(small, door, handle):
    primary, script = small
    primary.commit("INSERT INTO t VALUES(2)")
    try:
        handle(script.url, DOORS[door], script)
    except (apsw.Error, sqlite3.Error, litevfs.dbapi.Error) as error:
        assert "the storage is away" in f"{error} {error.__cause__}"
    else:
        pytest.fail("no error")
    finally:
        script.on_read = script.on_list = None
    wait_until(lambda: gc.collect() * 0 + (not registry.shared), "the end of the replica")


def test_the_collector_may_end_a_session_in_a_thread_that_has_the_lock_of_its_rehearsals(small):
    session = Session(Options.collect({}, {"replica_url": small[1].url, "poll_interval": 0}), make_apsw_error)
    rehearse(session, lambda _: None)
    lock = session._waits._lock
    garbage: list[object] = [session]
    garbage.append(garbage)
    del session, garbage

    def collect() -> None:
        with lock:  # as a rehearsal's own thread, between two statements
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert not registry.shared
