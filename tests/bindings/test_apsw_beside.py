"""What lies beside a replica on one connection: temporary files, sorters, attached databases, copies."""

from __future__ import annotations

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
from litevfs.errors import OptionError
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, one, rows

ORDERS = Path(__file__).parents[1] / "fixtures" / "orders"
FILL = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) "
    "INSERT INTO t SELECT i, hex(randomblob(100)) FROM n"
)


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


@pytest.mark.slow
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


@pytest.mark.slow
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
    primary, script = small
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
    primary, script = small
    with connected(script.url) as con:
        con.execute("VACUUM INTO ?", (f"file:{tmp_path}/copy.db?vfs={apsw.vfs_names()[0]}",))
    copy = apsw.Connection(str(tmp_path / "copy.db"))
    assert rows(copy, "SELECT * FROM t") == primary.rows("SELECT * FROM t")
    copy.close()


@pytest.mark.parametrize("sql", ["VACUUM INTO {}", "ATTACH {} AS own"])
def test_an_ordinary_file_is_refused_with_the_words_that_work(small, tmp_path, monkeypatch, sql):
    primary, script = small
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


# --- writable beside a replica ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["':memory:'", "''", "'file:{folder}/results.db?vfs={vfs}&mode=rwc'"])
def test_a_database_attached_to_a_replica_is_writable(small, tmp_path, where):
    primary, script = small
    with connected(script.url, poll_interval=0) as con:
        con.execute("ATTACH " + where.format(folder=tmp_path, vfs=apsw.vfs_names()[0]) + " AS own")
        con.execute("CREATE TABLE own.results AS SELECT x * 10 AS y FROM t")
        primary.commit("INSERT INTO t VALUES(2)")
        one(con, "PRAGMA litestream_poll")
        with con:
            con.execute("INSERT INTO own.results SELECT x * 10 FROM t WHERE x > 1")
        assert rows(con, "SELECT x, y FROM t JOIN own.results ON y = 10 * x ORDER BY x") == [(1, 10), (2, 20)]
        with pytest.raises(apsw.ReadOnlyError):
            con.execute("INSERT INTO main.t SELECT y FROM own.results")
    if "results.db" in where:
        with closing(apsw.Connection(str(tmp_path / "results.db"))) as kept:
            assert rows(kept, "SELECT y FROM results ORDER BY y") == [(10,), (20,)]


def test_two_files_beside_a_replica_are_written_in_one_transaction(small, tmp_path, monkeypatch):
    _, script = small
    monkeypatch.chdir(tmp_path)  # SQLite's super-journal lies beside the main database, which has no folder here
    with connected(script.url, poll_interval=0) as con:
        for name in ("one", "two"):
            con.execute(f"ATTACH 'file:{tmp_path}/{name}.db?vfs={apsw.vfs_names()[0]}&mode=rwc' AS {name}")
        con.execute("BEGIN; CREATE TABLE one.a AS SELECT * FROM t; CREATE TABLE two.b AS SELECT * FROM t; COMMIT")
        assert rows(con, "SELECT * FROM a, b") == [(1, 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.db", "two.db"]


def test_temporary_tables_are_writable_and_nothing_of_the_replica_is(small):
    primary, script = small
    with connected(script.url) as con:
        con.execute("CREATE TEMP TABLE kept AS SELECT * FROM t; INSERT INTO kept VALUES(7)")
        assert rows(con, "SELECT * FROM kept") == [(1,), (7,)]
        assert con.readonly("main")
        with closing(apsw.Connection(":memory:")) as source:
            source.execute("CREATE TABLE mine(x)")
            with pytest.raises(apsw.ReadOnlyError), con.backup("main", source, "main") as backup:
                backup.step()
        assert con.pragma("journal_mode", "wal") == "delete"
        with closing(apsw.Connection(":memory:")) as target:
            with target.backup("main", con, "main") as backup:
                backup.step()
            assert rows(target, "SELECT * FROM t") == primary.rows("SELECT * FROM t")
        con.execute("PRAGMA query_only = 1")
        with pytest.raises(apsw.ReadOnlyError):
            con.execute("INSERT INTO kept VALUES(8)")
        assert rows(con, "SELECT * FROM t") == primary.rows("SELECT * FROM t")
