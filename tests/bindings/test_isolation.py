"""One TXID per replica and read transaction, whatever shape the transaction has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from litevfs.replica_clients.memory import MemoryReplicaClient, drop_memory_store, memory_store
from tests.primary import Primary
from tests.support import connected, in_threads, one, rows, wait_until

_names = itertools.count()
PAIR = "SELECT (SELECT min(v) FROM a.t), (SELECT max(v) FROM a.t), (SELECT min(v) FROM b.t), (SELECT max(v) FROM b.t)"


@pytest.fixture
def two() -> Iterator[tuple[Primary, str, Primary, str]]:
    """Two replicas of a table with 300 rows, all of which have the value `v` of their last transaction."""
    names = [f"isolation-{next(_names)}" for _ in range(2)]
    with (
        Primary(MemoryReplicaClient(memory_store(names[0]))) as first,
        Primary(MemoryReplicaClient(memory_store(names[1]))) as second,
    ):
        for primary in (first, second):
            primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, v, pad)")
            primary.commit(
                "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 300) "
                "INSERT INTO t SELECT n, 0, hex(randomblob(200)) FROM s"
            )
        yield first, f"memory://{names[0]}", second, f"memory://{names[1]}"
    for name in names:
        drop_memory_store(name)


def bump(primary: Primary, value: int) -> None:
    primary.commit("UPDATE t SET v = ?", (value,))


@pytest.mark.plan("L06")
def test_two_attached_replicas_each_keep_their_state_through_one_transaction(two):
    first, first_url, second, second_url = two
    with connected(first_url) as con:
        for schema, url in (("a", first_url), ("b", second_url)):
            con.execute(f"ATTACH ? AS {schema}", (f"file:{schema}.db?replica_url={url}&poll_interval=5ms",))
        con.execute("BEGIN")
        assert rows(con, PAIR) == [(0, 0, 0, 0)]
        bump(first, 1)
        bump(second, 2)
        with connected(first_url, poll_interval="5ms") as one_more, connected(second_url) as another:
            wait_until(lambda: one(one_more, "SELECT max(v) FROM t") == 1)
            wait_until(lambda: one(another, "SELECT max(v) FROM t") == 2)
            assert rows(con, PAIR) == [(0, 0, 0, 0)]
            assert one(con, "SELECT count(*) FROM a.t JOIN b.t USING (id, v)") == 300
        con.execute("COMMIT")
        wait_until(lambda: rows(con, PAIR) == [(1, 1, 2, 2)])


@pytest.mark.plan("L06")
def test_a_statement_left_open_keeps_its_state_until_it_ends(two):
    first, url, _, _ = two
    with connected(url, poll_interval=0) as con:
        cursor = con.execute("SELECT v FROM t ORDER BY id")
        seen = [next(cursor)[0] for _ in range(10)]
        for value in range(1, 4):
            bump(first, value)
            with connected(url, poll_interval=0) as other:
                assert one(other, "SELECT max(v) FROM t") == value
        other_statement = one(con, "SELECT sum(v) FROM t")  # within the same read transaction
        seen += [row[0] for row in cursor]
        assert (len(seen), set(seen), other_statement) == (300, {0}, 0)
        one(con, "PRAGMA litestream_poll")
        assert rows(con, "SELECT DISTINCT v FROM t") == [(3,)]


@pytest.mark.plan("L01")
def test_threads_with_a_connection_each_see_whole_states_in_every_shape_of_query(two):
    first, url, _, _ = two
    queries = (
        "SELECT min(v), max(v) FROM t",
        "SELECT min(x.v), max(y.v) FROM t AS x JOIN t AS y ON y.id = 301 - x.id",
        "SELECT min(v), max(v) FROM (SELECT v FROM t ORDER BY pad LIMIT 250)",
        "SELECT (SELECT v FROM t WHERE id = 1), (SELECT v FROM t WHERE id = 300)",
    )

    def read(i: int) -> set[int]:
        seen = set()
        with connected(url, poll_interval="2ms") as con:
            while 12 not in seen:
                low, high = rows(con, queries[i % len(queries)])[0]
                assert low == high
                seen.add(low)
        return seen

    def work(i: int) -> set[int]:
        if i:
            return read(i)
        for value in range(1, 13):
            bump(first, value)
        return set()

    assert all(12 in seen for seen in in_threads(9, work)[1:])
