"""The VFS as SQLite uses it and driven directly: rows of every state, page sizes, header, locks, temporary files."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import apsw
import pytest

import litevfs
from litevfs.errors import ReplicaEmptyError, StaleReplicaError, TransientStorageError
from litevfs.live.registry import registry
from litevfs.live.session import Session
from litevfs.options import Options
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.memory import MemoryReplicaClient, drop_memory_store, memory_store
from litevfs.replica_clients.urls import open_replica_client
from tests.made import MadePrimary
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, one, rows, status_of, txid_of, wait_until

ORDERS = Path(__file__).parents[1] / "fixtures" / "orders"
EXPECTED = json.loads((ORDERS / "expected.json").read_text())
TXIDS = list(EXPECTED["expected_by_txid"])
PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]


def answers(connection: apsw.Connection) -> dict[str, object]:
    """Every query of the fixture, in the form of its expectations."""
    found = {name: connection.execute(sql).fetchall() for name, sql in EXPECTED["queries"].items()}
    return {name: [r[0] for r in rows] if name == "tables" else rows[0][0] for name, rows in found.items()}


def copy_orders(client: ReplicaClient) -> None:
    source = FileReplicaClient(ORDERS / "replica")
    for file in source.list_files(0):
        client.write(0, file.min_txid, file.max_txid, source.read(file), file.modified_ms)
    source.close()


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def orders_url(request: pytest.FixtureRequest):
    """The fixture's replica in one storage after the other."""
    if request.param == "file":
        yield f"file://{ORDERS / 'replica'}"
    elif request.param == "memory":
        copy_orders(MemoryReplicaClient(memory_store("orders")))
        yield "memory://orders"
        drop_memory_store("orders")
    else:
        url = request.getfixturevalue("s3_url")()
        client = open_replica_client(url)
        copy_orders(client)
        client.close()
        yield url


# --- rows -------------------------------------------------------------------------------------------------------------


def test_the_newest_state_answers_as_litestream_did(orders_url):
    with connected(orders_url) as con:
        assert answers(con) == EXPECTED["expected_by_txid"][TXIDS[-1]]
        assert one(con, "PRAGMA litestream_txid") == TXIDS[-1]
        assert one(con, "PRAGMA integrity_check") == "ok"


def test_every_state_answers_as_litestream_did(orders_url):
    for txid in TXIDS:
        with connected(orders_url, txid=txid) as con:
            assert answers(con) == EXPECTED["expected_by_txid"][txid]
            assert one(con, "PRAGMA litestream_txid") == txid
            assert one(con, "PRAGMA integrity_check") == "ok"


@pytest.mark.parametrize("cache_size", ["0", "40KB", "10MB"])
@pytest.mark.plan("L24", "D09")
def test_the_size_of_the_cache_does_not_change_the_rows(cache_size):
    with connected(str(ORDERS / "replica"), cache_size=cache_size) as con:
        con.execute("PRAGMA cache_size=0")
        for _ in range(2):
            assert answers(con) == EXPECTED["expected_by_txid"][TXIDS[-1]]
        status = status_of(con)
    assert status["cache_bytes"] <= {"0": 0, "40KB": 40_000, "10MB": 10_000_000}[cache_size]


@pytest.mark.parametrize("block_size", [0, 1 << 12, 1 << 16])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.plan("L05")
def test_all_page_sizes_give_the_rows_of_the_primary(page_size, block_size):
    query = "SELECT id, length(b), substr(hex(b), 1, 40), s FROM t ORDER BY id"
    with Script(block_size=block_size) as script, Primary(script.writer, page_size=page_size) as primary:
        primary.commit("CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB, s TEXT)")
        primary.commit(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) "
            "INSERT INTO t SELECT i, randomblob(i * 37 * 997 % 9000), hex(randomblob(20)) FROM n"
        )
        primary.commit("INSERT INTO t VALUES(1000, randomblob(150000), 'large')")
        with connected(script.url, poll_interval=0) as con:
            assert one(con, "PRAGMA page_size") == page_size
            assert rows(con, query) == primary.rows(query)
            assert rows(con, "SELECT b FROM t WHERE id = 1000") == primary.rows("SELECT b FROM t WHERE id = 1000")
            assert one(con, "PRAGMA integrity_check") == "ok"
            primary.commit("DELETE FROM t WHERE id % 3 = 0; UPDATE t SET s = upper(s) WHERE id % 3 = 1")
            one(con, "PRAGMA litestream_poll")
            assert rows(con, query) == primary.rows(query)


