"""Pages that stand in for others: SQLite takes them, finds the rows an index names, and passes an index's."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest

from litevfs.pages.btree import LEAF_INDEX, LEAF_TABLE, parse_interior, varint
from litevfs.pages.made_pages import (
    from_child_on,
    index_leaf,
    max_rows,
    table_leaf,
    two_ways,
    up_to_child,
)
from litevfs.pages.stand_ins import StandIns, Tree

pytestmark = pytest.mark.slow

ROWS = 3000
SMALL_PAGE = 512
NUMBERS = range(1 << 20, 1 << 21)
"""Of pages below stand-ins."""


def database(path: Path, page_size: int, step: int, rows: int = ROWS) -> tuple[dict[int, bytes], int, int]:
    """The pages of a table with an index, and both roots; rowids are `step` apart. Written to `path`, too."""
    data, roots = made(page_size, step, rows)
    path.write_bytes(data)
    return {i // page_size + 1: data[i : i + page_size] for i in range(0, len(data), page_size)}, *roots


@cache
def made(page_size: int, step: int, rows: int) -> tuple[bytes, list[int]]:
    """A database, which many tests change, and the roots of its table and index."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(
            f"PRAGMA page_size={page_size}; CREATE TABLE t (id INTEGER PRIMARY KEY, k, s); CREATE INDEX i ON t (k);"
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) "
            f"INSERT INTO t SELECT i * {step}, i % 500, hex(randomblob(30)) FROM n; VACUUM"
        )
        roots = [root for (root,) in connection.execute("SELECT rootpage FROM sqlite_schema ORDER BY type DESC")]
        return connection.serialize(), roots


def below(pages: dict[int, bytes], pgno: int) -> list[int]:
    """The pages of a tree, in order."""
    interior = parse_interior(pgno, pages[pgno])
    return [pgno, *(page for child in (interior.children if interior else ()) for page in below(pages, child))]


def rowids_of(leaf: bytes) -> list[int]:
    """Those of a table's leaf."""
    pointers = [int.from_bytes(leaf[8 + 2 * i : 10 + 2 * i]) for i in range(int.from_bytes(leaf[3:5]))]
    return [varint(leaf, varint(leaf, pointer)[1])[0] for pointer in pointers]


def replace(pages: dict[int, bytes], pgno: int, stand_ins: StandIns) -> None:
    """Put a stand-in in the place of a page, and after all pages those that it leads to."""
    pages[pgno] = stand_ins.make(pgno)
    number = len(pages) + 1
    while made := stand_ins.made(number):
        pages[number] = made[1]
        number += 1
    pages[1] = pages[1][:28] + len(pages).to_bytes(4) + pages[1][32:]


