"""Index leaves decoded all entries at once: what one entry after the other gives, for sound pages and for any others.

The references decode entry by entry, as SQLite's documentation of its file format says it, and share nothing with the
code under test.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import apsw
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from litevfs.pages.btree import INTERIOR_TABLE, LEAF_INDEX, parse_index_entries, parse_rowids
from litevfs.pages.patterns import IndexLeaf
from litevfs.pages.recall import LOOK_AROUND, _lead_to
from litevfs.pages.trees import KnownTrees

pytestmark = pytest.mark.slow

Entry = tuple[int, bytes, int]
"""Serial type and content of the first column, and the rowid."""

SIZES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)
"""Bytes by serial type (https://www.sqlite.org/fileformat2.html#record_format)."""


# --- the reference ----------------------------------------------------------------------------------------------------


def entries_one_by_one(page: bytes) -> list[Entry]:
    """The entries of an index leaf, up to one that overflows, lies partly outside or ends in no integer."""
    entries: list[Entry] = []
    count = min(int.from_bytes(page[3:5]), (len(page) - 8) // 2)
    for i in range(count):
        try:
            entry = one_entry(page, int.from_bytes(page[8 + 2 * i : 10 + 2 * i]))
        except IndexError:
            break
        if entry is None:
            break
        entries.append(entry)
    return entries


def one_entry(page: bytes, pointer: int) -> Entry | None:
    size, payload = varint(page, pointer)
    if payload + size > len(page):
        return None
    header, place = varint(page, payload)
    first, place = varint(page, place)
    last = -1
    while place < payload + header:
        last, place = varint(page, place)
    body, end = payload + header, payload + size
    key = page[body : body + content_size(first)]
    if last in {8, 9}:
        return first, key, last - 8
    if last not in {1, 2, 3, 4, 5, 6}:
        return None
    return first, key, int.from_bytes(page[end - content_size(last) : end], signed=True)


def content_size(serial_type: int) -> int:
    return (serial_type - 12) // 2 if serial_type >= 12 else SIZES[serial_type]


def varint(page: bytes, place: int) -> tuple[int, int]:
    value = 0
    for i in range(9):
        byte = page[place + i]
        if i == 8:
            value = value << 8 | byte
            return value - (1 << 64) if value >> 63 else value, place + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + i + 1
    raise AssertionError


def assert_same(page: bytes) -> int:
    """All of one page is what the reference says; how many entries that is."""
    expected = entries_one_by_one(page)
    entries = parse_index_entries(page)
    assert [(*entry.key, entry.rowid) for entry in entries] == expected
    assert [(*entry.key, entry.rowid) for entry in entries[::-1]] == expected[::-1]
    assert parse_rowids(page) == [rowid for _, _, rowid in expected]
    return len(expected)


# --- pages ------------------------------------------------------------------------------------------------------------


def encoded(number: int) -> bytes:
    """A varint, at times of more bytes than it needs: readers take these, too."""
    number %= 1 << 64
    if number >> 56:
        return bytes(number >> shift & 0x7F | 0x80 for shift in range(57, 7, -7)) + bytes([number & 0xFF])
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F | 0x80)
    return bytes(reversed(groups))


def serial(value: object) -> tuple[int, bytes]:
    match value:
        case None:
            return 0, b""
        case float():
            return 7, bytes(8)
        case bytes():
            return 12 + 2 * len(value), value
        case str():
            return 13 + 2 * len(value.encode()), value.encode()
        case 0 | 1:
            return 8 + int(value), b""
    assert isinstance(value, int)
    size = next(size for size in (1, 2, 3, 4, 6, 8) if -(1 << 8 * size - 1) <= value < 1 << 8 * size - 1)
    return SIZES.index(size), value.to_bytes(size, "big", signed=True)


def record(values: tuple[object, ...]) -> bytes:
    columns = [serial(value) for value in values]
    types = b"".join(encoded(type_) for type_, _ in columns)
    header = encoded(len(types) + (1 if len(types) < 127 else 2))
    return header + types + b"".join(content for _, content in columns)


def leaf(page_size: int, records: list[tuple[object, ...]]) -> bytes:
    """An index leaf with as many of the records as it has room for, written from its end as SQLite does."""
    page, end, count = bytearray(page_size), page_size, 0
    page[0] = LEAF_INDEX
    most = (page_size - 12) * 64 // 255 - 23
    for values in records:
        payload = record(values)
        kept = payload if len(payload) <= most else payload[: most // 2] + (77).to_bytes(4)  # the rest overflows
        cell = encoded(len(payload)) + kept
        if end - len(cell) < 10 + 2 * count:
            break
        end -= len(cell)
        page[end : end + len(cell)] = cell
        page[8 + 2 * count : 10 + 2 * count] = end.to_bytes(2)
        count += 1
    page[3:5] = count.to_bytes(2)
    return bytes(page)


integers = st.one_of(
    st.sampled_from([0, 1, 2, -1, 127, 128, -128, -129, 1 << 23, 1 << 31, -(1 << 47), 1 << 62, -(1 << 63)]),
    st.integers(-(1 << 63), (1 << 63) - 1),
)
values = st.one_of(st.none(), st.floats(), integers, st.text(max_size=90), st.binary(max_size=90))
long_ones = st.integers(60, 2500).map(lambda size: "x" * size)
few = st.lists(st.tuples(values, integers), max_size=30)
records = st.one_of(
    few,  # an index of one column
    st.lists(st.tuples(integers, integers), max_size=30),
    st.lists(st.tuples(values, values, values, integers), max_size=30),  # of more columns
    st.lists(st.lists(values, max_size=4).map(tuple), max_size=30),  # a table WITHOUT ROWID
    st.lists(st.tuples(st.one_of(values, long_ones), integers), max_size=30),  # some of which overflow
    few.map(lambda rows: [(*range(40), *row) for row in rows]),
    few.map(lambda rows: [*rows] * 20),
)
page_sizes = st.sampled_from([512, 1024, 4096, 65536])


@settings(max_examples=75)
@given(page_sizes, records)
def test_the_entries_of_any_leaf_are_those_that_one_after_the_other_gives(page_size, rows):
    assert_same(leaf(page_size, rows))


@settings(max_examples=75)
@given(page_sizes, records, st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12), st.integers(0, 60))
def test_so_are_those_of_a_damaged_page(page_size, rows, edits, near):
    page = bytearray(leaf(page_size, rows))
    for i, (place, byte) in enumerate(edits):
        end = min(len(page), near + 8) if i % 2 else len(page)
        page[int(place * (end - 1))] = byte
    assert_same(bytes(page))


@settings(max_examples=50)
@given(st.binary(max_size=700), st.integers(0, 40))
def test_so_are_those_of_noise_and_of_pages_that_are_too_short(noise, count):
    assert_same(noise)
    if len(noise) >= 8:
        pointers = b"".join((8 + 2 * count + place).to_bytes(2) for place in range(count))
        assert_same(bytes([LEAF_INDEX, 0, 0, 0, count, 0, 0, 0]) + pointers + noise)


ODD_BYTES = bytes([0, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 9, 10, 12, 13, 14, 24, 0x7F, 0x80, 0x81, 0x82, 0xFF])


def test_so_are_those_of_odd_entries():
    """Sizes that agree with nothing, numbers of nine bytes, headers that go on beyond their entry or the page."""
    first_is_minus_16 = bytes([12, 11, *b"\xff" * 8, 0xF0, 1, 5])
    assert assert_same(bytes([LEAF_INDEX, 0, 0, 0, 1, 0, 0, 0, 0, 10]) + first_is_minus_16 + bytes(20)) == 0
    random = Random(3)
    read = 0
    for _ in range(1500):
        content = bytes(random.choices(ODD_BYTES, k=random.choice((24, 40, 56))))
        for size in random.choices((1, 8, 9), k=2):
            start = random.randrange(len(content) - size)
            content = content[:start] + b"\xff" * size + content[start + size :]
        places = [14 + random.randrange(len(content)) for _ in range(3)]
        header = bytes([LEAF_INDEX, 0, 0, 0, 3, 0, 0, 0])
        read += assert_same(header + b"".join(place.to_bytes(2) for place in places) + content)
    assert read > 100


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_so_are_those_that_sqlite_writes(tmp_path: Path, page_size: int):
    path, random = tmp_path / "t.db", Random(page_size)
    connection = apsw.Connection(str(path))
    connection.execute(f"PRAGMA page_size={page_size}")
    connection.execute(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, n, s TEXT); CREATE INDEX t_n ON t (n); CREATE INDEX t_s ON t (s, n);"
        "CREATE TABLE w (s TEXT, n INTEGER, x, PRIMARY KEY (s, n)) WITHOUT ROWID; CREATE INDEX w_x ON w (x)"
    )
    with connection:
        for i in range(3000):
            rowid, text = random.choice((i, -i, i << 40, -i << 50)), "é" * random.choice((0, 1, 20, 63, 64, 65, 400))
            number = random.choice((None, 0, 1, i, -i, i / 7, str(i)))
            connection.execute("INSERT OR IGNORE INTO t VALUES (?, ?, ?)", (rowid, number, text))
            connection.execute("INSERT OR IGNORE INTO w VALUES (?, ?, ?)", (text, rowid, number))
    connection.close()
    data = path.read_bytes()
    pages = [data[start : start + page_size] for start in range(0, len(data), page_size)]
    assert sum(assert_same(page) for page in pages if page[0] == LEAF_INDEX) > 5000