# --- locks and transactions -------------------------------------------------------------------------------------------


@pytest.mark.plan("L07", "K05")
@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES(2)",
        "UPDATE t SET x = 3",
        "DELETE FROM t",
        "CREATE TABLE u(x)",
        "DROP TABLE t",
        "VACUUM",
        "PRAGMA user_version = 7",
        "BEGIN IMMEDIATE; INSERT INTO t VALUES(2)",
        "BEGIN EXCLUSIVE; INSERT INTO t VALUES(2)",
    ],
)
def test_writes_are_refused_by_sqlite_itself(small, sql):
    primary, script = small
    with connected(script.url) as con:
        with pytest.raises(apsw.ReadOnlyError, match="attempt to write a readonly database") as caught:
            con.execute(sql).fetchall()
        assert caught.value.result == apsw.SQLITE_READONLY
        if con.in_transaction:
            con.execute("ROLLBACK")
        assert rows(con, "SELECT * FROM t") == primary.rows("SELECT * FROM t")


@pytest.mark.parametrize("flags", [apsw.SQLITE_OPEN_READWRITE, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE])
@pytest.mark.plan("L07")
def test_a_connection_opened_for_writing_is_read_only_all_the_same(small, flags):
    _, script = small
    litevfs.register()
    con = apsw.Connection(f"file:x.db?replica_url={script.url}", flags=flags | apsw.SQLITE_OPEN_URI, vfs="litestream")
    assert con.readonly("main")
    with pytest.raises(apsw.ReadOnlyError):
        con.execute("INSERT INTO t VALUES(2)")
    con.close()


@pytest.mark.plan("L07")
@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_every_kind_of_transaction_reads_one_state(small, begin):
    primary, script = small
    with connected(script.url, poll_interval=0) as con:
        con.execute(begin)
        assert rows(con, "SELECT * FROM t") == [(1,)]
        primary.commit("INSERT INTO t VALUES(2)")
        one(con, "PRAGMA litestream_poll")
        assert rows(con, "SELECT * FROM t") == [(1,)]
        assert txid_of(con) == 1
        con.execute("COMMIT")
        assert rows(con, "SELECT * FROM t") == [(1,), (2,)]
        assert txid_of(con) == 2


@pytest.mark.plan("K05")
@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FROM nowhere", "no such table: nowhere"),
        ("SELECT y FROM t", "no such column: y"),
        ("SELEC 1", 'near "SELEC": syntax error'),
        ("SELECT litestream_nothing()", "no such function: litestream_nothing"),
    ],
)
def test_sqlites_own_messages_reach_the_user(small, sql, message):
    _, script = small
    with connected(script.url) as con, pytest.raises(apsw.SQLError, match="^" + message.replace("(", r"\(")):
        con.execute(sql)


@pytest.mark.plan("L06")
def test_an_open_cursor_keeps_its_state_and_the_next_statement_sees_the_new_one(small):
    primary, script = small
    primary.commit("DELETE FROM t")
    primary.commit(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<3000) INSERT INTO t SELECT i FROM n"
    )
    with connected(script.url, poll_interval="1ms") as con, connected(script.url) as other:
        cursor = con.execute("SELECT x FROM t")
        first = next(cursor)[0]
        primary.commit("UPDATE t SET x = -x")
        wait_until(lambda: txid_of(other) == 4, "the new state")
        assert [first, *(x for (x,) in cursor)] == list(range(1, 3001))
        assert one(con, "SELECT sum(x) FROM t") == -sum(range(1, 3001))