@pytest.mark.parametrize("page_size", [512, 4096])
@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_sqlite_goes_on_with_leaves_that_stand_in(tmp_path, page_size, step, place):
    path = tmp_path / "t.db"
    pages, table, index = database(path, page_size, step)
    numbers = range(len(pages) + 1, len(pages) + 10_000)
    trees = {table: Tree(table, True, True), index: Tree(index, False, True)}
    stand_ins = StandIns(page_size, trees, pages.get, numbers)
    replaced = []
    for root, leaf in ((index, LEAF_INDEX), (table, LEAF_TABLE)):
        of_tree = below(pages, root)
        for pgno in of_tree:
            stand_ins.learn(pgno, pages[pgno])
        leaves = [pgno for pgno in of_tree if pages[pgno][0] == leaf]
        replaced.append(leaves[int((len(leaves) - 1) * (place if leaf == LEAF_TABLE else 0.5))])
    for pgno in replaced[1:]:
        assert stand_ins.tree_of(pgno) == Tree(table, True, True)
        replace(pages, pgno, stand_ins)
    path.write_bytes(b"".join(pages.values()))
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT id, k, s FROM t INDEXED BY i WHERE k BETWEEN 0 AND 499").fetchall()
        assert [row[0] // step for row in sorted(found)] == list(range(1, ROWS + 1))
        assert 0 < sum(row[1:] == (row[1], None) for row in found) < ROWS
    pages[replaced[0]] = stand_ins.make(replaced[0])
    path.write_bytes(b"".join(pages.values()))
    with closing(sqlite3.connect(path)) as connection:
        counts = [
            connection.execute("SELECT count(*) FROM t INDEXED BY i WHERE k = ?", (k,)).fetchone()[0]
            for k in range(500)
        ]
        assert ROWS - page_size // 2 <= sum(counts) < ROWS
        assert max(counts) <= ROWS // 500 + 1


def test_a_page_without_a_place_has_as_many_rowids_as_there_is_room_for(tmp_path):
    pages, table, _ = database(tmp_path / "t.db", 512, 1)
    stand_ins = StandIns(512, {table: Tree(table, True, False)}, pages.get, NUMBERS)
    assert int.from_bytes(stand_ins.make(table)[3:5]) == max_rows(512)


@pytest.mark.parametrize("page_size", [512, 4096])
@pytest.mark.parametrize("step", [1, 100, 100_000_000])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_sqlite_finds_the_rows_that_an_index_names_below_an_interior_page_that_is_missing(
    tmp_path, page_size, step, place
):
    path = tmp_path / "t.db"
    rows = ROWS if page_size == SMALL_PAGE else 20 * ROWS
    pages, table, index = database(path, page_size, step, rows)
    trees = {table: Tree(table, True, False), index: Tree(index, False, True)}
    stand_ins = StandIns(page_size, trees, pages.get, range(len(pages) + 1, len(pages) + 100_000), dense=5 * ROWS)
    for root in (index, table):
        for pgno in below(pages, root):
            if root == index or pgno == table:
                stand_ins.learn(pgno, pages[pgno])
    top = parse_interior(table, pages[table])
    assert top is not None
    children = top.children
    missing = children[int((len(children) - 1) * place)]
    replace(pages, missing, stand_ins)
    path.write_bytes(b"".join(pages.values()))
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT id, s FROM t INDEXED BY i WHERE k BETWEEN 0 AND 499").fetchall()
    assert sorted(row[0] // step for row in found) == list(range(1, rows + 1))
    assert 0 < sum(text is None for _, text in found) < rows


def test_neighbours_are_known_by_the_page_above(tmp_path):
    pages, table, _ = database(tmp_path / "t.db", 512, 1)
    stand_ins = StandIns(512, {table: Tree(table, True, False)}, pages.get, NUMBERS)
    for pgno in below(pages, table):
        stand_ins.learn(pgno, pages[pgno])
    interior = next(parsed for page in below(pages, table)[1:] if (parsed := parse_interior(page, pages[page])))
    first, second, third = interior.children[:3]
    assert stand_ins.is_next_to(first, second)
    assert stand_ins.is_next_to(second, first)
    assert not stand_ins.is_next_to(first, third)
    assert not stand_ins.is_next_to(first, 0)


def test_a_leaf_has_rowids_of_any_size(tmp_path):
    path = tmp_path / "t.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("PRAGMA page_size=4096; CREATE TABLE t (id INTEGER PRIMARY KEY, a, b)")
    edges = [1 << 7 * size for size in range(1, 9)]
    rowids = sorted({0, 1, -1, -5, -(1 << 63), (1 << 63) - 1, *edges, *(edge - 1 for edge in edges)})
    data = path.read_bytes()
    path.write_bytes(data[:4096] + table_leaf(4096, rowids))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM t").fetchall() == [(rowid, None, None) for rowid in rowids]
        for rowid in rowids:
            assert connection.execute("SELECT id FROM t WHERE id = ?", (rowid,)).fetchone() == (rowid,)


@pytest.mark.parametrize("page_size", [512, 4096])
def test_the_first_leaf_of_an_index_has_an_entry_whose_row_is_there(tmp_path, page_size):
    path = tmp_path / "t.db"
    pages, table, index = database(path, page_size, 1)
    stand_ins = StandIns(
        page_size, {table: Tree(table, True, True), index: Tree(index, False, True)}, pages.get, NUMBERS
    )
    of_tree = below(pages, index)
    for pgno in of_tree:
        stand_ins.learn(pgno, pages[pgno])
    first = next(pgno for pgno in of_tree if pages[pgno][0] == LEAF_INDEX)
    pages[first] = stand_ins.make(first)
    path.write_bytes(b"".join(pages.values()))
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT id, k, s FROM t INDEXED BY i ORDER BY k").fetchall()
        assert len({row[0] for row in found}) == len(found) - 1 < ROWS - 1


def test_an_entry_that_is_not_known_has_a_rowid(tmp_path):
    path = tmp_path / "t.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "PRAGMA page_size=512; CREATE TABLE t (id INTEGER PRIMARY KEY, k); CREATE INDEX i ON t (k)"
        )
    stand_ins = StandIns(512, {3: Tree(3, False, True)}, lambda _: None, NUMBERS)
    path.write_bytes(path.read_bytes()[:1024] + stand_ins.make(3))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT id FROM t INDEXED BY i ORDER BY k").fetchall() == [(0,)]


@pytest.mark.parametrize("auto_vacuum", ["NONE", "FULL"])
@pytest.mark.parametrize("missing", ["the first part", "the pointer map", "all of the row"])
def test_a_large_row_has_its_size_and_the_rows_after_it_follow(tmp_path, auto_vacuum, missing):
    path = tmp_path / "t.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            f"PRAGMA page_size=512; PRAGMA auto_vacuum={auto_vacuum}; CREATE TABLE t (id INTEGER PRIMARY KEY, a, b);"
            "INSERT INTO t VALUES (1, 'x', zeroblob(20000)), (2, 'y', zeroblob(20000))"
        )
        has_map = auto_vacuum == "FULL"
        root = connection.execute("SELECT rootpage FROM sqlite_schema").fetchone()[0]
    data = path.read_bytes()
    pages = {i // 512 + 1: data[i : i + 512] for i in range(0, len(data), 512)}
    stand_ins = StandIns(512, {root: Tree(root, True, True)}, pages.get, NUMBERS)
    maps = {pgno for pgno in pages if has_map and (pgno - 2) % (512 // 5 + 1) == 0}
    parts = [pgno for pgno in pages if pgno > root and pgno not in maps]
    for pgno in {"the first part": parts[:1], "the pointer map": sorted(maps), "all of the row": parts}[missing]:
        pages[pgno] = stand_ins.make(pgno)
    path.write_bytes(b"".join(pages.values()))
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT id, a, b FROM t").fetchall()
    assert [(number, text, len(blob)) for number, text, blob in found] == [(1, "x", 20000), (2, "y", 20000)]


@pytest.mark.parametrize("page_size", [512, 4096])
def test_the_leaves_of_a_tree_are_known_once_its_interior_pages_are(tmp_path, page_size):
    pages, table, index = database(tmp_path / "t.db", page_size, 1)
    stand_ins = StandIns(
        page_size, {table: Tree(table, True, True), index: Tree(index, False, True)}, pages.get, NUMBERS
    )
    assert stand_ins.leaves_of(table) == [table]  # for all that is known
    for root, leaf in ((table, LEAF_TABLE), (index, LEAF_INDEX)):
        of_tree = below(pages, root)
        interior = [pgno for pgno in of_tree if pages[pgno][0] != leaf]
        for pgno in interior[:-1]:
            stand_ins.learn(pgno, pages[pgno])
        if len(interior) > 2:
            assert stand_ins.leaves_of(root) == [interior[-1]]
        stand_ins.learn(interior[-1], pages[interior[-1]])
        assert stand_ins.leaves_of(root) == [pgno for pgno in of_tree if pages[pgno][0] == leaf]


@pytest.mark.parametrize("by", ["table", "index"])
@pytest.mark.parametrize("place", ["first", "second", "middle", "last"])
@pytest.mark.parametrize("is_descending", [False, True])
def test_a_reader_begins_where_another_one_has_come_to(tmp_path, by, place, is_descending):
    path = tmp_path / "t.db"
    pages, table, index = database(path, SMALL_PAGE, 1)
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


def way_down(pages: Mapping[int, bytes], root: int, place: str) -> tuple[list[tuple[bytes, int]], int]:
    """The interior pages, and positions in them, from a root down to the leaf at a place; and that leaf's number."""
    way, pgno = [], root
    while (interior := parse_interior(pgno, pages[pgno])) is not None:
        last = len(interior.children) - 1
        position = {"first": 0, "second": 1, "middle": last // 2, "last": last}[place]
        way.append((pages[pgno], position))
        pgno = interior.children[position]
    return way, pgno


@pytest.mark.parametrize("place", ["first", "second", "middle", "last"])
@pytest.mark.parametrize("operator", [">", ">=", "<", "<="])
@pytest.mark.parametrize("has_gone_on", [False, True])
def test_so_does_one_that_begins_with_a_search_for_a_rowid(tmp_path, place, operator, has_gone_on):
    path = tmp_path / "t.db"
    pages, table, _ = database(path, SMALL_PAGE, 1)
    is_descending = operator.startswith("<")
    way, leaf = way_down(pages, table, place)
    of_leaf = rowids_of(pages[leaf])
    begin = {True: of_leaf[-2], False: of_leaf[1]}[is_descending]
    if has_gone_on:
        begin = ROWS if is_descending else 1
    numbers = range(len(pages) + 1, len(pages) + len(way) + 3)
    new_root, aliases = two_ways(way, numbers, begin, is_descending=is_descending)
    changed = {**pages, numbers[0]: table_leaf(SMALL_PAGE, [10**9]), **aliases, table: new_root}
    changed[1] = pages[1][:28] + len(changed).to_bytes(4) + pages[1][32:]
    path.write_bytes(b"".join(changed[number] for number in sorted(changed)))
    order = "DESC" if is_descending else "ASC"
    with closing(sqlite3.connect(path)) as connection:
        found = [
            row for (row,) in connection.execute(f"SELECT id FROM t WHERE id {operator} {begin} ORDER BY id {order}")
        ]
        looked_up = [
            row for row in range(1, ROWS + 1) if connection.execute("SELECT 1 FROM t WHERE id = ?", (row,)).fetchone()
        ]
    step = -1 if is_descending else 1
    first = begin + (0 if "=" in operator else step)
    if has_gone_on and not (of_leaf[0] <= begin <= of_leaf[-1]):
        first = of_leaf[-1 if is_descending else 0]
    assert list(dict.fromkeys(found[: found.index(10**9)])) == list(
        range(first, 0 if is_descending else ROWS + 1, step)
    )
    assert set(range(1, ROWS + 1)) - set(looked_up) <= {begin}


@pytest.mark.parametrize("by", ["table", "index"])
@pytest.mark.parametrize("place", ["first", "second", "middle", "last"])
@pytest.mark.parametrize("is_descending", [False, True])
def test_a_scan_begins_at_a_place_in_a_tree_in_which_look_ups_find_all(tmp_path, by, place, is_descending):
    path = tmp_path / "t.db"
    pages, table, index = database(path, SMALL_PAGE, 1)
    root = table if by == "table" else index
    column, source = ("id", "t NOT INDEXED") if by == "table" else ("k", "t INDEXED BY i")
    rows_of = f"SELECT {column} FROM {source} ORDER BY {column} {'DESC' if is_descending else 'ASC'}"
    with closing(sqlite3.connect(path)) as connection:
        rows = [row for (row,) in connection.execute(rows_of)]
    way, _ = way_down(pages, root, place)
    numbers = range(len(pages) + 1, len(pages) + len(way) + 3)
    new_root, aliases = two_ways(way, numbers, is_descending=is_descending)
    end = {numbers[0]: table_leaf(SMALL_PAGE, [10**9]) if by == "table" else index_leaf(SMALL_PAGE, b"\x03\x00\x08")}
    changed = {**pages, **end, **aliases, root: new_root}
    changed[1] = pages[1][:28] + len(changed).to_bytes(4) + pages[1][32:]
    path.write_bytes(b"".join(changed[number] for number in sorted(changed)))
    with closing(sqlite3.connect(path)) as connection:
        found = [row for (row,) in connection.execute(rows_of)]
        for row, count in Counter(rows).items():
            assert connection.execute(f"SELECT count(*) FROM {source} WHERE {column} = ?", (row,)).fetchone() == (
                count,
            )
    assert found[-len(rows) :] == rows  # the look-ups' way, which a scan does not come to
    all_of = dict.fromkeys(rows)
    part = [row for row in dict.fromkeys(found[: -len(rows)]) if row in all_of]
    assert len(way) > 1
    assert len(set(part) - set(list(all_of)[-len(part) :])) <= (
        len(way) if by == "index" else 0
    )  # entries between pages
    is_first = place == ("last" if is_descending else "first")
    assert (len(part) == len(all_of)) if is_first else (0 < len(part) < len(all_of))


def test_a_page_up_to_its_last_child_is_the_page(tmp_path):
    pages, table, _ = database(tmp_path / "t.db", SMALL_PAGE, 1)
    interior = parse_interior(table, pages[table])
    assert interior is not None
    assert up_to_child(pages[table], len(interior.children) - 1) == pages[table]
    assert from_child_on(pages[table], 0) == pages[table]
