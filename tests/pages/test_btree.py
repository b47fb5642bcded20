"""What a B-tree page says: right for sound pages, nothing or any hint for damaged ones, and never an error."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litevfs.pages.btree import (
    INTERIOR_INDEX,
    INTERIOR_TABLE,
    LEAF_INDEX,
    LEAF_TABLE,
    parse_index_entries,
    parse_interior,
)
from litevfs.pages.watcher import Watcher
from tests.pages.test_watcher import PAGE_SIZE, TABLE_ROOT, indexed_pages


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[int, bytes]:
    path: Path = tmp_path_factory.mktemp("btree") / "t.db"
    return indexed_pages(path, 3000)


def ask(pgno: int, page: bytes) -> None:
    """All that may be asked of a page."""
    interior = parse_interior(pgno, page)
    if interior is not None and interior.is_table:
        for rowid in (-(1 << 63), -1, 0, 1, 1 << 40, (1 << 63) - 1):
            assert interior.child_for(rowid) in interior.children
    parse_index_entries(page)


def test_the_keys_of_an_interior_page_are_read_whatever_their_size():
    rowids = [
        -(1 << 63),
        -1,
        0,
        127,
        128,
        1 << 14,
        1 << 21,
        (1 << 35) + 5,
        1 << 49,
        (1 << 56) - 1,
        1 << 56,
        (1 << 63) - 1,
    ]
    assert {len(_varint(rowid)) for rowid in rowids} == {1, 2, 3, 4, 6, 8, 9}
    cells = [(100 + i).to_bytes(4, "big") + _varint(rowid) for i, rowid in enumerate(rowids)]
    page, end = bytearray(PAGE_SIZE), PAGE_SIZE
    page[0], page[3:5] = INTERIOR_TABLE, len(cells).to_bytes(2, "big")
    for i, cell in enumerate(cells):
        end -= len(cell)  # the first one ends with the page
        page[end : end + len(cell)] = cell
        page[12 + 2 * i : 14 + 2 * i] = end.to_bytes(2, "big")
    interior = parse_interior(2, bytes(page))
    assert interior is not None
    assert interior.keys == rowids
    assert [interior.child_for(rowid) for rowid in rowids] == interior.children[:-1]


def test_what_an_interior_page_says_is_shared_while_it_is_in_use_and_by_none_that_differs(sound):
    page = sound[TABLE_ROOT]
    interior = parse_interior(TABLE_ROOT, page)
    assert interior is not None
    assert parse_interior(9, bytes(bytearray(page))) is interior
    child = interior.children[0]
    for changed in (page[:8] + (child + 1).to_bytes(4) + page[12:], bytes(100) + page):
        other = parse_interior(1 if changed[0] == 0 else 9, changed)
        assert other is not interior
    gone = weakref.ref(interior)
    del interior
    assert gone() is None


def _varint(value: int) -> bytes:
    """Source: https://www.sqlite.org/fileformat2.html#varint."""
    value %= 1 << 64
    if value >= 1 << 56:
        return bytes(0x80 | value >> shift & 0x7F for shift in range(57, 7, -7)) + bytes([value & 0xFF])
    groups = [value >> shift & 0x7F for shift in range(0, 56, 7)]
    size = max((i + 1 for i, group in enumerate(groups) if group), default=1)
    return bytes([0x80 | group for group in groups[size - 1 : 0 : -1]] + [groups[0]])


@pytest.mark.parametrize("distance", range(1, 14))
@pytest.mark.parametrize("kind", [INTERIOR_TABLE, INTERIOR_INDEX])
def test_a_cell_pointer_into_the_last_bytes_of_an_interior_page_is_no_error(kind, distance):
    page = bytearray(b"\xff" * PAGE_SIZE)
    page[0] = kind
    page[3:5] = (1).to_bytes(2, "big")
    page[12:14] = (PAGE_SIZE - distance).to_bytes(2, "big")
    ask(2, bytes(page))


_edits = st.lists(st.tuples(st.one_of(st.integers(0, 40), st.integers(0, PAGE_SIZE - 1)), st.integers(0, 255)))


@pytest.mark.slow
@settings(max_examples=150)
@given(st.data(), st.sampled_from([INTERIOR_TABLE, INTERIOR_INDEX, LEAF_INDEX, LEAF_TABLE, 0]), _edits)
def test_damaged_pages_are_hints_at_most(sound, data, kind, edits):
    pgno = data.draw(st.sampled_from(sorted(sound)))
    page = bytearray(sound[pgno])
    page[0] = kind or page[0]
    for place, byte in edits:
        page[place] = byte
    ask(1, bytes(page))
    ask(2, bytes(page))


@settings(max_examples=50)
@given(st.binary(min_size=PAGE_SIZE, max_size=PAGE_SIZE), st.sampled_from([2, 5, 10, 13]))
def test_noise_is_a_hint_at_most(noise, kind):
    ask(2, bytes([kind]) + noise[1:])


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_a_watcher_of_damaged_pages_goes_on(sound, data):
    """Children that are their own parents, or none, rowids out of order: plans may be wrong, and nothing else."""
    interior = [pgno for pgno, page in sound.items() if page[0] in {INTERIOR_TABLE, INTERIOR_INDEX}]
    pages = dict(sound)
    for pgno in interior:
        page = bytearray(pages[pgno])
        for place, byte in data.draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4)):
            page[place] = byte
        pages[pgno] = bytes(page)
    watcher = Watcher(200)
    for pgno in data.draw(st.lists(st.sampled_from([*interior, TABLE_ROOT, *range(2, 80)]), max_size=60)):
        planned = watcher.before_read(pgno)
        planned += watcher.after_read(pgno, pages[pgno])
        for page_number in planned[:20]:
            if watcher.awaited([page_number]) and page_number in pages:
                watcher.learn(page_number, pages[page_number])
