from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import lz4.block
import lz4.frame
import pytest

from litevfs.errors import LTXChecksumError, LTXFormatError
from litevfs.ltx import (
    StreamDecoder,
    decode_file,
    decode_frame,
    format_file_name,
    read_header_and_index,
    tail_size_needed,
)
from tests.ltx.reference import (
    BIT_63,
    PAGE_SIZES,
    File,
    block_frame,
    old_frame,
    page_of,
    snapshot_with_checksums,
    varint,
)

BY_GO = Path(__file__).parent / "written_by_go"
ORDERS = sorted(Path(__file__).parents[1].glob("fixtures/orders/replica/ltx/0/*.ltx"))


def read_whole(data: bytes):
    file = decode_file(data)
    return file.header, list(file.pages()), file.trailer


def read_view(data: bytes):
    return read_whole(memoryview(data))


def read_stream(pieces):
    decoder = StreamDecoder()
    pages = [page for piece in pieces for page in decoder.feed(piece)]
    trailer = decoder.finish()
    return decoder.header, pages, trailer


def read_stream_whole(data: bytes):
    return read_stream([data])


def read_stream_by_byte(data: bytes):
    return read_stream(data[i : i + 1] for i in range(len(data)))


READERS = [read_whole, read_view, read_stream_whole, read_stream_by_byte]


@pytest.fixture(params=READERS, ids=lambda reader: reader.__name__)
def read(request):
    return request.param


def update(**fields) -> File:
    """A file that is no snapshot: commit 9, pages 2, 4 and 5, with checksums unless `flags` says otherwise."""
    pages = [(pgno, page_of(pgno, 512)) for pgno in (2, 4, 5)]
    return File(**{"commit": 9, "min_txid": 5, "max_txid": 7, "pages": pages, **fields})


