from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.errors import LTXFormatError
from litevfs.ltx.format import (
    CHECKSUM_FLAG,
    HEADER_SIZE,
    MAX_FRAME_SIZE,
    TRAILER_SIZE,
    Header,
    Trailer,
    is_valid_page_size,
    lock_pgno,
)
from tests.ltx.reference import PAGE_SIZES

WAL = {"wal_offset": 32, "wal_size": 4152, "wal_salt1": 0xAABBCCDD, "wal_salt2": 0x11223344}
HEADER = Header(4096, 7, 2, 5, 1_700_000_000_123, flags=0, pre_apply_checksum=CHECKSUM_FLAG | 9, node_id=77, **WAL)
# Put together by hand from the table of the format.
HEADER_BYTES = bytes.fromhex(
    "4c545831 00000000 00001000 00000007 0000000000000002 0000000000000005 0000018bcfe5687b 8000000000000009"
    "0000000000000020 0000000000001038 aabbccdd 11223344 000000000000004d" + "00" * 20
)


def test_header_is_packed_field_by_field():
    assert HEADER.pack() == HEADER_BYTES
    assert Header.unpack(HEADER_BYTES) == HEADER
    assert Header.unpack(memoryview(HEADER_BYTES + b"more")) == HEADER


U32, U64, I63 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1)


@st.composite
def headers(draw) -> Header:
    first, last = sorted([draw(U64.filter(bool)), draw(U64.filter(bool))])
    flags = draw(st.sampled_from([0, 2]))
    wal_offset = draw(I63)
    return Header(
        page_size=draw(st.sampled_from(PAGE_SIZES)),
        commit=draw(U32),
        min_txid=first,
        max_txid=last,
        timestamp_ms=draw(st.integers(-(2**63), 2**63 - 1)),
        flags=flags,
        pre_apply_checksum=draw(U64) | CHECKSUM_FLAG if flags == 0 and first > 1 else 0,
        wal_offset=wal_offset,
        wal_size=draw(I63) if wal_offset else 0,
        wal_salt1=draw(U32) if wal_offset else 0,
        wal_salt2=draw(U32) if wal_offset else 0,
        node_id=draw(U64),
    )


@given(headers())
def test_every_valid_header_survives_packing(header: Header):
    header.validate()
    assert len(header.pack()) == HEADER_SIZE
    assert Header.unpack(header.pack()) == header


@given(st.binary(max_size=HEADER_SIZE + 5))
def test_any_bytes_are_a_header_or_refused(data: bytes):
    for candidate in (data, b"LTX1" + data):
        try:
            header = Header.unpack(candidate)
        except LTXFormatError:
            continue
        assert header.pack() == candidate[:HEADER_SIZE]


@pytest.mark.plan("D14")
@pytest.mark.parametrize("txid", [2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1])
def test_largest_txids_survive_packing(txid: int):
    header = Header(512, 1, txid, 2**64 - 1, 0)
    assert Header.unpack(header.pack()) == header


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flags": 1}, "unknown flags 0x1"),
        ({"flags": 4}, "unknown flags 0x4"),
        ({"flags": 2}, "pre-apply checksum on a file without checksums"),
        ({"page_size": 0}, "page size 0"),
        ({"page_size": 256}, "page size 256"),
        ({"page_size": 4095}, "page size 4095"),
        ({"page_size": 131072}, "page size 131072"),
        ({"min_txid": 0}, "TXIDs"),
        ({"min_txid": 6}, "TXIDs"),
        ({"max_txid": 0}, "TXIDs"),
        ({"min_txid": 1}, "pre-apply checksum on a snapshot"),
        ({"pre_apply_checksum": 0}, "without its flag bit 63"),
        ({"pre_apply_checksum": 2**63 - 1}, "without its flag bit 63"),
        ({"wal_offset": -1}, "negative WAL offset"),
        ({"wal_size": -1}, "negative WAL offset"),
        ({"wal_offset": 0}, "without a WAL offset"),
        ({"wal_offset": 0, "wal_size": 0, "wal_salt2": 0}, "without a WAL offset"),
        ({"wal_offset": 0, "wal_size": 0, "wal_salt1": 0}, "without a WAL offset"),
    ],
)
def test_header_that_breaks_one_rule_is_refused(change: dict[str, int], message: str):
    header = dataclasses.replace(HEADER, **change)
    with pytest.raises(LTXFormatError, match=message):
        header.validate()
    with pytest.raises(LTXFormatError, match=message):
        Header.unpack(header.pack())


