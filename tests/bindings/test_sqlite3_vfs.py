"""The VFS through the standard library's `sqlite3`: rows, errors, what lies beside, sharing, threads, fork."""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import apsw
import pytest

import litevfs
from litevfs.bindings import sqlite3_vfs
from litevfs.bindings.sqlite3_library import Library, Places
from litevfs.errors import (
    OptionError,
    ReplicaEmptyError,
    SQLiteLibraryError,
    StorageNotFoundError,
    StoragePermissionError,
)
from litevfs.live.registry import registry
from tests.made import MadePrimary
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, in_threads, status_of, wait_until

ORDERS = Path(__file__).parents[1] / "fixtures" / "orders"
EXPECTED = json.loads((ORDERS / "expected.json").read_text())
PAGE_SIZES = [512, 4096, 65536]


def opened(url: str, **options: object) -> closing[sqlite3.Connection]:
    return closing(litevfs.connect_stdlib(url, **options))


def fill(insert: str, first: int, last: int) -> str:
    """`INSERT ... SELECT` of the numbers from `first` to `last`, called `value`."""
    numbers = f"SELECT {first} UNION ALL SELECT value + 1 FROM n WHERE value < {last}"
    return f"WITH RECURSIVE n(value) AS ({numbers}) {insert} FROM n"


def one(connection: sqlite3.Connection, sql: str, *parameters: object) -> object:
    (row,) = connection.execute(sql, parameters).fetchall()
    (value,) = row
    return value


def python_calls(connection: sqlite3.Connection, sql: str) -> list[str]:
    """The names of the Python functions of the binding that SQLite calls for a query, in order."""
    calls: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name.startswith("x_"):
            calls.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        connection.execute(sql).fetchall()
    finally:
        sys.setprofile(None)
    return calls


# --- rows -------------------------------------------------------------------------------------------------------------


def test_every_state_answers_as_litestream_did():
    for txid, expected in EXPECTED["expected_by_txid"].items():
        with opened(str(ORDERS / "replica"), txid=txid) as con:
            for name, sql in EXPECTED["queries"].items():
                found = con.execute(sql).fetchall()
                assert ([r[0] for r in found] if name == "tables" else found[0][0]) == expected[name]
            assert one(con, "PRAGMA litestream_txid") == txid
            assert one(con, "PRAGMA integrity_check") == "ok"


def test_a_query_of_cached_pages_asks_python_two_things():
    with opened(str(ORDERS / "replica")) as con:
        assert python_calls(con, "SELECT * FROM orders WHERE id = 7").count("x_read") > 1
        for _ in range(3):
            assert python_calls(con, "SELECT * FROM orders WHERE id = 7") == ["x_read", "x_file_size"]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_pages_of_all_sizes_overflow_pages_and_new_transactions(page_size):
    query = "SELECT id, b FROM t ORDER BY id"
    with Script() as script, Primary(script.writer, page_size=page_size) as primary:
        primary.commit("CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB); INSERT INTO t VALUES(1, randomblob(150000))")
        with opened(script.url, poll_interval=0) as con:
            assert con.execute(query).fetchall() == primary.rows(query)
            primary.commit(fill("INSERT INTO t SELECT value + 1, randomblob(value * 100)", 1, 50))
            assert one(con, "PRAGMA litestream_poll") == "0000000000000002"
            assert con.execute(query).fetchall() == primary.rows(query)
            assert one(con, "PRAGMA integrity_check") == "ok"


def test_a_transaction_sees_one_state(small):
    primary, script = small
    with opened(script.url, poll_interval=0, isolation_level=None) as con:
        con.execute("BEGIN")
        assert one(con, "SELECT count(*) FROM t") == 1
        primary.commit("INSERT INTO t VALUES(2)")
        one(con, "PRAGMA litestream_poll")
        assert one(con, "SELECT count(*) FROM t") == 1
        con.execute("COMMIT")
        assert one(con, "SELECT count(*) FROM t") == 2