@pytest.mark.parametrize("parameter", ["nolock=1", "immutable=1"])
def test_without_sqlites_locks_a_connection_still_sees_one_state(small, parameter):
    """With either, SQLite never takes SHARED, so nothing would tell that pages of two states must not meet."""
    primary, script = small
    primary.commit("DELETE FROM t; CREATE TABLE u(x)")
    fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<3000) INSERT INTO {} SELECT i FROM n"
    primary.commit(fill.format("t") + ";" + fill.format("u"))
    con = apsw.Connection(
        f"file:x.db?replica_url={script.url}&poll_interval=1ms&{parameter}",
        flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
        vfs="litestream",
    )
    try:
        con.execute("BEGIN")
        assert one(con, "SELECT sum(x) FROM t") == 4501500
        primary.commit("UPDATE t SET x = -x; UPDATE u SET x = -x")
        with connected(script.url) as other:
            wait_until(lambda: txid_of(other) == 4, "the new state")
        assert one(con, "SELECT sum(x) FROM u") == 4501500
    finally:
        con.close()


@pytest.mark.parametrize("parameter", ["nolock=1", "immutable=1"])
def test_a_connection_without_sqlites_locks_that_cannot_begin_leaves_nothing(small, parameter):
    _, script = small

    def fail(*_: object) -> list[LTXFileInfo]:
        raise TransientStorageError("the storage is away")

    litevfs.register()
    with closing(Session(Options(replica_url=script.url, poll_interval_s=0))):  # has a state, so that others can open
        before = len(registry.shared)
        script.on_list = fail
        with pytest.raises(StaleReplicaError):
            apsw.Connection(
                f"file:x.db?replica_url={script.url}&poll_interval=0&max_staleness=0&{parameter}",
                flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
                vfs="litestream",
            )
        assert [len(shared.leases) for shared in registry.shared.values()] == [1] * before


# --- SQLite's page cache ----------------------------------------------------------------------------------------------


def test_sqlites_cache_stays_warm_while_the_replica_does_not_change(small, monkeypatch):
    primary, script = small
    primary.commit(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<9000) INSERT INTO t SELECT i FROM n"
    )
    reads: list[tuple[int, int]] = []
    original = Session.read

    def count(self, amount, offset):
        reads.append((amount, offset))
        return original(self, amount, offset)

    monkeypatch.setattr(Session, "read", count)
    with connected(script.url, poll_interval=0) as con:
        assert one(con, "SELECT sum(x) FROM t") == 1 + sum(range(1, 9001))
        assert len(reads) > 20
        for _ in range(5):
            reads.clear()
            one(con, "PRAGMA litestream_poll")
            assert one(con, "SELECT sum(x) FROM t") == 1 + sum(range(1, 9001))
            assert reads == [(16, 24)]
        # A compacted file that only relocates pages is no change either.
        primary.compact(1, 1, 2)
        one(con, "PRAGMA litestream_poll")
        reads.clear()
        one(con, "SELECT sum(x) FROM t")
        assert reads == [(16, 24)]
        primary.commit("UPDATE t SET x = 5 WHERE x = 9000")
        one(con, "PRAGMA litestream_poll")
        reads.clear()
        assert one(con, "SELECT sum(x) FROM t") == 6 + sum(range(1, 9000))
        assert len(reads) > 20


# --- replicas that are empty, late or hold no page --------------------------------------------------------------------


@pytest.mark.plan("L20")
def test_an_empty_replica_is_a_clear_error_after_open_timeout():
    with Script() as script, pytest.raises(ReplicaEmptyError) as caught:
        litevfs.connect(script.url, open_timeout="60ms")
    assert "after waiting 0.06 s" in str(caught.value)
    assert "open_timeout" in caught.value.hint
    assert isinstance(caught.value, apsw.Error)


@pytest.mark.plan("L20", "D12")
def test_open_waits_for_the_first_state():
    with Script() as script, Primary(script.writer) as primary:
        primary.run("CREATE TABLE t(x); INSERT INTO t VALUES(1)")

        def upload_at_the_third_look(level, files):
            if level == 0 and script.lists[0] == 3:
                primary.upload()
                return script.writer.list_files(0)
            return files

        script.on_list = upload_at_the_third_look
        with connected(script.url, open_timeout="10s") as con:
            assert rows(con, "SELECT * FROM t") == [(1,)]
        assert script.lists[0] >= 3