# --- where entries lead ---------------------------------------------------------------------------------------------


def interior(keys: list[int], children: list[int], page_size: int = 4096) -> bytes:
    """An interior page of a table."""
    page, end = bytearray(page_size), page_size
    page[0], page[3:5], page[8:12] = INTERIOR_TABLE, len(keys).to_bytes(2), children[-1].to_bytes(4)
    for i, (key, child) in enumerate(zip(keys, children, strict=False)):
        cell = child.to_bytes(4) + encoded(key)
        end -= len(cell)
        page[end : end + len(cell)] = cell
        page[12 + 2 * i : 14 + 2 * i] = end.to_bytes(2)
    return bytes(page)


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.integers(-50, 50), min_size=1, max_size=9, unique=True), min_size=1, max_size=6),
    st.lists(st.integers(2, 30), min_size=60, max_size=60),
    st.lists(st.one_of(st.integers(-60, 60), st.sampled_from([-(1 << 63), (1 << 63) - 1])), max_size=40),
)
def test_the_ends_of_paths_are_those_of_each_path_though_interior_pages_form_circles(keys, children, rowids):
    trees = KnownTrees()
    for pgno, some in enumerate(keys, 2):
        first = 10 * (pgno - 2)
        trees.learn(pgno, interior(sorted(some), children[first : first + len(some) + 1]))
    for root in (2, 3, 40):
        ends, depths = trees.ends(root, np.array(rowids, np.int64))
        paths = [trees.path(root, rowid) for rowid in rowids]
        assert ends.tolist() == [path[-1] for path in paths]
        assert depths.tolist() == [len(path) for path in paths]