@pytest.mark.parametrize("memdb", [True, False], ids=["by memdb", "by Python"])
def test_journals_in_the_current_folder_are_not_the_replicas(small, tmp_path, monkeypatch, memdb):
    """A hot journal that lies there would be rolled back, a WAL be read; SQLite asks at every transaction."""
    _, script = small
    name = f"litestream-access-{memdb}"
    litevfs.register_stdlib()
    (library,) = {binding.library for binding in sqlite3_vfs._bindings.values() if binding}
    if not memdb:  # as in a library that is built without it
        find = library.sqlite3_vfs_find
        monkeypatch.setattr(library, "sqlite3_vfs_find", lambda vfs: None if vfs == b"memdb" else find(vfs))
    litevfs.register_stdlib(name)
    monkeypatch.chdir(tmp_path)
    for suffix in ("", "-journal", "-wal"):
        (tmp_path / f"x.db{suffix}").write_bytes(b"not a journal" * 1000)
    with closing(sqlite3.connect(f"file:x.db?vfs={name}&replica_url={quote(script.url)}", uri=True)) as con:
        assert [one(con, "SELECT count(*) FROM t") for _ in range(2)] == [1, 1]
        assert one(con, "PRAGMA journal_mode") == "delete"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_database_without_a_page_is_an_empty_database():
    with Script() as script, MadePrimary(script.writer) as primary:
        primary.record(b"")
        with opened(script.url, poll_interval=0) as con:
            assert con.execute("SELECT * FROM sqlite_schema").fetchall() == []


def test_pragmas_and_sql_functions(small):
    _, script = small
    with opened(script.url, poll_interval=0) as con:
        row = con.execute("SELECT litestream_txid(), litestream_lag(), litestream_time()").fetchone()
        assert row == ("0000000000000001", 0, one(con, "PRAGMA litestream_time"))
        assert status_of(con)["state"] == "current"
        assert one(con, "SELECT litestream_set_time('latest')") == row[2]
        with pytest.raises(sqlite3.OperationalError, match="did you mean litestream_txid"):
            con.execute("PRAGMA litestream_txd")
        with pytest.raises(sqlite3.Error, match="time"):
            con.execute("SELECT litestream_set_time('no time at all')").fetchall()
    with (
        closing(sqlite3.connect(":memory:")) as other,
        pytest.raises(sqlite3.OperationalError, match="no such function"),
    ):
        other.execute("SELECT litestream_txid()")


def test_wait_for_takes_a_connection_of_sqlite3(small):
    primary, script = small
    with opened(script.url, poll_interval="60s") as con:
        txid = primary.commit("INSERT INTO t VALUES(2)")
        assert litevfs.wait_for(con, txid) == txid
        assert one(con, "SELECT count(*) FROM t") == 2
    with closing(sqlite3.connect(":memory:")) as other, pytest.raises(OptionError, match="no replica"):
        litevfs.wait_for(other, 1)


# --- beside a replica -------------------------------------------------------------------------------------------------


def test_what_lies_beside_is_writable_and_the_replica_is_not(small, tmp_path):
    _, script = small
    with opened(script.url) as con:
        con.execute("ATTACH ':memory:' AS memory")
        con.execute(f"ATTACH 'file:{quote(str(tmp_path))}/results.db?vfs=unix&mode=rwc' AS results")
        con.execute("CREATE TEMP TABLE kept AS SELECT * FROM t")
        for schema in ("memory", "results"):
            con.execute(f"CREATE TABLE {schema}.y AS SELECT x + 1 AS x FROM t")
            con.execute(f"INSERT INTO {schema}.y SELECT x + 2 FROM t")
        con.commit()
        assert one(con, "SELECT sum(x) FROM results.y") == 5
        for sql in ("INSERT INTO t VALUES(2)", "CREATE TABLE u(x)", "PRAGMA main.user_version = 3", "DROP TABLE t"):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                con.execute(sql)
            con.rollback()
        with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
            con.backup(copy)
            assert one(copy, "SELECT x FROM t") == 1
    with closing(sqlite3.connect(tmp_path / "results.db")) as kept:
        assert one(kept, "SELECT sum(x) FROM y") == 5


