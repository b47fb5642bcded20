"""Which tables may have changed between two states: never "no" for one that did, and "no" for the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from random import Random

import apsw
import pytest

import litevfs
from litevfs.errors import OptionError
from litevfs.live.registry import registry
from litevfs.operations.changed_sides import TableFilter
from litevfs.operations.key_orders import declared_key_order
from litevfs.options import Options
from litevfs.replica_clients.file import FileReplicaClient
from tests.primary import Primary
from tests.support import primary_at, wait_until

TABLES = ("t", "w", "big", "other")


@pytest.fixture
def primary(url: str) -> Iterator[Primary]:
    with primary_at(url) as primary:
        primary.commit(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, x); CREATE INDEX i ON t (x);"
            "CREATE TABLE w (k PRIMARY KEY, v) WITHOUT ROWID; CREATE TABLE big (x); CREATE TABLE other (x)"
        )
        yield primary


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_table_whose_rows_differ_is_always_named(primary, url, seed):
    random = Random(seed)
    lease = registry.acquire(Options.collect({}, {"replica_url": url, "poll_interval": 0}))
    try:
        replica = lease.replica
        old = replica.open(5.0)
        quiet = 0
        for _ in range(40):
            before = {name: primary.con.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES}
            n = random.randrange(1, 30)
            statement = random.choice(
                (
                    f"INSERT INTO t (x) SELECT randomblob(200) FROM (SELECT 1 UNION SELECT 2), t LIMIT {n}",
                    "INSERT INTO t (x) VALUES (randomblob(300))",
                    f"UPDATE t SET x = {n} WHERE id % 3 = 1",
                    f"DELETE FROM t WHERE id % 9 = {n % 9}",
                    f"INSERT OR REPLACE INTO w VALUES ({n}, randomblob(50))",
                    f"INSERT INTO big VALUES (zeroblob({n * 1000}))",
                    "UPDATE big SET x = CAST(zeroblob(length(x) - 4) || randomblob(4) AS BLOB)",
                    f"INSERT INTO other VALUES ({n})",
                    "VACUUM",
                )
            )
            primary.commit(statement, may_change_nothing=True)
            replica.refresh()
            new = replica.snapshot
            assert new is not None
            for name in TABLES:
                is_named = TableFilter([name])(replica, old, new)
                differs = primary.con.execute(f"SELECT * FROM {name}").fetchall() != before[name]
                assert is_named or not differs, (statement, name)
                quiet += not is_named
            old = new
        assert quiet > 40
    finally:
        registry.release(lease)


def test_a_subscription_to_tables_is_called_for_these_alone(primary, url):
    calls: list[int] = []
    with litevfs.subscribe(url, calls.append, tables=["T"], poll_interval="5ms"):
        for number in range(5):
            primary.commit(f"INSERT INTO other VALUES ({number})")
        mine = primary.commit("INSERT INTO t VALUES (77, 1)")
        wait_until(lambda: calls and calls[-1] >= mine, "the call for t")
        assert len(calls) == 1
        dropped = primary.commit("DROP TABLE t")
        wait_until(lambda: calls[-1] >= dropped, "the call for the drop")


def test_a_subscription_to_a_table_that_does_not_exist_names_the_nearest(primary, url):
    primary.commit("CREATE VIEW orders_view AS SELECT * FROM other; CREATE VIRTUAL TABLE words USING fts5(body)")
    for name, hint in (("othr", "did you mean other"), ("zzz", "tables: t, w, big, other, orders_view")):
        with pytest.raises(OptionError, match=rf"no table {name} in the state 0+2; hint: {hint}"):
            litevfs.subscribe(url, print, tables=["t", name])
    litevfs.subscribe(url, print, tables=["Orders_View", "words", "OTHER"]).close()


_KEYS = {
    "plain": "CREATE TABLE wr (k PRIMARY KEY, v) WITHOUT ROWID",
    "descending": "CREATE TABLE wr (v, k TEXT COLLATE NOCASE, PRIMARY KEY (k DESC, v)) WITHOUT ROWID",
    "long text": f"CREATE TABLE wr (k PRIMARY KEY, v /* {'x' * 9000} */) WITHOUT ROWID",
}


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
@pytest.mark.parametrize("sql", _KEYS.values(), ids=_KEYS)
def test_other_tables_and_indexes_are_told_from_one_without_rowid(encoding, sql, tmp_path):
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
    with closing(apsw.Connection(str(tmp_path / "app.db"))) as connection:
        connection.execute(f"PRAGMA encoding = '{encoding}'; PRAGMA journal_mode = WAL; {sql}").fetchall()
        connection.execute("CREATE TABLE p (x, y); CREATE INDEX pi ON p (x, y)")
        connection.execute("CREATE TABLE other_wr (k PRIMARY KEY, v) WITHOUT ROWID")
        for table in ("wr (k, v)", "p", "other_wr"):
            connection.execute(f"{numbers} INSERT INTO {table} SELECT 'k' || i, i FROM n")
        with litevfs.Replicator(str(tmp_path / "app.db"), str(tmp_path / "replica")) as replicator:
            replicator.sync()
            lease = registry.acquire(
                Options.collect({}, {"replica_url": (tmp_path / "replica").as_uri(), "poll_interval": 0})
            )
            try:
                old = lease.replica.open(5.0)
                for statement, is_of_wr in (
                    ("UPDATE p SET x = x || 'z' WHERE y % 100 = 1", False),
                    ("INSERT INTO other_wr VALUES ('k5000', 1)", False),
                    ("UPDATE other_wr SET v = 0 WHERE v = 7", False),
                    ("UPDATE wr SET v = 9999 WHERE k = 'k1000'", True),
                    ("DELETE FROM wr WHERE k = 'k1999'", True),
                    ("INSERT INTO wr (k, v) VALUES ('zzz', 1)", True),
                    ("DELETE FROM wr", True),
                ):
                    connection.execute(statement)
                    replicator.sync()
                    lease.replica.refresh()
                    new = lease.replica.snapshot
                    assert new is not None
                    assert TableFilter(["WR"])(lease.replica, old, new) is is_of_wr, statement
                    old = new
            finally:
                registry.release(lease)


def test_the_order_of_a_table_that_needs_a_function_of_the_application_is_not_known():
    table = "CREATE TABLE t (k PRIMARY KEY, CHECK ({}(k))) WITHOUT ROWID"
    assert declared_key_order(table.format("length"), "utf-8")
    assert declared_key_order(table.format("mine"), "utf-8") is None


@pytest.mark.parametrize("before", ["", "CREATE TABLE t (k PRIMARY KEY) WITHOUT ROWID; "])
def test_a_schema_that_does_more_than_make_a_table_does_nothing(before, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bool(declared_key_order(before, "utf-8")) == bool(before)
    assert declared_key_order(f"{before}ATTACH 'f.db' AS f; CREATE TABLE f.t (x)", "utf-8") is None
    assert not list(tmp_path.iterdir())


def test_a_subscription_to_a_table_without_rowid_is_called_for_it_alone(primary, url):
    primary.commit("CREATE TABLE w2 (k PRIMARY KEY, v) WITHOUT ROWID")
    calls: list[int] = []
    with litevfs.subscribe(url, calls.append, tables=["w"], poll_interval="5ms"):
        for number in range(5):
            primary.commit(f"INSERT INTO t (x) VALUES ({number})")  # and into its index
            primary.commit(f"INSERT INTO w2 VALUES ({number}, 1)")
        mine = primary.commit("INSERT INTO w VALUES (77, 1)")
        wait_until(lambda: calls and calls[-1] >= mine, "the call for w")
        assert len(calls) == 1


def test_a_collation_of_the_application_counts_any_index_page(tmp_path):
    with Primary(FileReplicaClient(tmp_path)) as primary:
        primary.con.create_collation("mine", lambda a, b: (a > b) - (a < b))
        primary.commit("CREATE TABLE wr (k TEXT COLLATE mine PRIMARY KEY, v) WITHOUT ROWID; CREATE TABLE p (x UNIQUE)")
        lease = registry.acquire(Options.collect({}, {"replica_url": tmp_path.as_uri(), "poll_interval": 0}))
        try:
            replica = lease.replica
            old = replica.open(5.0)
            primary.commit("INSERT INTO p VALUES (1)")
            replica.refresh()
            new = replica.snapshot
            assert new is not None
            assert TableFilter(["wr"])(replica, old, new)
        finally:
            registry.release(lease)
            primary.client.close()


def test_what_is_no_ordinary_table_may_always_have_changed(primary, url):
    primary.commit("CREATE VIRTUAL TABLE f USING fts5 (body)")
    calls: list[int] = []
    with litevfs.subscribe(url, calls.append, tables=["f"], poll_interval="5ms"):
        txid = primary.commit("INSERT INTO f VALUES ('words')")
        wait_until(lambda: calls and calls[-1] >= txid, "the call for f")
