"""What a B-tree page says: right for sound pages, nothing or any hint for damaged ones, and never an error."""

from __future__ import annotations

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
@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([INTERIOR_TABLE, INTERIOR_INDEX, LEAF_INDEX, LEAF_TABLE, 0]), _edits)
def test_damaged_pages_are_hints_at_most(sound, data, kind, edits):
    pgno = data.draw(st.sampled_from(sorted(sound)))
    page = bytearray(sound[pgno])
    page[0] = kind or page[0]
    for place, byte in edits:
        page[place] = byte
    ask(1, bytes(page))
    ask(2, bytes(page))


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=PAGE_SIZE, max_size=PAGE_SIZE), st.sampled_from([2, 5, 10, 13]))
def test_noise_is_a_hint_at_most(noise, kind):
    ask(2, bytes([kind]) + noise[1:])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
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
            if watcher.awaits(page_number) and page_number in pages:
                watcher.learn(page_number, pages[page_number])
