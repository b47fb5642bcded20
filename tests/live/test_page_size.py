"""A database whose page size changes (PRAGMA page_size, VACUUM): Litestream goes on, and so does every reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import litevfs
from litevfs.live.registry import registry
from litevfs.maintenance.compaction import compact_level
from litevfs.maintenance.compaction import snapshot as store_snapshot
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, one, rows, wait_until

FILL = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) INSERT INTO t SELECT i, {} FROM n"
QUERY = "SELECT count(*), sum(length(x)), max(x) FROM t"


@pytest.fixture
def world() -> Iterator[tuple[Script, Primary, Primary]]:
    """A replica at TXID 2, and the primary that goes on from there with pages of another size; TXID 3 is its VACUUM."""
    with (
        Script(block_size=1 << 16, lists_levels=True, reads_named=True) as script,
        Primary(script.writer) as before,
        Primary(script.writer, page_size=16384) as after,
    ):
        before.commit("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
        before.commit(FILL.format("printf('%0500d', i)"))
        after.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
        after.run(FILL.format("printf('%0700d', i)"))
        after.run("VACUUM")
        yield script, before, after


@pytest.mark.parametrize(
    ("connect", "options", "level"),
    [
        (litevfs.connect, {}, 0),
        (litevfs.connect, {"hydration_enabled": True, "cache_size": 0}, 1),
        (litevfs.connect, {"verify": True}, 9),
        (litevfs.connect_stdlib, {}, 9),
        (litevfs.connect_stdlib, {"hydration_enabled": True, "cache_size": 0}, 0),
    ],
)
def test_an_open_reader_goes_on_in_the_new_pages(world, connect: Any, options: dict[str, Any], level: int):
    script, before, after = world
    reader, pinned = (connect(script.url, poll_interval="5ms", **options) for _ in range(2))
    pinned.execute("BEGIN")
    for connection in (reader, pinned):
        assert connection.execute(QUERY).fetchall() == before.rows(QUERY)
    (shared,) = registry._shared.values()
    if level:
        after.compact(level, 1, 3)
        before.delete(0)  # so that the reader looks at other levels at once
    else:
        after.upload()
    reader.execute("PRAGMA litestream_poll").fetchall()
    assert shared.replica.snapshot.txid == 3
    assert reader.execute(QUERY).fetchall() == after.rows(QUERY)
    assert reader.execute("PRAGMA page_size").fetchall() == [(16384,)]
    assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    if not level:
        assert pinned.execute(QUERY).fetchall() == before.rows(QUERY)
    pinned.execute("COMMIT")
    for _ in range(2):
        after.commit("UPDATE t SET x = x || 'y' WHERE id % 7 = 0")
        wait_until(lambda: reader.execute(QUERY).fetchall() == after.rows(QUERY), "what came later")
    assert pinned.execute(QUERY).fetchall() == after.rows(QUERY)
    assert shared.replica.health.state(0.005) == "current"
    for connection in (reader, pinned):
        connection.close()


def test_both_sides_can_be_opened_and_compacted(world):
    script, before, after = world
    after.upload()
    after.commit("UPDATE t SET x = 'z' WHERE id = 5")
    with connected(script.url, txid=2) as then, connected(script.url) as now:
        assert rows(then, QUERY) == before.rows(QUERY)
        assert rows(now, QUERY) == after.rows(QUERY)
        assert (one(then, "PRAGMA page_size"), one(now, "PRAGMA page_size")) == (4096, 16384)
        client = script.writer
        compact_level(client, 1)
        store_snapshot(client)
        for level in (1, 9):
            assert [file.max_txid for file in client.list_files(level)] == [4]
        before.delete(0)
        assert rows(now, QUERY) == after.rows(QUERY)
    with connected(script.url) as later:
        assert rows(later, QUERY) == after.rows(QUERY)
