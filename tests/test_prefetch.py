"""What a connection will read next: plans that survive Ctrl-C at any moment."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from litevfs.btree import INTERIOR_TABLE
from litevfs.prefetch import Watcher
from tests.interrupts import interrupted_everywhere

PAGE_SIZE = 512


def interior_pages(path: Path, rows: int) -> dict[int, bytes]:
    """The table interior pages of a database of so many rows, by number."""
    connection = sqlite3.connect(path)
    connection.executescript(
        f"PRAGMA page_size={PAGE_SIZE}; CREATE TABLE t(id INTEGER PRIMARY KEY, s TEXT);"
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) "
        "INSERT INTO t SELECT i, hex(zeroblob(50)) FROM n"
    )
    connection.close()
    data = path.read_bytes()
    pages = {start // PAGE_SIZE + 1: data[start : start + PAGE_SIZE] for start in range(0, len(data), PAGE_SIZE)}
    return {pgno: page for pgno, page in pages.items() if pgno > 1 and page[0] == INTERIOR_TABLE}


def test_ctrl_c_at_any_moment_leaves_a_watcher_that_goes_on(tmp_path: Path):
    before, after = interior_pages(tmp_path / "before.db", 1000), interior_pages(tmp_path / "after.db", 2000)
    changed = {pgno for pgno in before if before[pgno] != after.get(pgno)}
    assert changed
    assert len(after) > 3

    def make() -> Watcher:
        watcher = Watcher(64)
        for pgno, page in before.items():
            watcher.after_read(pgno, page)
        return watcher

    def work(watcher: Watcher) -> None:
        for pgno in sorted(changed):
            watcher.after_read(pgno, after.get(pgno, bytes(PAGE_SIZE)))
            watcher.before_read(pgno + 1)
            watcher.before_read(pgno + 2)

    for watcher in interrupted_everywhere(make, work):
        for pgno in range(2, 400):
            watcher.before_read(pgno)
        for pgno, page in after.items():
            watcher.after_read(pgno, page)
