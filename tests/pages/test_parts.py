"""Interior pages without some of their children: SQLite reads from there on, or up to there."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from litevfs.pages.btree import parse_interior
from litevfs.pages.parts import from_child_on, up_to_child
from tests.pages.test_stand_ins import database

PAGE_SIZE = 512


@pytest.mark.parametrize("by", ["table", "index"])
@pytest.mark.parametrize("place", ["first", "second", "middle", "last"])
@pytest.mark.parametrize("is_descending", [False, True])
def test_a_reader_begins_where_another_one_has_come_to(tmp_path, by, place, is_descending):
    path = tmp_path / "t.db"
    pages, table, index = database(path, PAGE_SIZE, 1)
    sql = (
        "SELECT id FROM t NOT INDEXED ORDER BY id" if by == "table" else "SELECT id FROM t INDEXED BY i ORDER BY k, id"
    )
    order = f"{sql} DESC".replace("k,", "k DESC,") if is_descending else sql
    with closing(sqlite3.connect(path)) as connection:
        rows = [row for (row,) in connection.execute(order)]
    way, pgno = [], table if by == "table" else index
    while (interior := parse_interior(pgno, pages[pgno])) is not None:
        last = len(interior.children) - 1
        position = {"first": 0, "second": 1, "middle": last // 2, "last": last}[place]
        way.append((pgno, position))
        pgno = interior.children[position]
    part = up_to_child if is_descending else from_child_on
    changed = {**pages, **{above: part(pages[above], position) for above, position in way}}
    path.write_bytes(b"".join(changed[number] for number in sorted(changed)))
    with closing(sqlite3.connect(path)) as connection:
        found = [row for (row,) in connection.execute(order)]
    assert len(way) > 1
    assert len(found) < len(rows) or place == ("last" if is_descending else "first")
    # A page that is left with one child has it twice, with the entry of an index between them.
    count, most_more = len(set(found)), len(way)
    assert set(rows[len(rows) - count + most_more :]) <= set(found)
    assert len(set(found) - set(rows[len(rows) - count :])) <= most_more


def test_a_page_up_to_its_last_child_is_the_page(tmp_path):
    pages, table, _ = database(tmp_path / "t.db", PAGE_SIZE, 1)
    interior = parse_interior(table, pages[table])
    assert interior is not None
    assert up_to_child(pages[table], len(interior.children) - 1) == pages[table]
    assert from_child_on(pages[table], 0) == pages[table]
