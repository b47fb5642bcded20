"""The VFS as SQLite uses it and driven directly: rows of every state, page sizes, header, locks, temporary files."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import apsw
import pytest

import litevfs
from litevfs.bindings.apsw_vfs import NONE, SHARED, ReplicaFile
from litevfs.errors import OptionError, ReplicaEmptyError, StaleReplicaError, TransientStorageError
from litevfs.live.registry import registry
from litevfs.ltx.encoder import encode_file
from litevfs.ltx.format import Header, lock_pgno
from litevfs.options import Options
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.memory import MemoryReplicaClient, drop_memory_store, memory_store
from litevfs.replica_clients.urls import open_replica_client
from tests.made import MadePrimary
from tests.primary import START_MS, Primary
from tests.scripted import Script
from tests.support import connected, one, rows, txid_of, wait_until

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
        status = json.loads(one(con, "PRAGMA litestream_status"))
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


# --- the header of page 1 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.plan("L19")
def test_full_and_partial_reads_of_page_1_agree_and_change_nothing_else(page_size):
    with Script() as script, Primary(script.writer, page_size=page_size) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.commit("INSERT INTO t VALUES(1)")
        file = ReplicaFile(Options(replica_url=script.url, poll_interval_s=0))
        try:
            counters = set()
            for _ in range(3):
                file.xLock(SHARED)
                page = file.xRead(page_size, 0)
                counter = page[24:28]
                assert page[18:20] == b"\x01\x01"
                assert page[92:96] == counter == file.snapshot.change_counter.to_bytes(4, "big")
                original = primary.page(1)
                kept = [i for i in range(page_size) if i not in {18, 19, *range(24, 28), *range(92, 96)}]
                assert original[18:20] == b"\x02\x02"
                assert bytes(page[i] for i in kept) == bytes(original[i] for i in kept)
                for offset, amount in [(24, 16), (0, 100), (18, 2), (92, 4), (page_size - 1, 1), (0, 1)]:
                    assert file.xRead(amount, offset) == page[offset : offset + amount]
                counters.add(counter)
                file.xUnlock(NONE)
                primary.commit("INSERT INTO t VALUES(2)")
                file.replica.refresh()
            assert len(counters) == 3
        finally:
            file.xClose()


def test_header_value_1_stands_for_a_page_of_65536_bytes():
    with Script() as script, Primary(script.writer, page_size=65536) as primary:
        primary.commit("CREATE TABLE t(x)")
        file = ReplicaFile(Options(replica_url=script.url, poll_interval_s=0))
        assert file.xRead(2, 16) == b"\x00\x01"
        file.xClose()


@pytest.mark.parametrize("page_size", [512, 4096])
def test_any_range_reads_as_it_lies_in_the_database(page_size):
    with Script() as script, Primary(script.writer, page_size=page_size) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.commit("INSERT INTO t VALUES(randomblob(20000))")
        file = ReplicaFile(Options(replica_url=script.url, poll_interval_s=0))
        try:
            size = file.xFileSize()
            assert size == len(primary.images[2])
            image = file.xRead(page_size, 0) + primary.images[2][page_size:]
            ranges = [(1, page_size), (page_size * 3, 0), (page_size, 100), (page_size, page_size + 1), (100, 0)]
            ranges += [(7, page_size - 3), (size, 0), (page_size + 5, size - page_size), (200, size - 10), (10, size)]
            ranges += [(page_size, size), (page_size, size - 1), (page_size, size + page_size)]
            for amount, offset in ranges:
                assert file.xRead(amount, offset) == image[offset : offset + amount], (amount, offset)
        finally:
            file.xClose()


# --- the lock page ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [0, 1 << 16])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.plan("L18")
def test_pages_on_both_sides_of_the_lock_page_read_right(page_size, block_size):
    lock = lock_pgno(page_size)
    commit = lock + 2
    content = {
        pgno: pgno.to_bytes(4, "big") * (page_size // 4) for pgno in (1, 2, lock - 2, lock - 1, lock + 1, commit)
    }
    with Script(block_size=block_size) as script:
        # The first state has to hold page 1 alone: a file of 1 GB is not made for this.
        script.writer.write(
            0, 1, 1, encode_file(Header(page_size, 1, 1, 1, timestamp_ms=START_MS), [(1, content[1])]), START_MS
        )
        header = Header(page_size, commit, 2, 2, timestamp_ms=START_MS)
        script.writer.write(0, 2, 2, encode_file(header, sorted(content.items())), START_MS)
        file = ReplicaFile(Options(replica_url=script.url, poll_interval_s=0))
        try:
            assert file.xFileSize() == commit * page_size
            for pgno in (2, lock - 2, lock - 1, lock + 1, commit):
                assert file.xRead(page_size, (pgno - 1) * page_size) == content[pgno]
            around = file.xRead(3 * page_size, (lock - 2) * page_size)
            assert around == content[lock - 1] + bytes(page_size) + content[lock + 1]
            assert file.xRead(page_size, (lock - 1) * page_size) == bytes(page_size)
        finally:
            file.xClose()


# --- locks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    """A primary with one small table, its storage, and a file of the replica that moves only when told."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        file = ReplicaFile(Options(replica_url=script.url, poll_interval_s=0))
        yield primary, script, file
        file.xClose()