def led_along_one_by_one(targets: list[int], first: int, second: int) -> list[tuple[int, int]]:
    """The entries of page `first` after which one of page `second` comes soon, each with that one."""
    return [
        (i, targets.index(second, i + 1))
        for i, target in enumerate(targets)
        if target == first and second in targets[i + 1 : i + 1 + LOOK_AROUND]
    ]


apart = st.sampled_from([0, 1, 5, *range(LOOK_AROUND - 2, LOOK_AROUND + 2)]).map(lambda count: [9] * count)
targets = st.lists(st.one_of(apart, st.lists(st.integers(1, 3), max_size=3)), max_size=12).map(
    lambda parts: [target for part in parts for target in part]
)


@settings(max_examples=100)
@given(targets)
@example([1, *[9] * (LOOK_AROUND - 1), 2])
@example([1, *[9] * LOOK_AROUND, 2])
@example([2, *[9] * LOOK_AROUND, 1, 1, 2])
def test_a_leaf_is_led_along_by_the_nearest_entries_that_explain_two_reads(targets):
    page = leaf(65536, [(i // 2, i) for i in range(2, len(targets) + 2)])
    index_leaf = IndexLeaf(5, page, first=1, entries=parse_index_entries(page))
    entry = index_leaf.led_along(np.array(targets, np.int64), 2)
    rowids = list(range(2, len(targets) + 2))
    found = [
        (second - first, is_descending, first, second)
        for is_descending in (False, True)
        for first, second in led_along_one_by_one(targets[:: -1 if is_descending else 1], 1, 2)
    ]
    if found:
        _, is_descending, first, second = min(found)
        rowids = rowids[:: -1 if is_descending else 1]
        assert entry is not None
        assert (entry.rowid, index_leaf.position, index_leaf.end) == (rowids[first], second, second + 1)
        assert index_leaf.is_descending is is_descending
        assert index_leaf.entries[second].rowid == rowids[second]
        assert (index_leaf.key is not None) is (rowids[first] // 2 == rowids[second] // 2)
        return
    assert entry is None
    assert not index_leaf.is_descending
    assert [entry.rowid for entry in index_leaf.entries] == rowids


def lead_to_one_by_one(entries: list[int], leaves: list[range]) -> bool:
    def goes_on(place: int, following: list[range]) -> bool:
        if not following:
            return True
        near = range(place + 1, min(place + 1 + LOOK_AROUND, len(entries)))
        found = next((i for i in near if entries[i] in following[0]), None)
        return found is not None and goes_on(found, following[1:])

    return any(rowid in leaves[0] and goes_on(i, leaves[1:]) for i, rowid in enumerate(entries))


@pytest.mark.parametrize("order", [sorted, list], ids=["ranges that ascend", "any ranges"])
@settings(max_examples=75)
@given(targets, st.lists(st.integers(-1, 11), min_size=6, max_size=6))
@example([1, 2, *[9] * (LOOK_AROUND - 1), 3], [1, 2, 3, 1, 1, 1])
@example([1, 2, *[9] * LOOK_AROUND, 3], [1, 2, 3, 1, 1, 1])
@example([1, 3], [1, 1, 3, 1, 1, 1])
def test_entries_lead_to_leaves_as_one_after_the_other_says(order: Callable[[list[int]], list[int]], targets, bounds):
    starts = order(bounds[:3])
    leaves = [range(start, start + abs(more) % 3) for start, more in zip(starts, bounds[3:], strict=True)]
    if bounds[0] == 11:
        leaves[0] = range(-(1 << 63), 1 << 63)
    assert _lead_to(np.array(targets, np.int64), leaves) == lead_to_one_by_one(targets, leaves)