PAGE = page_of(1, 512)
GOOD = {
    "snapshot": File(),
    "snapshot with checksums": snapshot_with_checksums(),
    "update": update(),
    "update with checksums": update(flags=0, pre=BIT_63 | 77, post=BIT_63 | 99),
    "old frames": File(frames=[old_frame(pgno, page_of(pgno, 512)) for pgno in (1, 2, 3)]),
    "both kinds of frames": File(commit=2, frames=[old_frame(1, page_of(1, 512)), block_frame(2, page_of(2, 512))]),
    "no pages": File(commit=0),
    "no pages, with checksums": File(commit=0, flags=0, post=BIT_63),
    "update without pages": update(pages=[]),
    "page that does not compress": File(commit=1, pages=[(1, bytes(range(256)) * 2)]),
    "first and last TXID": File(max_txid=2**64 - 1),
    "page 2**32-1": update(commit=2**32 - 1, pages=[(2**32 - 1, PAGE)]),
    "around the lock page": File(
        page_size=65536, commit=16386, min_txid=2, max_txid=2, pages=[(n, page_of(n, 65536)) for n in (16384, 16386)]
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_sound_file_is_read_in_every_way(read, name: str):
    file = GOOD[name]
    data = file.write()
    header, pages, trailer = read(data)
    assert pages == file.all_pages
    assert (header.page_size, header.commit, header.min_txid, header.max_txid, header.timestamp_ms) == (
        file.page_size,
        file.commit,
        file.min_txid,
        file.max_txid,
        file.timestamp_ms,
    )
    assert header.has_checksums == (file.flags == 0)
    assert (header.pre_apply_checksum, trailer.post_apply_checksum) == (file.pre, file.post)
    assert trailer.file_checksum == int.from_bytes(data[-8:], "big")


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("more", [b"\0", b"LTX1", bytes(100)], ids=["zero", "magic", "100 zeros"])
def test_trailing_data_is_refused(read, name: str, more: bytes):
    with pytest.raises(LTXFormatError):
        read(GOOD[name].write() + more)


@pytest.mark.plan("L27")
@pytest.mark.parametrize("read_file", [read_whole, read_stream_whole])
@pytest.mark.parametrize("name", ["snapshot with checksums", "update", "old frames", "no pages"])
def test_every_truncation_is_refused(read_file, name: str):
    data = GOOD[name].write()
    for size in range(len(data)):
        with pytest.raises(LTXFormatError):
            read_file(data[:size])


def index_of(file: File) -> list[tuple[int, int, int]]:
    entries, offset = [], 100
    for pgno, page in file.all_pages:
        entries.append((pgno, offset, len(block_frame(pgno, page))))
        offset += entries[-1][2]
    return entries


def varints(entries) -> bytes:
    return b"".join(varint(value) for entry in entries for value in entry)


INDEX = index_of(File())
BLOCK = lz4.block.compress(PAGE, store_size=False)


def one_page(frame: bytes) -> File:
    return File(commit=1, frames=[frame])


def sized(block: bytes, size: int | None = None, flags: int = 1) -> bytes:
    return struct.pack(">IHI", 1, flags, len(block) if size is None else size) + block


def unsized(data: bytes) -> bytes:
    return struct.pack(">IH", 1, 0) + data


# One deviation each; what both ways of reading must say about it.
BAD = {
    "magic": (File(magic=b"LTX0"), "not an LTX file"),
    "header flags": (File(flags=4), "unknown flags"),
    "page size": (File(page_size=1000, pages=[(n, bytes(1000)) for n in (1, 2, 3)]), "page size 1000"),
    "txid order": (File(min_txid=3, max_txid=2), "TXIDs"),
    "page 0": (update(pages=[(0, PAGE)]), "page number|within 1"),
    "page twice": (update(pages=[(3, PAGE), (3, PAGE)]), "do not ascend|comes after"),
    "pages descend": (update(pages=[(4, PAGE), (3, PAGE)]), "do not ascend|comes after"),
    "page above commit": (update(commit=4), "commit 4"),
    "lock page": (
        File(page_size=65536, commit=20000, min_txid=2, max_txid=2, pages=[(16385, bytes(65536))]),
        "lock page",
    ),
    "snapshot without its first page": (File(pages=[(2, PAGE), (3, PAGE)]), "snapshot"),
    "snapshot with a gap": (File(pages=[(1, PAGE), (3, PAGE)]), "snapshot"),
    "snapshot without its last page": (File(pages=[(1, PAGE), (2, PAGE)]), "snapshot"),
    "frame flags": (one_page(sized(BLOCK, flags=3)), "unknown flags"),
    "frame says too little": (one_page(sized(BLOCK, len(BLOCK) - 1)), "LTX"),
    "frame says too much": (one_page(sized(BLOCK, len(BLOCK) + 1)), "LTX"),
    "frame says 4 GiB": (one_page(sized(BLOCK, 2**32 - 1)), "damaged LTX frame of page 1: it says"),
    "frame without data": (one_page(sized(b"")), "LZ4 block"),
    "block of a short page": (one_page(sized(lz4.block.compress(PAGE[:-1], store_size=False))), "LZ4 block of 512"),
    "block of a long page": (one_page(sized(lz4.block.compress(PAGE + b"x", store_size=False))), "LZ4 block of 512"),
    "block that is a bomb": (one_page(sized(lz4.block.compress(bytes(10**6), store_size=False))), "LZ4 block of 512"),
    "LZ4 frame of a short page": (one_page(unsized(lz4.frame.compress(PAGE[:-1]))), "exactly 512"),
    "LZ4 frame of a long page": (one_page(unsized(lz4.frame.compress(PAGE + b"x"))), "exactly 512"),
    "LZ4 frame that is a bomb": (one_page(unsized(lz4.frame.compress(bytes(10**7)))), "exactly 512"),
    "LZ4 frame with a wrong checksum": (
        one_page(unsized(lz4.frame.compress(PAGE, content_checksum=True)[:-1] + b"\xff")),
        "LZ4 frame is damaged",
    ),
    "not an LZ4 frame": (one_page(unsized(b"\x50\x2a\x4d\x18" + bytes(4))), "not an LZ4 frame"),
    "no end of pages": (File(end=b""), "LTX"),
    "end of pages not zero": (File(end=b"\0\0\0\0\0\1"), "six zero bytes|LTX frame of page 0"),
    "index without its last entry": (File(index=INDEX[:-1]), "index"),
    "index with an entry more": (File(index=[*INDEX, (4, 5000, 100)]), "index"),
    "index with pages swapped": (File(index=[INDEX[1], INDEX[0], INDEX[2]]), "index"),
    "index with another page": (File(index=[*INDEX[:2], (4, *INDEX[2][1:])], commit=4), "LTX"),
    "index off by one": (File(index=[(n, offset + 1, size) for n, offset, size in INDEX]), "index"),
    "index with moved border": (
        File(index=[(1, 100, INDEX[0][2] + 1), (2, INDEX[1][1] + 1, INDEX[1][2] - 1), INDEX[2]]),
        "LTX",
    ),
    "index ends early": (File(index_data=varints(INDEX[:2]) + b"\0" + varints(INDEX[2:]) + b"\0"), "index"),
    "index without its zero": (File(index_data=varints(INDEX)), "index"),
    "index with a zero more": (File(index_data=varints(INDEX) + b"\0\0"), "index"),
    "index with a padded varint": (File(index_data=b"\x81\0" + varints(INDEX)[1:] + b"\0"), "index"),
    "index size too small": (File(index_size=len(varints(INDEX))), "index"),
    "index size too large": (File(index_size=len(varints(INDEX)) + 2), "index"),
    "index size 2**64-1": (File(index_size=2**64 - 1), "index"),
    "file checksum": (File(checksum=BIT_63 | 1), "file checksum is"),
    "file checksum without bit 63": (File(checksum=1), "bit 63"),
    "post-apply checksum not wanted": (File(post=BIT_63), "without checksums"),
    "post-apply checksum missing": (File(flags=0), "bit 63"),
    "post-apply checksum of an empty database": (File(commit=0, flags=0, post=BIT_63 | 1), "empty database"),
    "post-apply checksum of another database": (File(flags=0, post=BIT_63 | 1), "database checksum is"),
    "pre-apply checksum missing": (update(flags=0, post=BIT_63), "pre-apply"),
}


@pytest.mark.slow
@pytest.mark.plan("L27", "L28", "K10")
@pytest.mark.parametrize("name", BAD)
def test_one_deviation_is_refused_in_every_way(read, name: str):
    file, message = BAD[name]
    with pytest.raises(LTXFormatError, match=message):
        read(file.write())


@pytest.mark.parametrize("name", ["file checksum", "post-apply checksum of another database"])
def test_wrong_checksum_has_its_own_error(read, name: str):
    with pytest.raises(LTXChecksumError) as caught:
        read(BAD[name][0].write())
    assert (caught.value.min_txid, caught.value.max_txid) == (1, 1)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("make", [block_frame, old_frame])
def test_frame_gives_its_page(page_size: int, make):
    page = page_of(7, page_size)
    frame = make(7, page)
    assert decode_frame(frame, 7, page_size) == page
    assert decode_frame(memoryview(frame), 7, page_size) == page


@pytest.mark.parametrize("make", [block_frame, old_frame])
def test_frame_of_another_page_is_refused(make):
    with pytest.raises(LTXFormatError, match="damaged LTX frame of page 8: its header says page 7"):
        decode_frame(make(7, PAGE), 8, 512)


@pytest.mark.parametrize("make", [block_frame, old_frame])
def test_frame_that_is_cut_or_too_long_is_refused(make):
    frame = make(7, PAGE)
    for wrong in [frame[:size] for size in range(len(frame))] + [frame + b"\0", frame + frame]:
        with pytest.raises(LTXFormatError):
            decode_frame(wrong, 7, 512)


@pytest.mark.plan("K10")
@pytest.mark.parametrize(
    "frame",
    [
        sized(lz4.block.compress(bytes(10**8), store_size=False)),
        unsized(lz4.frame.compress(bytes(10**8))),
        unsized(b"\x04\x22\x4d\x18\x6c\x40" + (2**62).to_bytes(8, "little") + bytes(100)),
        sized(BLOCK, 2**32 - 1),
    ],
    ids=["block", "frame", "frame says 2**62 bytes", "4 GiB to come"],
)
def test_bomb_takes_no_memory(frame: bytes):
    file = one_page(frame).write()
    tracemalloc.start()
    try:
        with pytest.raises(LTXFormatError):
            decode_frame(frame, 1, 512)
        with pytest.raises(LTXFormatError):
            decode_file(file)
        with pytest.raises(LTXFormatError):
            read_stream(file[i : i + 4096] for i in range(0, len(file), 4096))
        assert tracemalloc.get_traced_memory()[1] < 3 * len(frame) + 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("version", ["v0.5.3", "v0.5.1"])
def test_file_written_by_go_is_read(read, version: str):
    header, pages, trailer = read((BY_GO / f"{version}.ltx").read_bytes())
    assert b"".join(page for _, page in pages) == (BY_GO / "database.db").read_bytes()
    assert [pgno for pgno, _ in pages] == [1, 2, 3, 4]
    assert header.has_checksums
    assert trailer.post_apply_checksum & BIT_63


def test_version_2_is_named(read):
    with pytest.raises(LTXFormatError, match=r"version 2 of the format.*hint.*old Litestream or LiteFS"):
        read((BY_GO / "v0.4.0.ltx").read_bytes())


def test_version_2_is_named_for_a_frame_and_for_the_ends_of_a_file():
    data = (BY_GO / "v0.4.0.ltx").read_bytes()
    with pytest.raises(LTXFormatError, match="version 2"):
        decode_frame(data[100:300], 1, 512)
    with pytest.raises(LTXFormatError, match="version 2"):
        read_header_and_index(data[:200], data[-tail_size_needed(data, len(data)) :], len(data))


def test_version_1_is_refused(read):
    with pytest.raises(LTXFormatError, match=r"hint: .*version"):
        read((BY_GO / "v0.3.18.ltx").read_bytes())


@pytest.mark.parametrize("path", ORDERS, ids=lambda path: path.stem[-2:])
def test_file_written_by_litestream_is_read(path: Path):
    data = path.read_bytes()
    header, pages, trailer = read_whole(data)
    assert path.name == format_file_name(header.min_txid, header.max_txid)
    assert (header, pages, trailer) == read_stream_whole(data)
    assert all(len(page) == header.page_size for _, page in pages)


def test_litestream_files_are_there():
    assert len(ORDERS) == 12


def test_page_is_found_by_its_number():
    file = decode_file(update().write())
    assert file.page(4) == page_of(4, 512)
    for missing in (1, 3, 6, 2**32):
        with pytest.raises(KeyError):
            file.page(missing)


def test_ends_of_a_file_give_header_index_and_trailer():
    data = snapshot_with_checksums(commit=40).write()
    whole = decode_file(data)
    needed = tail_size_needed(data[-24:], len(data))
    for tail_size in (needed, needed + 1, len(data)):
        header, index, trailer = read_header_and_index(data[:100], data[-tail_size:], len(data))
        assert (header, trailer) == (whole.header, whole.trailer)
        places = zip(index.pgnos.tolist(), index.offsets.tolist(), index.sizes.tolist(), strict=True)
        pages = [(pgno, decode_frame(data[offset : offset + size], pgno, 512)) for pgno, offset, size in places]
        assert pages == list(whole.pages())


def test_tail_that_is_too_short_is_the_callers_mistake():
    data = File().write()
    needed = tail_size_needed(data[-24:], len(data))
    for size in (24, needed - 1):
        with pytest.raises(ValueError, match=f"a tail of {needed} bytes is needed") as caught:
            read_header_and_index(data[:100], data[-size:], len(data))
        assert not isinstance(caught.value, LTXFormatError)


def test_ends_that_do_not_fit_the_size_of_the_file_are_refused():
    data = File().write()
    for size in (len(data) - 1, len(data) + 1, len(data) * 2, 10**15):
        with pytest.raises(LTXFormatError):
            read_header_and_index(data[:100], data, size)


@pytest.mark.parametrize("size", [0, 23, 24, 123, 129])
def test_tail_of_a_file_too_small_for_an_index_is_refused(size: int):
    with pytest.raises(LTXFormatError):
        tail_size_needed(bytes(size), size)


def test_header_is_known_once_its_bytes_were_fed():
    data = File().write()
    decoder = StreamDecoder()
    decoder.feed(data[:99])
    assert decoder.header is None
    decoder.feed(data[99:100])
    assert decoder.header is not None
    assert decoder.header.commit == 3


def test_stream_that_goes_on_after_its_end_is_refused_at_once():
    decoder = StreamDecoder()
    decoder.feed(File().write())
    with pytest.raises(LTXFormatError, match="goes on where"):
        decoder.feed(b"x")


def test_finish_can_be_asked_again():
    decoder = StreamDecoder()
    decoder.feed(File().write())
    assert decoder.finish() == decoder.finish()