@pytest.mark.plan("L20")
@pytest.mark.parametrize("block_size", [0, 1 << 16])
def test_a_database_without_a_page_is_an_empty_database(block_size):
    with Script(block_size=block_size) as script, MadePrimary(script.writer) as primary:
        primary.record(b"")
        with connected(script.url, poll_interval=0) as con:
            assert rows(con, "SELECT * FROM sqlite_schema") == []
            assert txid_of(con) == 1
            primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(7)")
            one(con, "PRAGMA litestream_poll")
            assert rows(con, "SELECT * FROM t") == [(7,)]


@pytest.mark.parametrize("size", [99, 1, 0])
def test_a_header_whose_counters_differ_does_not_tell_the_size(size):
    """As SQLite before 3.7 leaves page 1: version-valid-for is old, and so is the size in the header."""
    with Script() as script, MadePrimary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(1), (2)")
        image = primary.images[1]
        old = image[:28] + size.to_bytes(4) + image[32:92] + b"\x00\x00\x00\x09" + image[96:]
        primary.record(old)
        with connected(script.url, poll_interval=0) as con:
            assert txid_of(con) == 2
            assert rows(con, "SELECT * FROM t") == [(1,), (2,)]
            assert one(con, "PRAGMA page_count") == len(image) // 4096
            assert one(con, "PRAGMA integrity_check") == "ok"
            primary.record(image)
            one(con, "PRAGMA litestream_poll")
            assert one(con, "PRAGMA integrity_check") == "ok"


# --- databases that shrink --------------------------------------------------------------------------------------------

FILL = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) "
    "INSERT INTO t SELECT i, hex(randomblob(100)) FROM n"
)


@pytest.mark.plan("L21")
@pytest.mark.parametrize(
    ("auto_vacuum", "shrink"),
    [
        (1, "DELETE FROM t WHERE id > 100"),
        (2, "PRAGMA incremental_vacuum"),
        (2, "PRAGMA incremental_vacuum(20)"),
        (0, "VACUUM"),
    ],
)
@pytest.mark.parametrize("block_size", [0, 1 << 16])
def test_a_database_that_shrinks_keeps_its_rows(auto_vacuum, shrink, block_size):
    query = "SELECT count(*), sum(id), group_concat(s) FROM t"
    with Script(block_size=block_size) as script, Primary(script.writer, auto_vacuum=auto_vacuum) as primary:
        primary.commit("CREATE TABLE t(id INTEGER PRIMARY KEY, s TEXT)")
        primary.commit(FILL)
        with connected(script.url, poll_interval=0) as con:
            large = one(con, "PRAGMA page_count")
            if not shrink.startswith("DELETE"):
                primary.commit("DELETE FROM t WHERE id > 100")
            primary.commit(shrink)
            one(con, "PRAGMA litestream_poll")
            assert one(con, "PRAGMA page_count") < large
            assert rows(con, query) == primary.rows(query)
            assert one(con, "PRAGMA integrity_check") == "ok"
            primary.commit("DELETE FROM t")
            primary.commit(FILL)
            one(con, "PRAGMA litestream_poll")
            assert rows(con, query) == primary.rows(query)
            assert one(con, "PRAGMA integrity_check") == "ok"


# --- another replica in the same place --------------------------------------------------------------------------------


@pytest.mark.plan("E03")
def test_a_replacement_with_another_page_size_is_read_by_open_connections():
    with Script() as script, Primary(script.writer, page_size=4096) as old:
        old.commit("CREATE TABLE t(x); INSERT INTO t VALUES('old')")
        old.commit("INSERT INTO t VALUES('old')")
        with connected(script.url, poll_interval=0) as con, Primary(script.writer, page_size=1024) as new:
            assert rows(con, "SELECT x FROM t") == [("old",), ("old",)]
            old.delete_all()
            new.start_ms += 3_600_000
            new.commit("CREATE TABLE t(x); INSERT INTO t VALUES('new')")
            one(con, "PRAGMA litestream_poll")
            assert rows(con, "SELECT x FROM t") == [("new",)]
            assert one(con, "PRAGMA page_size") == 1024
            assert one(con, "PRAGMA integrity_check") == "ok"
