from __future__ import annotations

import time
import tracemalloc
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.errors import LTXFormatError
from litevfs.ltx import Header, PageIndex, decode_page_index, encode_page_index, validate_page_index
from litevfs.ltx.format import MAX_FRAME_SIZE
from litevfs.ltx.page_index import PageOrder, encode_entries_of_frames
from tests.ltx.reference import varint


def plain(entries, size: int | None = None) -> bytes:
    data = b"".join(varint(value) for entry in entries for value in entry) + b"\0"
    return data + (len(data) if size is None else size).to_bytes(8, "big")


def framed(varints: bytes) -> bytes:
    return varints + len(varints).to_bytes(8, "big")


def columns(index: PageIndex) -> list[tuple[int, int, int]]:
    return list(zip(index.pgnos.tolist(), index.offsets.tolist(), index.sizes.tolist(), strict=True))


def make(entries) -> PageIndex:
    pgnos, offsets, sizes = zip(*entries, strict=True) if entries else ((), (), ())
    return PageIndex(np.array(pgnos, np.uint32), np.array(offsets, np.uint64), np.array(sizes, np.uint32))


def around(bits: int):
    """Numbers of up to `bits` bits, those where a varint grows by a byte more often than chance has it."""
    borders = [n for shift in range(7, bits + 1, 7) for n in ((1 << shift) - 1, 1 << shift) if n < 1 << bits]
    return st.one_of(st.sampled_from([*borders, (1 << bits) - 1]), st.integers(0, (1 << bits) - 1))


ENTRY = st.tuples(around(32).filter(bool), around(64), around(32))


@given(st.lists(ENTRY, max_size=50))
def test_index_is_read_and_written_as_by_a_plain_loop(entries):
    data = plain(entries)
    index = decode_page_index(data)
    assert columns(index) == entries
    assert len(index) == len(entries)
    assert columns(decode_page_index(memoryview(data))) == entries
    assert encode_page_index(make(entries)) == data


@given(st.binary(max_size=60))
def test_any_varint_bytes_are_refused_or_have_this_one_encoding(data: bytes):
    data = framed(data)
    try:
        index = decode_page_index(data)
    except LTXFormatError:
        return
    assert encode_page_index(index) == data


@given(st.lists(st.sampled_from([0, 1, 0x7F, 0x80, 0x81, 0xFF]), max_size=40))
def test_any_bytes_at_the_borders_of_a_varint_are_refused_or_have_this_one_encoding(values):
    data = framed(bytes([*values, 0]))
    try:
        index = decode_page_index(data)
    except LTXFormatError:
        return
    assert encode_page_index(index) == data


NINE = b"\xff" * 9


@pytest.mark.plan("L28", "K10")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "needs 9 bytes"),
        (bytes(8), "needs 9 bytes"),
        (bytes(9), "says it has 0 bytes"),
        (plain([(1, 100, 50)], size=2**64 - 1), "says it has"),
        (framed(b"\1"), "terminating zero"),
        (framed(b"\x80\0"), "terminating zero"),
        (framed(b"\1\1\0"), "within an entry"),
        (framed(b"\1\0"), "within an entry"),
        (framed(b"\0\0\0\0"), "out of range"),
        (framed(b"\0" + b"\1\1\1" + b"\1\1" + b"\0"), "out of range"),
        (framed(varint(2**32) + b"\1\1\0"), "out of range"),
        (framed(b"\1\1" + varint(2**32) + b"\0"), "out of range"),
        (framed(b"\1\x80\0\1\0"), "longer than it needs"),
        (framed(b"\1" + NINE + b"\2\1\0"), "more than 64 bits"),
        (framed(b"\1" + NINE + b"\xff\1\1\0"), "more than 64 bits"),
        (framed(b"\1" + b"\x80" * 1000 + b"\1\1\0"), "more than 64 bits"),
        (framed(b"\1\1" + b"\x80" * (3 << 20) + b"\1\0"), "over-long|more than 64 bits"),
    ],
)
def test_malformed_index_is_refused(data: bytes, message: str):
    with pytest.raises(LTXFormatError, match=message):
        decode_page_index(data)


def test_largest_offset_is_read():
    assert columns(decode_page_index(framed(b"\1" + NINE + b"\1\1\0"))) == [(1, 2**64 - 1, 1)]


def million() -> PageIndex:
    sizes = np.random.default_rng(1).integers(300, 4000, 1_000_000, np.uint32)
    ends = np.cumsum(sizes, dtype=np.uint64) + np.uint64(100)
    return PageIndex(np.arange(1, 1_000_001, dtype=np.uint32), ends - sizes, sizes)


@pytest.mark.plan("L04")
@pytest.mark.parametrize("count", [0, 1, 2, 16, 17, 40])  # few are encoded in another way than many
@pytest.mark.parametrize("start", [100, 127, 2**35])
def test_entries_of_frames_follow_each_other_from_the_start_on(count: int, start: int):
    pgnos, sizes = [1 + 5 * n * n for n in range(count)], [60 + 97 * n for n in range(count)]
    expected = b"".join(
        varint(pgno) + varint(start + sum(sizes[:n])) + varint(sizes[n]) for n, pgno in enumerate(pgnos)
    )
    assert encode_entries_of_frames(array("I", pgnos), array("I", sizes), start) == expected


