"""Which tables may have changed between two states: never "no" for one that did, and "no" for the others."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from random import Random

import pytest

import litevfs
from litevfs.live.registry import registry
from litevfs.operations.changed_sides import TableFilter
from litevfs.options import Options
from litevfs.replica_clients.memory import MemoryReplicaClient, drop_memory_store, memory_store
from tests.primary import Primary
from tests.support import wait_until

TABLES = ("t", "w", "big", "other")


@pytest.fixture
def url() -> Iterator[str]:
    name = f"tables-{uuid.uuid4().hex[:12]}"
    memory_store(name)
    yield f"memory://{name}"
    drop_memory_store(name)


@pytest.fixture
def primary(url: str) -> Iterator[Primary]:
    with Primary(MemoryReplicaClient(memory_store(url.removeprefix("memory://")))) as primary:
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


def test_what_is_no_ordinary_table_may_always_have_changed(primary, url):
    primary.commit("CREATE VIRTUAL TABLE f USING fts5 (body)")
    calls: list[int] = []
    with litevfs.subscribe(url, calls.append, tables=["f"], poll_interval="5ms"):
        txid = primary.commit("INSERT INTO f VALUES ('words')")
        wait_until(lambda: calls and calls[-1] >= txid, "the call for f")