@pytest.mark.plan("L07", "L06")
def test_shared_pins_the_newest_state_until_it_is_let_go(small):
    primary, _, file = small
    file.xLock(SHARED)
    pinned = file.snapshot
    size = file.xFileSize()
    primary.commit("CREATE TABLE u AS SELECT randomblob(30000)")
    assert file.replica.refresh()
    file.xLock(SHARED)  # again: nothing moves
    assert file.snapshot is pinned
    assert file.xFileSize() == size
    file.xUnlock(SHARED)
    assert file.snapshot is pinned
    file.xUnlock(NONE)
    assert file.snapshot.txid == 2
    assert file.xFileSize() > size
    file.xUnlock(NONE)


@pytest.mark.parametrize("level", [apsw.SQLITE_LOCK_RESERVED, apsw.SQLITE_LOCK_PENDING, apsw.SQLITE_LOCK_EXCLUSIVE])
@pytest.mark.parametrize("before", [NONE, SHARED])
@pytest.mark.plan("L07")
def test_write_locks_are_refused_as_read_only_and_change_nothing(small, level, before):
    primary, _, file = small
    if before:
        file.xLock(SHARED)
    pinned = file.snapshot
    with pytest.raises(apsw.ReadOnlyError, match="read-only"):
        file.xLock(level)
    primary.commit("INSERT INTO t VALUES(2)")
    file.replica.refresh()
    assert (file.snapshot is pinned) == (before == SHARED)
    file.xUnlock(NONE)


@pytest.mark.parametrize("level", [apsw.SQLITE_LOCK_RESERVED, apsw.SQLITE_LOCK_PENDING, apsw.SQLITE_LOCK_EXCLUSIVE])
@pytest.mark.plan("L07")
def test_nothing_can_be_unlocked_to_a_write_lock(small, level):
    _, _, file = small
    file.xLock(SHARED)
    with pytest.raises(apsw.IOError, match="cannot unlock"):
        file.xUnlock(level)
    file.xUnlock(NONE)


@pytest.mark.plan("L07")
def test_unlocking_what_is_not_locked_is_harmless_and_nobody_holds_reserved(small):
    _, _, file = small
    file.xUnlock(NONE)
    file.xUnlock(SHARED)
    assert file.snapshot.txid == 1
    assert file.xCheckReservedLock() is False
    file.xLock(SHARED)
    assert file.xCheckReservedLock() is False
    file.xUnlock(NONE)


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
    primary, script, _ = small
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
    _, script, _ = small
    litevfs.register()
    con = apsw.Connection(f"file:x.db?replica_url={script.url}", flags=flags | apsw.SQLITE_OPEN_URI, vfs="litestream")
    assert con.readonly("main")
    with pytest.raises(apsw.ReadOnlyError):
        con.execute("INSERT INTO t VALUES(2)")
    con.close()


@pytest.mark.plan("L07")
@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_every_kind_of_transaction_reads_one_state(small, begin):
    primary, script, _ = small
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
    _, script, _ = small
    with connected(script.url) as con, pytest.raises(apsw.SQLError, match="^" + message.replace("(", r"\(")):
        con.execute(sql)


@pytest.mark.plan("L06")
def test_an_open_cursor_keeps_its_state_and_the_next_statement_sees_the_new_one(small):
    primary, script, _ = small
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
    primary, script, _ = small
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
    _, script, _ = small

    def fail(*_: object) -> list[LTXFileInfo]:
        raise TransientStorageError("the storage is away")

    before = len(registry._shared)
    script.on_list = fail
    with pytest.raises(StaleReplicaError):
        apsw.Connection(
            f"file:x.db?replica_url={script.url}&poll_interval=0&max_staleness=0&{parameter}",
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
            vfs="litestream",
        )
    assert [len(shared.leases) for shared in registry._shared.values()] == [1] * before