def test_sorters_and_temporary_files_are_those_of_the_default_vfs(small):
    primary, script = small
    primary.commit(fill("INSERT INTO t SELECT hex(randomblob(100))", 1, 30000))
    with opened(script.url) as con:
        con.execute("PRAGMA temp_store = FILE")
        con.execute("PRAGMA cache_size = 10")
        query = "SELECT x FROM t ORDER BY x"
        assert con.execute(query).fetchall() == primary.rows(query)
        con.execute("CREATE TEMP TABLE copy AS SELECT * FROM t")
        assert one(con, "SELECT count(*) FROM copy") == 30001


def test_a_replica_is_attached_to_an_ordinary_database(small, tmp_path):
    _, script = small
    litevfs.register_stdlib()
    with closing(sqlite3.connect(f"file:{quote(str(tmp_path))}/own.db", uri=True)) as con:
        con.execute("CREATE TABLE own(x)")
        con.execute("INSERT INTO own VALUES(1)")
        con.commit()
        con.execute("ATTACH ? AS replica", (f"file:r.db?vfs=litestream&replica_url={quote(script.url)}",))
        assert con.execute("SELECT x FROM own JOIN replica.t USING (x)").fetchall() == [(1,)]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            con.execute("INSERT INTO replica.t VALUES(2)")


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "kind"),
    [
        ("s5://x", {}, litevfs.ReplicaURLError),
        ("/nowhere/at/all", {"open_timeout": "20ms"}, StorageNotFoundError),
        ("memory://nothing-here", {"open_timeout": "20ms"}, ReplicaEmptyError),
    ],
)
def test_connecting_raises_our_error_from_that_of_sqlite3(url, options, kind):
    with pytest.raises(kind) as caught:
        litevfs.connect_stdlib(url, **options)
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert litevfs.last_error() is caught.value


def test_a_vfs_may_have_any_name(small):
    _, script = small
    name = "a b%41&c#d+ü"
    with closing(litevfs.connect_stdlib(script.url, vfs=name)) as con:
        assert one(con, "SELECT count(*) FROM t") == 1
    with closing(litevfs.connect(script.url, vfs=name)) as con:
        assert con.execute("SELECT count(*) FROM t").get == 1
    with litevfs.diff(script.url, 1, vfs=name) as found:
        list(found)


def test_an_unknown_option_is_refused_with_the_nearest_name(small):
    _, script = small
    litevfs.register_stdlib()
    with pytest.raises(OptionError, match="did you mean poll_interval"):
        litevfs.connect_stdlib(script.url, pol_interval=1)
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(f"file:x?vfs=litestream&pol_interval=1&replica_url={quote(script.url)}", uri=True)
    assert "did you mean poll_interval" in str(litevfs.last_error())


@pytest.mark.parametrize("twice", ["replica_url=/srv/other", "poll_interval=1s"])
def test_an_option_that_a_uri_names_twice_is_refused_at_both_doors(small, twice):
    """SQLite hands the first one to the VFS, and would open that replica without a word."""
    _, script = small
    uri = f"file:x?vfs=litestream&replica_url={quote(script.url)}&poll_interval=1s&{twice}"
    message = f"{twice.partition('=')[0]} is given more than once"
    litevfs.register_stdlib()
    litevfs.register()
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(uri, uri=True)
    assert message in str(litevfs.last_error())
    with pytest.raises(OptionError, match=message):
        apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)


