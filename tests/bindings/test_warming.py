"""The option `warm`: what its queries touch lies in the caches, and what goes wrong with them is said."""

from __future__ import annotations

import threading
from contextlib import closing
from importlib.util import find_spec

import apsw
import pytest

import litevfs
import litevfs.dbapi
from litevfs.bindings.warming import split
from litevfs.cli import main
from litevfs.errors import OptionError
from litevfs.options import Options, to_uri_text
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, one

pytestmark = pytest.mark.slow

FILL = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
    INSERT INTO {table} SELECT i, i % 50, randomblob(1000) FROM n
"""
SCAN = "SELECT sum(length(x)) FROM a"
LOOK_UP = "SELECT sum(length(x)) FROM b WHERE k = 7"


@pytest.fixture
def script():
    """A remote replica of one snapshot file of 3 MB: two tables, one of them with an index."""
    with Script(block_size=1 << 16, lists_levels=True) as script, Primary(script.writer) as primary:
        primary.run("CREATE TABLE a(id INTEGER PRIMARY KEY, k, x); CREATE TABLE b(id INTEGER PRIMARY KEY, k, x)")
        primary.run("CREATE INDEX b_k ON b(k)")
        primary.run(FILL.format(rows=1500, table="a"))
        newest = primary.run(FILL.format(rows=1500, table="b"))
        primary.compact(9, 1, newest)
        yield script


def execute(connection, sql):
    return connection.execute(sql).fetchall()


def apsw_uri(url, warm):
    litevfs.register()
    text = to_uri_text("warm", warm).replace("%", "%25").replace(";", "%3B").replace("\n", "%0A")
    uri = f"file:x?replica_url={url}&poll_interval=0&warm={text}"
    return apsw.Connection(uri, vfs="litestream", flags=apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READWRITE)


def by_sqlalchemy(url, warm):
    from urllib.parse import urlencode

    import sqlalchemy

    query = urlencode([("poll_interval", "0"), *(("warm", sql) for sql in warm)])
    engine = sqlalchemy.create_engine(f"litevfs:///{url}?{query}", poolclass=sqlalchemy.pool.NullPool)
    return engine.raw_connection()


DOORS = {
    "connect": lambda url, warm: litevfs.connect(url, poll_interval=0, warm=warm),
    "uri": apsw_uri,
    "stdlib": lambda url, warm: litevfs.connect_stdlib(url, poll_interval=0, warm=warm),
    "dbapi": lambda url, warm: litevfs.dbapi.connect(url, poll_interval=0, warm=warm),
    "sqlalchemy": by_sqlalchemy,
}


@pytest.mark.parametrize("door", DOORS)
def test_warm_queries_are_answered_without_a_further_request_at_every_door(script, door):
    if door == "sqlalchemy" and find_spec("sqlalchemy") is None:
        pytest.skip("needs sqlalchemy: pip install 'litevfs[integrations]'")
    with closing(DOORS[door](script.url, [SCAN, LOOK_UP])) as connection:
        cursor = connection.cursor()
        assert list(cursor.execute("PRAGMA litestream_warm")) == [("2 of 2",)]
        script.clear()
        assert list(cursor.execute(SCAN)) == [(1_500_000,)]
        assert list(cursor.execute(LOOK_UP)) == [(30_000,)]
        assert script.reads == []
        assert script.lists.total() == 0
        if door == "sqlalchemy":
            cursor.close()


@pytest.mark.s3
def test_over_s3_a_warm_query_is_answered_without_a_further_request(s3_server, s3_url):
    from litevfs.replica_clients.urls import open_replica_client
    from litevfs.testing.fixtures import TEST_BUCKET
    from litevfs.testing.s3_proxy import running_s3_proxy

    path = s3_url().partition("?")[0].rpartition("/")[2]
    client = open_replica_client(s3_server.url(TEST_BUCKET, path))
    with closing(client), running_s3_proxy(s3_server.endpoint) as proxy, Primary(client) as primary:
        primary.commit("CREATE TABLE a(id INTEGER PRIMARY KEY, k, x)")
        primary.commit(FILL.format(rows=1500, table="a"))
        url = s3_server.url(TEST_BUCKET, path, endpoint=proxy.endpoint)
        with connected(url, poll_interval=0, warm=SCAN) as connection:
            assert one(connection, "PRAGMA litestream_warm") == "1 of 1"
            proxy.clear()
            assert one(connection, SCAN) == 1_500_000
            assert proxy.requests == []


def test_queries_run_side_by_side(script):
    both = threading.Barrier(2)
    waiting: set[int] = set()

    def meet(file, offset, data):
        """Each of the two queries waits for the other at its first request."""
        thread = threading.get_ident()
        if threading.current_thread().name == "litevfs-warm" and thread not in waiting:
            waiting.add(thread)
            both.wait(10)
        return data

    with connected(script.url, poll_interval=0) as first:
        assert one(first, "SELECT count(*) FROM sqlite_schema") == 3  # the schema is in the caches
        script.on_read = meet
        queries = ["SELECT x FROM a WHERE id = 700", "SELECT x FROM b WHERE id = 1400"]
        with connected(script.url, poll_interval=0, warm=queries) as connection:
            assert one(connection, "PRAGMA litestream_warm") == "2 of 2"
    assert len(waiting) == 2


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT x FROM nowhere", "no such table: nowhere"),
        ("SELEC 1", "syntax error"),
        ("SELECT x FROM a WHERE id = ?", "takes no parameters"),
        ("DELETE FROM a", "no query"),
        ("ATTACH ':memory:' AS other", "no query"),
    ],
)
def test_wrong_sql_fails_the_opening_and_is_named(script, sql, said):
    with pytest.raises(OptionError) as caught:
        litevfs.connect(script.url, poll_interval=0, warm=["SELECT 1", sql])
    assert all(part in str(caught.value) for part in ("option warm", sql, said))
    with pytest.raises(OptionError, match="option warm"):
        litevfs.connect_stdlib(script.url, poll_interval=0, warm=sql)


def test_the_flag_may_be_repeated(script, capsys):
    query = ["query", script.url, "SELECT count(*) FROM a", "--warm", SCAN, "--warm"]
    assert main([*query, LOOK_UP]) == 0
    assert "1500" in capsys.readouterr().out
    assert main([*query, "SELECT x FROM nowhere"]) != 0
    assert "option warm" in capsys.readouterr().err


def test_a_parameter_that_sqlite_would_drop_is_refused(script):
    litevfs.register()
    uri = f"file:x?replica_url={script.url}&warm=SELECT%201&warm=SELECT%202"
    with pytest.raises(OptionError, match="more than once"):
        apsw.Connection(uri, vfs="litestream", flags=apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READWRITE)
    litevfs.register_stdlib()
    import sqlite3

    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(f"{uri}&vfs=litestream", uri=True)
    assert "more than once" in str(litevfs.last_error())


def test_closing_ends_queries_that_run(script):
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with connected(script.url, poll_interval=0, warm=endless) as connection:
        assert one(connection, "SELECT count(*) FROM a") == 1500
    # The check for leaked threads waits for the end.


def test_a_query_has_the_time_of_opening(script, caplog):
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with connected(script.url, poll_interval=0, warm=endless, open_timeout="200ms") as connection:
        assert one(connection, "PRAGMA litestream_warm") == "0 of 1"
        assert "not done within open_timeout (0.2 s)" in caplog.text


def test_caches_that_are_too_small_are_named(script, caplog):
    with connected(script.url, poll_interval=0, warm=SCAN, cache_size="1MB", spill_size=0) as connection:
        assert one(connection, "PRAGMA litestream_warm") == "0 of 1"
        assert one(connection, SCAN) == 1_500_000
    assert "do not fit the caches" in caplog.text
    assert "cache_size" in caplog.text


def test_a_storage_that_fails_while_warming_fails_no_opening(script, caplog):
    def fail(_, __, data):
        if threading.current_thread().name == "litevfs-warm":
            raise litevfs.StorageError("not for you")
        return data

    script.on_read = fail
    query = "SELECT x FROM a WHERE id = 700"
    with connected(script.url, poll_interval=0, warm=query, prefetch=False) as connection:
        assert one(connection, "PRAGMA litestream_warm") == "0 of 1"
        script.on_read = None
        assert len(one(connection, query)) == 1000
    assert "not for you" in caplog.text


def test_a_fixed_state_is_warmed_as_it_was(script):
    with connected(script.url, txid=4, warm=SCAN) as connection:
        assert one(connection, "PRAGMA litestream_warm") == "1 of 1"
        script.clear()
        assert one(connection, SCAN) == 1_500_000
        assert script.reads == []


@pytest.mark.parametrize(
    ("value", "queries"),
    [
        ("SELECT 1; SELECT ';' ;; -- done", ["SELECT 1", "SELECT ';'", "-- done"]),
        (
            ["SELECT 1 -- a;b", 'SELECT "x;y", `a;b`, [c;d] /* e;f */'],
            ["SELECT 1 -- a;b", 'SELECT "x;y", `a;b`, [c;d] /* e;f */'],
        ),
        ("SELECT 'it''s;' ; SELECT 5 - 3 / 1;", ["SELECT 'it''s;'", "SELECT 5 - 3 / 1"]),
        ("SELECT 'open", ["SELECT 'open"]),
        ("", []),
    ],
)
def test_queries_are_told_apart_and_mean_the_same_in_a_uri(value, queries):
    assert split(Options.collect({}, {"warm": value}, {}).warm) == queries
    assert split(Options.collect({"warm": to_uri_text("warm", value)}, {}, {}).warm) == queries


def test_comments_beside_the_queries_are_none(script):
    with connected(script.url, poll_interval=0, warm="SELECT 1;; -- done; /* or ; */") as connection:
        assert one(connection, "PRAGMA litestream_warm") == "1 of 1"


def test_what_is_no_sql_is_refused():
    with pytest.raises(OptionError, match="option warm: not SQL"):
        Options.collect({}, {"warm": 7}, {})