# --- SQLite's page cache ----------------------------------------------------------------------------------------------


def test_sqlites_cache_stays_warm_while_the_replica_does_not_change(small, monkeypatch):
    primary, script, file = small
    primary.commit(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<9000) INSERT INTO t SELECT i FROM n"
    )
    file.replica.refresh()
    reads: list[tuple[int, int]] = []
    original = ReplicaFile.xRead

    def count(self, amount, offset):
        reads.append((amount, offset))
        return original(self, amount, offset)

    monkeypatch.setattr(ReplicaFile, "xRead", count)
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


# --- temporary files --------------------------------------------------------------------------------------------------


def temp_files() -> set[str]:
    """What this process's descriptors refer to that looks like a temporary file of SQLite (or of the test runner)."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue
        # Deleted when they were opened, with a name of their own or (O_TMPFILE) without.
        if target.endswith(" (deleted)") and ("etilqs_" in target or "/#" in target):
            found.add(target)
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


@pytest.fixture
def sorting():
    """A connection that has to sort 30,000 rows in files."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(id INTEGER PRIMARY KEY, s TEXT)")
        primary.commit(FILL.replace("3000", "30000"))
        with connected(script.url, cache_size="1MB") as con:
            con.execute("PRAGMA temp_store=FILE; PRAGMA cache_size=10")
            yield con, primary, temp_files()


@needs_proc
@pytest.mark.plan("L14", "L17")
def test_sorters_use_temporary_files_and_leave_none(sorting):
    con, primary, before = sorting
    query = "SELECT id, s FROM t ORDER BY s, id"
    cursor = con.execute(query)
    first = next(cursor)
    assert temp_files() > before
    assert [first, *cursor] == primary.rows(query)
    assert temp_files() == before
    cursor = con.execute(query)  # dropped half way: the files go with the statement
    for _ in range(100):
        next(cursor)
    assert temp_files() > before
    cursor.close()
    assert temp_files() == before


@needs_proc
@pytest.mark.plan("L14")
def test_many_temporary_tables_and_sorters_at_once_do_not_meet(sorting):
    con, primary, before = sorting
    for i in range(12):
        con.execute(f"CREATE TEMP TABLE copy{i} AS SELECT id * {i} AS n, s FROM t")
    cursors = [con.execute(f"SELECT n FROM copy{i} ORDER BY s") for i in range(6)]
    for cursor in cursors:
        next(cursor)
    assert len(temp_files() - before) >= 6
    ids = [n for (n,) in primary.rows("SELECT id FROM t ORDER BY s")]
    for i, cursor in enumerate(cursors):
        assert [n for (n,) in cursor] == [n * i for n in ids[1:]]
    for i in range(0, 12, 2):
        con.execute(f"DROP TABLE copy{i}")
    assert one(con, "SELECT sum(n) FROM copy11") == 11 * sum(ids)
    con.close()
    assert temp_files() == before


TEMP_FLAGS = (
    apsw.SQLITE_OPEN_TEMP_DB | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_DELETEONCLOSE
)


@pytest.mark.plan("L15")
def test_a_temp_name_opened_twice_closes_twice(tmp_path):
    vfs = litevfs.bindings.apsw_vfs.ReplicaVFS("litestream-temp-test", {})
    try:
        name = str(tmp_path / "same.tmp")
        first = vfs.xOpen(name, [TEMP_FLAGS, 0])
        first.xWrite(b"first", 0)
        second = vfs.xOpen(name, [TEMP_FLAGS & ~apsw.SQLITE_OPEN_DELETEONCLOSE, 0])
        second.xWrite(b"other", 0)
        first.xClose()
        assert second.xRead(5, 0) == b"other"
        second.xClose()
    finally:
        vfs.unregister()
    assert len(list(tmp_path.iterdir())) <= 1


@pytest.mark.plan("L16")
def test_a_temp_folder_that_cannot_be_written_is_an_error_at_once(tmp_path):
    vfs = litevfs.bindings.apsw_vfs.ReplicaVFS("litestream-temp-test", {})
    try:
        with pytest.raises(apsw.CantOpenError):
            vfs.xOpen(str(tmp_path / "no" / "folder" / "x.tmp"), [TEMP_FLAGS, 0])
    finally:
        vfs.unregister()


