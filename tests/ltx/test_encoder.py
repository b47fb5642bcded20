from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path

import lz4.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litevfs.errors import LTXChecksumError, LTXFormatError
from litevfs.ltx import Encoder, Header, StreamDecoder, decode_file, encode_file
from litevfs.ltx.page_index import index_size_from_tail
from tests.ltx.reference import (
    BIT_63,
    PAGE_SIZES,
    File,
    block_frame,
    checksum_of_database,
    old_frame,
    page_of,
    snapshot_with_checksums,
)

ORDERS = Path(__file__).parents[1] / "fixtures" / "orders" / "replica" / "ltx" / "0"


def header_of(file: File) -> Header:
    return Header(
        page_size=file.page_size,
        commit=file.commit,
        min_txid=file.min_txid,
        max_txid=file.max_txid,
        timestamp_ms=file.timestamp_ms,
        flags=file.flags,
        pre_apply_checksum=file.pre,
    )


PAGES = [(pgno, page_of(pgno, 512)) for pgno in range(1, 10)]
SNAPSHOT = header_of(File(commit=9))
UPDATE = header_of(File(commit=9, min_txid=2, max_txid=2))


@pytest.mark.parametrize(
    "file",
    [
        File(),
        snapshot_with_checksums(),
        File(commit=0),
        File(commit=9, min_txid=4, max_txid=8, pages=PAGES[3:7:2]),
        File(commit=9, min_txid=4, max_txid=8, pages=PAGES[3:7:2], flags=0, pre=BIT_63 | 5, post=BIT_63 | 6),
    ],
)
def test_file_is_written_byte_by_byte_as_by_the_reference(file: File):
    assert encode_file(header_of(file), file.all_pages, file.post) == file.write()


@pytest.mark.slow
def test_page_index_waits_in_the_spool_and_not_in_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("litevfs.ltx.encoder._SPOOL_READ_BYTES", 1 << 12)
    monkeypatch.setattr("litevfs.ltx.encoder._ENTRIES_AT_ONCE", 64)
    pages = 20_000
    header = header_of(File(commit=pages))
    whole = encode_file(header, ((pgno, bytes(512)) for pgno in range(1, pages + 1)))
    index_bytes = index_size_from_tail(whole[-24:])
    with tempfile.TemporaryFile() as spool, tempfile.TemporaryFile() as file:
        encoder = Encoder(header, spool=spool)
        tracemalloc.start()
        try:
            file.write(encoder.begin())
            for pgno in range(1, pages + 1):
                file.write(encoder.page(pgno, bytes(512)))
            file.writelines(encoder.finish_in_parts())
            assert tracemalloc.get_traced_memory()[1] < index_bytes / 2 < spool.tell()
        finally:
            tracemalloc.stop()
        file.seek(0)
        assert file.read() == whole


@st.composite
def files(draw) -> File:
    """Files of all page sizes, both checksum modes, snapshots and updates, updates at the lock page too."""
    page_size = draw(st.sampled_from(PAGE_SIZES))
    lock = 2**30 // page_size + 1
    has_checksums = draw(st.booleans())
    fill = st.integers(0, 2).flatmap(
        lambda kind: (
            st.just(bytes(page_size))
            if kind == 0
            else st.integers(0, 99).map(lambda seed: page_of(1, page_size, seed))
            if kind == 1
            else st.randoms(use_true_random=False).map(lambda random: random.randbytes(page_size))
        )
    )
    if draw(st.booleans()):
        commit = draw(st.integers(0, 3))
        pages = [(pgno, draw(fill)) for pgno in range(1, commit + 1)]
        post = checksum_of_database(pages) if has_checksums else 0
        return File(
            page_size, commit, 1, draw(st.integers(1, 2**64 - 1)), 0 if has_checksums else 2, 0, post, pages=pages
        )
    numbers = st.one_of(st.integers(1, 9), st.integers(lock - 2, lock + 2), st.integers(1, 2**32 - 1))
    pgnos = sorted(draw(st.sets(numbers.filter(lambda pgno: pgno != lock), max_size=4)))
    commit = draw(st.integers(max(pgnos, default=1), 2**32 - 1))
    txids = sorted([draw(st.integers(2, 2**64 - 1)), draw(st.integers(2, 2**64 - 1))])
    checksum = st.integers(BIT_63, 2**64 - 1) if has_checksums else st.just(0)
    return File(
        page_size,
        commit,
        *txids,
        0 if has_checksums else 2,
        draw(checksum),
        draw(checksum),
        timestamp_ms=draw(st.integers(-(2**63), 2**63 - 1)),
        pages=[(pgno, draw(fill)) for pgno in pgnos],
    )


@pytest.mark.plan("L05", "L18")
@settings(max_examples=60)
@given(files())
def test_what_is_written_is_read_back(file: File):
    data = encode_file(header_of(file), file.all_pages, file.post)
    decoded = decode_file(data)
    assert decoded.header == header_of(file)
    assert list(decoded.pages()) == file.all_pages
    assert decoded.trailer.post_apply_checksum == file.post
    assert all(decoded.page(pgno) == page for pgno, page in file.all_pages)
    stream = StreamDecoder()
    assert stream.feed(data) == file.all_pages
    assert stream.finish() == decoded.trailer


def encoder_for(header: Header) -> Encoder:
    encoder = Encoder(header)
    encoder.begin()
    return encoder