def test_an_error_in_a_query_is_sqlites_and_ours_is_kept_and_logged(small, caplog):
    primary, script = small
    primary.commit(fill("INSERT INTO t SELECT hex(randomblob(1000))", 1, 100))
    with opened(script.url, poll_interval=0, cache_size=0) as con:
        con.execute("PRAGMA cache_size=0")

        def fail(*_: object) -> bytes:
            raise StoragePermissionError("refused", key="the key")

        script.on_read = fail
        message = r"^disk I/O error; refused \(the key\)$"
        with caplog.at_level(logging.WARNING), pytest.raises(sqlite3.OperationalError, match=message) as caught:
            con.execute("SELECT * FROM t").fetchall()
        assert caught.value.__cause__ is litevfs.last_error()
        assert isinstance(litevfs.last_error(), StoragePermissionError)
        assert "refused (the key)" in caplog.text
        script.on_read = lambda *_: 1 / 0
        with pytest.raises(sqlite3.OperationalError):
            con.execute("SELECT * FROM t").fetchall()
        assert isinstance(litevfs.last_error(), ZeroDivisionError)
        script.on_read = None
        assert one(con, "SELECT count(*) FROM t") == 101


@pytest.mark.parametrize("door", ["apsw", "sqlite3"])
def test_an_open_blob_says_what_to_do_where_it_fails(small, door):
    primary, script = small
    primary.commit("INSERT INTO t VALUES(zeroblob(200000))")
    connect = litevfs.connect if door == "apsw" else litevfs.connect_stdlib
    with closing(connect(script.url, poll_interval=0, cache_size=0, prefetch=False)) as con:
        row = con.execute("SELECT max(rowid) FROM t").fetchone()[0]
        kind, error = (apsw.Blob, apsw.Error) if door == "apsw" else (sqlite3.Blob, sqlite3.OperationalError)

        def opened_blob():
            if door == "apsw":
                return con.blob_open("main", "t", "x", row, False)
            return con.blobopen("t", "x", row, readonly=True)

        with opened_blob() as blob:
            assert isinstance(blob, kind)
            assert blob.read(10) == bytes(10)
        blob = opened_blob()
        with pytest.raises(error, match="write to the primary database"):
            blob.write(b"x")

        def fail(*_: object) -> bytes:
            raise StoragePermissionError("refused", key="the key")

        script.on_read = fail
        blob.seek(100_000)
        with pytest.raises(error, match=r"refused \(the key\)") as caught:
            blob.read(10)
        assert isinstance(caught.value if door == "apsw" else caught.value.__cause__, StoragePermissionError)
        script.on_read = None
        with suppress(error):  # once more the last one
            blob.close()


def test_threads_that_share_a_connection_take_turns_at_its_blobs(small):
    primary, script = small
    primary.commit("INSERT INTO t VALUES(zeroblob(200000))")
    with opened(script.url, poll_interval=0, check_same_thread=False) as con:
        blob = con.blobopen("t", "x", con.execute("SELECT max(rowid) FROM t").fetchone()[0], readonly=True)
        read: list[bytes] = []
        with con.turn:
            reader = threading.Thread(target=lambda: read.append(blob.read(10)), daemon=True)
            reader.start()
            reader.join(0.2)
            assert not read
        reader.join(30)
        assert read == [bytes(10)]
        blob.close()


def test_each_method_of_the_connection_that_fails_says_what_to_do(small):
    primary, script = small
    primary.commit(fill("INSERT INTO t SELECT hex(randomblob(1000))", 1, 100))
    with opened(script.url, poll_interval=0, cache_size=0) as con:
        with pytest.raises(sqlite3.OperationalError, match=r"readonly database; .* write to the primary database"):
            con.blobopen("t", "x", 1)

        def fail(*_: object) -> bytes:
            raise StoragePermissionError("refused", key="the key")

        script.on_read = fail
        with (
            closing(sqlite3.connect(":memory:")) as copy,
            pytest.raises(sqlite3.OperationalError, match=r"disk I/O error; refused \(the key\)") as caught,
        ):
            con.backup(copy)
        assert isinstance(caught.value.__cause__, StoragePermissionError)
        script.on_read = None
        calls = [con.commit, con.rollback, con.serialize, con.iterdump, con.interrupt, con.__enter__]
        calls += [lambda: con.create_function("f", 0, None), lambda: con.set_authorizer(None)]
    for call in calls:
        with pytest.raises(sqlite3.ProgrammingError, match=r"; open another one with litevfs\.connect_stdlib"):
            call()