@pytest.mark.slow
def test_a_million_entries_take_a_fraction_of_a_second_and_little_memory():
    index = million()
    data = encode_page_index(index)
    times = []
    for _ in range(3):
        started = time.thread_time()
        decoded = decode_page_index(data)
        times.append(time.thread_time() - started)
    assert min(times) < 0.3
    tracemalloc.start()
    decode_page_index(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * 16 * len(index)
    for name in ("pgnos", "offsets", "sizes"):
        assert np.array_equal(getattr(decoded, name), getattr(index, name))
    assert decoded.pgnos.nbytes + decoded.offsets.nbytes + decoded.sizes.nbytes == 16 * len(index)


def test_arrays_are_read_only():
    index = decode_page_index(plain([(1, 100, 50)]))
    for column in (index.pgnos, index.offsets, index.sizes):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 7


def test_page_is_found_by_its_number():
    index = make([(2, 100, 50), (4, 150, 50), (2**32 - 1, 200, 50)])
    assert [index.find(pgno) for pgno in (1, 2, 3, 4, 5, 2**32 - 1, 2**32, 0)] == [
        None,
        0,
        None,
        1,
        None,
        2,
        None,
        None,
    ]


def header(**fields) -> Header:
    return Header(**{"page_size": 4096, "commit": 9, "min_txid": 5, "max_txid": 5, "timestamp_ms": 0, **fields})


SOUND = [(2, 100, 50), (4, 150, 7), (9, 157, MAX_FRAME_SIZE)]
END = 157 + MAX_FRAME_SIZE


def test_sound_index_passes():
    validate_page_index(make(SOUND), header(), END)
    validate_page_index(make([]), header(), 100)
    validate_page_index(make([]), header(commit=0, min_txid=1), 100)


@pytest.mark.plan("L28")
@pytest.mark.parametrize(
    ("entries", "end", "message"),
    [
        ([], 101, "empty"),
        ([(2, 99, 50)], 149, "starts at byte 99"),
        ([(2, 2**64 - 50, 100)], 50, "starts at byte"),
        ([(2, 100, 6)], 106, "frames of 6"),
        ([(2, 100, 0)], 100, "frames of 0"),
        ([(2, 100, MAX_FRAME_SIZE + 1)], 101 + MAX_FRAME_SIZE, "frames of"),
        ([(2, 100, 50), (3, 151, 50)], 201, "back to back"),
        ([(2, 100, 50), (3, 149, 50)], 199, "back to back"),
        ([(2, 100, 50), (3, 100, 50)], 150, "back to back"),
        ([(2, 100, 50)], 149, "ends at byte 150"),
        ([(2, 100, 50)], 151, "ends at byte 150"),
        ([(2, 100, 50), (2, 150, 50)], 200, "ascend"),
        ([(3, 100, 50), (2, 150, 50)], 200, "ascend"),
        ([(0, 100, 50)], 150, "ascend"),
        ([(10, 100, 50)], 150, "above commit 9"),
    ],
)
def test_unsound_index_is_refused(entries, end: int, message: str):
    with pytest.raises(LTXFormatError, match=message):
        validate_page_index(make(entries), header(), end)


def index_of(pgnos) -> tuple[PageIndex, int]:
    pgnos = np.array(pgnos, np.uint32)
    return (
        PageIndex(pgnos, 100 + 20 * np.arange(len(pgnos), dtype=np.uint64), np.full(len(pgnos), 20, np.uint32)),
        100 + 20 * len(pgnos),
    )


LOCK = 16385
"""The lock page of pages of 65536 bytes: byte 2**30 is its first."""


@pytest.mark.plan("L18")
@pytest.mark.parametrize("commit", [LOCK - 1, LOCK, LOCK + 1, LOCK + 5])
def test_snapshot_holds_every_page_but_the_lock_page(commit: int):
    snapshot = header(page_size=65536, commit=commit, min_txid=1)
    pgnos = [pgno for pgno in range(1, commit + 1) if pgno != LOCK]
    validate_page_index(*_with(index_of(pgnos), snapshot))
    _add_all(snapshot, pgnos)
    for wrong in (pgnos[1:], pgnos[:-1], [*pgnos[:700], *pgnos[701:]], [*pgnos, commit + 1], sorted([*pgnos, LOCK])):
        if wrong != pgnos:
            with pytest.raises(LTXFormatError):
                validate_page_index(*_with(index_of(wrong), snapshot))
            with pytest.raises(LTXFormatError):
                _add_all(snapshot, wrong)


@pytest.mark.plan("L18")
@pytest.mark.parametrize("page_size", [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
def test_lock_page_is_refused_for_every_page_size(page_size: int):
    lock = 2**30 // page_size + 1
    update = header(page_size=page_size, commit=lock + 9)
    for pgnos in ([lock - 1, lock + 1], [lock + 1], [lock - 1]):
        validate_page_index(*_with(index_of(pgnos), update))
        _add_all(update, pgnos)
    for pgnos in ([lock], [lock - 1, lock, lock + 1]):
        with pytest.raises(LTXFormatError, match="lock page"):
            validate_page_index(*_with(index_of(pgnos), update))
        with pytest.raises(LTXFormatError, match="lock page"):
            _add_all(update, pgnos)


def _with(index: tuple[PageIndex, int], header: Header) -> tuple[PageIndex, Header, int]:
    return index[0], header, index[1]


def _add_all(header: Header, pgnos) -> None:
    order = PageOrder(header)
    for pgno in pgnos:
        order.add(pgno)
    order.end()


@given(st.lists(st.integers(0, 8), max_size=8), st.integers(0, 8), st.booleans())
def test_order_page_by_page_and_as_a_whole_agree(pgnos, commit: int, is_snapshot: bool):
    file = header(commit=commit, min_txid=1 if is_snapshot else 2)
    expected = sorted(set(pgnos)) == pgnos and all(1 <= pgno <= commit for pgno in pgnos)
    if is_snapshot:
        expected = pgnos == list(range(1, commit + 1))
    for check in (lambda: validate_page_index(*_with(index_of(pgnos), file)), lambda: _add_all(file, pgnos)):
        try:
            check()
        except LTXFormatError:
            assert not expected
        else:
            assert expected
