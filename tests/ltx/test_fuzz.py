"""Any bytes give the right pages or an LTXFormatError, and every way of reading comes to the same verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from litevfs.errors import LTXFormatError
from litevfs.ltx import (
    StreamDecoder,
    decode_file,
    decode_frame,
    decode_page_index,
    read_header_and_index,
    tail_size_needed,
)
from tests.ltx.reference import BIT_63, File, block_frame, old_frame, page_of, snapshot_with_checksums

PAGES = [(pgno, page_of(pgno, 512)) for pgno in (2, 4, 5)]
SEEDS = {
    "snapshot": File().write(),
    "snapshot with checksums": snapshot_with_checksums(commit=2).write(),
    "update": File(commit=9, min_txid=5, max_txid=7, pages=PAGES).write(),
    "update with checksums": File(
        commit=9, min_txid=5, max_txid=7, pages=PAGES, flags=0, pre=BIT_63 | 1, post=BIT_63 | 2
    ).write(),
    "old frames": File(frames=[old_frame(pgno, page_of(pgno, 512)) for pgno in (1, 2, 3)]).write(),
    "no pages": File(commit=0).write(),
    "by Go": (Path(__file__).parent / "written_by_go" / "v0.5.3.ltx").read_bytes(),
}


def verdict_of_decode_file(data: bytes):
    try:
        file = decode_file(data)
        return file.header, list(file.pages()), file.trailer
    except LTXFormatError:
        return None


def verdict_of_stream(data: bytes, piece: int):
    decoder = StreamDecoder()
    try:
        pages = [page for start in range(0, len(data), piece) for page in decoder.feed(data[start : start + piece])]
        return decoder.header, pages, decoder.finish()
    except LTXFormatError:
        return None


def check_ends(data: bytes) -> None:
    try:
        needed = tail_size_needed(data, len(data))
        header, index, _ = read_header_and_index(data, data[-needed:], len(data))
    except LTXFormatError:
        return
    for pgno, offset, size in zip(index.pgnos.tolist(), index.offsets.tolist(), index.sizes.tolist(), strict=True):
        try:
            assert len(decode_frame(data[offset : offset + size], pgno, header.page_size)) == header.page_size
        except LTXFormatError:
            continue


@st.composite
def damaged(draw) -> tuple[bytes, bytes]:
    """A sound file, and the same with a few bits flipped, bytes changed, cut out, put in or moved."""
    original = draw(st.sampled_from(sorted(SEEDS)).map(SEEDS.__getitem__))
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 40))
        kind = draw(st.sampled_from(["flip", "set", "delete", "insert", "repeat", "truncate", "zero"]))
        if kind == "flip" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and start < len(data):
            data[start] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "delete":
            del data[start : start + size]
        elif kind == "insert":
            data[start:start] = draw(st.binary(max_size=40))
        elif kind == "repeat":
            data[start:start] = data[start : start + size]
        elif kind == "truncate":
            del data[start:]
        elif kind == "zero":
            data[start : start + size] = bytes(len(data[start : start + size]))
    return original, bytes(data)


@pytest.mark.plan("K10")
@settings(max_examples=200)
@given(damaged(), st.integers(1, 700))
@pytest.mark.slow
def test_damaged_file_is_refused_or_gives_the_same_pages(files: tuple[bytes, bytes], piece: int):
    original, data = files
    verdict = verdict_of_decode_file(data)
    assert verdict in (None, verdict_of_decode_file(original))
    assert verdict_of_stream(data, piece) == verdict
    check_ends(data)


@pytest.mark.plan("K10")
@pytest.mark.parametrize("name", ["update with checksums", "old frames"])
def test_every_flipped_bit_is_refused_or_gives_the_same_pages(name: str):
    original = verdict_of_decode_file(SEEDS[name])
    assert original is not None
    for position in range(len(SEEDS[name])):
        data = bytearray(SEEDS[name])
        data[position] ^= 1 << position % 8
        assert verdict_of_decode_file(bytes(data)) in (None, original)
        assert verdict_of_stream(bytes(data), len(data)) in (None, original)


@settings(max_examples=100)
@given(st.binary(max_size=300), st.integers(1, 300))
@example(b"", 1)
@example(bytes(200), 1)
@example(b"\xff" * 200, 1)
def test_any_bytes_are_refused_as_a_file(data: bytes, piece: int):
    header = File(commit=9, min_txid=2, max_txid=2).header()
    for candidate in (data, header + data, header + bytes(6) + data):
        assert verdict_of_decode_file(candidate) is None
        assert verdict_of_stream(candidate, piece) is None
        check_ends(candidate)


@settings(max_examples=150)
@given(st.binary(max_size=200), st.sampled_from([512, 4096, 65536]))
def test_any_bytes_are_a_page_or_refused_as_a_frame(data: bytes, page_size: int):
    sized = b"\0\0\0\1\0\1" + len(data).to_bytes(4, "big") + data
    unsized = b"\0\0\0\1\0\0\x04\x22\x4d\x18" + data
    for candidate in (data, sized, unsized, memoryview(sized), memoryview(unsized)):
        try:
            assert len(decode_frame(candidate, 1, page_size)) == page_size
        except LTXFormatError:
            continue


@settings(max_examples=150)
@given(st.sampled_from([block_frame, old_frame]), st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_damaged_frame_is_refused_or_gives_a_whole_page(make, position: int, replacement: bytes):
    frame = make(1, PAGES[0][1])
    position %= len(frame)
    data = frame[:position] + replacement + frame[position + len(replacement) :]
    try:
        assert len(decode_frame(data, 1, 512)) == 512
    except LTXFormatError:
        pass


@settings(max_examples=100)
@given(st.binary(max_size=100))
def test_any_bytes_are_an_index_or_refused(data: bytes):
    for candidate in (data, data + len(data).to_bytes(8, "big"), data + b"\0" + (len(data) + 1).to_bytes(8, "big")):
        try:
            decode_page_index(candidate)
        except LTXFormatError:
            continue
