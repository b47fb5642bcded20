from __future__ import annotations

import time
import tracemalloc
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.errors import LTXFormatError
from litevfs.ltx import PageIndex, decode_page_index, encode_page_index
from litevfs.ltx.page_index import encode_entries_of_frames
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
