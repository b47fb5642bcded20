"""Which state a connection sees that keeps its lock, or takes none, at the doors of APSW and `sqlite3`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any
from urllib.parse import quote

import apsw
import pytest

import litevfs
from litevfs.errors import OptionError
from tests.primary import Primary
from tests.scripted import Script
from tests.support import numbers


def at_door(door: str, uri: str) -> Any:
    """A connection of APSW or of `sqlite3`, as an application opens it that knows only the VFS."""
    litevfs.register()
    litevfs.register_stdlib()
    if door == "apsw":
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
        return apsw.Connection(uri, flags=flags)
    return sqlite3.connect(uri, uri=True, isolation_level=None)


@pytest.mark.parametrize("door", ["sqlite3", "apsw"])
@pytest.mark.parametrize("is_attached", [False, True])
@pytest.mark.parametrize(
    "question", ["PRAGMA {}litestream_txid", "PRAGMA {}litestream_time = '{}'", "PRAGMA {}litestream_poll"]
)
def test_a_connection_that_keeps_its_lock_sees_one_state_whatever_it_is_asked(door, is_attached, question):
    """In exclusive locking mode SQLite asks for no page twice, and does not ask whether those it has are still good."""
    with Script() as script, Primary(script.writer) as primary:
        for state in "abc":
            primary.commit("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, s); DELETE FROM t")
            primary.commit(f"INSERT INTO t SELECT value, '{state}' FROM {numbers(2000)}")
        uri = f"file:x.db?vfs=litestream&replica_url={quote(script.url)}&poll_interval=0"
        schema = "replica." if is_attached else ""
        con = at_door(door, "file::memory:" if is_attached else uri)
        if is_attached:
            con.execute("ATTACH ? AS replica", (uri,))
        with closing(con):
            con.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            con.execute(f"SELECT s FROM {schema}t WHERE id < 20").fetchall()
            primary.commit("UPDATE t SET s = 'd'")
            early = "2026-01-01T00:00:04Z"  # of the state with 'b'
            con.execute(question.format(schema, early)).fetchall()
            assert con.execute(f"SELECT s, count(*) FROM {schema}t GROUP BY 1").fetchall() == [("c", 2000)]
            con.execute("PRAGMA locking_mode = NORMAL").fetchall()
            con.execute(question.format(schema, early)).fetchall()
            assert con.execute(f"SELECT s, count(*) FROM {schema}t GROUP BY 1").fetchall() == [("c", 2000)]
            found = con.execute(f"SELECT s, count(*) FROM {schema}t GROUP BY 1").fetchall()
            assert found == [("b" if "time" in question else "d" if "poll" in question else "c", 2000)]


@pytest.mark.parametrize("parameter", ["nolock=1", "immutable=1"])
@pytest.mark.parametrize("door", ["sqlite3", "apsw"])
def test_without_sqlites_locks_there_is_no_other_state_to_travel_to(small, parameter, door):
    primary, script = small
    primary.commit("INSERT INTO t VALUES(2)")
    uri = f"file:x.db?vfs=litestream&replica_url={quote(script.url)}&{parameter}"
    with closing(at_door(door, uri)) as con:
        with pytest.raises((OptionError, sqlite3.OperationalError), match="sees one state to its end"):
            con.execute("PRAGMA litestream_time = '2026-01-01T00:00:01Z'").fetchall()
        assert con.execute("SELECT count(*) FROM t").fetchall() == [(2,)]


@pytest.mark.parametrize("parameter", ["nolock=1", "immutable=1"])
def test_without_sqlites_locks_a_connection_still_sees_one_state(small, parameter):
    primary, script = small
    litevfs.register_stdlib()
    uri = f"file:x.db?vfs=litestream&poll_interval=0&{parameter}&replica_url={quote(script.url)}"
    with closing(sqlite3.connect(uri, uri=True)) as con:
        assert con.execute("SELECT count(*) FROM t").fetchall() == [(1,)]
        primary.commit("INSERT INTO t VALUES(2)")
        con.execute("PRAGMA litestream_poll").fetchall()
        assert con.execute("SELECT count(*) FROM t").fetchall() == [(1,)]