_FULL = """
    import resource, sys, time
    import litevfs
    con = litevfs.connect(sys.argv[1], open_timeout=5)
    con.execute("PRAGMA temp_store=FILE; PRAGMA cache_size=10")
    rows = con.execute("SELECT count(*) FROM orders").fetchall()
    resource.setrlimit(resource.{limit}, ({value}, {value}))
    started = time.monotonic()
    try:
        con.execute("SELECT o.id FROM orders o, (SELECT note FROM orders LIMIT 20) p ORDER BY p.note").fetchall()
    except Exception as error:
        print(type(error).__name__, time.monotonic() - started < 5)
    assert con.execute("SELECT count(*) FROM orders").fetchall() == rows
    con.close()
"""


@pytest.mark.plan("L16")
@pytest.mark.parametrize(
    ("limit", "value", "errors"),
    [
        ("RLIMIT_FSIZE", 200_000, {"FullError", "IOError"}),
        ("RLIMIT_NOFILE", "len(__import__('os').listdir('/proc/self/fd')) - 1", {"CantOpenError"}),
    ],
)
def test_a_full_temp_folder_is_an_error_at_once_and_the_connection_goes_on(limit, value, errors):
    assert hasattr(resource, limit)
    code = textwrap.dedent(_FULL).format(limit=limit, value=value)
    done = subprocess.run(
        [sys.executable, "-c", code, str(ORDERS / "replica")],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name, at_once = done.stdout.split()
    assert name in errors
    assert at_once == "True"


# --- beside other databases -------------------------------------------------------------------------------------------


def test_a_replica_can_be_attached_to_an_ordinary_database_and_joined(small, tmp_path):
    primary, script, _ = small
    litevfs.register()
    con = apsw.Connection(
        str(tmp_path / "own.db"),
        flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI,
    )
    con.execute("PRAGMA journal_mode=WAL").fetchall()
    con.execute("CREATE TABLE own(x, name); INSERT INTO own VALUES(1, 'one'), (2, 'two')")
    con.execute("ATTACH ? AS replica", (f"file:r.db?vfs=litestream&poll_interval=0&replica_url={script.url}",))
    query = "SELECT name FROM own JOIN replica.t USING (x) ORDER BY x"
    assert rows(con, query) == [("one",)]
    primary.commit("INSERT INTO t VALUES(2)")
    assert one(con, "PRAGMA replica.litestream_poll") == "0000000000000002"
    assert rows(con, query) == [("one",), ("two",)]
    con.execute("INSERT INTO own SELECT x + 10, 'copied' FROM replica.t")
    assert one(con, "SELECT count(*) FROM own") == 4
    con.close()


def test_a_replica_can_be_vacuumed_into_an_ordinary_file(small, tmp_path):
    primary, script, _ = small
    with connected(script.url) as con:
        con.execute("VACUUM INTO ?", (f"file:{tmp_path}/copy.db?vfs={apsw.vfs_names()[0]}",))
    copy = apsw.Connection(str(tmp_path / "copy.db"))
    assert rows(copy, "SELECT * FROM t") == primary.rows("SELECT * FROM t")
    copy.close()


@pytest.mark.parametrize("sql", ["VACUUM INTO {}", "ATTACH {} AS own"])
def test_an_ordinary_file_is_refused_with_the_words_that_work(small, tmp_path, monkeypatch, sql):
    primary, script, _ = small
    monkeypatch.delenv("LITESTREAM_REPLICA_URL", raising=False)
    path = tmp_path / "a copy, 100%.db"
    if sql.startswith("ATTACH"):
        apsw.Connection(str(path)).execute("CREATE TABLE mine(x)")
    with connected(script.url) as con:
        with pytest.raises(OptionError, match="VACUUM INTO") as caught:
            con.execute(sql.format(apsw.format_sql_value(str(path))))
        (words,) = re.findall(r"write ('.*')", caught.value.hint)
        con.execute(sql.format(words))
    with closing(apsw.Connection(str(path))) as copy:
        table = "mine" if sql.startswith("ATTACH") else "t"
        assert rows(copy, f"SELECT * FROM {table}") == ([] if table == "mine" else primary.rows("SELECT * FROM t"))