def test_serialize_raises_for_a_page_that_cannot_be_read(small):
    """SQLite would return zeros in its place, without a word."""
    primary, script = small
    primary.commit(fill("INSERT INTO t SELECT hex(randomblob(1000))", 1, 100))
    with opened(script.url, poll_interval=0, cache_size=0) as con:
        con.execute("PRAGMA cache_size=0")

        def fail(*_: object) -> bytes:
            raise StoragePermissionError("refused", key="the key")

        script.on_read = fail
        with pytest.raises(StoragePermissionError):
            con.serialize()
        script.on_read = None
        with closing(sqlite3.connect(":memory:")) as copy:
            copy.deserialize(con.serialize())
            assert one(copy, "SELECT count(*) FROM t") == 101


# --- the library ------------------------------------------------------------------------------------------------------


def test_a_library_that_is_too_old_or_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(SQLiteLibraryError, match=r"too old: 99\.0\.0 is the oldest") as caught:
        Library(None, oldest_version=99_000_000)
    assert "litevfs.dbapi" in caught.value.hint
    with pytest.raises(SQLiteLibraryError, match="cannot be loaded"):
        litevfs.register_stdlib(library=tmp_path / "no.so")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_library_that_lacks_functions_because_it_is_too_old_is_refused_as_too_old(tmp_path):
    source, library = tmp_path / "old.c", tmp_path / "old.so"
    source.write_text("int sqlite3_libversion_number(void) { return 3033000; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
    with pytest.raises(SQLiteLibraryError, match=r"SQLite 3\.33\.0 is too old: 3\.34\.0 is the oldest"):
        litevfs.register_stdlib("of-old", library=library)


def test_a_library_whose_functions_are_hidden_is_refused_with_the_way_out():
    with pytest.raises(SQLiteLibraryError, match="does not show its function sqlite3_") as caught:
        litevfs.register_stdlib("elsewhere", library=apsw.__file__)  # SQLite is in there, and not to be seen
    assert "litevfs.dbapi" in caught.value.hint


def test_the_library_of_sqlite3_by_its_path_is_the_same_one(small):
    import _sqlite3

    _, script = small
    litevfs.register_stdlib("litestream-by-path", library=_sqlite3.__file__, replica_url=script.url)
    with closing(sqlite3.connect("file:x?vfs=litestream-by-path", uri=True)) as con:
        assert one(con, "SELECT x FROM t") == 1


def test_names_keep_their_options_until_they_are_given_others(small):
    primary, script = small
    primary.commit("INSERT INTO t VALUES(2)")
    litevfs.register_stdlib("litestream-named", replica_url=script.url, txid=1)
    litevfs.register_stdlib("litestream-named")
    with closing(sqlite3.connect("file:x?vfs=litestream-named", uri=True)) as con:
        assert one(con, "SELECT count(*) FROM t") == 1
    litevfs.register_stdlib("litestream-named", replica_url=script.url)
    with closing(sqlite3.connect("file:x?vfs=litestream-named", uri=True)) as con:
        assert one(con, "SELECT count(*) FROM t") == 2
    with pytest.raises(OptionError, match="another VFS has the name 'unix'"):
        litevfs.register_stdlib("unix")
    with pytest.raises(OptionError, match="unknown option"):
        litevfs.register_stdlib(nothing=1)


# --- sharing, threads, fork -------------------------------------------------------------------------------------------


def test_both_bindings_share_a_replica(small):
    _, script = small
    with connected(script.url) as other, opened(script.url) as con:
        assert len(registry.shared) == 1
        (shared,) = registry.shared.values()
        assert len(shared.leases) == 2
        assert one(con, "SELECT x FROM t") == other.execute("SELECT x FROM t").get
        assert len([t for t in threading.enumerate() if t.name.startswith("litevfs-poll")]) == 1
    wait_until(lambda: registry.shared == {}, "an end")


@pytest.mark.parametrize("switch", ["parameter", "library"])
def test_a_cache_that_connections_share_is_never_one_of_two_replicas_or_two_states(small, request, switch):
    """SQLite takes files of one name for one file then, and never opens the second one."""
    primary, script = small
    query, shared = "SELECT * FROM t", "&cache=shared"
    if switch == "library":
        switch_all = Library(None)._handle.sqlite3_enable_shared_cache
        switch_all(1)
        request.addfinalizer(lambda: switch_all(0))
        shared = ""
    primary.commit("INSERT INTO t VALUES(2)")
    with Script() as other, Primary(other.writer) as another:
        another.commit("CREATE TABLE t(id INTEGER PRIMARY KEY); INSERT INTO t VALUES(77)")
        litevfs.register_stdlib()
        urls = f"{quote(script.url)}&txid=1", quote(script.url), quote(other.url), quote(script.url)
        uris = [f"file:x.db?vfs=litestream&replica_url={url}{shared}" for url in urls]
        connections = [sqlite3.connect(uri, uri=True) for uri in uris]
        try:
            found = [connection.execute(query).fetchall() for connection in connections]
        finally:
            for connection in connections:
                connection.close()
        newest = primary.rows(query)
        assert found == [primary.rows(query, 1), newest, another.rows(query), newest]


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_a_connection_that_is_dropped_lets_the_replica_go(small):
    _, script = small
    con = litevfs.connect_stdlib(script.url)
    cursor = con.execute("SELECT * FROM t")
    del con, cursor
    gc.collect()
    wait_until(lambda: registry.shared == {}, "an end")


def test_64_threads_each_with_a_connection_of_its_own(small):
    primary, script = small
    primary.commit(fill("INSERT INTO t SELECT value", 2, 3000))

    def read(_: int) -> set[object]:
        with opened(script.url, poll_interval="5ms") as con:
            return {one(con, "SELECT sum(x) FROM t") for _ in range(5)}

    assert in_threads(64, read) == [{3000 * 3001 // 2}] * 64


def test_one_connection_serves_threads_that_take_turns(small):
    primary, script = small
    primary.commit(fill("INSERT INTO t SELECT value", 2, 3000))
    turn = threading.Lock()
    with opened(script.url, check_same_thread=False) as con:

        def read(_: int) -> object:
            with turn:
                return one(con, "SELECT sum(x) FROM t")

        assert in_threads(8, read) == [3000 * 3001 // 2] * 8


def test_a_forked_child_reads_and_closes_its_parents_connection(small):
    primary, script = small
    with opened(script.url, poll_interval="5ms") as con:
        assert one(con, "SELECT count(*) FROM t") == 1
        child = os.fork()
        if child == 0:
            try:
                ok = one(con, "SELECT count(*) FROM t") == 1
                con.close()
                os._exit(0 if ok else 3)
            finally:
                os._exit(4)
        assert os.waitpid(child, 0)[1] == 0
        primary.commit("INSERT INTO t VALUES(2)")
        litevfs.wait_for(con, 2)
        assert one(con, "SELECT count(*) FROM t") == 2


def test_opening_and_closing_leaves_nothing(small):
    _, script = small
    for _ in range(50):  # the check that every test ends with counts threads and descriptors
        litevfs.connect_stdlib(script.url).close()
    wait_until(lambda: registry.shared == {}, "an end")


def test_a_variable_of_sqlites_is_reached_by_its_address_and_few_are_remembered():
    places, numbers = Places(ctypes.c_int64), (ctypes.c_int64 * 1000)()
    for _ in range(2):
        for i in range(1000):
            places[ctypes.addressof(numbers) + 8 * i].value = i
            assert len(places) <= 64
    assert list(numbers) == list(range(1000))
