"""A database whose page size changes (PRAGMA page_size, VACUUM): Litestream goes on, and so does every reader."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
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
    (shared,) = registry.shared.values()
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


def test_a_local_file_follows_and_its_readers_see_the_new_pages(world, tmp_path):
    script, before, after = world
    with (
        litevfs.follow(script.url, tmp_path / "copy.db", poll_interval="5ms") as followed,
        closing(sqlite3.connect(tmp_path / "copy.db")) as reader,
    ):
        assert reader.execute(QUERY).fetchall() == before.rows(QUERY)
        after.upload()
        after.commit("CREATE TABLE later AS SELECT count(*) AS n FROM t")
        followed.wait_for(4, 20)
        assert reader.execute(QUERY).fetchall() == after.rows(QUERY)
        assert reader.execute("SELECT n FROM later").fetchall() == [(400,)]
        assert reader.execute("PRAGMA page_size").fetchall() == [(16384,)]
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_subscribers_and_diffs_see_the_rows_on_both_sides(world):
    script, _, after = world
    seen: list[int] = []
    with litevfs.subscribe(script.url, seen.append, tables=["t"], poll_interval="5ms"):
        after.upload()
        after.commit("UPDATE t SET x = 'z' WHERE id = 5")
        wait_until(lambda: 4 in seen, "the transactions")
    with litevfs.diff(script.url, 2, 4) as diff:
        changes = {change.new["id"]: change for change in diff}
    assert len(changes) == 400
    assert changes[5].new["x"] == "z"
    with litevfs.diff(script.url, 3, 4) as diff:
        assert [change.new for change in diff] == [{"id": 5, "x": "z"}]