@pytest.mark.parametrize(
    ("header", "pgnos", "message"),
    [
        (SNAPSHOT, [2], "page 2 of a snapshot comes where page 1"),
        (SNAPSHOT, [1, 3], "page 3 of a snapshot comes where page 2"),
        (SNAPSHOT, [1, 1], "page 1 comes after page 1"),
        (UPDATE, [0], "not within 1"),
        (UPDATE, [-1], "not within 1"),
        (UPDATE, [10], "commit 9"),
        (UPDATE, [3, 3], "page 3 comes after page 3"),
        (UPDATE, [5, 3], "page 3 comes after page 5"),
        (Header(512, 2**32 - 1, 2, 2, 0), [2097153], "lock page"),
    ],
)
def test_page_that_may_not_come_next_is_refused(header: Header, pgnos, message: str):
    encoder = encoder_for(header)
    for pgno in pgnos[:-1]:
        encoder.page(pgno, page_of(pgno, 512))
    with pytest.raises(LTXFormatError, match=message):
        encoder.page(pgnos[-1], page_of(0, 512))


@pytest.mark.parametrize("size", [0, 511, 513, 1024])
def test_page_of_another_size_is_refused(size: int):
    with pytest.raises(LTXFormatError, match=f"has {size} bytes instead of 512"):
        encoder_for(UPDATE).page(1, bytes(size))


@pytest.mark.parametrize("count", [0, 1, 8])
def test_snapshot_with_missing_pages_is_refused(count: int):
    with pytest.raises(LTXFormatError, match=f"ends before page {count + 1}, its commit is 9"):
        encode_file(SNAPSHOT, PAGES[:count])


def test_checksum_that_may_not_be_given_or_must_be_is_refused():
    with pytest.raises(LTXFormatError, match="without checksums"):
        encode_file(SNAPSHOT, PAGES, BIT_63)
    tracked = header_of(File(commit=9, flags=0))
    with pytest.raises(LTXFormatError, match="bit 63"):
        encode_file(tracked, PAGES)
    with pytest.raises(LTXChecksumError, match="database checksum"):
        encode_file(tracked, PAGES, BIT_63 | 1)
    with pytest.raises(LTXFormatError, match="empty database"):
        encode_file(header_of(File(commit=0, flags=0)), [], BIT_63 | 1)


def test_header_that_is_not_valid_is_refused():
    with pytest.raises(LTXFormatError, match="page size"):
        Encoder(Header(1000, 9, 1, 1, 0))


def test_calls_out_of_order_are_the_callers_mistake():
    encoder = Encoder(UPDATE)
    for call in (lambda: encoder.page(1, PAGES[0][1]), encoder.finish):
        with pytest.raises(RuntimeError, match=r"begin\(\) was not called"):
            call()
    encoder.begin()
    with pytest.raises(RuntimeError, match=r"begin\(\) was called before"):
        encoder.begin()
    encoder.finish()
    for call in (lambda: encoder.page(1, PAGES[0][1]), encoder.finish):
        with pytest.raises(RuntimeError, match=r"finish\(\) was called before"):
            call()
    with pytest.raises(RuntimeError, match=r"begin\(\) was called before"):
        encoder.begin()


@pytest.mark.parametrize("make", [block_frame, old_frame])
def test_frame_is_taken_over_as_it_is(make):
    encoder = Encoder(UPDATE)
    page = page_of(4, 512)
    frame = make(4, page)
    parts = [encoder.begin(), encoder.frame(4, frame, page), encoder.finish()]
    assert parts[1] == frame
    assert b"".join(parts) == File(commit=9, min_txid=2, max_txid=2, pages=[(4, page)], frames=[frame]).write()


PAGE = page_of(4, 512)
FRAME = block_frame(4, PAGE)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        FRAME[:9],
        FRAME[:-1],
        FRAME + b"\0",
        block_frame(5, PAGE),
        FRAME[:5] + b"\3" + FRAME[6:],
        FRAME[:5] + b"\0" + FRAME[6:] + bytes(70000),
    ],
    ids=["empty", "cut header", "cut", "too long", "of another page", "with unknown flags", "too large"],
)
def test_bytes_that_are_no_frame_are_refused(frame: bytes):
    with pytest.raises(LTXFormatError, match="no frame of page 4"):
        encoder_for(UPDATE).frame(4, frame, PAGE)


def test_frame_is_held_to_the_same_order_as_a_page():
    encoder = encoder_for(UPDATE)
    encoder.page(4, PAGE)
    with pytest.raises(LTXFormatError, match="page 4 comes after page 4"):
        encoder.frame(4, FRAME, PAGE)


def test_views_are_taken():
    assert encode_file(UPDATE, [(4, memoryview(PAGE))]) == encode_file(UPDATE, [(4, PAGE)])


def test_no_page_makes_a_frame_that_readers_would_refuse():
    incompressible = lz4.frame.compress(bytes(range(256)) * 300)[:512].ljust(512, b"\xa5")
    assert decode_file(encode_file(UPDATE, [(4, incompressible)])).page(4) == incompressible


@pytest.mark.parametrize("path", sorted(ORDERS.glob("*.ltx")), ids=lambda path: path.stem[-4:])
def test_files_of_litestream_are_encoded_again_to_files_that_verify_and_hold_the_same_pages(path: Path) -> None:
    theirs = decode_file(path.read_bytes())
    ours = decode_file(encode_file(theirs.header, theirs.pages()))
    assert ours.header == theirs.header  # the checksum can differ: it covers the sizes of the compressed pages
    assert list(ours.pages()) == list(theirs.pages())