@pytest.mark.parametrize(
    "change",
    [{"commit": -1}, {"commit": 2**32}, {"max_txid": 2**64}, {"timestamp_ms": 2**63}, {"timestamp_ms": -(2**63) - 1}],
)
def test_number_that_does_not_fit_its_field_is_refused(change: dict[str, int]):
    with pytest.raises(LTXFormatError):
        dataclasses.replace(HEADER, **change).validate()


def test_refused_header_names_its_txids():
    with pytest.raises(LTXFormatError) as caught:
        dataclasses.replace(HEADER, page_size=1).validate()
    assert (caught.value.min_txid, caught.value.max_txid) == (2, 5)
    assert "0000000000000002-0000000000000005" in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 99])
def test_header_that_is_cut_is_refused(size: int):
    with pytest.raises(LTXFormatError, match=f"needs 100 bytes, got {size}"):
        Header.unpack(HEADER_BYTES[:size])


def test_other_magic_is_refused():
    with pytest.raises(LTXFormatError, match=r"not an LTX file: it starts with b'SQLi'.*hint: it is a SQLite database"):
        Header.unpack(b"SQLite format 3\0".ljust(100, b"\0"))


@pytest.mark.parametrize("position", [80, 99])
def test_reserved_bytes_must_be_zero(position: int):
    data = bytearray(HEADER_BYTES)
    data[position] = 1
    with pytest.raises(LTXFormatError, match="reserved bytes"):
        Header.unpack(bytes(data))


def test_snapshot_starts_with_txid_1():
    assert Header(512, 1, 1, 9, 0).is_snapshot
    assert not Header(512, 1, 2, 9, 0).is_snapshot


def test_checksums_are_kept_unless_flagged():
    assert not Header(512, 1, 1, 1, 0, flags=2).has_checksums
    assert Header(512, 1, 1, 1, 0, flags=0).has_checksums


def test_trailer_is_packed_field_by_field():
    trailer = Trailer(1, CHECKSUM_FLAG | 2)
    assert trailer.pack() == struct.pack(">QQ", 1, CHECKSUM_FLAG | 2)
    assert Trailer.unpack(trailer.pack()) == trailer


@pytest.mark.parametrize("size", [0, 15, 17])
def test_trailer_of_another_size_is_refused(size: int):
    assert size != TRAILER_SIZE
    with pytest.raises(LTXFormatError, match=f"needs 16 bytes, got {size}"):
        Trailer.unpack(bytes(size))


UNTRACKED, TRACKED, EMPTY = Header(512, 1, 1, 1, 0), Header(512, 1, 1, 1, 0, flags=0), Header(512, 0, 1, 1, 0, flags=0)
SOME = CHECKSUM_FLAG | 5


@pytest.mark.parametrize(
    ("header", "post"), [(UNTRACKED, 0), (TRACKED, SOME), (TRACKED, CHECKSUM_FLAG), (EMPTY, CHECKSUM_FLAG)]
)
def test_sound_trailer_passes(header: Header, post: int):
    Trailer(post, SOME).validate(header)


@pytest.mark.parametrize(
    ("header", "post", "file", "message"),
    [
        (UNTRACKED, 0, 5, "file checksum without its flag"),
        (UNTRACKED, 0, 0, "file checksum without its flag"),
        (UNTRACKED, SOME, SOME, "in a file without checksums"),
        (TRACKED, 0, SOME, "post-apply checksum without its flag"),
        (TRACKED, 5, SOME, "post-apply checksum without its flag"),
        (EMPTY, SOME, SOME, "empty database"),
    ],
)
def test_trailer_that_breaks_one_rule_is_refused(header: Header, post: int, file: int, message: str):
    with pytest.raises(LTXFormatError, match=message):
        Trailer(post, file).validate(header)


def test_page_sizes_are_the_eight_of_sqlite():
    assert [size for size in range(131073) if is_valid_page_size(size)] == PAGE_SIZES


@pytest.mark.plan("L18")
@pytest.mark.parametrize(
    ("page_size", "pgno"), [(512, 2097153), (1024, 1048577), (4096, 262145), (32768, 32769), (65536, 16385)]
)
def test_lock_page_holds_byte_2_to_the_30(page_size: int, pgno: int):
    assert lock_pgno(page_size) == pgno
    assert (pgno - 1) * page_size <= 2**30 < pgno * page_size


def test_largest_frame_is_the_lz4_bound_of_the_largest_page():
    # LZ4_compressBound in lz4.h: n + n / 255 + 16; the frame's headers come on top.
    assert MAX_FRAME_SIZE == 6 + 4 + 65536 + 65536 // 255 + 16
